"""`UnbuiltStudent`: a student that is specified by name, before the data is known."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.students.registry import FROM_DATA, check_name, check_options, check_source, create


class UnbuiltStudent(nn.Module):
    """A student that is specified by name, before its number of classes and image shape are known.

    It has no parameters.

    Args:
        name: One of `fedkd.students.students`, or ``torchvision/NAME``, ``timm/NAME``, ``hf/ID``.
        options: The student's own options, such as ``{"norm": "group"}``.

    Raises:
        FedKDError: If the name is unknown, or the data determines one of the options.
    """

    def __init__(self, name: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        if taken := FROM_DATA & set(options or {}):
            raise FedKDError(f"student_options: {', '.join(sorted(taken))} come from the data; leave them out.")
        check_name(name)  # an unknown name raises here, before the data is read
        self.name, self.options = name, dict(options or {})

    def check_source(self) -> None:
        """Raise unless what the student is made from is there: a folder, or what a hub has.

        The constructor does not, because a finished run needs neither.
        """
        check_source(self.name, self.options)

    def spec(self, num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return the arguments of `fedkd.students.create` for K classes of images (C, H, W)."""
        channels, height, width = image_shape
        facts = {"num_classes": num_classes, "in_channels": channels, "image_size": height}
        if width != height:
            facts["image_width"] = width
        return {"name": self.name, **self.options, **facts}

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """Return the student, with new weights that depend only on torch's global seed."""
        try:
            check_options(self.name, self.options)
        except FedKDError as error:
            raise FedKDError(f"student_options: {error}") from error
        try:
            return create(**self.spec(num_classes, image_shape))
        except (RuntimeError, TypeError, ValueError) as error:  # torch raises the first if the memory is too small
            if not self.options:
                raise
            if not isinstance(error, FedKDError):
                raise FedKDError(f"student_options {self.options}: {self.name} cannot be built so: {error}") from error
            named = [name for name in self.options if re.match(rf"(?:Unknown )?{re.escape(name)}\b", str(error))]
            if not named:
                raise
            begins = str(error).startswith(named[0])
            raise FedKDError(f"student_options.{'' if begins else f'{named[0]}: '}{error}") from error

    def forward(self, images: Tensor) -> NoReturn:
        """Raise an error, because the student is not built yet."""
        raise FedKDError(
            f"The student {self.name!r} is not built yet: call module.build(classes, image_shape) first, or pass a "
            "FederatedDataModule."
        )
