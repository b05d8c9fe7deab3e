"""Several clients' students trained at once: a stack of tensors for each parameter, and ``torch.func`` over the stacks.

Each step takes a batch of every client, one `torch.func.vmap` of the loss's gradient, and one step of the optimizer on
the stacks. An optimizer that works entry by entry does to a stack what it does to each of its parts, and so does a
`fedkd.strategies.client_side.gradients.GradientCorrection`. The sums are those of training one client after the other,
in another order of addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop

from fedkd.core.errors import FedKDError
from fedkd.core.messages import Weights
from fedkd.core.modes import let_train
from fedkd.core.tensors import Tensors, load_state
from fedkd.data.batch import Batch
from fedkd.data.loader import BatchLoader
from fedkd.students import trained_part
from fedkd.training.lean_trainer import LeanTrainer, has_plain_optimizer, reason_for_lightning
from fedkd.training.learning_rate import scale_learning_rates
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import with_defaults

ENTRYWISE = (SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop, Rprop)
"""Optimizers whose step of an entry depends on that entry alone."""

PRECISIONS = frozenset({None, 32, "32", "32-true", "bf16", "bf16-mixed"})


def reason_against_stacking(module: DistillationModule, arguments: Mapping[str, Any]) -> str | None:
    """Return why several clients' students cannot be trained at once, None if they can.

    Args:
        module: Built.
        arguments: Of the clients' Trainers.
    """
    complete = with_defaults(arguments)
    if (reason := reason_for_lightning(module, complete)) is not None:
        return reason
    if not has_plain_optimizer(module):
        return "the optimizer comes with a scheduler of its own kind, or takes a closure"
    if complete.get("precision") not in PRECISIONS:
        return f"trainer.precision is {complete['precision']}, whose scale is each client's own"
    if complete.get("accumulate_grad_batches", 1) != 1:
        return "trainer.accumulate_grad_batches is set"
    configured: Any = module.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    if type(optimizer) not in ENTRYWISE:
        return f"the optimizer {type(optimizer).__name__} may mix a parameter's entries, and so clients"
    for name, layer in module.student.named_modules():
        keeps = isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats
        if keeps and layer.training:
            return f"the student's {name or 'module'} is a {type(layer).__name__}, which keeps running statistics"
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 and layer.training:
            return f"the student's {name or 'module'} is a {type(layer).__name__}, which draws random numbers"
    return None


class CannotStackError(FedKDError):
    """Something cannot be done to several clients at once. No single client is to blame."""


def check_stackable(callbacks: Sequence[Callback]) -> None:
    """Refuse what a strategy does on a client if it cannot be done to several at once.

    Raises:
        CannotStackError: If a callback does not declare ``runs_stacked``.
    """
    for callback in callbacks:
        if not getattr(callback, "runs_stacked", False):
            raise CannotStackError(
                f"Stacked cannot train several clients at once with the callback {type(callback).__name__}: it does "
                "not declare runs_stacked. Choose the backend InProcess or ProcessPool."
            )


@dataclass(frozen=True, eq=False)
class Member:
    """One client of a stack.

    Args:
        start: The weights that it trains from.
        callbacks: Its own, with its own settings' values equal to those of the other members.
        loader: Its batches.
    """

    start: Weights
    callbacks: list[Callback]
    loader: BatchLoader

    @property
    def corrections(self) -> list[Any]:
        """Those callbacks that correct gradients, by a function of gradients, parameters and memory."""
        return [each for each in self.callbacks if hasattr(each, "correct")]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a member's training leaves.

    Attributes:
        member: Its position among the members.
        num_steps: The optimizer steps that it took.
        metrics: ``train/NAME``, the means of the last epoch.
    """

    member: int
    num_steps: int
    metrics: dict[str, float]


def fit_stacked(
    trainer: LeanTrainer, module: DistillationModule, members: Sequence[Member], lr_factor: float = 1.0
) -> Iterator[Trained]:
    """Train several clients' students at once.

    Args:
        trainer: It gives epochs, clipping and precision, and is what callbacks see.
        module: Whose student is trained. It is scratch.
        members: The clients, at least one.
        lr_factor: By what the learning rates are multiplied.

    Yields:
        Each member once it has taken its last step, in this order. At that moment the module's student has the
        member's weights, and the trainer its callbacks, so what reads them after a fit can.

    Raises:
        CannotStackError: If the student or the loss does something that cannot be done to several clients at once.
    """
    with trainer.running(module, TrainerFn.FITTING, RunningStage.TRAINING):
        trainer.reset()
        module.setup("fit")
        yield from _Stack(trainer, module, members, lr_factor).run()


