"""Federated algorithms, one file each."""

from fedkd.strategies.adaptive import FedAdagrad, FedAdam, FedYogi
from fedkd.strategies.base import Strategy
from fedkd.strategies.combine import Combine
from fedkd.strategies.coordinatewise import CoordinateMedian, TrimmedMean
from fedkd.strategies.default import default_strategy
from fedkd.strategies.dp_fedavg import DPFedAvg
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.fedavgm import FedAvgM
from fedkd.strategies.fedbn import FedBN
from fedkd.strategies.feddf import FedDF
from fedkd.strategies.feddyn import FedDyn
from fedkd.strategies.fedgkd import FedGKD
from fedkd.strategies.fednova import FedNova
from fedkd.strategies.fedntd import FedNTD
from fedkd.strategies.fedprox import FedProx
from fedkd.strategies.geometric_median import GeometricMedian
from fedkd.strategies.krum import Krum, MultiKrum
from fedkd.strategies.moon import MOON
from fedkd.strategies.norm_clipping import NormClipping
from fedkd.strategies.pooled_batch_norm import PooledBatchNorm
from fedkd.strategies.reestimated_batch_norm import ReestimatedBatchNorm
from fedkd.strategies.scaffold import SCAFFOLD
from fedkd.strategies.server_distillation import ServerDistillation

__all__ = [
    "MOON",
    "SCAFFOLD",
    "Combine",
    "CoordinateMedian",
    "DPFedAvg",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedDF",
    "FedDyn",
    "FedGKD",
    "FedNTD",
    "FedNova",
    "FedProx",
    "FedYogi",
    "GeometricMedian",
    "Krum",
    "MultiKrum",
    "NormClipping",
    "PooledBatchNorm",
    "ReestimatedBatchNorm",
    "ServerDistillation",
    "Strategy",
    "TrimmedMean",
    "default_strategy",
]
