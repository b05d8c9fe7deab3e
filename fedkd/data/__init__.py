"""Images kept once on the CPU, dealt out to clients as indices, and batched on the training device."""

from fedkd.data.augmentation import Augmentation
from fedkd.data.datamodule import FederatedDataModule
from fedkd.data.dead_leaves import DeadLeaves
from fedkd.data.downloads import CIFAR10, CIFAR100, FashionMNIST
from fedkd.data.folder import ImageFolder
from fedkd.data.images import ImageSet
from fedkd.data.loader import Batch, BatchLoader
from fedkd.data.shared import PublicImages, SharedImages, Unlabelled
from fedkd.data.shared_folder import FolderImages
from fedkd.data.sources import Datasets, Digits, ImageSource, Subset
from fedkd.data.views import Views

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Augmentation",
    "Batch",
    "BatchLoader",
    "Datasets",
    "DeadLeaves",
    "Digits",
    "FashionMNIST",
    "FederatedDataModule",
    "FolderImages",
    "ImageFolder",
    "ImageSet",
    "ImageSource",
    "PublicImages",
    "SharedImages",
    "Subset",
    "Unlabelled",
    "Views",
]
