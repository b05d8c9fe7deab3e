"""Adapting a teacher's backbone to the clients' images before it teaches: federated low-rank adaptation.

Hu et al. 2021, "LoRA" (arXiv 2106.09685): a linear layer's weight W becomes W + (alpha / r) B A, and only A (r, in) and
B (out, r) learn. Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA, arXiv
2403.12313): the mean of clients' products B A is not the product of their means. With A drawn once and left as it is,
it is, and only B travels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import safe_open
from torch import nn

from fedkd.core.errors import FedKDError
from fedkd.core.progress import progress_bar
from fedkd.core.seeding import derive_seed
from fedkd.core.storage import cache_dir
from fedkd.core.tensors import Tensors, num_bytes, weighted_mean
from fedkd.teachers.adapter import Adapter, LoRA, import_peft, inject
from fedkd.teachers.heads.head import FederatedHead, RidgeHead
from fedkd.teachers.huggingface.feature import FeatureTeacher

if TYPE_CHECKING:
    from fedkd.data import ImageSet


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation cost; adding two gives both.

    Args:
        bytes_up: Bytes that all clients sent, together.
        bytes_down: Bytes that were sent to them, together.
    """

    bytes_up: int
    bytes_down: int

    def __add__(self, other: Adaptation) -> Adaptation:
        """Return the cost of both."""
        return Adaptation(self.bytes_up + other.bytes_up, self.bytes_down + other.bytes_down)


class LoRATeacher(FeatureTeacher):
    """A `FeatureTeacher` whose backbone is adapted to the clients' images in a few federated rounds, then frozen.

    A round: the head is fitted to the features as they are now, by ``head`` itself, and so owes nothing to the skew of
    any client; each client trains B by cross-entropy through that head, which it cannot bend to its own classes; the
    server averages, weighted by images. In the end B A is added to the weights, so that the cache sees a new backbone.
    The result is kept on disk: the same adaptation is not computed twice. Needs ``pip install fedkd[lora]``.

    Args:
        checkpoint: See `FeatureTeacher`, also for what follows.
        head: How the head is fitted, in each round and for teaching.
        pooling: What the features are.
        image_size: Side of the square input in pixels.
        dtype: Precision of the frozen weights; what learns is float32.
        revision: Branch, tag or commit on the hub.
        lora: How it is adapted.

    Raises:
        FedKDError: If the head is to be private: what clients send here is not.
    """

    not_in_features = FeatureTeacher.not_in_features | {"lora", "adapted"}

    def __init__(
        self,
        checkpoint: str,
        head: FederatedHead = RidgeHead(),  # noqa: B008 (frozen)
        pooling: Literal["auto", "cls", "mean", "cls+mean", "pooled"] = "auto",
        image_size: int | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        revision: str | None = None,
        lora: LoRA = LoRA(),  # noqa: B008 (frozen)
    ) -> None:
        if getattr(head, "privacy", None) is not None:
            raise FedKDError("A private head with LoRA protects nothing: adapters are sent without noise. Drop one.")
        import_peft()
        super().__init__(checkpoint, head, pooling, image_size, dtype, revision)
        self.lora = lora
        self.adapted: tuple[str, Adaptation, str] | None = None  # to what, its cost, and the identity before

    def adapt(self, train: ImageSet, shards: Sequence[np.ndarray]) -> Adaptation:
        """Adapt the backbone, on the teacher's device; a second call with the same images changes nothing.

        Args:
            train: All training images.
            shards: For each client its positions in them.

        Raises:
            FedKDError: If it was adapted to other images, no client has an image, or no layer can be adapted.
        """
        key = hashlib.sha256(repr((self.lora, self.head_method, train.fingerprint)).encode())
        for shard in shards:
            key.update(repr(len(shard)).encode() + np.asarray(shard, np.int64).tobytes())
        if self.adapted is not None:
            if self.adapted[0] != key.hexdigest():
                raise FedKDError("This LoRATeacher is adapted to other clients already: make a new one.")
            return self.adapted[1]

        file = hashlib.sha256(f"adapter 1 {self.fingerprint()} {key.hexdigest()}".encode()).hexdigest()[:32]
        path = cache_dir("adapters") / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        identity, adapter = self.identity(), inject(self.model, self.lora)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                learnt, cost = self._train(adapter, train, shards)
                metadata = {"bytes_up": str(cost.bytes_up), "bytes_down": str(cost.bytes_down)}
                safetensors.torch.save_file(learnt, path.with_suffix(".part"), metadata=metadata)
                os.replace(path.with_suffix(".part"), path)
            cost = _read(path, adapter.learnt)
        self.model = adapter.merged()
        self.adapted = (key.hexdigest(), cost, identity)
        return cost

    def identity(self) -> str:
        """Return a line that tells this teacher from others: that of before the adaptation, which follows from it."""
        return self.adapted[2] if self.adapted else super().identity()

    def _train(self, adapter: Adapter, train: ImageSet, shards: Sequence[np.ndarray]) -> tuple[Tensors, Adaptation]:
        clients = {client: shard for client, shard in enumerate(shards) if len(shard)}
        if not clients:
            raise FedKDError("Cannot adapt the teacher: no client has an image.")
        state, cost = adapter.state(), Adaptation(0, 0)
        size, weights = num_bytes(state) * len(clients), [len(shard) for shard in clients.values()]
        with progress_bar(f"{type(self).__name__} adapts", self.lora.rounds) as bar:
            for round in range(self.lora.rounds):
                adapter.load(state)
                seen = np.concatenate([self._look(train, shard) for shard in clients.values()])
                features = np.zeros((len(train), seen.shape[1]), np.float32)
                features[np.concatenate(list(clients.values()))] = seen
                fitted = self.head_method.fit(features, train.targets, shards, train.num_classes)
                cost += Adaptation(fitted.bytes_up + size, fitted.bytes_down + size)
                head, locals = fitted.module.to(self.device), []
                for client, shard in clients.items():
                    adapter.load(state)
                    seed = derive_seed(self.lora.seed, "lora", round, client)
                    self._train_client(adapter, head, train, shard, seed)
                    locals.append(adapter.state())
                state = weighted_mean(locals, weights)
                bar.advance()
        return state, cost

    def _train_client(self, adapter: Adapter, head: nn.Module, train: ImageSet, shard: np.ndarray, seed: int) -> None:
        optimizer = torch.optim.Adam(adapter.learnt.values(), lr=self.lora.lr)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.lora.local_epochs):
            for batch in torch.randperm(len(shard), generator=generator).split(self.lora.batch_size):
                rows = torch.from_numpy(shard)[batch]
                images = train.images[rows].to(self.device).float() / 255
                with torch.enable_grad():
                    loss = F.cross_entropy(head(self.features(images)), train.targets[rows].to(self.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _look(self, train: ImageSet, shard: np.ndarray) -> np.ndarray:
        """Return the features of a client's images as the backbone is now, (n, D) float32."""
        with torch.no_grad():
            parts = [
                self.features(train.images[rows].to(self.device).float() / 255).cpu()
                for rows in torch.from_numpy(shard).split(4 * self.lora.batch_size)
            ]
        return torch.cat(parts).numpy()


def _read(path: Path, learnt: Mapping[str, nn.Parameter]) -> Adaptation:
    """Set what was learnt from a file, and return what it cost."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in learnt.items():
            parameter.copy_(file.get_tensor(name))
        metadata = file.metadata()
    return Adaptation(int(metadata["bytes_up"]), int(metadata["bytes_down"]))
