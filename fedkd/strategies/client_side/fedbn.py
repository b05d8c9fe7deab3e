"""FedBN: Li, Jiang, Zhang, Kamp and Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization".

arXiv 2102.07623, algorithm 1: all layers are averaged except normalization layers, which stay with their client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState, Weights
from fedkd.core.tensors import Tensors
from fedkd.strategies.base import Strategy

NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""BatchNorm and InstanceNorm of any dimension, and those without statistics."""


class FedBN(Strategy):
    """Let every client go on with its own normalization layers: weights, biases and running statistics.

    They are also sent and averaged, because the global student is tested as a whole and a client in its first round
    starts from the global ones. The paper tests each client's own student instead; its layers are in
    ``ServerState.client_states``. For a student without such layers this is FedAvg.
    """

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that keeps the client's layers."""
        return OwnNormalization()


@dataclass(frozen=True)
class OwnNormalization(LocalRule):
    """Starts from the client's own normalization layers, and keeps them as they are trained."""

    def start(self, task: ClientTask) -> Weights:
        """Put the client's own layers into the global student."""
        own, weights = task.client_state, task.weights
        return Weights(overlaid(weights.parameters, own), overlaid(weights.buffers, own))

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Keep the layers as they were trained."""
        module: Any = trainer.lightning_module
        return replace(update, client_state=normalization_state(module.student))


def normalization_state(student: nn.Module) -> Tensors:
    """Copy parameters and buffers of all normalization layers to the CPU, under their names in the student."""
    layers = [name for name, layer in student.named_modules() if isinstance(layer, NORMALISATIONS)]
    state = student.state_dict()
    return {name: value.cpu().clone() for name, value in state.items() if name.rpartition(".")[0] in layers}


def overlaid(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
    """Return tensors by name, each from ``own`` where that has it."""
    return {name: own.get(name, value) for name, value in tensors.items()}
