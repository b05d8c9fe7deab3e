"""FedBN: Li, Jiang, Zhang, Kamp and Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization".

arXiv 2102.07623, algorithm 1: all layers are averaged but those that normalise, which stay with their client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from fedkd.core.messages import ClientTask, ClientUpdate
from fedkd.core.tensors import Tensors
from fedkd.strategies.base import Strategy

NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""BatchNorm and InstanceNorm of any dimension, and those without statistics."""


class FedBN(Strategy):
    """Let every client train on with its own normalisation layers: weights, biases and running statistics.

    They are sent and averaged all the same, for the global student is tested as a whole, and a client that takes part
    for the first time begins with the global ones. The paper tests each client's own student instead; its layers are
    in ``ServerState.client_states``. A student without such layers, or without a second round, is FedAvg's.
    """

    def client_start(self, task: ClientTask) -> ClientTask:
        """Put the client's own layers into the global student."""
        own = task.client_state
        return replace(task, parameters=overlaid(task.parameters, own), buffers=overlaid(task.buffers, own))

    def finalize_update(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Keep the layers as they were trained."""
        module: Any = trainer.lightning_module
        return replace(update, client_state=normalisation_state(module.student))


def normalisation_state(student: nn.Module) -> Tensors:
    """Copy parameters and buffers of all normalisation layers to the CPU, under their names in the student."""
    layers = [name for name, layer in student.named_modules() if isinstance(layer, NORMALISATIONS)]
    state = student.state_dict()
    return {name: value.cpu().clone() for name, value in state.items() if name.rpartition(".")[0] in layers}


def overlaid(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
    """Return tensors by name, each from ``own`` where that has it."""
    return {name: own.get(name, value) for name, value in tensors.items()}
