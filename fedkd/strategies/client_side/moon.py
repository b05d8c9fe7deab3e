"""MOON: Li, He and Song, "Model-Contrastive Federated Learning", arXiv 2103.16257, equation 3 and algorithm 1.

A client's loss gets mu times -log(exp(sim(z, z_glob) / tau) / (exp(sim(z, z_glob) / tau) + exp(sim(z, z_prev) / tau))):
it pulls the representation z of an image toward the global student's and pushes it away from that of the client's own
student after its last round, by cosine similarity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState
from fedkd.core.tensors import load_state, split_state
from fedkd.losses import Outputs
from fedkd.losses.features import cosine_similarity
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.global_teacher import GlobalTeacher
from fedkd.training.objective import frozen_copy


def model_contrast(features: Tensor, global_features: Tensor, previous_features: Tensor, temperature: float) -> Tensor:
    r"""Contrast a representation with the global and the previous one, averaged over the batch.

    .. math:: -\frac{1}{B} \sum_b \log \frac{e^{\cos(z_b, g_b) / \tau}}{e^{\cos(z_b, g_b) / \tau} +
              e^{\cos(z_b, p_b) / \tau}}

    MOON (arXiv 2103.16257), equation 3. A representation that is zero has no direction, and gets no gradient.

    Args:
        features: z, (B, D).
        global_features: g, (B, D).
        previous_features: p, (B, D).
        temperature: tau > 0.

    Returns:
        A scalar in nats, > 0; log 2 where g and p are the same.
    """
    near = cosine_similarity(features, global_features)  # (B,)
    far = cosine_similarity(features, previous_features)
    return F.softplus((far - near) / temperature).mean()


class MOON(Strategy):
    """Contrast the student's features of an image with those of the global student and the client's previous one.

    The representation is the input of the student's last linear layer (with a loss on features, its projection to the
    teacher's size). The paper's projection head is left out, because it would change the student. Both other students
    run in evaluation mode: two more forward passes a batch. The client keeps its student between rounds; nothing more
    is sent. In a client's first round the global student is also the previous one, and the term is the constant log 2.

    Args:
        contrast_weight: The paper's mu >= 0; it reports 5 for CIFAR-10 and 1 for larger tasks.
        temperature: The paper's tau > 0.

    Raises:
        FedKDError: If one is out of its range.
    """

    def __init__(self, contrast_weight: float = 1.0, temperature: float = 0.5) -> None:
        check_range("contrast_weight", contrast_weight, low=0)
        check_range("temperature", temperature, low=0, low_open=True)
        self.contrast_weight, self.temperature = contrast_weight, temperature

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that adds the term."""
        return ContrastRule(self.contrast_weight, self.temperature)


@dataclass(frozen=True)
class ContrastRule(LocalRule):
    """Adds the contrast, and keeps the client's student for the next round.

    Args:
        contrast_weight: Its weight.
        temperature: tau.
    """

    contrast_weight: float
    temperature: float

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the term."""
        return [ModelContrast(self.contrast_weight, self.temperature, task.client_state)]

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Keep the client's student."""
        module: Any = trainer.lightning_module
        parameters, buffers = split_state(module.student)
        return replace(update, client_state={**parameters, **buffers})


class ModelContrast(GlobalTeacher):
    """`model_contrast` with the global student and the previous one.

    Args:
        weight: Of the term.
        temperature: tau.
        previous: The client's previous student, parameters and buffers by name; empty where there is none.
    """

    name = "contrast"
    needs_targets = False
    needs_features = True

    def __init__(self, weight: float, temperature: float, previous: Mapping[str, Tensor]) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.previous = previous

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the global student, and put the previous one into a second copy."""
        super().on_fit_start(trainer, pl_module)
        if self.previous:
            self.previous_student = frozen_copy(self.global_student)
            load_state(self.previous_student, self.previous, {}, keep_dtypes=True)

    def term(self, module: Any, batch: Any, student: Outputs) -> Tensor:
        """Return the contrast."""
        if not self.previous:
            return torch.full((), math.log(2), device=batch[0].device)  # made there: a copy would wait for a GPU
        near = self.outputs(module, batch).features
        far = self.outputs(module, batch, self.previous_student).features
        if student.features is None or near is None or far is None:
            raise FedKDError("MOON contrasts features, but the student returns none.")
        return model_contrast(student.features, near, far, self.temperature)
