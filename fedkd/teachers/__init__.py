"""Frozen foundation models that teach: any HuggingFace image checkpoint, or your own subclass of `Teacher`."""

from fedkd.teachers.base import Teacher
from fedkd.teachers.cache import TeacherCache
from fedkd.teachers.catalogue import create
from fedkd.teachers.heads import FederatedHead, LinearClassifier, RidgeHead, ZeroShotHead
from fedkd.teachers.huggingface import FeatureTeacher
from fedkd.teachers.registry import TeacherEntry, register, teachers
from fedkd.teachers.ridge import RidgeStatistics
from fedkd.teachers.signal import TeacherSignal, prepare_teacher
from fedkd.teachers.zero_shot import ZeroShotTeacher

__all__ = [
    "FeatureTeacher",
    "FederatedHead",
    "LinearClassifier",
    "RidgeHead",
    "RidgeStatistics",
    "Teacher",
    "TeacherCache",
    "TeacherEntry",
    "TeacherSignal",
    "ZeroShotHead",
    "ZeroShotTeacher",
    "create",
    "prepare_teacher",
    "register",
    "teachers",
]
