"""Lightweight models by name. Any other ``nn.Module`` that maps images in [0, 1] to logits can also be a student."""

from __future__ import annotations

from fedkd.students.check import as_student, check
from fedkd.students.closed_form import ClosedFormStudent, stages, trained_part
from fedkd.students.cnn import CNN
from fedkd.students.features import feature_layer, features_and_logits
from fedkd.students.layers import BatchNorm2d, Normalize, make_norm, replace_batch_norms
from fedkd.students.logits import LogitsStudent
from fedkd.students.projected import ProjectedStudent
from fedkd.students.registry import FROM_DATA, check_name, check_source, create, find, portable, register, students
from fedkd.students.resnet_cifar import CifarResNet
from fedkd.students.torchvision_models import (
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
    resnet18,
    shufflenet_v2_x0_5,
    shufflenet_v2_x1_0,
)
from fedkd.students.unbuilt import UnbuiltStudent

__all__ = [
    "CNN",
    "FROM_DATA",
    "BatchNorm2d",
    "CifarResNet",
    "ClosedFormStudent",
    "LogitsStudent",
    "Normalize",
    "ProjectedStudent",
    "UnbuiltStudent",
    "as_student",
    "check",
    "check_name",
    "check_source",
    "create",
    "feature_layer",
    "features_and_logits",
    "find",
    "make_norm",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "portable",
    "register",
    "replace_batch_norms",
    "resnet18",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "stages",
    "students",
    "trained_part",
]
