"""`LeanTrainer`: a Lightning Trainer for many short fits, whose loops do no more than take the steps.

Lightning's own loops cost 6 ms a fit and 0.9 ms a step on top of a bare loop, which is more than a small student's
work on a small client. A lean fit does what Lightning's does where nothing more is configured than `ARGUMENTS`: the
same precision plugin, hooks of callbacks, accumulation, clipping and counters in the same order, hence the same bits.
Everything else is a reason for Lightning's own loops; see `reason_for_lightning`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from fedkd.core.modes import evaluating

ARGUMENTS = frozenset(
    {
        *("accelerator", "devices", "precision", "max_epochs", "benchmark", "deterministic", "inference_mode"),
        *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "logger", "num_sanity_val_steps"),
        *("enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
    }
)
"""The Trainer's arguments that a lean fit honors."""

PRECISIONS = frozenset({None, 32, "32", "32-true", "bf16", "bf16-mixed", 16, "16", "16-mixed"})
"""The precisions that a lean fit honors: those that leave the weights in float32."""


def reason_for_lightning(
    module: LightningModule, arguments: Mapping[str, Any], callbacks: Sequence[Callback] = ()
) -> str | None:
    """Return why a fit needs Lightning's own loops, None if a lean fit is the same.

    Args:
        module: The module that is trained. Its class, and not only a base of it, declares ``runs_lean = True``.
        arguments: Arguments of the Trainer, the defaults included.
        callbacks: The callbacks beside the configured ones. Their classes, or bases of these, declare it.
    """
    if not vars(type(module)).get("runs_lean"):
        return f"{type(module).__name__} does not declare runs_lean"
    for name, value in arguments.items():
        default = _DEFAULTS.get(name)
        if name not in ARGUMENTS and value is not default and value != default:
            return f"trainer.{name} is set"
    if arguments.get("precision") not in PRECISIONS:
        return f"trainer.precision is {arguments['precision']}"
    if not (isinstance(arguments.get("max_epochs"), int) and arguments["max_epochs"] >= 1):
        return f"trainer.max_epochs is {arguments.get('max_epochs')}"
    if arguments.get("logger"):
        return "trainer.logger is set"
    for callback in callbacks:
        if not getattr(callback, "runs_lean", False):
            return f"{type(callback).__name__} does not declare runs_lean"
    return None


_DEFAULTS = {name: each.default for name, each in inspect.signature(Trainer.__init__).parameters.items()}


