"""Federated low-rank adaptation (LoRA) of a teacher's backbone to the clients' images, before the first round.

Hu et al. 2021, "LoRA" (arXiv 2106.09685): a linear layer's weight W becomes W + (alpha / r) B A, and only A (r, in) and
B (out, r) are trained. Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA, arXiv
2403.12313): the mean of the clients' products B A is not the product of their means. The two are equal if A is drawn
once and fixed. Then clients send only B.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.core.local import Connect
from fedkd.core.messages import ClientTask, ClientUpdate, Exchange
from fedkd.core.progress import progress_bar
from fedkd.core.sealed import DamagedFileError, read_sealed, sealed
from fedkd.core.seeding import derive_seed
from fedkd.core.storage import cache_dir, locked, write_atomically
from fedkd.core.tensors import Tensors, weighted_mean
from fedkd.data import FederatedDataModule
from fedkd.data.site import ClientSite
from fedkd.teachers.adapter import Adapter, LoRA, import_peft, inject
from fedkd.teachers.heads.clients import SCRATCH_FILE, HeadClients
from fedkd.teachers.heads.head import FederatedHead
from fedkd.teachers.heads.modules import LinearClassifier, UnitNorm
from fedkd.teachers.heads.ridge import RidgeHead
from fedkd.teachers.huggingface.feature import FeatureTeacher


class Adapted(NamedTuple):
    """What an adaptation left.

    Attributes:
        to: A hash of the clients and settings.
        identity: The teacher's, before the adaptation.
        state: The adapter, by name.
    """

    to: str
    identity: str
    state: Tensors


class LoRATeacher(FeatureTeacher):
    """A `FeatureTeacher` whose backbone is adapted to the clients' images in a few federated rounds, then frozen.

    In each round ``head`` fits the head to the current features. For closed-form heads this fit does not depend on the
    partition. Each client then trains B by cross-entropy through that head, which is frozen, so no client can shift it
    to its own classes. The server averages B, weighted by images. Finally B A is added to the weights, so the cache
    treats the result as a new backbone. The result is stored on disk and not computed twice. Needs
    ``pip install fedkd[lora]``.

    Args:
        checkpoint: See `FeatureTeacher`, also for the next arguments.
        head: The method that fits the head, in each round and at the end.
        pooling: The features, as for `FeatureTeacher`.
        image_size: Side of the square input in pixels.
        dtype: Precision of the frozen weights. Adapters are float32.
        revision: Branch, tag or commit on the hub.
        lora: The settings of the adaptation.

    Raises:
        FedKDError: If the head is private, because the adapters that clients send are not.
    """

    not_in_features = FeatureTeacher.not_in_features | {"lora", "adapted", "arguments"}

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
            raise FedKDError("A private head with LoRA protects nothing: adapters are sent without noise. Remove one.")
        import_peft()
        super().__init__(checkpoint, head, pooling, image_size, dtype, revision)
        self.lora = lora
        self.arguments = {
            "checkpoint": checkpoint,
            "pooling": pooling,
            "image_size": image_size,
            "dtype": dtype,
            "revision": revision,
            "lora": asdict(lora),
        }
        self.adapted: Adapted | None = None

    def adapt(self, data: FederatedDataModule, connect: Connect) -> None:
        """Adapt the backbone, on the teacher's device. A second call with the same clients changes nothing.

        Args:
            data: The federation's data, already set up.
            connect: Gives an exchange with the clients of a site factory. It is not used if the adaptation is already
                on disk.

        Raises:
            FedKDError: If the teacher is adapted to other images, no client has an image, or no layer can be adapted.
        """
        what = (self.lora, self.head_method, data.data_fingerprint, data.partition_fingerprint)
        key = hashlib.sha256(repr(what).encode())
        if self.adapted is not None:
            if self.adapted.to != key.hexdigest():
                raise FedKDError("This LoRATeacher is adapted to other clients already: make a new one.")
            return
        counts = {client: len(shard) for client, shard in enumerate(data.shards)}
        if not any(counts.values()):
            raise FedKDError("Cannot adapt the teacher: no client has an image.")

        file = hashlib.sha256(f"adapter 2 {self.fingerprint()} {key.hexdigest()}".encode()).hexdigest()[:32]
        path = cache_dir("adapters") / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        identity, recipe = self.identity(), self.recipe()
        adapter = inject(self.model, self.lora)
        with locked(path.with_suffix(".lock")):
            learned = _kept(path)
            if learned is None:
                loaded = _key_of(recipe, self.device.type)
                _LOADED[loaded] = (self, adapter)  # works in this process use this very model
                try:
                    with (
                        tempfile.TemporaryDirectory() as scratch,
                        connect(data.sites("adapt", teacher=recipe, scratch=Path(scratch))) as exchange,
                    ):
                        learned = self._train(adapter, exchange, counts, data.num_classes)
                finally:
                    _LOADED.pop(loaded, None)
                write_atomically(path, sealed(safetensors.torch.save(dict(learned))))
            state = {name: learned[name] for name in adapter.learned}
            adapter.load(state)
        self.model = adapter.merged()
        self.adapted = Adapted(key.hexdigest(), identity, state)

    def adopt(self, adapter_state: Tensors) -> None:
        """Take an adapter that was learned elsewhere, which changes the backbone as `adapt` does.

        Args:
            adapter_state: ``adapted.state`` of the teacher that learned it.
        """
        identity, adapter = self.identity(), inject(self.model, self.lora)
        adapter.load(adapter_state)
        self.model, self.adapted = adapter.merged(), Adapted("elsewhere", identity, dict(adapter_state))

    def recipe(self) -> dict[str, Any]:
        """Return JSON values from which another process loads this teacher. Its head is sent separately.

        A subclass whose constructor takes other arguments adds them.
        """
        kind = type(self)
        return {"class": f"{kind.__module__}:{kind.__qualname__}", **self.arguments}

    def identity(self) -> str:
        """Return a line that identifies this teacher by its state before the adaptation; this determines the result."""
        return self.adapted.identity if self.adapted else super().identity()

    def _train(self, adapter: Adapter, exchange: Exchange, counts: Mapping[int, int], num_classes: int) -> Tensors:
        """Run the rounds; return the trained adapter."""
        clients = [client for client, count in counts.items() if count]
        state, device = adapter.state(), {"device": self.device.type}  # a GPU's index may differ between processes
        names = ("seed", "lr", "batch_size", "local_epochs")
        settings = {**device, **{name: getattr(self.lora, name) for name in names}}
        with progress_bar(f"{type(self).__name__} adapts", self.lora.rounds) as bar:
            for round in range(self.lora.rounds):
                feature_tasks = [
                    ClientTask(round, client, extras=state, settings={**device, "batch_size": 4 * self.lora.batch_size})
                    for client in clients
                ]
                dim = int(exchange(compute_adapted_features, feature_tasks)[0].metrics["dim"])
                fitted = self.head_method.fit(HeadClients(exchange, counts, num_classes, dim, in_scratch=True))
                tensors, unit = pack_head(fitted.module)
                tasks = [
                    ClientTask(round, client, extras=tensors, settings={**settings, "unit": unit}) for client in clients
                ]
                updates = exchange(train_adapter, tasks)
                state = weighted_mean([u.extras for u in updates], [u.num_examples for u in updates])
                bar.advance()
        return state


_LOADED: dict[str, tuple[LoRATeacher, Adapter]] = {}
"""The teacher that the works in this process use, with its adapter, by recipe. It holds one teacher at a time."""


def _kept(path: Path) -> Tensors | None:
    """Return an adapter that was learned before; None if there is none, or its file is damaged."""
    if not path.exists():
        return None
    try:
        return safetensors.torch.load(read_sealed(path))
    except DamagedFileError as error:
        rank_zero_warn(f"{error} The adapter is learned again.")
        return None


def load_adapted(recipe: Mapping[str, Any], device: str) -> tuple[LoRATeacher, Adapter]:
    """Return the teacher of a recipe with its adapter, loaded once per process.

    Args:
        recipe: `LoRATeacher.recipe`.
        device: The kind of device, such as "cuda".

    Raises:
        FedKDError: If this process cannot import the teacher's class.
    """
    key = _key_of(recipe, device)
    if key not in _LOADED:
        _LOADED.clear()
        arguments = {name: value for name, value in recipe.items() if name != "class"}
        teacher = _class_of(recipe["class"])(**{**arguments, "lora": LoRA(**recipe["lora"])})
        teacher.to(device)  # before the adapter exists: a move may set the precision, and the adapter stays float32
        _LOADED[key] = (teacher, inject(teacher.model, teacher.lora))
    return _LOADED[key]


def _key_of(recipe: Mapping[str, Any], device: str) -> str:
    return json.dumps([recipe, device], sort_keys=True)


def _class_of(name: str) -> type[LoRATeacher]:
    """Return the class called ``module:qualname``."""
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise FedKDError(
            f"This process cannot import the teacher's class {name!r} ({error}): define it at the top level of a "
            "module."
        ) from error
    if not (isinstance(found, type) and issubclass(found, LoRATeacher)):
        raise FedKDError(f"The teacher's class must be a LoRATeacher, got {name!r}.")
    return found


def compute_adapted_features(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Compute the features of the client's images with an adapter, and save both in the client's scratch folder.

    Args:
        site: The client's site, with the teacher's recipe and a scratch folder.
        task: ``extras`` are the adapter's state. The settings are ``device`` and ``batch_size``.
    """
    teacher, adapter = load_adapted(site.teacher or {}, task.settings["device"])
    adapter.load(task.extras)
    with torch.no_grad():
        parts = [
            teacher.features(images.to(teacher.device).float() / 255).cpu()
            for images in site.rows.images.split(task.settings["batch_size"])
        ]
    features = torch.cat(parts).numpy()
    assert site.scratch is not None
    site.scratch.mkdir(parents=True, exist_ok=True)
    np.save(site.scratch / SCRATCH_FILE, features)
    safetensors.torch.save_file(dict(task.extras), site.scratch / "adapter.safetensors")
    return ClientUpdate(task.client, len(site.rows), metrics={"dim": features.shape[1]})


