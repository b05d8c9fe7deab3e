"""The Trainer's arguments as a run takes them: checked before any work, and its loggers set apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor

from fedkd.core.errors import FedKDError, check_range
from fedkd.training.trainer import configured_callbacks, make_trainer

HOPPER = (9, 0)
"""The compute capability from which on bfloat16 is the default."""


def with_precision(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a Trainer's arguments with a precision: on an Nvidia GPU from Hopper on "bf16-mixed" if none is given.

    Args:
        arguments: Of the clients' Trainers.
        device: Where they train.
    """
    chosen = arguments.get("precision") is not None or bool(arguments.get("plugins"))
    if chosen or device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return dict(arguments)
    return {**arguments, "precision": "bf16-mixed"}


BOUNDS: dict[str, dict[str, Any]] = {
    "accumulate_grad_batches": {"low": 1, "whole": True},
    "gradient_clip_val": {"low": 0},
    "limit_train_batches": {"low": 0, "low_open": True},
    "max_epochs": {"low": -1, "whole": True},
    "max_steps": {"low": -1, "whole": True},
}
"""Ranges that Lightning does not check, or checks once a client trains."""


REFUSALS = (MisconfigurationException, ImportError, ValueError, TypeError, AttributeError)
"""What Lightning raises for a wrong argument."""


def _blamed(arguments: Mapping[str, Any], message: str) -> str:
    """Say that Lightning refuses the argument that its error is about, with its value; or the arguments."""
    plain = {name: value for name, value in arguments.items() if isinstance(value, str | int | float | dict)}
    named = [name for name in plain if re.search(rf"\b{name}\b", message)]
    valued = [name for name, value in plain.items() if isinstance(value, str) and value in message]
    quoted = [name for name in named if f"{name}=" in message]  # as in `Trainer(devices='0')`
    found = quoted or [name for name in named if name in valued] or named or valued or _refused_alone(arguments)
    if not found:
        return "trainer: Lightning's Trainer refuses its arguments"
    return f"trainer.{found[0]} {arguments[found[0]]!r}: Lightning's Trainer refuses it"


def _refused_alone(arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments that Lightning refuses whatever the others are.

    An error about what is in a value, such as ``max_time: {dayz: 1}``, names only that.
    """
    found = []
    for name, value in arguments.items():
        try:
            make_trainer({"accelerator": "cpu", name: value})
        except REFUSALS:
            found.append(name)
    return found


def check_trainer(arguments: Mapping[str, Any]) -> torch.device:
    """Make a Trainer once, before any work, so that a wrong argument is an error at once.

    A client is one device's work for a bounded time: more would hang instead of failing.

    Returns:
        The device that clients will train on.

    Raises:
        FedKDError: If Lightning refuses the arguments.
    """
    for name, check in BOUNDS.items():
        value = arguments.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_range(f"trainer.{name}", value, **check)
    for name in ("max_epochs", "max_steps"):
        if arguments.get(name) == 0:
            raise FedKDError(f"trainer.{name} 0 trains no client: give a number above.")
    configured = configured_callbacks(arguments)
    for callback in configured:
        if isinstance(callback, LearningRateMonitor | DeviceStatsMonitor):
            raise FedKDError(
                f"trainer.callbacks: {type(callback).__name__} needs a logger, which a client's Trainer does not have: "
                "loggers get a row a round. Leave it out."
            )
    try:
        trainer = make_trainer(arguments)
    except REFUSALS as error:
        raise FedKDError(f"{_blamed(arguments, str(error))}: {error}") from error
    if trainer.world_size > 1:
        raise FedKDError(f"trainer.devices: each client trains on one device, got {trainer.world_size}.")
    if trainer.barebones:
        raise FedKDError(
            "trainer.barebones: true logs nothing, but a round's training losses are logged: leave it out."
        )
    if trainer.max_epochs == -1 and trainer.max_steps == -1 and "max_time" not in arguments:
        raise FedKDError("trainer.max_epochs: -1 never ends on a client; give a number, or max_steps or max_time.")
    return trainer.strategy.root_device
