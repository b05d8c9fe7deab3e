from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

import fedkd
from fedkd.core.errors import FedKDError
from fedkd.data import CIFAR10, Augmentation, Batch, Datasets, Digits, FederatedDataModule, ImageSet
from fedkd.data.splits import hold_out
from fedkd.partition import IID, ByAttribute, Dirichlet, Given
from fedkd.runs.partition import partition_record


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return Digits().load()


def make(digits: tuple[ImageSet, ImageSet], **kwargs: Any) -> FederatedDataModule:
    datamodule = FederatedDataModule.from_datasets(*digits, **kwargs)
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_shards_and_public_split_cover_the_training_set_once(
    digits: tuple[ImageSet, ImageSet], fraction: float
) -> None:
    datamodule = make(digits, num_clients=7, public_fraction=fraction)
    parts = [datamodule.public_indices, *datamodule.shards]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(datamodule.train)))
    assert all(part.dtype == np.int64 and np.array_equal(part, np.sort(part)) for part in parts)
    share = np.bincount(datamodule.train.targets[datamodule.public_indices], minlength=10) / np.bincount(
        datamodule.train.targets
    )
    assert np.abs(share - fraction).max() < 0.005  # half an image of about 140


def test_the_seed_moves_clients_but_not_the_public_split(digits: tuple[ImageSet, ImageSet]) -> None:
    one, again, other = (make(digits, public_fraction=0.1, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one.shards, again.shards, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one.shards, other.shards, strict=True))
    assert np.array_equal(one.public_indices, other.public_indices)
    assert set(one.public_indices) < set(make(digits, public_fraction=0.2, seed=2).public_indices)


def test_setup_twice_changes_nothing_and_loads_once(digits: tuple[ImageSet, ImageSet]) -> None:
    datamodule = make(digits)
    shards, train = datamodule.shards, datamodule.train
    datamodule.prepare_data()
    datamodule.setup("fit")
    assert datamodule.shards is shards
    assert datamodule.train is train
    assert datamodule.classes == tuple("0123456789")
    assert (datamodule.num_classes, datamodule.image_shape) == (10, (1, 8, 8))


def test_a_client_sees_its_shard_and_the_teachers_rows(digits: tuple[ImageSet, ImageSet]) -> None:
    datamodule = make(digits, num_clients=4, partitioner=IID(), augmentation=Augmentation(1))
    logits = torch.randn(len(datamodule.train), 10)
    loader = datamodule.site(3, teacher_logits=logits).train_loader(5)
    batches = list(loader)
    index = torch.cat([batch.index for batch in batches])
    assert index.tolist() != sorted(index.tolist())
    assert sorted(index.tolist()) == datamodule.shards[3].tolist()
    assert torch.equal(torch.cat([batch.teacher_logits for batch in batches]), logits[index])
    expected = Augmentation(1)(datamodule.train.images[index], index, torch.tensor(0), 5)
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected.float() / 255)
    assert batches[0].images.shape == (32, 1, 8, 8)


def test_a_client_without_data_has_an_empty_loader(digits: tuple[ImageSet, ImageSet]) -> None:
    datamodule = make(digits, num_clients=30, partitioner=Dirichlet(1e-6))
    empty = [client for client, shard in enumerate(datamodule.shards) if not len(shard)]
    assert len(empty) >= 20  # each of 10 classes lands on one client
    assert list(datamodule.site(empty[0]).train_loader(0)) == []


def test_evaluation_is_the_plain_set_in_order(digits: tuple[ImageSet, ImageSet]) -> None:
    datamodule = make(digits, public_fraction=0.1, augmentation=Augmentation(2), eval_batch_size=100)
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader(), datamodule.predict_dataloader()):
        assert torch.equal(torch.cat([batch.images for batch in loader]), digits[1].images.float() / 255)
    public = list(datamodule.public_dataloader())
    assert torch.cat([batch.index for batch in public]).tolist() == datamodule.public_indices.tolist()
    assert torch.equal(
        torch.cat([batch.images for batch in public]), digits[0].images[datamodule.public_indices].float() / 255
    )
    assert [len(batch.images) for batch in public] == [100, len(datamodule.public_indices) - 100]


def test_the_report_counts_private_images(digits: tuple[ImageSet, ImageSet]) -> None:
    datamodule = make(digits, num_clients=5, public_fraction=0.25)
    counts = np.asarray(datamodule.partition_report().counts)
    expected = [np.bincount(datamodule.train.targets[shard], minlength=10) for shard in datamodule.shards]
    assert np.array_equal(counts, expected)


