"""SCAFFOLD: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning".

arXiv 1910.06378, algorithm 1. Client i steps along g_i(y) - c_i + c, where c_i estimates its own gradient and c that of
all clients. It then sets

    option I:   c_i+ = g_i(x), the gradient of all its images at the global student x
    option II:  c_i+ = c_i - c + (x - y_i) / (K lr), which is the mean of the gradients g_i(y) of its K steps

and sends c_i+ - c_i with its delta; the server sets c <- c + sum_i p_i (c_i+ - c_i).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fedkd.core.errors import unknown_name
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState
from fedkd.core.tensors import Tensors, add_scaled, subtract
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.gradients import GradientCorrection

OPTIONS = ("I", "II")


class SCAFFOLD(Strategy):
    """Correct the drift of local steps by control variates.

    The paper's option II uses (x - y_i) / (K lr), which is the mean gradient for plain SGD only: momentum moves up to
    1/(1 - momentum) times as far, and adaptive optimizers and schedules have no single rate. So fedkd averages the
    gradients themselves, step by step, before the correction and before clipping. For plain SGD that is the paper's
    number, and it is right for every optimizer. Weight decay is excluded: it is the same for all clients.

    The paper weights all clients equally. Here p_i is the client's share of all images (`ServerState.shares`), as for
    the deltas, so both refer to training on all images; for shards of equal size it is the paper's 1/N. The first
    round, where all variates are zero, is FedAvg bit for bit.

    Each round sends twice the parameters' size in both directions, and a client keeps it once between rounds.

    Args:
        option: "I" takes one more pass over the client's images, forward and backward, before it trains (its time is
            in the client's seconds, its batches are not in ``num_steps``): the first epoch's batches, in training
            mode, with BatchNorm's statistics put back after it. "II" costs nothing.

    Raises:
        FedKDError: If there is no such option.
    """

    reads_updates = True

    def __init__(self, option: Literal["I", "II"] = "II") -> None:
        if option not in OPTIONS:
            raise unknown_name("option", option, OPTIONS)
        self.option = option

    def broadcast(self, state: ServerState) -> Mapping[str, Tensor]:
        """Send c, which is the memory. Before the first update it is zero, and nothing is sent."""
        return state.memory

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that corrects by c - c_i."""
        return ControlRule(full_pass=self.option == "I")

    def remember(self, state: ServerState, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Add the weighted changes of the clients' variates to c."""
        control = dict(state.memory)
        for update, share in zip(updates, state.shares(updates), strict=True):
            before = control or {name: torch.zeros_like(value) for name, value in update.extras.items()}
            control = add_scaled(before, update.extras, share)
        return control


@dataclass(frozen=True)
class ControlRule(LocalRule):
    """Corrects the gradients by c - c_i, sends c_i+ - c_i and keeps c_i+.

    Args:
        full_pass: Whether option I takes one more pass over the images.
    """

    full_pass: bool

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the correction."""
        return [ControlVariate(task.extras, task.client_state, full_pass=self.full_pass)]

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Send c_i+ - c_i and keep c_i+. A client that took no step sends zeros and keeps c_i."""
        variate = next(each for each in trainer.callbacks if isinstance(each, ControlVariate))  # type: ignore[attr-defined]
        renewed = variate.renewed()
        if not renewed:
            zeros = {name: torch.zeros(value.shape) for name, value in variate.parameters.items()}
            return replace(update, extras=zeros)
        change = subtract(renewed, task.client_state) if task.client_state else renewed
        return replace(update, extras=change, client_state=renewed)


class ControlVariate(GradientCorrection):
    """Adds ``c - c_i`` to the gradients, and estimates the client's own gradient anew.

    Args:
        control: c by name; empty is zero.
        own: c_i likewise.
        full_pass: Whether to take the gradient of all images before training, rather than the mean over the steps.
    """

    def __init__(self, control: Mapping[str, Tensor], own: Mapping[str, Tensor], full_pass: bool) -> None:
        self.control = control
        self.own = own
        self.full_pass = full_pass

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, list[Tensor]]:
        """Bring c - c_i to the parameters' device, and begin to sum the gradients."""
        names = self.parameters if self.control or self.own else ()
        zero = torch.zeros(())
        difference = {name: self.control.get(name, zero) - self.own.get(name, zero) for name in names}
        sums = [torch.zeros_like(value, dtype=torch.float32) for value in self.parameters.values()]
        self.num_examples = self._add_full_gradient(sums, trainer, pl_module) if self.full_pass else 0
        return {"sums": sums, **({"difference": self.like_parameters(difference)} if difference else {})}

    def correct(
        self,
        gradients: list[Tensor],
        parameters: Sequence[Tensor],
        memory: Mapping[str, list[Tensor]],
        scale: float,
    ) -> None:
        """Note the gradients, then correct them."""
        if not self.full_pass:
            torch._foreach_add_(memory["sums"], gradients, alpha=1 / scale)
        if "difference" in memory:
            torch._foreach_add_(gradients, memory["difference"], alpha=scale)

    def renewed(self) -> Tensors:
        """Return c_i+ by name, float32 on the CPU; nothing where no gradient was seen."""
        count = self.num_examples if self.full_pass else self.num_corrections
        if not count:
            return {}
        return {name: (value / count).cpu() for name, value in zip(self.parameters, self.memory["sums"], strict=True)}

    def _add_full_gradient(self, sums: list[Tensor], trainer: Trainer, pl_module: LightningModule) -> int:
        """Add the gradient of every image's loss at the weights that training starts from; return their number."""
        module: Any = pl_module
        precision = trainer.precision_plugin
        loader: Any = trainer.train_dataloader
        kept = [(buffer, buffer.clone()) for buffer in module.student.buffers()]
        epoch, count = loader.epoch, 0
        in_float32 = (
            getattr(precision, "scaler", None) is not None
        )  # float16 gradients vanish where nothing scales them
        with isolate_rng():
            for batch in loader:
                batch = precision.convert_input(batch)
                with nullcontext() if in_float32 else precision.train_step_context():
                    loss = module.loss_terms(batch)["loss"] * len(batch[1])
                found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
                present = [gradient is not None for gradient in found]
                torch._foreach_add_(list(compress(sums, present)), [each for each in found if each is not None])
                count += len(batch[1])
        loader.epoch = epoch
        for buffer, value in kept:
            buffer.copy_(value)
        return count
