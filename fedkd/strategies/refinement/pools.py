"""The unlabeled images that a server works on."""

from __future__ import annotations

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.data import FederatedDataModule
from fedkd.strategies.context import Which


def check_pool(which: Which, datamodule: FederatedDataModule) -> None:
    """Raise unless a run has these unlabeled images.

    Args:
        which: "public" is the public split, "shared" what ``data.shared`` gives to all clients.
        datamodule: Set up.

    Raises:
        FedKDError: If there are no such images.
    """
    if which == "public":
        if not len(datamodule.public_indices):
            if datamodule.public_fraction:
                raise FedKDError(
                    f"data.public_fraction {datamodule.public_fraction:g} of the training images is not one image: set "
                    "a larger fraction, such as 0.2, or 0 for none."
                )
            raise FedKDError("There are no public images: set data.public_fraction above 0, such as to 0.2.")
    elif which != "shared":
        raise unknown_name("images", which, ("public", "shared"))
    elif datamodule.shared_images is None:
        raise FedKDError("There are no shared images: set data.shared, such as to PublicImages.")
