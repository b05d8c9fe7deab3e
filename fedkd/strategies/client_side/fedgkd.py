"""FedGKD: Yao et al., "Local-Global Knowledge Distillation in Heterogeneous Federated Learning with Non-IID Data".

arXiv 2107.00051: a client's loss gets (gamma / 2) KL(h_G || h) over the softmax outputs, where h_G is the average of
the last M global students, in parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState, with_prefix, without_prefix
from fedkd.core.tensors import Tensors, load_state, merge_buffers
from fedkd.losses import Outputs, kd_divergence
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.global_teacher import GlobalTeacher


class FedGKD(Strategy):
    """Distill the average of past global students into the clients'.

    The term is added to the loss on labels and teacher outputs. The divergence is multiplied by T^2, as in
    fedkd's losses; at the paper's temperature of 1 this changes nothing.

    Args:
        kd_weight: The paper's gamma / 2, >= 0.
        temperature: T > 0.
        num_models: The paper's M >= 1: how many global students are averaged, the current one included. 1 is the
            current one, which clients have anyway. With more, their average is sent with the student, and the server
            remembers them.

    Raises:
        FedKDError: If a value is out of its range.
    """

    def __init__(self, kd_weight: float = 0.1, temperature: float = 1.0, num_models: int = 5) -> None:
        check_range("kd_weight", kd_weight, low=0)
        check_range("temperature", temperature, low=0, low_open=True)
        check_range("num_models", num_models, low=1, whole=True)
        self.kd_weight, self.temperature, self.num_models = kd_weight, temperature, num_models

    def broadcast(self, state: ServerState) -> dict[str, Tensor]:
        """Send the average, unless the current student is all there is."""
        past = self._past(state)
        if not past:
            return {}
        current = state.weights.tensors
        models = [*past, current]
        return merge_buffers(current, models, [1.0] * len(models))

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that adds the term."""
        return GlobalKDRule(self.kd_weight, self.temperature)

    def remember(self, state: ServerState, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Remember the student that the round started from, among the last M - 1: oldest first, by number."""
        past: list[Mapping[str, Tensor]] = [*self._past(state), state.weights.tensors]
        memory: Tensors = {}
        for i, tensors in enumerate(past[max(len(past) - self.num_models + 1, 0) :]):
            memory |= with_prefix(tensors, str(i))
        return memory

    def _past(self, state: ServerState) -> list[Tensors]:
        """Return the past students, oldest first."""
        count = len({name.split("/")[0] for name in state.memory})
        return [without_prefix(state.memory, str(i)) for i in range(count)]


@dataclass(frozen=True)
class GlobalKDRule(LocalRule):
    """Adds the divergence from the average of past global students.

    Args:
        kd_weight: Its weight.
        temperature: T.
    """

    kd_weight: float
    temperature: float

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the term."""
        return [KDOfGlobal(self.kd_weight, self.temperature, task.extras)]


class KDOfGlobal(GlobalTeacher):
    """``T^2`` times the divergence from a global student.

    Args:
        weight: Of the term.
        temperature: T.
        average: The teacher's parameters and buffers by name; empty for the student that the fit starts from.
    """

    name = "global_kd"
    needs_targets = False
    runs_stacked = True

    def __init__(self, weight: float, temperature: float, average: Mapping[str, Tensor]) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.average = average

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the student, and put the average into the copy."""
        super().on_fit_start(trainer, pl_module)
        if self.average:
            load_state(self.global_student, self.average, {}, keep_dtypes=True)

    def term(self, module: Any, batch: Any, student: Outputs) -> Tensor:
        """Return the divergence times T^2."""
        teacher = self.outputs(module, batch)
        return self.temperature**2 * kd_divergence(student.logits, teacher.logits, self.temperature)