class _Stack:
    """The members that still train, in stacks whose first axis is the member.

    Args:
        trainer: As for `fit_stacked`.
        module: As for `fit_stacked`.
        members: As for `fit_stacked`.
        lr_factor: As for `fit_stacked`.
    """

    def __init__(
        self, trainer: LeanTrainer, module: DistillationModule, members: Sequence[Member], lr_factor: float
    ) -> None:
        self.trainer: Any = trainer
        self.module, self.members = module, members
        self.student = module.student
        self.epochs = trainer.max_epochs or 0
        self.active = list(range(len(members)))
        self.parameters = dict(self.student.named_parameters())
        self.trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        self.used: dict[str, nn.Parameter] = {}  # those that the loss depends on, known at the first step
        self.sums: Tensors = {}  # of the loss's terms over the last epoch, for those that still train
        configured: Any = module.configure_optimizers()  # before the stacks, for groups may go by a tensor's axes
        has_schedule = isinstance(configured, dict)
        self.optimizer = configured["optimizer"] if has_schedule else configured
        self.scheduler = configured["lr_scheduler"]["scheduler"] if has_schedule else None
        trainer.strategy._optimizers = [self.optimizer]
        scale_learning_rates(self.optimizer, lr_factor, *([] if self.scheduler is None else [self.scheduler]))
        self._start()
        self.gradient = torch.func.vmap(torch.func.grad(self._loss, has_aux=True), in_dims=(0, 0, 0, None))

    def run(self) -> Iterator[Trained]:
        """Take all steps, and yield members as they end."""
        batches = [self._batches(member.loader) for member in self.members]
        steps = [self.epochs * len(member.loader) for member in self.members]
        try:
            for step in range(max(steps)):
                ended = [number for number in self.active if steps[number] == step]
                if ended:
                    yield from self._leave(ended, step)
                self._step([next(batches[number]) for number in self.active])
            yield from self._leave(list(self.active), max(steps))
        finally:
            for name, value in self.parameters.items():  # the next fit expects plain parameters
                value.data, value.grad = self.plain[name], None

    def _start(self) -> None:
        """Let each member's callbacks prepare on its own weights, and make the stacks."""
        starts = []
        for member in self.members:
            load_state(self.student, member.start.parameters, member.start.buffers)
            let_train(self.student)
            self.trainer.callbacks, self.trainer.loader = member.callbacks, member.loader
            for name in ("setup", "on_fit_start", "on_train_start"):
                arguments = (self.module, "fit") if name == "setup" else (self.module,)
                self.trainer.call_hooks(name, *arguments)
            starts.append({name: value.detach().clone() for name, value in self.parameters.items()})
        same = all(torch.equal(start[name], starts[0][name]) for start in starts for name in start)
        if self.module.objectives and not same:
            raise CannotStackError(
                f"Stacked cannot train several clients at once with {type(self.module.objectives[0]).__name__} if they "
                "start from different weights. Choose the backend InProcess or ProcessPool."
            )
        self.plain = starts[0]
        for name, value in self.parameters.items():
            value.data = torch.stack([start[name] for start in starts])
            state = self.optimizer.state.get(value, {})  # some optimizers make theirs at once
            for key, each in state.items():
                # a count of steps is one for all, and has the shape of a parameter that is a single number
                if key != "step" and isinstance(each, Tensor) and each.shape == self.plain[name].shape:
                    state[key] = torch.stack([each] * len(starts))
        self.corrections = self.members[0].corrections
        alike = zip(*(member.corrections for member in self.members), strict=True)
        self.memories = [self._stacked_memory(each) for each in alike]

    def _stacked_memory(self, corrections: Sequence[Any]) -> dict[str, list[Tensor]]:
        """Stack the memories of the members' corrections; a name that one lacks stands for zeros."""
        names = dict.fromkeys(name for each in corrections for name in each.memory)
        zeros = [torch.zeros_like(value[0]) for value in self.trained.values()]
        return {
            name: [torch.stack(each) for each in zip(*(c.memory.get(name, zeros) for c in corrections), strict=True)]
            for name in names
        }

    def _batches(self, loader: BatchLoader) -> Iterator[tuple[Batch, bool]]:
        """Yield a member's batches of all epochs, and whether each is of the last."""
        for epoch in range(self.epochs):
            for batch in loader:
                yield batch, epoch == self.epochs - 1

    def _step(self, batches: Sequence[tuple[Batch, bool]]) -> None:
        """Take one step of all members that still train."""
        groups: dict[Any, list[int]] = {}  # batches of the same shapes, by position among the active members
        for position, (batch, _) in enumerate(batches):
            groups.setdefault(_shapes(batch), []).append(position)
        if not self.used:
            self.used = self._used(batches[0][0])
        if len(groups) > 1:
            for parameter in self.used.values():
                parameter.grad = torch.empty_like(parameter)
        for positions in groups.values():
            whole = len(groups) == 1
            stacked, constants = _stack([batches[position][0] for position in positions])
            at = slice(None) if whole else torch.tensor(positions, device=stacked["targets"].device)
            used = {name: value.data[at] for name, value in self.used.items()}
            fixed = {name: value.data[at] for name, value in self.parameters.items() if name not in self.used}
            with self.trainer.precision_plugin.train_step_context(), _named(self.module):
                gradients, terms = self.gradient(used, fixed, stacked, constants)
            for name, parameter in self.used.items():
                if whole:
                    parameter.grad = gradients[name]
                else:
                    parameter.grad[at] = gradients[name]  # type: ignore[index]
            self._add_terms(terms, at, [batches[position] for position in positions])
        self._correct()
        self._clip()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def _used(self, batch: Batch) -> dict[str, nn.Parameter]:
        """Return the trained parameters that the loss depends on: the optimizer leaves others alone."""
        first = {name: value.data[0].clone().requires_grad_() for name, value in self.trained.items()}
        fixed = {name: value.data[0] for name, value in self.parameters.items() if name not in self.trained}
        with torch.enable_grad():
            loss, _ = self._loss(first, fixed, *_split(batch))
            found = torch.autograd.grad(loss, list(first.values()), allow_unused=True)
        return {n: v for (n, v), gradient in zip(self.trained.items(), found, strict=True) if gradient is not None}

    def _loss(self, used: Tensors, fixed: Tensors, stacked: Any, constants: Any) -> tuple[Tensor, Tensors]:
        """Return a member's loss and its terms: a function of its parameters and batch."""
        parameters = {f"module.student.{name}": value for name, value in {**used, **fixed}.items()}
        terms = torch.func.functional_call(_Loss(self.module), parameters, (_batch(stacked, constants),))
        return terms["loss"], {name: value.detach() for name, value in terms.items()}

    def _add_terms(self, terms: Tensors, at: slice | Tensor, batches: Sequence[tuple[Batch, bool]]) -> None:
        """Add the terms of a group to the sums of those members that are in their last epoch."""
        counts = [len(batch.targets) * is_last for batch, is_last in batches]
        if not any(counts):
            return
        for name, value in terms.items():
            # one number for all is no copy to the device
            scale = counts[0] if len(set(counts)) == 1 else torch.tensor(counts, device=value.device)
            self.sums.setdefault(name, torch.zeros(len(self.active), device=value.device))[at] += value.float() * scale

    def _correct(self) -> None:
        """Apply the strategies' corrections to the stacks."""
        with torch.no_grad():
            parameters, present = list(self.used.values()), [name in self.used for name in self.trained]
            for correction, memory in zip(self.corrections, self.memories, strict=True):
                gradients = [value.grad for value in parameters]
                own = {name: list(compress(values, present)) for name, values in memory.items()}
                correction.correct(gradients, parameters, own, 1.0)

    def _clip(self) -> None:
        """Clip each member's gradients as ``Trainer.gradient_clip_val`` asks."""
        limit = self.trainer.gradient_clip_val
        if not limit:
            return
        gradients = [value.grad for value in self.trained.values() if value.grad is not None]
        if str(self.trainer.gradient_clip_algorithm or "norm").rpartition(".")[2].lower() == "value":
            torch._foreach_clamp_min_(gradients, -limit)
            torch._foreach_clamp_max_(gradients, limit)
            return
        each = [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]
        norms = torch.stack(each, dim=1).norm(dim=1)  # (K,)
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))

    def _leave(self, ended: Sequence[int], num_steps: int) -> Iterator[Trained]:
        """Take members out of the stacks, and yield each in the module's student."""
        positions = [self.active.index(number) for number in ended]
        rest = [i for i in range(len(self.active)) if i not in positions]
        stacks = {name: value.data for name, value in self.parameters.items()}
        sums = {name: values.tolist() for name, values in self.sums.items()}
        for number, i in zip(ended, positions, strict=True):
            member = self.members[number]
            for name, value in self.parameters.items():
                value.data, value.grad = stacks[name][i].clone(), None
            for correction, memory in zip(member.corrections, self.memories, strict=True):
                correction.memory = {name: [value[i].clone() for value in values] for name, values in memory.items()}
                correction.num_corrections = num_steps
            self.trainer.callbacks = member.callbacks
            yield Trained(number, num_steps, self._metrics(member, {name: values[i] for name, values in sums.items()}))
        self.active = [self.active[i] for i in rest]
        self._keep(torch.tensor(rest, dtype=torch.int64, device=next(iter(stacks.values())).device), stacks)

    def _keep(self, rest: Tensor, stacks: Tensors) -> None:
        """Keep some members in the stacks: of parameters, of what optimizer and corrections keep, and of sums."""
        for name, value in self.parameters.items():
            shape, value.data = stacks[name].shape, stacks[name][rest]
            state = self.optimizer.state.get(value, {})
            state.update({k: v[rest] for k, v in state.items() if isinstance(v, Tensor) and v.shape == shape})
        self.memories = [
            {name: [value[rest] for value in values] for name, values in memory.items()} for memory in self.memories
        ]
        self.sums = {name: values[rest] for name, values in self.sums.items()}

    def _metrics(self, member: Member, sums: Mapping[str, float]) -> dict[str, float]:
        """Return a member's means of the last epoch."""
        means = {name: value / member.loader.num_examples for name, value in sums.items()}
        return {f"train/{name}": float(value) for name, value in {**self.module.loss.resolved(), **means}.items()}


