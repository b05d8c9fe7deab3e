"""Frozen foundation models as teachers: any HuggingFace image checkpoint, or your own subclass of `Teacher`."""

from typing import TYPE_CHECKING

from fedkd.core.lazy import lazy_names

if TYPE_CHECKING:
    from fedkd.teachers.adapter import LoRA
    from fedkd.teachers.catalogue import create
    from fedkd.teachers.ensemble import EnsembleTeacher
    from fedkd.teachers.heads.clients import HeadClients
    from fedkd.teachers.heads.head import FederatedHead, FittedHead
    from fedkd.teachers.heads.linear import LinearHead
    from fedkd.teachers.heads.modules import LinearClassifier, ZeroShotHead
    from fedkd.teachers.heads.privacy import GaussianPrivacy
    from fedkd.teachers.heads.prototype import PrototypeHead
    from fedkd.teachers.heads.ridge import RidgeHead
    from fedkd.teachers.heads.ridge_statistics import RidgeStatistics
    from fedkd.teachers.heads.zero_shot_ridge import ZeroShotRidge
    from fedkd.teachers.huggingface.classifier import ClassifierTeacher
    from fedkd.teachers.huggingface.feature import FeatureTeacher
    from fedkd.teachers.huggingface.zero_shot import ZeroShotTeacher
    from fedkd.teachers.lora import LoRATeacher
    from fedkd.teachers.measure import TeacherReport, measure_teacher
    from fedkd.teachers.outputs.cache import TeacherCache
    from fedkd.teachers.outputs.prepare import TeacherOutputs, prepare_teacher
    from fedkd.teachers.registry import TeacherEntry, register, teachers
    from fedkd.teachers.teacher import Teacher

_HOMES = {
    "fedkd.teachers.adapter": ("LoRA",),
    "fedkd.teachers.catalogue": ("create",),
    "fedkd.teachers.ensemble": ("EnsembleTeacher",),
    "fedkd.teachers.heads.clients": ("HeadClients",),
    "fedkd.teachers.heads.head": (
        "FederatedHead",
        "FittedHead",
    ),
    "fedkd.teachers.heads.linear": ("LinearHead",),
    "fedkd.teachers.heads.modules": (
        "LinearClassifier",
        "ZeroShotHead",
    ),
    "fedkd.teachers.heads.privacy": ("GaussianPrivacy",),
    "fedkd.teachers.heads.prototype": ("PrototypeHead",),
    "fedkd.teachers.heads.ridge": ("RidgeHead",),
    "fedkd.teachers.heads.ridge_statistics": ("RidgeStatistics",),
    "fedkd.teachers.heads.zero_shot_ridge": ("ZeroShotRidge",),
    "fedkd.teachers.huggingface.classifier": ("ClassifierTeacher",),
    "fedkd.teachers.huggingface.feature": ("FeatureTeacher",),
    "fedkd.teachers.huggingface.zero_shot": ("ZeroShotTeacher",),
    "fedkd.teachers.lora": ("LoRATeacher",),
    "fedkd.teachers.measure": (
        "TeacherReport",
        "measure_teacher",
    ),
    "fedkd.teachers.outputs.cache": ("TeacherCache",),
    "fedkd.teachers.outputs.prepare": (
        "TeacherOutputs",
        "prepare_teacher",
    ),
    "fedkd.teachers.registry": (
        "TeacherEntry",
        "register",
        "teachers",
    ),
    "fedkd.teachers.teacher": ("Teacher",),
}

__all__ = [
    "ClassifierTeacher",
    "EnsembleTeacher",
    "FeatureTeacher",
    "FederatedHead",
    "FittedHead",
    "GaussianPrivacy",
    "HeadClients",
    "LinearClassifier",
    "LinearHead",
    "LoRA",
    "LoRATeacher",
    "PrototypeHead",
    "RidgeHead",
    "RidgeStatistics",
    "Teacher",
    "TeacherCache",
    "TeacherEntry",
    "TeacherOutputs",
    "TeacherReport",
    "ZeroShotHead",
    "ZeroShotRidge",
    "ZeroShotTeacher",
    "create",
    "measure_teacher",
    "prepare_teacher",
    "register",
    "teachers",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
