"""Federated distillation: a frozen foundation model teaches one lightweight student on every client.

>>> module = fedkd.DistillationModule("resnet8", teacher="dinov2-s")
>>> data = fedkd.FederatedDataModule(fedkd.data.CIFAR10(), num_clients=10)
>>> fedkd.Federation(rounds=20).fit(module, data)
"""

from typing import TYPE_CHECKING

from fedkd.core.lazy import lazy_names

if TYPE_CHECKING:
    from fedkd import data, losses, partition, strategies, students, teachers
    from fedkd.client.works import train
    from fedkd.core.errors import FedKDError, MissingResourceError
    from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState, Weights
    from fedkd.data import ClientSite, FederatedDataModule
    from fedkd.losses import DKD, KD, DistillationLoss
    from fedkd.runs.student_file import load_student
    from fedkd.server.backends import Backend, ClientError, InProcess, ProcessPool, Stacked, Workers
    from fedkd.server.callbacks import ClientTable, EarlyStopping, RoundCallback, SaveBest
    from fedkd.server.exchange import Exchange
    from fedkd.server.federation import Federation
    from fedkd.server.lr_schedule import CosineSchedule, ExponentialSchedule, LearningRateSchedule, StepSchedule
    from fedkd.strategies import FedAvg, Strategy
    from fedkd.study.comparison import report
    from fedkd.teachers import Teacher
    from fedkd.training.module import DistillationModule

__version__ = "0.1.0"

# Where each public name lives. A module is imported when one of its names is first used, so `import fedkd` is quick.
_HOMES = {
    "fedkd.client.works": ("train",),
    "fedkd.core.errors": ("FedKDError", "MissingResourceError"),
    "fedkd.core.messages": ("ClientTask", "ClientUpdate", "LocalRule", "ServerState", "Weights"),
    "fedkd.data": ("ClientSite", "FederatedDataModule"),
    "fedkd.losses": ("DKD", "KD", "DistillationLoss"),
    "fedkd.runs.student_file": ("load_student",),
    "fedkd.server.backends": ("Backend", "ClientError", "InProcess", "ProcessPool", "Stacked", "Workers"),
    "fedkd.server.callbacks": ("ClientTable", "EarlyStopping", "RoundCallback", "SaveBest"),
    "fedkd.server.lr_schedule": ("CosineSchedule", "ExponentialSchedule", "LearningRateSchedule", "StepSchedule"),
    "fedkd.server.exchange": ("Exchange",),
    "fedkd.server.federation": ("Federation",),
    "fedkd.strategies": ("FedAvg", "Strategy"),
    "fedkd.study.comparison": ("report",),
    "fedkd.teachers": ("Teacher",),
    "fedkd.training.module": ("DistillationModule",),
}
_PACKAGES = ("data", "losses", "partition", "server", "strategies", "students", "teachers")

__all__ = [
    "DKD",
    "KD",
    "Backend",
    "ClientError",
    "ClientSite",
    "ClientTable",
    "ClientTask",
    "ClientUpdate",
    "CosineSchedule",
    "DistillationLoss",
    "DistillationModule",
    "EarlyStopping",
    "Exchange",
    "ExponentialSchedule",
    "FedAvg",
    "FedKDError",
    "FederatedDataModule",
    "Federation",
    "InProcess",
    "LearningRateSchedule",
    "LocalRule",
    "MissingResourceError",
    "ProcessPool",
    "RoundCallback",
    "SaveBest",
    "ServerState",
    "Stacked",
    "StepSchedule",
    "Strategy",
    "Teacher",
    "Weights",
    "Workers",
    "data",
    "load_student",
    "losses",
    "partition",
    "report",
    "strategies",
    "students",
    "teachers",
    "train",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _PACKAGES)
