"""Frozen foundation models that teach: any HuggingFace image checkpoint, or your own subclass of `Teacher`."""

from fedkd.teachers.adapter import LoRA
from fedkd.teachers.base import Teacher
from fedkd.teachers.cache import TeacherCache
from fedkd.teachers.catalogue import create
from fedkd.teachers.classifier import ClassifierTeacher
from fedkd.teachers.combined import ZeroShotRidge
from fedkd.teachers.ensemble import EnsembleTeacher
from fedkd.teachers.heads import FederatedHead, LinearClassifier, RidgeHead, ZeroShotHead
from fedkd.teachers.huggingface import FeatureTeacher
from fedkd.teachers.linear_head import LinearHead
from fedkd.teachers.lora import LoRATeacher
from fedkd.teachers.measure import TeacherReport, measure_teacher
from fedkd.teachers.privacy import GaussianPrivacy
from fedkd.teachers.prototype import PrototypeHead
from fedkd.teachers.registry import TeacherEntry, register, teachers
from fedkd.teachers.ridge import RidgeStatistics
from fedkd.teachers.signal import TeacherSignal, prepare_teacher
from fedkd.teachers.zero_shot import ZeroShotTeacher

__all__ = [
    "ClassifierTeacher",
    "EnsembleTeacher",
    "FeatureTeacher",
    "FederatedHead",
    "GaussianPrivacy",
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
    "TeacherReport",
    "TeacherSignal",
    "ZeroShotHead",
    "ZeroShotRidge",
    "ZeroShotTeacher",
    "create",
    "measure_teacher",
    "prepare_teacher",
    "register",
    "teachers",
]
