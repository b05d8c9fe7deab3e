"""Distillation losses. Each is a pure function with a thin module around it, and each family has one file.

A module maps ``(student: Outputs, targets, teacher: Outputs | None)`` to its named terms, with the weighted sum under
``"loss"``. All of its settings are constructor arguments.
"""

from fedkd.losses.base import DistillationLoss, FeatureMoments, Mixed, Outputs, TeacherFacts, WeightedLoss
from fedkd.losses.centered import CenteredDKD, CenteredKD, centered_divergence
from fedkd.losses.dist import DIST, dist_distances
from fedkd.losses.dkd import DKD, target_divergence
from fedkd.losses.facts import local_facts
from fedkd.losses.features import (
    FeatureCosine,
    FeatureLoss,
    FeatureMSE,
    feature_cosine,
    feature_moments,
    feature_mse,
    feature_sums,
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
from fedkd.losses.temperature import TemperedLoss, entropy_sums, solve_temperature

__all__ = [
    "DIST",
    "DKD",
    "KD",
    "RKD",
    "BalancedSoftmax",
    "CenteredDKD",
    "CenteredKD",
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
    "Mixed",
    "NotTrue",
    "Outputs",
    "StandardizedKD",
    "TeacherFacts",
    "TemperedLoss",
    "WeightedLoss",
    "affine_map",
    "balanced_softmax",
    "centered_divergence",
    "dist_distances",
    "entropy_sums",
    "feature_cosine",
    "feature_moments",
    "feature_mse",
    "feature_sums",
    "kd_divergence",
    "local_facts",
    "logit_calibration",
    "logit_mse",
    "not_true_divergence",
    "rkd_angle",
    "rkd_distance",
    "solve_temperature",
    "standardize",
    "target_divergence",
]