def test_what_a_client_holds_out_is_of_its_own_classes(digits: tuple[ImageSet, ImageSet]) -> None:
    whole, datamodule = (make(digits, public_fraction=0.1, val_fraction=f, seed=3) for f in (0.0, 0.2))
    assert all(len(held) == 0 and held.dtype == np.int64 for held in whole.val_shards)
    targets = datamodule.train.targets.numpy()
    for before, left, held in zip(whole.shards, datamodule.shards, datamodule.val_shards, strict=True):
        assert np.array_equal(np.sort(np.concatenate([left, held])), before)  # the partition itself is the same
        assert np.array_equal(left, np.sort(left))
        assert len(held) == int(len(before) * 0.2 + 0.5)
        share = len(held) / max(len(before), 1)
        expected = np.bincount(targets[before], minlength=10) * share
        assert np.abs(np.bincount(targets[held], minlength=10) - expected).max() < 1
    again, other = (make(digits, public_fraction=0.1, val_fraction=0.2, seed=seed) for seed in (3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(datamodule.val_shards, again.val_shards, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(datamodule.val_shards, other.val_shards, strict=True))
    assert datamodule.partition_report().validation == sum(map(len, datamodule.val_shards)) > 200
    trained = {i for batch in datamodule.train_dataloader() for i in batch.index.tolist()}
    assert trained == set(np.concatenate(datamodule.shards).tolist())


def test_holding_out_by_hand() -> None:
    targets = np.repeat([0, 1], 10)
    (taken,) = hold_out([np.arange(20)], targets, 0.1, 0)
    assert np.bincount(targets[taken]).tolist() == [1, 1]  # one in ten, evenly
    rare = [np.array([2 * i, 2 * i + 1]) for i in range(10)]  # two images each: 0.2 are none, 0.6 are one
    assert sum(map(len, hold_out(rare, targets, 0.1, 0))) == 0
    assert [len(held) for held in hold_out(rare, targets, 0.3, 0)] == [1] * 10
    assert [len(held) for held in hold_out([np.array([4]), np.array([], int)], targets, 0.9, 0)] == [0, 0]
    assert len(hold_out([np.arange(20)], targets, 0.999, 0)[0]) == 19  # one is always left
    ends = {tuple(hold_out([np.arange(20)], targets, 0.1, seed)[0].tolist()) for seed in range(200)}
    assert {i for pair in ends for i in pair} == set(range(20))  # any of them may be taken


def test_a_clients_validation_images_come_in_order(digits: tuple[ImageSet, ImageSet]) -> None:
    datamodule = make(digits, val_fraction=0.2, augmentation=Augmentation(2), eval_batch_size=7)
    batches = list(datamodule.site(1).val_loader())
    held = datamodule.val_shards[1]
    assert torch.cat([batch.index for batch in batches]).tolist() == held.tolist()
    assert torch.equal(torch.cat([batch.images for batch in batches]), digits[0].images[held].float() / 255)
    assert list(make(digits).site(1).val_loader()) == []
    with pytest.raises(FedKDError, match="no client 10"):
        datamodule.site(10)


def test_a_runs_partition_can_be_given_back(digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """With public and validation images, from partition.json as a run writes it."""
    options = {"public_fraction": 0.1, "val_fraction": 0.2, "num_clients": 5, "seed": 3}
    first = make(digits, partitioner=Dirichlet(0.3), **options)
    path = tmp_path / "partition.json"
    path.write_text(json.dumps(partition_record(first)))
    again = make(digits, partitioner=Given(str(path)), **options)
    for ours, theirs in ((again.shards, first.shards), (again.val_shards, first.val_shards)):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert np.array_equal(again.public_indices, first.public_indices)
    with pytest.raises(FedKDError, match=r"to no client, .* If they were public"):
        make(digits, partitioner=Given(str(path)), num_clients=5)


def test_a_file_for_all_images_serves_every_public_fraction(digits: tuple[ImageSet, ImageSet]) -> None:
    owners = np.arange(len(digits[0])) % 3
    for fraction in (0.0, 0.3):
        for partitioner in (Given(owners.tolist()), ByAttribute(owners.tolist())):
            shards = make(digits, partitioner=partitioner, num_clients=3, public_fraction=fraction).shards
            assert all(set(owners[shard].tolist()) == {client} for client, shard in enumerate(shards))


def test_natural_clients_are_as_many_as_there_are(digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    train, test = digits
    writers = np.array(["ann", "bob", "eve"])[np.arange(len(train)) % 3]
    natural = replace(train, attributes={"writer": writers}), test
    data = FederatedDataModule(Datasets(*natural), partitioner=ByAttribute(column="writer"), public_fraction=0.3)
    assert data.num_clients == 3  # asked before setup
    assert [set(writers[shard]) for shard in data.shards] == [{"ann"}, {"bob"}, {"eve"}]
    assert make(natural, partitioner=ByAttribute(column="writer", merge=True), num_clients=2).num_clients == 2
    assert repr(data.partitioner) == "ByAttribute(values=None, column='writer', merge=False)"  # as it was given
    given = FederatedDataModule(Datasets(*digits), partitioner=Given((np.arange(len(train)) % 4).tolist()))
    assert given.num_clients == 4
    assert FederatedDataModule(Datasets(*digits)).num_clients == 10
    with pytest.raises(FedKDError, match=r"column 'writer' has 3 groups for 2 clients: use num_clients=3, or merge"):
        make(natural, partitioner=ByAttribute(column="writer"), num_clients=2)
    with pytest.raises(FedKDError, match=r"Unknown column of the data set 'wirter'\. Did you mean 'writer'\?"):
        make(natural, partitioner=ByAttribute(column="wirter"))


def test_a_federation_of_natural_clients_runs(tmp_path: Path) -> None:
    from helpers import images, module

    rows = [{"image": image, "label": label, "site": f"s{i % 4}"} for i, (image, label) in enumerate(images(40))]
    data = FederatedDataModule.from_datasets(rows, images(30, seed=1), partitioner=ByAttribute(column="site"))
    federation = fedkd.Federation(rounds=1, clients_per_round=4, run_dir=tmp_path / "run")
    federation.fit(module(), data)
    record = json.loads((tmp_path / "run" / "partition.json").read_text())
    assert record["indices"] == [list(range(site, 40, 4)) for site in range(4)]
    with pytest.raises(FedKDError, match="clients_per_round must be >= 1 and <= 4, got 5"):
        fedkd.Federation(rounds=1, clients_per_round=5, run_dir=tmp_path / "more").fit(module(), data)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction must be >= 0 and < 1, got 1.0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"eval_batch_size": -1}, "eval_batch_size must be >= 1, got -1"),
        ({"num_clients": 0}, "num_clients must be >= 1 and <= 10000000, got 0"),
        ({"public_fraction": 1.0}, "public_fraction must be >= 0 and < 1, got 1.0"),
        ({"public_fraction": -0.1}, "public_fraction must be >= 0 and < 1, got -0.1"),
    ],
)
def test_wrong_values_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        FederatedDataModule(**kwargs)


