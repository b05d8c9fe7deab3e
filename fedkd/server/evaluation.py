"""The global student on the global test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedkd.client import make_trainer, quiet_lightning
from fedkd.data import BatchLoader, FederatedDataModule
from fedkd.distillation import DistillationModule
from fedkd.tensors import load_state
from fedkd.types import Metrics, ServerState

COMPUTATION = ("accelerator", "benchmark", "deterministic", "devices", "inference_mode", "plugins", "precision")


def test_loader(datamodule: FederatedDataModule, device: torch.device) -> BatchLoader:
    """Put the global test set on a device, once for all rounds."""
    everything = range(len(datamodule.test))
    return BatchLoader(datamodule.test, everything, batch_size=datamodule.eval_batch_size, device=device)


def evaluate(
    module: DistillationModule, loader: BatchLoader, trainer: Mapping[str, Any], state: ServerState
) -> Metrics:
    """Test the global student with Lightning, in the clients' precision and on their device.

    Args:
        module: Its student's weights are overwritten by the state's.
        loader: The test set; see `test_loader`.
        trainer: Arguments of the Lightning Trainer; see `evaluation_arguments`.
        state: The state to test.

    Returns:
        ``loss``, ``accuracy``, ``balanced_accuracy`` and ``accuracy/<class>``, as floats.
    """
    assert module.student is not None
    load_state(module.student, state.parameters, state.buffers)
    with quiet_lightning():
        tester = make_trainer(evaluation_arguments(trainer))
        metrics = tester.test(module, dataloaders=loader, verbose=False)[0]
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def evaluation_arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a Trainer's arguments that say how to compute; the rest is for training."""
    return {key: value for key, value in trainer.items() if key in COMPUTATION}
