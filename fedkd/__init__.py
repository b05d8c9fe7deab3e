"""Federated distillation: a frozen foundation model teaches one lightweight student on every client.

>>> module = fedkd.DistillationModule("resnet8", teacher="dinov2-s")
>>> data = fedkd.FederatedDataModule(fedkd.data.CIFAR10(), num_clients=10)
>>> fedkd.Federation(rounds=20).fit(module, data)
"""

from fedkd import data, losses, partition, strategies, students, teachers
from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.data import FederatedDataModule
from fedkd.losses import DKD, KD, DistillationLoss
from fedkd.runs.directory import load_student
from fedkd.server.backends import Backend, InProcess
from fedkd.server.federation import Federation
from fedkd.server.mutual import MutualFederation
from fedkd.strategies import FedAvg, Strategy
from fedkd.teachers import Teacher
from fedkd.training.module import DistillationModule

__version__ = "0.1.0"

__all__ = [
    "DKD",
    "KD",
    "Backend",
    "DistillationLoss",
    "DistillationModule",
    "FedAvg",
    "FedKDError",
    "FederatedDataModule",
    "Federation",
    "InProcess",
    "MissingResourceError",
    "MutualFederation",
    "Strategy",
    "Teacher",
    "data",
    "load_student",
    "losses",
    "partition",
    "strategies",
    "students",
    "teachers",
]
