"""What a client on another machine must know to make its site: what the server's teacher and losses have learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.core.plain_modules import put_together, take_apart
from fedkd.core.tensors import Tensors
from fedkd.data.remote import RemoteSites
from fedkd.losses import FeatureMoments, TeacherFacts
from fedkd.teachers import LoRATeacher, Teacher


def to_plain(sites: RemoteSites) -> dict[str, Any]:
    """Return a stage of a run as JSON values, and ``tensors`` by name.

    Args:
        sites: What the run's server has in the place of the clients' sites.
    """
    tensors: Tensors = {}
    teacher = sites.teacher
    stage: dict[str, Any] = {"stage": sites.stage, "recipe": sites.recipe, "head": None, "adapters": 0, "facts": []}
    if isinstance(teacher, Teacher) and sites.stage != "adapt":
        for adapted in adapting(teacher):
            if adapted.adapted is not None:
                prefix = f"adapter.{stage['adapters']}."
                tensors |= {f"{prefix}{name}": value.cpu() for name, value in adapted.adapted.state.items()}
                stage["adapters"] += 1
        if sites.stage != "head" and teacher.head_is_fitted and teacher.head is not None:
            stage["head"], found = take_apart(teacher.head, "head.")
            tensors |= found
    if sites.stage == "rounds":
        for number, module in enumerate(sites.modules):
            plain, found = facts_to_plain(module.facts, f"facts.{number}.")
            stage["facts"].append(plain)
            tensors |= found
    return {**stage, "tensors": tensors}


def adapting(teacher: Teacher | None) -> list[LoRATeacher]:
    """Return the teachers in a teacher that are adapted to the clients' images, in order; none without a teacher."""
    return [] if teacher is None else [each for each in teacher.modules() if isinstance(each, LoRATeacher)]


def facts_to_plain(facts: TeacherFacts | None, name: str) -> tuple[dict[str, Any] | None, Tensors]:
    """Return what a loss took from the teacher as JSON values and tensors, whose names start with ``name``."""
    if facts is None:
        return None, {}
    tensors: Tensors = {}
    plain: dict[str, Any] = {"temperature": facts.temperature, "moments": None, "head": None}
    if facts.moments is not None:
        plain["moments"] = []
        for key, value in facts.moments._asdict().items():
            if isinstance(value, Tensor):
                tensors[f"{name}{key}"] = value.cpu()
                plain["moments"].append([key, None])
            else:
                plain["moments"].append([key, value])
    if facts.head is not None:
        plain["head"], found = take_apart(facts.head, f"{name}head.")
        tensors |= found
    return plain, tensors


def facts_from_plain(plain: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], name: str) -> TeacherFacts | None:
    """Return what `facts_to_plain` was given."""
    if plain is None:
        return None
    moments, head = None, None
    if plain["moments"] is not None:
        values: dict[str, Any] = {key: tensors[f"{name}{key}"] if v is None else v for key, v in plain["moments"]}
        moments = FeatureMoments(**values)
    if plain["head"] is not None:
        head = put_together(plain["head"], tensors, f"{name}head.")
    return TeacherFacts(plain["temperature"], moments, head)


def key_of(stage: Mapping[str, Any]) -> str:
    """Return a hash of a stage and its tensors."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in stage.items() if k != "tensors"}, sort_keys=True).encode())
    for name, value in stage["tensors"].items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_stage(stage: Mapping[str, Any]) -> None:
    """Raise if a stage is not one of `to_plain`.

    Raises:
        FedKDError: If something is missing.
    """
    if missing := {"stage", "recipe", "head", "adapters", "facts", "tensors", "hello"} - set(stage):
        raise FedKDError(f"A stage of a run says nothing of {', '.join(sorted(missing))}.")