class LeanTrainer(Trainer):
    """A Trainer with lean `fit`, `test` and `predict`. It may be used again, with other callbacks, and starts afresh.

    What callbacks read of a Trainer is there: ``callbacks``, ``lightning_module``, ``global_step``, ``current_epoch``,
    ``precision_plugin``, ``strategy.root_device``, ``train_dataloader``, ``accumulate_grad_batches`` and the index of
    the batch. They cannot log. The module gives its own metrics (``epoch_metrics``).

    Args:
        arguments: Of Lightning's Trainer; `reason_for_lightning` found none in them.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(**arguments)
        self.arguments = dict(arguments)
        self.loader: Any = None  # of the fit that is running
        self._metrics: dict[str, Any] = {}
        scaler = getattr(self.precision_plugin, "scaler", None)
        self._fresh_scaler = None if scaler is None else scaler.state_dict()
        self.strategy.setup_environment()

    @property
    def train_dataloader(self) -> Any:
        """The loader of the fit that is running: `loader`."""
        return self.loader

    @property
    def estimated_stepping_batches(self) -> int:
        """The optimizer steps of the fit that is running, for a schedule over all of them."""
        return -(-len(self.loader) // self.accumulate_grad_batches) * (self.max_epochs or 0)

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """The metrics of the last epoch, or of the last test."""
        return self._metrics

    def fit(self, model: Any, train_dataloaders: Any = None, *unused: Any, **never: Any) -> None:
        """Train a module for ``max_epochs``.

        Args:
            model: The module. ``configure_optimizers`` gives an optimizer, or one with a scheduler that goes by steps.
            train_dataloaders: One loader with a length, whose batches are on the device.
            unused: Not taken.
            never: Not taken.
        """
        if unused or never:
            raise TypeError(f"A lean fit takes a module and one loader, got {unused or never} too.")
        loader = train_dataloaders
        with self.running(model, TrainerFn.FITTING, RunningStage.TRAINING, loader):
            self.reset()
            model.setup("fit")
            self.call_hooks("setup", model, "fit")
            self.call_hooks("on_fit_start", model)
            optimizer, scheduler = _plain(model.configure_optimizers())
            self.strategy._optimizers = [optimizer]
            configs = [] if scheduler is None else [LRSchedulerConfig(scheduler, interval="step")]
            self.strategy.lr_scheduler_configs = configs
            self.call_hooks("on_train_start", model)
            with torch.enable_grad():
                for _ in range(self.fit_loop.max_epochs or 0):
                    self._epoch(model, loader, optimizer, scheduler)
            self.call_hooks("on_train_end", model)
            self.call_hooks("on_fit_end", model)
            self.call_hooks("teardown", model, "fit")

    def test(self, model: Any = None, dataloaders: Any = None, *unused: Any, **never: Any) -> Any:
        """Evaluate a module and return its metrics by name, in a list of one mapping, as Lightning does."""
        with self.running(model, TrainerFn.TESTING, RunningStage.TESTING), self._evaluating(model):
            model.on_test_epoch_start()
            for index, batch in enumerate(dataloaders):
                with self.precision_plugin.test_step_context():
                    model.test_step(batch, index)
            self._metrics = _numbers(model.evaluation_metrics("test"))
        return [self._metrics]

    def predict(self, model: Any = None, dataloaders: Any = None, *unused: Any, **never: Any) -> Any:
        """Return what a module predicts for each batch."""
        with self.running(model, TrainerFn.PREDICTING, RunningStage.PREDICTING), self._evaluating(model):
            found = []
            for index, batch in enumerate(dataloaders):
                with self.precision_plugin.predict_step_context():
                    found.append(model.predict_step(batch, index))
        return found

    def _epoch(self, model: Any, loader: Any, optimizer: Optimizer, scheduler: Any) -> None:
        """Take the steps of an epoch, as Lightning's automatic optimization does."""
        precision, window, clip = self.precision_plugin, self.accumulate_grad_batches, self.gradient_clip_val
        scaler = getattr(precision, "scaler", None)
        progress = self.fit_loop.epoch_loop.batch_progress
        steps = self.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        hooks = {name: self._hooks(name) for name in HOOKS_OF_A_BATCH}
        self.call_hooks("on_train_epoch_start", model)
        model.on_train_epoch_start()
        progress.reset_on_run()
        count = len(loader)
        for index, batch in enumerate(loader):
            progress.current.ready = index + 1
            for hook in hooks["on_train_batch_start"]:
                hook(self, model, batch, index)
            with precision.train_step_context():
                loss = model.training_step(batch, index)
            if window > 1:
                loss = loss / window
            if index % window == 0:
                for hook in hooks["on_before_zero_grad"]:
                    hook(self, model, optimizer)
                optimizer.zero_grad()
            scaled = loss if scaler is None else scaler.scale(loss)
            for hook in hooks["on_before_backward"]:
                hook(self, model, scaled)
            scaled.backward()
            for hook in hooks["on_after_backward"]:
                hook(self, model)
            if (index + 1) % window == 0 or index + 1 == count:
                if scaler is not None and not getattr(optimizer, "_step_supports_amp_scaling", False):
                    scaler.unscale_(optimizer)
                for hook in hooks["on_before_optimizer_step"]:
                    hook(self, model, optimizer)
                if clip:
                    model.clip_gradients(optimizer, clip, self.gradient_clip_algorithm)
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                steps.completed += 1
                if scheduler is not None:
                    scheduler.step()
            for hook in hooks["on_train_batch_end"]:
                hook(self, model, {"loss": loss.detach()}, batch, index)
        self.call_hooks("on_train_epoch_end", model)
        self._metrics = _numbers(model.epoch_metrics())
        self.fit_loop.epoch_progress.current.completed += 1

    def reset(self) -> None:
        """Put counters and the scaler back to where a new Trainer has them."""
        self.fit_loop.epoch_progress.reset()
        self.fit_loop.epoch_loop.batch_progress.reset()
        self.fit_loop.epoch_loop.automatic_optimization.optim_progress.reset()
        if self._fresh_scaler is not None:
            self.precision_plugin.scaler.load_state_dict(self._fresh_scaler)  # type: ignore[attr-defined]

    @contextmanager
    def running(self, model: LightningModule, fn: TrainerFn, stage: RunningStage, loader: Any = None) -> Iterator[None]:
        """Connect a module, on the device, while something runs."""
        self.strategy._lightning_module = self.strategy._model = model
        model.trainer = self
        device = self.strategy.root_device
        if any(value.device != device for value in model.parameters()):
            model.to(device)
        self.loader, self._metrics = loader, {}
        self.state.fn, self.state.status, self.state.stage = fn, TrainerStatus.RUNNING, stage
        try:
            yield
            self.state.status = TrainerStatus.FINISHED
        except BaseException as error:
            self.state.status = TrainerStatus.INTERRUPTED
            self.call_hooks("on_exception", model, error)
            raise
        finally:
            self.loader = self.state.stage = None

    @contextmanager
    def _evaluating(self, model: LightningModule) -> Iterator[None]:
        """Put all parts of a module into evaluation mode, and each back into its own mode."""
        inference = torch.inference_mode() if self.arguments.get("inference_mode", True) else torch.no_grad()
        with evaluating(model), inference:
            yield

    def _hooks(self, name: str) -> list[Callable[..., None]]:
        """Return the callbacks' own methods of a name; those that do nothing are left out."""
        default = getattr(Callback, name)
        return [getattr(each, name) for each in self.callbacks if getattr(type(each), name) is not default]  # type: ignore[attr-defined]

    def call_hooks(self, name: str, *arguments: Any) -> None:
        """Call the callbacks' hook of a name."""
        for hook in self._hooks(name):
            hook(self, *arguments)


HOOKS_OF_A_BATCH = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


def _plain(configured: Any) -> tuple[Optimizer, Any]:
    """Return the optimizer and the scheduler, if any, of what ``configure_optimizers`` gave."""
    if isinstance(configured, Optimizer):
        return configured, None
    return configured["optimizer"], configured["lr_scheduler"]["scheduler"]


def has_plain_optimizer(module: LightningModule) -> bool:
    """Whether a lean fit can use what ``configure_optimizers`` gives."""
    configured: Any = getattr(module, "try_optimizer", module.configure_optimizers)()
    if isinstance(configured, dict):
        schedule = configured.get("lr_scheduler")
        if not isinstance(schedule, dict) or schedule.keys() != {"scheduler", "interval"}:
            return False
        if schedule["interval"] != "step":
            return False
        configured = configured["optimizer"]
    return isinstance(configured, Optimizer) and not isinstance(configured, LBFGS)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as numbers. Those on the device come over together."""
    tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    numbers = torch.stack(list(tensors.values())).tolist() if tensors else []
    return {name: float(value) for name, value in {**metrics, **dict(zip(tensors, numbers, strict=True))}.items()}