class _Loss(nn.Module):
    """A module's loss on a batch as a forward pass, for `torch.func.functional_call`."""

    def __init__(self, module: DistillationModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensors:
        """Return the terms of the loss."""
        return self.module.loss_terms(batch)


def _stack(batches: Sequence[Batch]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors of batches of the same shapes, stacked by field, and what is no tensor, which they share."""
    stacked: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for name, first in zip(Batch._fields, batches[0], strict=True):
        each = [getattr(batch, name) for batch in batches]
        if isinstance(first, Batch):
            stacked[name], constants[name] = _stack(each)
        elif isinstance(first, Tensor):
            stacked[name] = torch.stack(each)
        else:
            constants[name] = first
    return stacked, constants


def _split(batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors of one batch by field, and the rest."""
    stacked, constants = _stack([batch])
    return _first(stacked), constants


def _first(stacked: Any) -> Any:
    return {name: _first(value) if isinstance(value, dict) else value[0] for name, value in stacked.items()}


def _batch(stacked: Mapping[str, Any], constants: Mapping[str, Any]) -> Batch:
    """Return one member's batch of what `_stack` returned."""
    fields: Any = {**constants, **stacked}
    for name, value in stacked.items():
        if isinstance(value, dict):
            fields[name] = _batch(value, constants[name])
    return Batch(**fields)


def _shapes(batch: Batch) -> tuple[Any, ...]:
    """Return what batches that are stacked have in common: shapes of tensors, and the rest as it is."""
    return tuple(
        _shapes(value) if isinstance(value, Batch) else value.shape if isinstance(value, Tensor) else value
        for value in batch
    )


@contextmanager
def _named(module: DistillationModule) -> Iterator[None]:
    """Turn what `torch.func` refuses into one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        student = trained_part(module.student) if module.projected is None else module.projected.student
        raise CannotStackError(
            f"The student {type(student).__name__} with the loss {type(module.loss).__name__} cannot be trained for "
            f"several clients at once: {str(error).strip().splitlines()[0]} Choose the backend InProcess or "
            "ProcessPool."
        ) from error
