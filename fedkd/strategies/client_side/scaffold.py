"""SCAFFOLD: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning".

arXiv 1910.06378, algorithm 1. Client i steps along g_i(y) - c_i + c, where c_i estimates its own gradient and c that of
all clients. It then renews

    option I:   c_i+ = g_i(x), the gradient of all its images at the global student x
    option II:  c_i+ = c_i - c + (x - y_i) / (K lr), which is the mean of the gradients g_i(y) of its K steps

and sends c_i+ - c_i beside its delta; the server adds them up, c <- c + sum_i p_i (c_i+ - c_i).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fedkd.core.errors import unknown_name
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, add_scaled, subtract
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.gradients import GradientCorrection, pick

OPTIONS = ("I", "II")


class SCAFFOLD(Strategy):
    """Take the drift out of local steps by control variates.

    Option II is written with (x - y_i) / (K lr), which is the mean gradient under plain SGD only: momentum moves up to
    1/(1 - momentum) times as far, and adaptive optimizers and schedules have no one rate. So the mean of the gradients
    is taken as such, step by step, before the correction and before clipping; for plain SGD it is the paper's number,
    and it holds for every optimizer. Weight decay is no part of it: all clients have the same.

    The paper counts clients alike; here p_i is the client's part of all images (`ServerState.shares`), as the deltas
    are weighted, so that both belong to training on all images; for shards of one size it is the paper's 1/N. The
    first round, where all is zero, is FedAvg bit for bit.

    Each round sends the parameters' size twice in both directions, and a client keeps it once between rounds.

    Args:
        option: "I" takes one more pass over the client's images, forward and backward, before it trains (its time is
            in the client's seconds, its batches are not in ``num_steps``): the first epoch's batches, in training
            mode, with BatchNorm's statistics put back after it. "II" costs nothing.

    Raises:
        FedKDError: If there is no such option.
    """

    def __init__(self, option: Literal["I", "II"] = "II") -> None:
        if option not in OPTIONS:
            raise unknown_name("option", option, OPTIONS)
        self.option = option
        self._control: Tensors = {}

    def start(self, state: ServerState) -> None:
        """Begin with c = 0."""
        self._control = {}

    def broadcast(self, state: ServerState) -> dict[str, Tensor]:
        """Send c; before the first update it is zero, and is left out."""
        return self._control

    def client_callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the correction by c - c_i."""
        return [ControlVariate(task.extras, task.client_state, full_pass=self.option == "I")]

    def finalize_update(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Send c_i+ - c_i and keep c_i+; a client that took no step has nothing to say, and keeps c_i."""
        variate = next(each for each in trainer.callbacks if isinstance(each, ControlVariate))  # type: ignore[attr-defined]
        renewed = variate.renewed()
        if not renewed:
            return replace(update, client_state=task.client_state)
        change = subtract(renewed, task.client_state) if task.client_state else renewed
        return replace(update, extras=change, client_state=renewed)

    def absorb(self, state: ServerState, updates: Sequence[ClientUpdate]) -> None:
        """Add up what the clients' variates changed by."""
        for update, share in zip(updates, state.shares(updates), strict=True):
            before = self._control or {name: torch.zeros_like(value) for name, value in update.extras.items()}
            if update.extras:
                self._control = add_scaled(before, update.extras, share)

    def state_dict(self) -> dict[str, Any]:
        """Return c."""
        return {"control_variate": self._control}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore c."""
        self._control = dict(state["control_variate"])


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

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring c - c_i to the parameters' device."""
        names = self.parameters if self.control or self.own else ()
        zero = torch.zeros(())
        difference = {name: self.control.get(name, zero) - self.own.get(name, zero) for name in names}
        self.corrections = self.like_parameters(difference) if difference else None
        self.sums = [torch.zeros_like(value, dtype=torch.float32) for value in self.parameters.values()]
        self.count = 0
        if self.full_pass:
            self._add_full_gradient(trainer, pl_module)

    def correct(self, gradients: list[Tensor], present: Sequence[bool], scale: float) -> None:
        """Note the gradients, then correct them."""
        if not self.full_pass:
            torch._foreach_add_(pick(self.sums, present), gradients, alpha=1 / scale)
            self.count += 1
        if self.corrections is not None:
            torch._foreach_add_(gradients, pick(self.corrections, present), alpha=scale)

    def renewed(self) -> Tensors:
        """Return c_i+ by name, float32 on the CPU; nothing where no gradient was seen."""
        if not self.count:
            return {}
        return {name: (value / self.count).cpu() for name, value in zip(self.parameters, self.sums, strict=True)}

    def _add_full_gradient(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum the gradient of every image's loss at the weights that training starts from."""
        module: Any = pl_module
        precision = trainer.precision_plugin
        loader: Any = trainer.train_dataloader
        kept = [(buffer, buffer.clone()) for buffer in module.student.buffers()]
        epoch = loader.epoch
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
                torch._foreach_add_(pick(self.sums, present), [each for each in found if each is not None])
                self.count += len(batch[1])
        loader.epoch = epoch
        for buffer, value in kept:
            buffer.copy_(value)
