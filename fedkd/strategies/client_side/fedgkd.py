"""FedGKD: Yao et al., "Local-Global Knowledge Distillation in Heterogeneous Federated Learning with Non-IID Data".

arXiv 2107.00051: a client's loss gets (gamma / 2) KL(h_G || h) over the softmax outputs, where h_G is the average of
the last M global students, in parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, merge_buffers
from fedkd.losses import Outputs, kd_divergence
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.global_teacher import GlobalTeacher


class FedGKD(Strategy):
    """Distil past global students into the clients'.

    It stands beside whatever the loss makes of labels and foundation model. The divergence is multiplied by T^2, as in
    fedkd's losses; at the paper's temperature of 1 that is nothing.

    Args:
        kd_weight: The paper's gamma / 2, >= 0.
        temperature: T > 0.
        num_models: The paper's M >= 1: how many global students are averaged, the current one included. 1 is the
            current one, which clients have anyway; with more their average travels down beside the student, and the
            server remembers them.

    Raises:
        FedKDError: If a value is out of its range.
    """

    def __init__(self, kd_weight: float = 0.1, temperature: float = 1.0, num_models: int = 5) -> None:
        check_range("kd_weight", kd_weight, low=0)
        check_range("temperature", temperature, low=0, low_open=True)
        check_range("num_models", num_models, low=1, whole=True)
        self.kd_weight, self.temperature, self.num_models = kd_weight, temperature, num_models
        self._past: list[Tensors] = []

    def start(self, state: ServerState) -> None:
        """Forget earlier students."""
        self._past = []

    def broadcast(self, state: ServerState) -> dict[str, Tensor]:
        """Send the average, unless the current student is all there is."""
        if not self._past:
            return {}
        current = {**state.parameters, **state.buffers}
        models = [*self._past, current]
        return merge_buffers(current, models, [1.0] * len(models))

    def client_callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the term."""
        return [KDOfGlobal(self.kd_weight, self.temperature, task.extras)]

    def absorb(self, state: ServerState, updates: Sequence[ClientUpdate]) -> None:
        """Remember the student that the round started from, among the last M - 1."""
        past = [*self._past, {**state.parameters, **state.buffers}]
        self._past = past[max(len(past) - self.num_models + 1, 0) :]

    def reads_updates(self) -> bool:
        """Return False: what is remembered is the global student."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the past students, oldest first."""
        return {"past": self._past}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the past students."""
        self._past = list(state["past"])


class KDOfGlobal(GlobalTeacher):
    """``T^2`` times the divergence from a global student.

    Args:
        weight: Of the term.
        temperature: T.
        average: The teacher's parameters and buffers by name; empty for the student that the fit starts from.
    """

    name = "global_kd"

    def __init__(self, weight: float, temperature: float, average: Mapping[str, Tensor]) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.average = average

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the student, and put the average into the copy."""
        super().on_fit_start(trainer, pl_module)
        if self.average:
            self.global_student.load_state_dict(dict(self.average))

    def term(self, module: Any, batch: Any, student: Outputs) -> Tensor:
        """Return the divergence times T^2."""
        teacher = self.outputs(module, batch)
        return self.temperature**2 * kd_divergence(student.logits, teacher.logits, self.temperature)
