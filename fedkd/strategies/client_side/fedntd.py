"""FedNTD: Lee et al., "Preservation of the Global Knowledge by Not-True Distillation in Federated Learning".

arXiv 2106.03097, section 3.2: a client's loss gets beta tau^2 KL(global || local) over the classes that are not the
image's own, both softened by tau. This preserves what the global student knows of classes that the client lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, LocalRule, ServerState
from fedkd.losses import Outputs, not_true_divergence
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.global_teacher import GlobalTeacher


class FedNTD(Strategy):
    """Distill the global student into the clients' on the classes that are not the image's own; nothing more travels.

    The term is added to the loss on labels and teacher outputs. (`fedkd.losses.NotTrue` is the same
    divergence with the foundation model as teacher.)

    Args:
        not_true_weight: The paper's beta >= 0.
        temperature: The paper's tau > 0.

    Raises:
        FedKDError: If one is out of its range.
    """

    def __init__(self, not_true_weight: float = 1.0, temperature: float = 1.0) -> None:
        check_range("not_true_weight", not_true_weight, low=0)
        check_range("temperature", temperature, low=0, low_open=True)
        self.not_true_weight, self.temperature = not_true_weight, temperature

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that adds the term."""
        return NotTrueRule(self.not_true_weight, self.temperature)


@dataclass(frozen=True)
class NotTrueRule(LocalRule):
    """Adds the not-true divergence from the global student.

    Args:
        not_true_weight: Its weight.
        temperature: tau.
    """

    not_true_weight: float
    temperature: float

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the term."""
        return [NotTrueOfGlobal(self.not_true_weight, self.temperature)]


class NotTrueOfGlobal(GlobalTeacher):
    """``tau^2`` times the not-true divergence from the global student.

    Args:
        weight: Of the term.
        temperature: tau.
    """

    name = "global_not_true"
    runs_stacked = True

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def term(self, module: Any, batch: Any, student: Outputs) -> Tensor:
        """Return the divergence times tau^2."""
        teacher = self.outputs(module, batch)
        return self.temperature**2 * not_true_divergence(student.logits, teacher.logits, batch[1], self.temperature)
