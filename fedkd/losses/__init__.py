"""Distillation losses: a pure function and a thin module around it for each, one file a family.

A module maps ``(student: Outputs, targets, teacher: Outputs | None)`` to its named terms, the weighted sum under
``"loss"``. All of its settings are constructor arguments.
"""

from fedkd.losses.base import DistillationLoss, FeatureMoments, Outputs, WeightedLoss
from fedkd.losses.dist import DIST, dist_distances
from fedkd.losses.dkd import DKD, target_divergence
from fedkd.losses.features import (
    FeatureCosine,
    FeatureLoss,
    FeatureMSE,
    feature_cosine,
    feature_moments,
    feature_mse,
)
from fedkd.losses.frozen_head import FrozenHead, affine_map
from fedkd.losses.kd import KD, kd_divergence
from fedkd.losses.labels import (
    BalancedSoftmax,
    CrossEntropy,
    LabelLoss,
    LogitCalibration,
    balanced_softmax,
    logit_calibration,
)
from fedkd.losses.logit_mse import LogitMSE, logit_mse
from fedkd.losses.not_true import NotTrue, not_true_divergence
from fedkd.losses.relational import RKD, rkd_angle, rkd_distance
from fedkd.losses.standardized import StandardizedKD, standardize
from fedkd.losses.temperature import TemperedLoss, mean_entropy, solve_temperature

__all__ = [
    "DIST",
    "DKD",
    "KD",
    "RKD",
    "BalancedSoftmax",
    "CrossEntropy",
    "DistillationLoss",
    "FeatureCosine",
    "FeatureLoss",
    "FeatureMSE",
    "FeatureMoments",
    "FrozenHead",
    "LabelLoss",
    "LogitCalibration",
    "LogitMSE",
    "NotTrue",
    "Outputs",
    "StandardizedKD",
    "TemperedLoss",
    "WeightedLoss",
    "affine_map",
    "balanced_softmax",
    "dist_distances",
    "feature_cosine",
    "feature_moments",
    "feature_mse",
    "kd_divergence",
    "logit_calibration",
    "logit_mse",
    "mean_entropy",
    "not_true_divergence",
    "rkd_angle",
    "rkd_distance",
    "solve_temperature",
    "standardize",
    "target_divergence",
]
