"""A client on a machine of its own: it builds its site from the run's configuration and its own data."""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Work
from fedkd.core.plain_modules import put_together
from fedkd.core.storage import cache_dir
from fedkd.data import ClientSite, FederatedDataModule, ImageFolder, ImageSet, Pool, Rows, Views
from fedkd.data.images.image_set import with_channels
from fedkd.data.images.pixels import is_colored
from fedkd.data.remote import ClientCounts, OwnData
from fedkd.flower.stage import adapting, check_stage, facts_from_plain, key_of
from fedkd.server.backends.base import run_work
from fedkd.server.backends.in_process import SITES_KEPT
from fedkd.server.setup import Plan, build_plan, run_settings
from fedkd.teachers.outputs.cache import TeacherCache
from fedkd.teachers.outputs.prepare import logits_from


@dataclass(frozen=True)
class Place:
    """Which clients a machine serves, and where their images are.

    Args:
        partition: ``partition-id`` of the node's configuration, in ``[0, num_partitions)``.
        num_partitions: Into how many parts the clients are dealt.
        data_root: ``data-root``, a folder with ``train/`` and in it one folder per class: the images of the client
            ``partition``, which are nowhere else. None if the run's data set is on this machine too.
    """

    partition: int
    num_partitions: int
    data_root: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Place:
        """Read a node's configuration.

        Raises:
            FedKDError: If a value is missing or wrong.
        """
        values = {}
        for name in ("partition-id", "num-partitions"):
            value = config.get(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise FedKDError(
                    f"The SuperNode's {name} must be a whole number >= 0, got {value!r}: start it with --node-config "
                    "'partition-id=K num-partitions=N'."
                )
            values[name] = value
        partition, number = values["partition-id"], values["num-partitions"]
        if partition >= number:
            raise FedKDError(f"The SuperNode's partition-id {partition} must be less than num-partitions, {number}.")
        root = config.get("data-root")
        return cls(partition, number, None if root is None else str(root))

    def clients(self, num_clients: int) -> list[int]:
        """Return the clients that are served here."""
        return list(range(self.partition, num_clients, self.num_partitions))


class Node:
    """Answers the server of a run for the clients on this machine.

    Args:
        federation: The run's `fedkd.Federation`.
        module: Its module, with the teacher.
        data: Its data, not set up.
        place: Where the images are. The clients of several places are served by one node if it is the run's data set.
        classes: The class names of the whole federation.
        image_shape: (C, H, W) of its images.
        scratch: A folder of this run's own for what clients keep while the teacher is adapted.

    Raises:
        FedKDError: If the images here are not of these classes or shape.
    """

    def __init__(
        self,
        federation: Any,
        module: Any,
        data: FederatedDataModule,
        place: Place,
        classes: tuple[str, ...],
        image_shape: tuple[int, int, int],
        scratch: Path,
    ) -> None:
        self.scratch = scratch
        if place.data_root is not None:
            if place.num_partitions != data.num_clients:
                raise FedKDError(
                    f"A SuperNode with a data-root is one client, so num-partitions must be data.num_clients, "
                    f"{data.num_clients}, got {place.num_partitions}."
                )
            data = OwnData(data, own_images(data, place.data_root, classes, image_shape), place.partition)
        self.plan: Plan = build_plan(federation, module, data)
        data = self.plan.datamodule
        if data.classes != classes:
            raise FedKDError(f"The classes here are {list(data.classes)}, and the server's are {list(classes)}.")
        if data.image_shape != image_shape:
            raise FedKDError(f"The images here are {data.image_shape} (C, H, W), and the server's are {image_shape}.")
        self.seed, backend = federation.seed, federation.backend
        self.lines = run_settings(federation, self.plan)  # before the teacher learns anything
        self.threads = backend.threads
        self.sites = lru_cache(SITES_KEPT)(self._site)
        self._stage: Mapping[str, Any] = {}
        self._key = ""
        self._modules: tuple[Any, ...] = ()

    def introduce(self, place: Place, lines: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a server's hello.

        Args:
            place: Which clients are here.
            lines: What the server runs, by name: see `fedkd.server.setup.run_settings`.

        Raises:
            FedKDError: If something else is run here.
        """
        data = self.plan.datamodule
        for name, line in lines.items():
            if self.lines.get(name) != line:
                raise FedKDError(f"{name} is {self.lines.get(name)!r} here, and {line!r} at the server.")
        clients = {}
        for client in place.clients(data.num_clients):
            rows, held_out = data.shards[client], data.val_shards[client]
            fingerprint = "" if place.data_root is None else data.train.fingerprint
            clients[client] = astuple(ClientCounts(len(rows), len(held_out), fingerprint))
        return {"partition": place.partition, "num_partitions": place.num_partitions, "clients": clients}

    def run(
        self, place: Place, tasks: Sequence[ClientTask], work: str, stage: Mapping[str, Any]
    ) -> dict[int, ClientUpdate | str]:
        """Work on tasks; return for each client its update, or what went wrong.

        Args:
            place: Which clients are here.
            tasks: The tasks.
            work: A work, as ``module:name``.
            stage: What the server's teacher and losses have learned.

        Raises:
            FedKDError: If a client is not here, or there is no such work.
        """
        here = place.clients(self.plan.datamodule.num_clients)
        if absent := [task.client for task in tasks if task.client not in here]:
            raise FedKDError(f"client {absent[0]} is not on this machine, which has {here}")
        check_stage(stage)
        key = key_of(stage)
        if key != self._key:
            self._enter(stage)
            self._key = key
        function, before = work_of(work), torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            outcomes = {task.client: run_work(function, self.sites, task) for task in tasks}
        finally:
            torch.set_num_threads(before)
        return {k: each if isinstance(each, ClientUpdate) else each.reason for k, each in outcomes.items()}

    def _enter(self, stage: Mapping[str, Any]) -> None:
        """Begin a stage of the run: the teacher and the losses here get what those of the server have learned."""
        self.sites.cache_clear()  # the sites of an earlier stage are not asked for again
        if self.plan.modules[0].teacher is not None and stage["stage"] != "adapt":
            shutil.rmtree(self.scratch, ignore_errors=True)
            self._teach(stage)
        for number, (module, facts) in enumerate(zip(self.plan.modules, stage["facts"], strict=False)):
            found = facts_from_plain(facts, stage["tensors"], f"facts.{number}.")
            if found is not None:
                module.fit_to_teacher(found)
        self._modules = tuple(module.for_clients() for module in self.plan.modules)
        self._stage = stage

    def _site(self, client: int) -> ClientSite:
        """Return a client's site in the stage of the run."""
        stage, plan, data = self._stage, self.plan, self.plan.datamodule
        kind, teacher = stage["stage"], plan.modules[0].teacher
        shard = data.shards[client]
        rows = Rows.of(data.train, shard)
        held_out = Rows.of(data.train, data.val_shards[client])
        scratch = self.scratch / f"client-{client}"
        site = ClientSite(client, self.seed, rows, held_out, batching=data.batching, scratch=scratch)
        if kind == "adapt":
            if stage["recipe"] not in [each.recipe() for each in adapting(teacher)]:
                raise FedKDError(f"no teacher of this run is made by {stage['recipe']!r}")
            return replace(site, teacher=stage["recipe"])
        if teacher is not None:
            site = replace(site, rows=self._with_outputs(rows, shard, kind))
        if kind == "head":
            return site
        module = self._modules[client % len(self._modules)]
        return replace(site, module=module, pools=LazyPools(self), trainer=plan.trainer)

    def _teach(self, stage: Mapping[str, Any]) -> None:
        """Give the teacher here what the server's teacher has learned."""
        teacher: Any = self.plan.modules[0].teacher
        tensors = stage["tensors"]
        for number, adapted in enumerate(adapting(teacher)[: stage["adapters"]]):
            if adapted.adapted is None:
                start = f"adapter.{number}."
                adapted.adopt({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        if stage["head"] is not None:
            teacher.head, teacher.head_is_fitted = put_together(stage["head"], tensors, "head."), True
        teacher.image_shape = self.plan.datamodule.image_shape
        teacher.prepare(self.plan.datamodule.classes)

    def _outputs(self, images: ImageSet, index: np.ndarray | None, views: Views | None, features: bool = False) -> Any:
        """Return the teacher's outputs, from this machine's cache or computed here."""
        teacher: Any = self.plan.modules[0].teacher
        home = teacher.device
        teacher.to(self.plan.device)
        try:
            store = TeacherCache(cache_dir("teachers"))
            return store.get(teacher, images, views=views, features=features, index=index, progress=False)
        finally:
            teacher.to(home)

    def _with_outputs(self, rows: Rows, shard: np.ndarray, kind: str) -> Rows:
        """Return a client's rows with the teacher's outputs: features alone for a head, else what training needs."""
        plan, data = self.plan, self.plan.datamodule
        teacher: Any = plan.modules[0].teacher
        if not len(rows):  # with privacy, clients without images take part too
            seen = np.zeros((0, 1, teacher.feature_dim), np.float32) if kind == "head" else None
            return replace(rows, teacher_features=seen)
        images = ImageSet(rows.images, rows.targets, data.classes)
        if kind == "head":
            return replace(rows, teacher_features=self._outputs(images, shard, None))
        views = data.image_views if plan.consistent else None
        seen = self._outputs(images, shard, views)
        needs_features = plan.modules[0].loss.needs_features or plan.strategy.needs_teacher_features
        features = None
        if needs_features:
            own = teacher.overrides_forward
            features = self._outputs(images, shard, views, features=True) if own else seen
        return replace(rows, teacher_logits=logits_from(teacher, seen, views), teacher_features=features)

    def pools(self) -> dict[str, Pool]:
        """Return the unlabeled images that all may see, with the teacher's outputs."""
        plan, data = self.plan, self.plan.datamodule
        if plan.modules[0].teacher is None:
            return data.pools()
        views = data.image_views if plan.consistent else None
        found = {}
        for name, pool in data.pools().items():
            rows = self._with_outputs(pool.rows, pool.rows.index.numpy(), "rounds")
            found[name] = replace(pool, rows=rows, views=views)
        return found


@dataclass(frozen=True, eq=False)
class LazyPools(Mapping[str, Pool]):
    """A node's pools, made when one is first read: few works read one, and the teacher's outputs take time.

    Args:
        node: The node.
    """

    node: Node
    _made: dict[str, Pool] = field(default_factory=dict)

    def _all(self) -> dict[str, Pool]:
        if not self._made:
            self._made.update(self.node.pools())
        return self._made

    def __getitem__(self, name: str) -> Pool:
        """Return a pool."""
        if name not in list(self):
            raise KeyError(name)
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.node.plan.datamodule.pools())

    def __len__(self) -> int:
        """Return the number of pools."""
        return len(self.node.plan.datamodule.pools())


def own_images(
    data: FederatedDataModule, root: str, classes: tuple[str, ...], image_shape: tuple[int, int, int]
) -> ImageSet:
    """Return the images of a client that has its own.

    Args:
        data: The run's data. An `ImageFolder`'s ``image_size`` is taken from it.
        root: A folder with ``train/``.
        classes: The class names of the whole federation.
        image_shape: (C, H, W) of its images. Grayscale images become RGB where it has three channels, and RGB images
            without color become grayscale where it has one.

    Raises:
        FedKDError: If a class is not one of them, or an image has another shape.
    """
    source = data.dataset
    size = source.image_size if isinstance(source, ImageFolder) else min(image_shape[1:])
    images = ImageFolder(Path(root), size).load_part("train", classes)
    if image_shape[0] == 3 or not is_colored(images.images.numpy()):
        images = with_channels(images, image_shape[0])
    if images.image_shape != image_shape:
        raise FedKDError(
            f"The images in {root} are {images.image_shape} (C, H, W), and those of the federation {image_shape}."
        )
    return images


def work_of(name: str) -> Work:
    """Return a work by ``module:name``: one of fedkd's own, or of a module that is imported already.

    Raises:
        FedKDError: If there is none.
    """
    module, _, function = name.partition(":")
    if module.split(".")[0] == "fedkd":
        importlib.import_module(module)
    found = getattr(sys.modules.get(module), function, None)
    if not (inspect.isfunction(found) and list(inspect.signature(found).parameters) == ["site", "task"]):
        raise FedKDError(f"A work is a function (site, task), got {name!r}.")
    return found
