"""Images kept once on the CPU, dealt out to clients as indices, and batched on the training device."""

from fedkd.data.datamodule import FederatedDataModule
from fedkd.data.images.augmentation import Augmentation
from fedkd.data.images.dead_leaves import DeadLeaves
from fedkd.data.images.downloads import CIFAR10, CIFAR100, FashionMNIST
from fedkd.data.images.folder import ImageFolder
from fedkd.data.images.hf_dataset import HFDataset
from fedkd.data.images.image_csv import ImageCSV
from fedkd.data.images.image_set import ImageSet
from fedkd.data.images.mix import CutMix, MixUp
from fedkd.data.images.shared_folder import FolderImages
from fedkd.data.images.views import Views
from fedkd.data.loader import Batch, BatchLoader
from fedkd.data.pool import Pool
from fedkd.data.rows import MappedRows, Rows
from fedkd.data.shared import PublicImages, SharedImages, Unlabeled
from fedkd.data.site import Batching, ClientSite, SimulatedSites
from fedkd.data.sources import Datasets, Digits, ImageSource, Subset

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Augmentation",
    "Batch",
    "BatchLoader",
    "Batching",
    "ClientSite",
    "CutMix",
    "Datasets",
    "DeadLeaves",
    "Digits",
    "FashionMNIST",
    "FederatedDataModule",
    "FolderImages",
    "HFDataset",
    "ImageCSV",
    "ImageFolder",
    "ImageSet",
    "ImageSource",
    "MappedRows",
    "MixUp",
    "Pool",
    "PublicImages",
    "Rows",
    "SharedImages",
    "SimulatedSites",
    "Subset",
    "Unlabeled",
    "Views",
]
