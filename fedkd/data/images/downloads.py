"""Torchvision's data sets, downloaded if they are missing."""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fedkd.core.errors import MissingResourceError, in_one_line
from fedkd.core.storage import cache_dir
from fedkd.data.images.image_set import ImageSet
from fedkd.data.sources import ImageSource


@dataclass(frozen=True)
class _TorchvisionSource(ImageSource):
    """A data set of torchvision with the class's name. Its pixel array is read directly.

    Args:
        root: The folder of the data set; by default ``datasets`` in fedkd's cache.
        download: Whether to download the data set if it is missing.
    """

    root: str | Path | None = None
    download: bool = True

    files: ClassVar[str]  # what the root must contain
    url: ClassVar[str]  # where it can be downloaded by hand

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set."""
        return self._read(train=True), self._read(train=False)

    def _read(self, train: bool) -> ImageSet:
        import torchvision.datasets

        name = type(self).__name__
        root = Path(self.root).expanduser() if self.root is not None else cache_dir("datasets")
        try:
            with _quiet():
                dataset = getattr(torchvision.datasets, name)(root, train=train, download=self.download)
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = f"could not be downloaded ({in_one_line(error)})" if self.download else "download is off"
            raise MissingResourceError(
                f"{name} is not in {root}, and {reason}. Put {self.files} (from {self.url}) there, or set root to the "
                "folder that has it."
            ) from error
        return ImageSet(_pixels(dataset.data), torch.as_tensor(dataset.targets).long(), tuple(dataset.classes))


@dataclass(frozen=True)
class CIFAR10(_TorchvisionSource):
    """CIFAR-10: 50,000 + 10,000 color images of 32x32 in 10 classes (Krizhevsky 2009).

    Args:
        root: The folder with ``cifar-10-batches-py``; by default ``datasets`` in fedkd's cache.
        download: Whether to download it if it is missing (163 MiB).
    """

    files: ClassVar[str] = "the folder cifar-10-batches-py"
    url: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


@dataclass(frozen=True)
class CIFAR100(_TorchvisionSource):
    """CIFAR-100: 50,000 + 10,000 color images of 32x32 in 100 classes (Krizhevsky 2009).

    Args:
        root: The folder with ``cifar-100-python``; by default ``datasets`` in fedkd's cache.
        download: Whether to download it if it is missing (161 MiB).
    """

    files: ClassVar[str] = "the folder cifar-100-python"
    url: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"


@dataclass(frozen=True)
class FashionMNIST(_TorchvisionSource):
    """Fashion-MNIST: 60,000 + 10,000 grayscale images of 28x28 in 10 classes (arXiv 1708.07747).

    Args:
        root: The folder with ``FashionMNIST/raw``; by default ``datasets`` in fedkd's cache.
        download: Whether to download it if it is missing (30 MiB).
    """

    files: ClassVar[str] = "the four unpacked idx files in FashionMNIST/raw"
    url: ClassVar[str] = "https://github.com/zalandoresearch/fashion-mnist"


def _pixels(data: Any) -> torch.Tensor:
    """Convert torchvision's array to a tensor: (N, H, W, C) or (N, H, W) -> (N, C, H, W)."""
    images = torch.from_numpy(np.asarray(data))
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torchvision's prints, and its progress bar where there is no terminal."""
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
