"""The global student's head in closed form: the same for every partition of the clients' images.

Label skew lives mostly in the last layer, which a client of one class cannot fit. A ridge regression on the student's
features can be: it needs sums over images alone, which add up over clients (`fedkd.teachers.RidgeHead`). Near
ancestors are SphereFed (Dong et al., arXiv 2207.09413) and CCVR (Luo et al., arXiv 2106.05001), which calibrate a
classifier after training, and AFL (He et al., arXiv 2405.16240), which solves one on a frozen pretrained body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from fedkd.client.works import on_student_features
from fedkd.core.errors import FedKDError, check_range, unknown_name
from fedkd.core.messages import ClientTask, ClientUpdate, Metrics, ServerState, Weights
from fedkd.data import FederatedDataModule
from fedkd.losses import CenteredDKD, DistillationLoss
from fedkd.strategies.base import Strategy
from fedkd.strategies.context import RoundContext
from fedkd.students import ClosedFormStudent
from fedkd.students.features import part_of, plain_name
from fedkd.teachers.heads.clients import HeadClients, HeadWork
from fedkd.teachers.heads.head import FederatedHead
from fedkd.teachers.heads.modules import ClipNorm, LinearClassifier
from fedkd.teachers.heads.ridge import RidgeHead
from fedkd.training.module import DistillationModule

INPUTS = ("last", "stages")
ON_CLIENTS = ("own", "trained", "frozen")

MANY_FEATURES = 2048
"""With so many numbers an image a client sends 17 MB of sums, twice with an automatic regularization. The default takes
no more, and a run with more warns."""


class ClosedFormHead(Strategy):
    """After aggregation, solve a head on the global student's features, from sums that the clients send.

    The head serves evaluation and the finished student. By default clients go on to train the student's own last layer,
    and the body through it, as if the head were not there. A round in which it is not solved is evaluated with the own
    layer.

    Each client of the cohort sends (D + 1) (D + 2) / 2 + (D + 1) K numbers in float64, twice with an automatic
    regularization, and then its loss at a grid of scales, so that the logits are calibrated; it gets the student before
    each. It costs the clients two passes over their images, forward alone; three if classes count alike. With sampled
    cohorts the head is that of the cohort's images; after the last round, and with ``every`` None, that of all clients.
    A client that fails in the round is left out, as from the average, if the run has ``min_clients``.

    In a `Compose` it stands behind what changes weights on the server. With privacy in the head, a run that is gone on
    with for more rounds solves it again, and spends its budget again.

    Args:
        inputs: "last" are the inputs of the student's last linear layer. "stages" are the outputs of its last three
            stages, each pooled to a grid of means and a standard deviation (`fedkd.students.closed_form.pool`): more
            numbers to solve on, hence more bytes.
        grid: Cells along an edge of the first of these stages, >= 1; each further stage has half as many.
        every: After how many rounds the head is solved, >= 1; None is at the end alone.
        on_clients: What clients train instead: "own", the student's last layer as it was trained so far; "trained", the
            solved head, which they train on; "frozen", the solved head, which stays. The last two need ``inputs: last``
            and ``every: 1``; the head is then also solved before the first round.
        head: How. Any head that is linear in the features; `fedkd.teachers.LinearHead` takes rounds of its own for it.

    Raises:
        FedKDError: If a value is out of range.
    """

    changes_student = True
    sends_sums = True
    columns = ("own_layer_balanced_accuracy", "head_*")
    needs_final_student = True

    def __init__(
        self,
        inputs: Literal["last", "stages"] = "stages",
        grid: int = 4,
        every: int | None = 1,
        on_clients: Literal["own", "trained", "frozen"] = "own",
        head: FederatedHead = RidgeHead(standardize=True),  # noqa: B008  (frozen, and readable by the command line)
    ) -> None:
        if inputs not in INPUTS:
            raise unknown_name("inputs", inputs, INPUTS)
        check_range("grid", grid, low=1, whole=True)
        if every is not None:
            check_range("every", every, low=1, whole=True)
        if every is not None and getattr(head, "privacy", None) is not None:
            raise FedKDError(
                f"every: {every} would send private sums of the same images every few rounds, and each time spends the "
                "whole budget. Choose every: null, which solves the head once, at the end."
            )
        if on_clients not in ON_CLIENTS:
            raise unknown_name("on_clients", on_clients, ON_CLIENTS)
        if on_clients != "own" and (inputs != "last" or every != 1):
            raise FedKDError(f"on_clients: {on_clients} needs inputs: last and every: 1, got {inputs} and {every}.")
        self.on_clients = on_clients
        self.inputs, self.grid, self.every, self.head = inputs, grid, every, head

    def wrap(self, student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """Give the student room for the head."""
        if self.inputs == "last":
            wrapped = ClosedFormStudent.on_last_layer(student, num_classes, image_shape)
            if self.on_clients == "frozen":
                part_of(wrapped.student, wrapped.layers[0]).requires_grad_(False)
            return wrapped
        return ClosedFormStudent.on_stages(student, num_classes, image_shape, self.grid)

    @property
    def needs_last_round(self) -> bool:
        """Whether some round may end without a solved head."""
        return self.every != 1

    def default_loss(self) -> DistillationLoss:
        """Return `CenteredDKD`: it trains the body, and leaves to the head what only the head can fit."""
        return CenteredDKD()

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Refuse a loss that gives the student a head of its own. Warn if clients send many numbers."""
        if module.teacher is not None and module.loss.needs_head:
            raise FedKDError(
                f"ClosedFormHead and {type(module.loss).__name__} each give the student a head: choose another loss."
            )
        student: Any = module.student
        dim = student.num_features
        if dim > MANY_FEATURES:
            sums = (dim + 1) * (dim + 2) // 2 + (dim + 1) * len(module.classes)
            fewer = "inputs: last or a smaller grid" if self.inputs == "stages" else "a narrower student"
            rank_zero_warn(
                f"ClosedFormHead solves on {dim:,} numbers an image here, so each client sends sums of {sums:,} "
                f"numbers, of 8 bytes each. Choose {fewer} to send fewer."
            )

    def start(self, state: ServerState, context: RoundContext) -> ServerState:
        """Solve the head before the first round, if clients start from it."""
        return state if self.on_clients == "own" else self.with_head(state, context)

    def refine(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> ServerState:
        """Solve the head, if it is time."""
        if context.is_last or (self.every is not None and state.round % self.every == 0):
            return self.with_head(state, context)
        buffers = {**state.weights.buffers}
        buffers |= {name: torch.zeros_like(buffers[name]) for name in BUFFERS}
        return replace(state, weights=Weights(state.weights.parameters, buffers))

    def with_head(self, state: ServerState, context: RoundContext) -> ServerState:
        """Return a state whose student has the head that its clients' features give.

        Args:
            state: Its student has no head, or an older one.
            context: Its exchange.
        """
        weights = state.weights
        everybody = context.cohort is None or context.is_last
        clients = range(context.num_clients) if everybody else context.cohort or ()
        shape = weights.buffers["solved_weight"].shape
        fitted = self.head.fit(
            StudentFeatures(
                context.exchange,
                {client: context.clients.get(client, 0) for client in clients},
                num_classes=shape[0],
                dim=shape[1],
                weights=weights,
                round=context.start.round,
                min_clients=context.min_clients,
                failed=set(context.failed),
            )
        )
        weight, bias, limit = _as_linear(fitted.module)
        buffers = {"solved_weight": weight, "solved_bias": bias, "solved_limit": torch.tensor(limit)}
        parameters = dict(weights.parameters)
        if self.on_clients != "own":
            student: Any = context.module().student
            layer, own = f"student.{student.layers[0]}", {plain_name(name): name for name in parameters}
            for plain, value in ((f"{layer}.weight", weight), (f"{layer}.bias", bias)):
                if plain in own:  # a layer without a bias has none to give
                    parameters[own[plain]] = value.to(parameters[own[plain]].dtype).clone()
        chosen = {f"{CHOSEN}{name}": torch.tensor(value, dtype=torch.float64) for name, value in fitted.chosen.items()}
        return replace(
            state,
            weights=Weights(parameters, {**weights.buffers, **buffers}),
            memory={**state.memory, **chosen},
        )

    def metrics(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> Metrics:
        """Return what the head's fit chose, and the accuracy with the student's own last layer beside that of the head.

        Returns:
            ``own_layer_balanced_accuracy``, and ``head_NAME`` for each value that the fit chose, such as
            ``head_regularization``; nothing after a round in which the head was not solved.
        """
        if not state.weights.buffers["solved_weight"].any():
            return {}
        blank = {name: torch.zeros_like(state.weights.buffers[name]) for name in BUFFERS}
        own = Weights(state.weights.parameters, {**state.weights.buffers, **blank})
        chosen = {name: float(value) for name, value in state.memory.items() if name.startswith(CHOSEN)}
        return {"own_layer_balanced_accuracy": context.evaluate_on_test(own)["balanced_accuracy"], **chosen}


CHOSEN = "head_"
"""In the server's memory, and in the metrics, this stands before the names of what the head's fit chose."""

BUFFERS = ("solved_weight", "solved_bias", "solved_limit")


@dataclass(frozen=True, eq=False)
class StudentFeatures(HeadClients):
    """The clients of a head's fit, whose features are those of a student instead of the teacher's.

    Args:
        weights: The student.
        round: The round.
        min_clients: How many clients must succeed; None is all.
        failed: Clients that failed in the round. They are not told to work; clients that fail here are added.
    """

    weights: Weights = field(default_factory=Weights)
    round: int = 0
    min_clients: int | None = None
    failed: set[int] = field(default_factory=set)

    def send(self, work: HeadWork, tasks: Sequence[ClientTask]) -> list[ClientUpdate]:
        """Run the head's work on the student's features."""
        name = f"{work.__module__}:{work.__qualname__}"
        tasks = [
            replace(task, round=self.round, weights=self.weights, settings={**task.settings, "work": name})
            for task in tasks
            if task.client not in self.failed
        ]
        updates = self.exchange(on_student_features, tasks, self.min_clients)
        self.failed.update({task.client for task in tasks} - {update.client for update in updates})
        return updates


def _as_linear(module: nn.Module) -> tuple[Tensor, Tensor, float]:
    """Return a fitted head as weight (K, D), bias (K,), and the norm to which longer features are scaled (0: none).

    Raises:
        FedKDError: If it is no linear map.
    """
    parts: list[Any] = list(module) if isinstance(module, nn.Sequential) else [module]
    limit = float(parts.pop(0).limit) if isinstance(parts[0], ClipNorm) else 0.0
    if len(parts) != 1 or not isinstance(parts[0], LinearClassifier):
        raise FedKDError("ClosedFormHead takes a head that is linear in the features, such as RidgeHead.")
    linear = parts[0]
    return (linear.scale * linear.weight.T).contiguous(), linear.scale * linear.bias, limit
