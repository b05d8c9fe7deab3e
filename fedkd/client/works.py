"""What a client does: works ``work(site, task) -> update``. They see their own client's site and nothing else."""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Weights, Work
from fedkd.core.modes import let_train
from fedkd.core.seeding import derive_seed, seeded
from fedkd.core.tensors import load_state, split_state, subtract
from fedkd.data.rows import Rows
from fedkd.data.site import ClientSite
from fedkd.training.evaluation import predict_classes
from fedkd.training.learning_rate import LearningRateFactor
from fedkd.training.module import DistillationModule
from fedkd.training.stacked import CannotStackError, Member, check_stackable, fit_stacked, reason_against_stacking
from fedkd.training.trainer import fit, trainer_for, warn_of_lost_state
from fedkd.training.unlabeled import distill, predict_features, predict_logits


def module_of(site: ClientSite) -> DistillationModule:
    """Return the site's module.

    Raises:
        FedKDError: If the site has none.
    """
    if not isinstance(site.module, DistillationModule):
        raise FedKDError(f"Client {site.client} has no module to train: make its site with modules=(...,).")
    return site.module


def train(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Train the student on the client's images, from the task's weights: a client's part of a round.

    All randomness comes from (run seed, round, client), so the result does not depend on who ran before.

    Args:
        site: The client's; it has at least one training image.
        task: The weights to start from, and what the strategy does (``task.rule``); ``settings["lr_factor"]``
            multiplies the learning rates.

    Returns:
        The update, completed by the rule.
    """
    began = time.perf_counter()
    module, rule = module_of(site), task.rule
    keys = (site.seed, "client", task.round, task.client)
    with seeded(*keys):
        start = rule.start(task)
        load_state(module.student, start.parameters, start.buffers)
        let_train(module.student)
        factor = lr_factor_of(task)
        schedule = [] if factor == 1 else [LearningRateFactor(factor)]
        trainer = trainer_for(module, site.trainer, [*schedule, *rule.callbacks(task)])
        loader = site.train_loader(derive_seed(*keys, "batches"), trainer.strategy.root_device)
        fit(trainer, module, loader)
    warn_of_lost_state(site.trainer, trainer)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics["seconds"] = time.perf_counter() - began
    return _update_of(module, trainer, task, start, loader.num_examples, trainer.global_step, metrics)


def train_stacked(sites: Sequence[ClientSite], tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate]:
    """Do what `train` does for several clients at once; see `fedkd.training.stacked`.

    Args:
        sites: The clients', with one module for all.
        tasks: One for each.

    Yields:
        The updates, as clients end. A client's ``seconds`` are its share of the time.

    Raises:
        CannotStackError: If something cannot be done to several clients at once.
    """
    began = time.perf_counter()
    module, members = module_of(sites[0]), []
    if (reason := reason_against_stacking(module, sites[0].trainer)) is not None:
        raise CannotStackError(f"Several clients cannot be trained at once, since {reason}.")
    trainer: Any = trainer_for(module, sites[0].trainer)
    for site, task in zip(sites, tasks, strict=True):
        keys = (site.seed, "client", task.round, task.client)
        with seeded(*keys):
            callbacks = task.rule.callbacks(task)
            check_stackable(callbacks)
            loader = site.train_loader(derive_seed(*keys, "batches"), trainer.strategy.root_device)
            members.append(Member(task.rule.start(task), callbacks, loader))
    factors = {lr_factor_of(task) for task in tasks}
    if len(factors) > 1:
        raise CannotStackError(
            f"Several clients cannot be trained at once with different lr_factors: {sorted(factors)}."
        )
    for trained in fit_stacked(trainer, module, members, factors.pop()):
        member, task = members[trained.member], tasks[trained.member]
        metrics = {**trained.metrics, "seconds": (time.perf_counter() - began) / len(members)}
        number = member.loader.num_examples
        member.loader.release()
        yield _update_of(module, trainer, task, member.start, number, trained.num_steps, metrics)


def lr_factor_of(task: ClientTask) -> float:
    """Return the factor of the learning rates, ``settings["lr_factor"]``; 1 by default."""
    return float(task.settings.get("lr_factor", 1.0))


def _update_of(
    module: DistillationModule,
    trainer: Trainer,
    task: ClientTask,
    start: Weights,
    num_examples: int,
    num_steps: int,
    metrics: dict[str, float],
) -> ClientUpdate:
    """Return the update of a client whose weights are in the module's student, completed by the task's rule."""
    parameters, buffers = split_state(module.student)
    counted_from = task.weights if task.weights.parameters else start
    delta = subtract(parameters, counted_from.parameters)
    update = ClientUpdate(task.client, num_examples, num_steps, delta=delta, buffers=buffers, metrics=metrics)
    return task.rule.finish(update, task, trainer)


def predict(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the logits of the client's model for a pool: ``extras["logits"]``, (P, K), or (P, V, K) of its views.

    Args:
        site: The client's.
        task: The model (see `LocalRule.start`), and ``settings["pool"]``, the pool's name.
    """
    pool, weights = site.pools[task.settings["pool"]], task.rule.start(task)
    logits = predict_logits(module_of(site).student, [weights], pool, site.trainer)
    return ClientUpdate(task.client, len(site.rows), extras={"logits": logits})


def distill_pool(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Distill logits for a pool into the client's model, and keep the model on the client.

    All randomness comes from (run seed, "digest", round, client).

    Args:
        site: The client's.
        task: The model (see `LocalRule.start`); ``extras["logits"]``, (P, K) or (P, V, K); the settings ``pool``,
            ``epochs``, ``lr`` and ``temperature``.

    Returns:
        An update whose ``client_state`` is the model: see `model_state`.

    Raises:
        FedKDError: If the model becomes infinite or NaN.
    """
    settings: Any = task.settings
    keys = (site.seed, "digest", task.round, task.client)
    with seeded(*keys):
        weights = distill(
            module_of(site).student,
            task.rule.start(task),
            site.pools[settings["pool"]],
            task.extras["logits"],
            epochs=settings["epochs"],
            lr=settings["lr"],
            temperature=settings["temperature"],
            trainer=site.trainer,
            seed=derive_seed(*keys, "batches"),
        )
    if not weights.is_finite:
        raise FedKDError("The student became infinite or NaN in distillation. Lower the strategy's distill_lr.")
    return ClientUpdate(task.client, len(site.rows), client_state=model_state(weights))


def evaluate_held_out(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send how many of the images that the client holds out a model classifies right: ``metrics["num_correct"]``.

    Args:
        site: The client's; it holds out at least one image.
        task: The model (see `LocalRule.start`).
    """
    module, weights = module_of(site), task.rule.start(task)
    load_state(module.student, weights.parameters, weights.buffers)
    predicted = predict_classes(module, site.held_out, site.trainer, site.batching.eval_batch_size)
    correct = int((predicted == site.held_out.targets).sum())
    return ClientUpdate(task.client, len(site.rows), metrics={"num_correct": correct})


def on_student_features(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Do the work of a head's fit (`fedkd.teachers.heads`) on the student's features instead of the teacher's.

    Args:
        site: The client's. Its student is a `fedkd.students.ClosedFormStudent`.
        task: The student's weights, ``settings["work"]``, the head's work as ``module:name``, and what that work takes.

    Raises:
        FedKDError: If there is no such work.
    """
    module, rows = module_of(site), site.rows
    load_state(module.student, task.weights.parameters, task.weights.buffers)
    plain = Rows(rows.images, rows.targets, rows.index, rows.classes)  # the images themselves, whatever the views
    features = predict_features(module.student, plain, site.trainer, site.batching.eval_batch_size)
    seen = replace(plain, teacher_features=features.numpy())
    return head_work(task.settings["work"])(replace(site, rows=seen), task)


def head_work(name: str) -> Work:
    """Return a work by ``module:name``: one of fedkd's own, or of a module that is imported already."""
    module, _, function = name.partition(":")
    if module.startswith("fedkd.teachers.heads."):
        importlib.import_module(module)
    found = getattr(sys.modules.get(module), function, None)
    if not (inspect.isfunction(found) and list(inspect.signature(found).parameters) == ["site", "task"]):
        raise FedKDError(f"A head's work is a function (site, task), got {name!r}.")
    return found


def model_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Return a model as a client state, for a client that keeps a model of its own; see `model_of`."""
    parameters = {f"parameters/{name}": value for name, value in weights.parameters.items()}
    return {**parameters, **{f"buffers/{name}": value for name, value in weights.buffers.items()}}


def model_of(client_state: Any) -> Weights:
    """Return the model that a client state holds; see `model_state`."""
    parts: dict[str, dict[str, torch.Tensor]] = {"parameters": {}, "buffers": {}}
    for name, value in client_state.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    return Weights(parts["parameters"], parts["buffers"])