def train_adapter(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Train the adapter on the client's images by cross-entropy through a head. The update's ``extras`` are its state.

    Args:
        site: The client's site, with the adapter that `compute_adapted_features` saved.
        task: ``extras`` are the head (`pack_head`). The settings are those of `LoRA`, ``device`` and ``unit``.
    """
    settings: Any = task.settings
    teacher, adapter = load_adapted(site.teacher or {}, settings["device"])
    assert site.scratch is not None
    adapter.load(safetensors.torch.load_file(site.scratch / "adapter.safetensors"))
    head = unpack_head(task.extras, settings["unit"]).to(teacher.device)
    optimizer = torch.optim.Adam(adapter.learned.values(), lr=settings["lr"])
    generator = torch.Generator().manual_seed(derive_seed(settings["seed"], "lora", task.round, task.client))
    rows = site.rows
    for _ in range(settings["local_epochs"]):
        for batch in torch.randperm(len(rows), generator=generator).split(settings["batch_size"]):
            images = rows.images[batch].to(teacher.device).contiguous().float() / 255
            with torch.enable_grad():
                loss = F.cross_entropy(head(teacher.features(images)), rows.targets[batch].to(teacher.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ClientUpdate(task.client, len(rows), extras=adapter.state())


def pack_head(head: nn.Module) -> tuple[Tensors, bool]:
    """Return a fitted head as tensors, and whether it scales features to unit length first.

    Raises:
        FedKDError: If the head is not linear.
    """
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    unit = isinstance(layers[0], UnitNorm)
    if not isinstance(layers[-1], LinearClassifier) or len(layers) != 1 + unit:
        raise FedKDError(f"LoRATeacher needs a head that is linear in features, got {type(head).__name__}.")
    return {name: value.cpu() for name, value in layers[-1].state_dict().items()}, unit


def unpack_head(tensors: Mapping[str, Tensor], unit: bool) -> nn.Module:
    """Undo `pack_head`."""
    classifier = LinearClassifier(tensors["weight"], tensors["bias"], float(tensors["scale"]))
    return nn.Sequential(UnitNorm(), classifier) if unit else classifier
