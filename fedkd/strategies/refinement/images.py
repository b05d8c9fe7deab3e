"""The unlabelled images that a server works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.data.shared import Unlabelled

if TYPE_CHECKING:
    from fedkd.data import FederatedDataModule

Which = Literal["public", "shared"]


def choose_images(which: Which, datamodule: FederatedDataModule) -> Unlabelled:
    """Return images that belong to no client, without their labels.

    Args:
        which: "public" is the public split, "shared" what ``data.shared`` gives to all clients.
        datamodule: Set up.

    Raises:
        FedKDError: If there are no such images.
    """
    if which == "public":
        if not len(datamodule.public_indices):
            raise FedKDError("There are no public images: set data.public_fraction above 0, such as to 0.2.")
        return Unlabelled.of(datamodule.train.images, datamodule.classes, datamodule.public_indices)
    if which != "shared":
        raise unknown_name("images", which, ("public", "shared"))
    if datamodule.shared_images is None:
        raise FedKDError("There are no shared images: set data.shared, such as to PublicImages.")
    return datamodule.shared_images