@pytest.mark.parametrize("client", [10, -1])
def test_there_is_no_such_client(digits: tuple[ImageSet, ImageSet], client: int) -> None:
    with pytest.raises(FedKDError, match=rf"no client {client}: choose one of 0\.\.9"):
        make(digits).site(client)


def test_training_and_test_images_have_one_shape(digits: tuple[ImageSet, ImageSet]) -> None:
    train, test = digits
    larger = ImageSet(test.images.repeat(1, 1, 2, 2), test.targets, test.classes)
    with pytest.raises(FedKDError, match=r"10 classes of \(1, 8, 8\) and 10 of \(1, 16, 16\)"):
        make((train, larger))


class Linear(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.epochs: list[list[int]] = []
        self.correct: list[torch.Tensor] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.epochs[-1] += batch.index.tolist()
        return torch.nn.functional.cross_entropy(self.layer(batch.images.flatten(1)), batch.targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.correct.append(self.layer(batch.images.flatten(1)).argmax(1) == batch.targets)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.03)


def test_a_plain_trainer_learns_from_all_clients(digits: tuple[ImageSet, ImageSet]) -> None:
    datamodule = make(digits, public_fraction=0.1)
    module, trainer = Linear(), Trainer(barebones=True, max_epochs=3, accelerator="cpu")
    trainer.fit(module, datamodule=datamodule)
    private = sorted(set(range(len(digits[0]))) - set(datamodule.public_indices.tolist()))
    assert [sorted(epoch) for epoch in module.epochs] == [private] * 3
    alone = make(digits, public_fraction=0.1).train_dataloader()
    assert [[i for batch in alone for i in batch.index.tolist()] for _ in range(3)] == module.epochs
    module.correct.clear()
    trainer.test(module, datamodule=datamodule)
    correct = torch.cat(module.correct)
    assert len(correct) == len(digits[1])
    assert correct.float().mean() > 0.9


def attach(datamodule: FederatedDataModule, **trainer: Any) -> FederatedDataModule:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    stand_in: Any = SimpleNamespace(strategy=strategy, **{"current_epoch": 0, "world_size": 1, **trainer})
    datamodule.trainer = stand_in
    return datamodule


def test_a_resumed_fit_goes_on_with_its_epoch(digits: tuple[ImageSet, ImageSet]) -> None:
    loader, resumed = make(digits).train_dataloader(), attach(make(digits), current_epoch=1).train_dataloader()
    list(loader)
    assert [b.index.tolist() for b in loader] == [b.index.tolist() for b in resumed]


def test_several_devices_share_the_images_evenly(digits: tuple[ImageSet, ImageSet]) -> None:
    loaders = [attach(make(digits), world_size=3, global_rank=rank).train_dataloader() for rank in range(3)]
    parts = [[i for batch in loader for i in batch.index.tolist()] for loader in loaders]
    assert {len(part) for part in parts} == {-(-len(digits[0]) // 3)}
    assert sorted({i for part in parts for i in part}) == list(range(len(digits[0])))


def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FederatedDataModule, "data")
    return parser


def test_the_command_line_reaches_every_argument() -> None:
    words = "--data.num_clients 20 --data.partitioner.alpha 0.01 --data.dataset CIFAR10 --data.augmentation.flip true"
    config = parser().parse_args(words.split())
    again = parser().parse_string(parser().dump(config))  # what is written down is enough to build the same
    for data in (config["data"], again["data"]):
        assert data["num_clients"] == 20
        built = build(data)
        assert built.dataset == CIFAR10()
        assert built.partitioner == Dirichlet(0.01)
        assert built.augmentation == Augmentation(flip=True)


def test_the_written_defaults_are_complete() -> None:
    text = parser().dump(parser().get_defaults())
    for line in (
        "class_path: fedkd.data.Digits",
        "test_fraction: 0.2",
        "class_path: fedkd.partition.Dirichlet",
        "alpha: 0.1",
    ):
        assert line in text
    assert build(parser().get_defaults()["data"]).dataset == FederatedDataModule().dataset == Digits()


def build(data: Any) -> FederatedDataModule:
    made = parser()
    config = made.get_defaults()
    config["data"] = data
    return getattr(made, "instantiate", made.instantiate_classes)(config)["data"]


def test_one_class_is_refused() -> None:
    data = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("cat",))
    with pytest.raises(FedKDError, match="The data has 1 class, 'cat': there is nothing to tell apart"):
        make((data, data)).setup()


def test_classes_without_images_are_named(digits: tuple[ImageSet, ImageSet]) -> None:
    train, test = digits
    with pytest.warns(UserWarning, match="image") as caught:
        make((train.subset(torch.where(train.targets != 3)[0]), test.subset(torch.where(test.targets < 4)[0]))).setup()
    assert [str(each.message) for each in caught] == [
        "1 of 10 classes have no training image (3): for such a class no client learns it from labels.",
        "6 of 10 classes have no test image (4, 5, 6, 7, 8, ...): for such a class its accuracy is NaN, and balanced "
        "accuracy is over the other classes.",
    ]


@pytest.mark.parametrize("gray", [0, 1])
def test_training_and_test_images_get_the_same_channels(gray: int, digits: tuple[ImageSet, ImageSet]) -> None:
    plain = digits
    tripled = [ImageSet(each.images.repeat(1, 3, 1, 1), each.targets, each.classes) for each in digits]
    data = make((plain[0], tripled[1]) if gray == 0 else (tripled[0], plain[1]))
    data.setup()
    assert [data.train.fingerprint, data.test.fingerprint] == [each.fingerprint for each in plain]
    tripled[1 - gray].images[0, 0, 0, 0] ^= 1  # one colored pixel
    data = make((plain[0], tripled[1]) if gray == 0 else (tripled[0], plain[1]))
    data.setup()
    assert data.train.image_shape == data.test.image_shape == (3, 8, 8)
    assert torch.equal((data.train, data.test)[gray].images, plain[gray].images.expand(-1, 3, -1, -1))
