"""Federated algorithms, one file each."""

from fedkd.server.strategies.adaptive import FedAdagrad, FedAdam, FedYogi
from fedkd.server.strategies.base import Strategy
from fedkd.server.strategies.combine import Combine
from fedkd.server.strategies.coordinatewise import CoordinateMedian, TrimmedMean
from fedkd.server.strategies.dp_fedavg import DPFedAvg
from fedkd.server.strategies.fedavg import FedAvg
from fedkd.server.strategies.fedavgm import FedAvgM
from fedkd.server.strategies.fedbn import FedBN
from fedkd.server.strategies.feddf import FedDF
from fedkd.server.strategies.feddyn import FedDyn
from fedkd.server.strategies.fedgkd import FedGKD
from fedkd.server.strategies.fednova import FedNova
from fedkd.server.strategies.fedntd import FedNTD
from fedkd.server.strategies.fedprox import FedProx
from fedkd.server.strategies.geometric_median import GeometricMedian
from fedkd.server.strategies.krum import Krum, MultiKrum
from fedkd.server.strategies.moon import MOON
from fedkd.server.strategies.norm_clipping import NormClipping
from fedkd.server.strategies.pooled_batch_norm import PooledBatchNorm
from fedkd.server.strategies.reestimated_batch_norm import ReestimatedBatchNorm
from fedkd.server.strategies.scaffold import SCAFFOLD
from fedkd.server.strategies.server_distillation import ServerDistillation

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
]
