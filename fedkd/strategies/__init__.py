"""Federated algorithms, one file each."""

from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.fedbn import FedBN
from fedkd.strategies.client_side.feddyn import FedDyn
from fedkd.strategies.client_side.fedgkd import FedGKD
from fedkd.strategies.client_side.fedntd import FedNTD
from fedkd.strategies.client_side.fedprox import FedProx
from fedkd.strategies.client_side.moon import MOON
from fedkd.strategies.client_side.scaffold import SCAFFOLD
from fedkd.strategies.compose import Compose
from fedkd.strategies.context import RoundContext
from fedkd.strategies.default import default_strategy
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.fedmd import FedMD
from fedkd.strategies.refinement.closed_form_head import ClosedFormHead
from fedkd.strategies.refinement.feature_start import FeatureStart
from fedkd.strategies.refinement.feddf import FedDF
from fedkd.strategies.refinement.reestimated_batch_norm import ReestimatedBatchNorm
from fedkd.strategies.refinement.server_distillation import ServerDistillation
from fedkd.strategies.robust.coordinatewise import CoordinateMedian, TrimmedMean
from fedkd.strategies.robust.geometric_median import GeometricMedian
from fedkd.strategies.robust.krum import Krum, MultiKrum
from fedkd.strategies.robust.norm_clipping import NormClipping
from fedkd.strategies.server_side.adaptive import FedAdagrad, FedAdam, FedYogi
from fedkd.strategies.server_side.dp_fedavg import DPFedAvg
from fedkd.strategies.server_side.fedavgm import FedAvgM
from fedkd.strategies.server_side.fednova import FedNova
from fedkd.strategies.server_side.pooled_batch_norm import PooledBatchNorm

__all__ = [
    "MOON",
    "SCAFFOLD",
    "ClosedFormHead",
    "Compose",
    "CoordinateMedian",
    "DPFedAvg",
    "FeatureStart",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedDF",
    "FedDyn",
    "FedGKD",
    "FedMD",
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
    "RoundContext",
    "ServerDistillation",
    "Strategy",
    "TrimmedMean",
    "default_strategy",
]
