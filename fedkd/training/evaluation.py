"""The global student on the global test set, and on what clients hold out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.messages import Metrics, ServerState
from fedkd.core.tensors import load_state
from fedkd.data import BatchLoader, FederatedDataModule
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import make_trainer, quiet_lightning

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


class Evaluation:
    """Measures global students of a run, one after the other.

    Args:
        module: Its student's weights are overwritten by each state's.
        datamodule: Set up.
        trainer: Arguments of the clients' Trainers; see `evaluation_arguments`.
        device: Where the images are put, once for all rounds.
    """

    def __init__(
        self,
        module: DistillationModule,
        datamodule: FederatedDataModule,
        trainer: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.module, self.trainer = module, trainer
        self.test = test_loader(datamodule, device)
        held_out = np.concatenate(datamodule.val_shards)
        self.sizes = [len(shard) for shard in datamodule.val_shards]
        self.targets = datamodule.train.targets[torch.from_numpy(held_out)]
        self.held_out = BatchLoader(datamodule.train, held_out, batch_size=datamodule.eval_batch_size, device=device)

    def __call__(self, state: ServerState) -> Metrics:
        """Return `evaluate` on the test set and, where clients hold images out, ``val_accuracy`` on all of these."""
        metrics = evaluate(self.module, self.test, self.trainer, state)
        return metrics | ({"val_accuracy": float(self._right().float().mean())} if len(self.targets) else {})

    def of_clients(self, state: ServerState) -> list[float | None] | None:
        """Return each client's accuracy on what it holds out, None for one that holds out nothing; None if all do."""
        if not len(self.targets):
            return None
        assert self.module.student is not None
        load_state(self.module.student, state.parameters, state.buffers)
        return [float(right.float().mean()) if len(right) else None for right in self._right().split(self.sizes)]

    def _right(self) -> Tensor:
        """Tell of each image held out, client by client, whether the module's student names its class: bool."""
        with quiet_lightning():
            batches = make_trainer(evaluation_arguments(self.trainer)).predict(self.module, dataloaders=self.held_out)
        return torch.cat(batches).argmax(dim=1).cpu() == self.targets  # type: ignore[arg-type]
