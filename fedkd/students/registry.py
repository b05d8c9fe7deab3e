"""Students by name: the registry, and `create`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from fedkd.core.errors import FedKDError, check_range, unknown_name
from fedkd.core.registry import Registry
from fedkd.students.family import Family
from fedkd.students.huggingface_networks import HUGGINGFACE
from fedkd.students.timm_models import TIMM
from fedkd.students.torchvision_networks import TORCHVISION

FAMILIES: tuple[Family, ...] = (TORCHVISION, TIMM, HUGGINGFACE)
"""The libraries whose networks are students by ``PREFIX/NAME``."""

SMALLEST = 8
"""The shortest side of an image, in pixels."""

students: Registry[Callable[..., nn.Module]] = Registry("student")
"""Every student that has a name: a class or function that `create` calls with keyword arguments."""


FROM_DATA = frozenset({"num_classes", "in_channels", "image_size", "image_width"})
"""Arguments of `create` that follow from the data."""


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Return a decorator that adds a student under ``name``.

    It decorates a class or function that returns a module from images (B, C, H, W) in [0, 1] to logits (B, K). The
    class or function takes ``num_classes`` and may take ``in_channels``, ``image_size``, ``image_width`` (None where
    images are square), ``norm`` and its own options::

        @fedkd.students.register("linear")
        def linear(num_classes: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    Args:
        name: The name for `create`.

    Raises:
        FedKDError: If the name is already used.
    """
    return students.register(name)


def find(name: str) -> Callable[..., nn.Module]:
    """Return what makes the student of a name: an entry of `students`, or of one of the `FAMILIES`.

    Raises:
        FedKDError: If there is none. Whether a family has such a network is seen when it is made: see `check_name`.
    """
    if (family := family_of(name)) is not None:
        return functools.partial(family.make, name.removeprefix(family.prefix))
    if name not in students:
        raise _unknown(name)
    return students[name]


def family_of(name: str) -> Family | None:
    """Return the family that a name belongs to; None for a name out of `students`."""
    return next((family for family in FAMILIES if name.startswith(family.prefix)), None)


def check_name(name: str) -> None:
    """Raise unless there is a student of a name. What only a folder or a hub can tell is left to `check_source`.

    Raises:
        FedKDError: If there is none. The error names what is near.
    """
    if (family := family_of(name)) is None:
        find(name)
    else:
        family.check(name.removeprefix(family.prefix))


def check_source(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise unless what a student is made from is there, such as the folder of its configuration.

    Args:
        name: As for `create`.
        options: The student's own.

    Raises:
        MissingResourceError: If it is not there.
    """
    family = family_of(name)
    if family is not None and family.check_source is not None:
        family.check_source(name.removeprefix(family.prefix), **(options or {}))


def _unknown(name: str) -> FedKDError:
    """Build the error for a name of no student."""
    prefixes = [family.prefix for family in FAMILIES]
    first, slash, rest = name.partition("/")
    if slash:
        near = get_close_matches(first + slash, prefixes, n=1, cutoff=0.5)
        guess = near[0] + rest if near else HUGGINGFACE.prefix + name
        return FedKDError(
            f"Unknown student {name!r}. Did you mean {guess!r}? A name with a / begins with one of: "
            f"{', '.join(prefixes)}."
        )
    for family in FAMILIES:
        if family.names is not None and name in family.names():
            return FedKDError(f"Unknown student {name!r}. Did you mean {family.prefix + name!r}?")
    return unknown_name("student", name, [*students, *(f"{prefix}NAME" for prefix in prefixes)])


def portable(spec: Mapping[str, Any], student: nn.Module) -> dict[str, Any]:
    """Return the arguments of `create` that make a student again where its weights are given and no hub is.

    Args:
        spec: The arguments that made it.
        student: The student.
    """
    kept = {key: value for key, value in spec.items() if key != "pretrained"}  # the weights come with it
    family = family_of(spec["name"])
    return kept if family is None or family.portable is None else family.portable(kept, student)


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise if a student has not all of these options.

    Raises:
        FedKDError: If there is no such student, or no such option.
    """
    parameters = inspect.signature(find(name)).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise unknown_name(f"option of student {name!r}", option, set(parameters) - FROM_DATA)


def create(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    norm: str | None = None,
    image_width: int | None = None,
    **options: Any,
) -> nn.Module:
    """Create a student by name, with new weights that depend only on torch's global seed.

    Args:
        name: One of `students`, such as ``"resnet20"``; or ``torchvision/NAME``, ``timm/NAME`` or ``hf/ID``: see
            `fedkd.students.torchvision_networks`, `fedkd.students.timm_models` and
            `fedkd.students.huggingface_networks`.
        num_classes: K, the number of classes.
        in_channels: C, the channels of an image: 1 for gray, 3 for color.
        image_size: H in pixels, 8 or more; W too unless ``image_width`` is given.
        norm: ``"batch"`` or ``"group"``. None is the student's own default.
        image_width: W in pixels, of oblong images. A student whose function takes no such argument is made for H alone.
        options: Further options of this student, such as ``width`` of a CIFAR ResNet.

    Returns:
        A module from images (B, C, H, W), float in [0, 1], to logits (B, K).

    Raises:
        FedKDError: If the name, the norm, an option or a number is not allowed.
    """
    build = find(name)
    check_range("num_classes", num_classes, low=1, whole=True)
    check_range("in_channels", in_channels, low=1, whole=True)
    for side in (image_size, image_size if image_width is None else image_width):
        if isinstance(side, int) and side < SMALLEST:
            raise FedKDError(
                f"The student {name!r} takes images of {SMALLEST} pixels or more, got {image_size} x "
                f"{image_width or image_size}: make them larger."
            )
        check_range("image_size", side, low=SMALLEST, whole=True)
    requests = options if norm is None else {"norm": norm, **options}
    facts = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}

    check_options(name, requests)
    parameters = inspect.signature(build).parameters
    if image_width is not None and "image_width" in parameters:
        facts["image_width"] = image_width
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return build(**facts, **requests)
    # A fully convolutional student does not need the image size, so it need not accept it.
    return build(**{key: value for key, value in facts.items() if key in parameters}, **requests)
