"""A body that is distilled on the server before the first round, from images of no client."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import BrightRowTeacher, Remote, images, module, same, sgd, weights

import fedkd
from fedkd.data import DeadLeaves
from fedkd.data.images.dead_leaves import with_noise
from fedkd.strategies import ClosedFormHead, Compose, FeatureStart
from fedkd.strategies.refinement.feature_start import principal_directions, whitened


def data(**arguments):
    made = fedkd.FederatedDataModule.from_datasets(images(60), images(30, seed=1), num_clients=3, batch_size=10)
    made.shared = DeadLeaves(count=40, fraction=0.0, noise=0.7)
    for name, value in arguments.items():
        setattr(made, name, value)
    return made


def run(run_dir, strategy, rounds=1, ckpt_path=None, lr=0.0, **arguments):
    trained = module("resnet8", teacher=BrightRowTeacher(), student_options={"norm": "group"}, optimizer=sgd(lr))
    federation = fedkd.Federation(
        rounds, strategy=strategy, run_dir=run_dir, trainer={"accelerator": "cpu"}, **arguments
    )
    return trained, federation.fit(trained, data(), ckpt_path)


def test_directions_are_those_of_most_variance_and_targets_are_white():
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    x = torch.from_numpy(generator.normal(size=(400, 5)) * [1, 9, 3, 0.1, 0] @ basis.T + 4)
    away = x - x.mean(0)
    directions = principal_directions(away.T @ away, 3)
    overlap = directions.T @ torch.from_numpy(basis[:, [1, 2, 0]])
    assert overlap.diagonal().abs().min() > 0.99
    white = whitened(x, principal_directions(away.T @ away, 5))
    covariance = white[:, :4].T @ white[:, :4] / 400
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    assert white[:, 4].abs().max() == 0


def test_the_body_learns_and_the_last_layer_stays(tmp_path):
    torch.manual_seed(0)
    trained, _ = run(tmp_path / "started", FeatureStart(dim=3, epochs=20))
    plain, _ = run(tmp_path / "plain", fedkd.FedAvg())
    before, after = weights(plain), weights(trained)
    assert torch.equal(before["head.weight"], after["head.weight"])
    assert not torch.equal(before["conv.weight"], after["conv.weight"])


def features_of(student, pictures):
    with torch.no_grad():
        return fedkd.students.features_and_logits(student.eval(), pictures, "head")[0].double()


def unexplained(student, pictures, targets):
    """Return which part of the targets' variance no linear map of the student's features gives."""
    x = features_of(student, pictures)
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    solved = torch.linalg.lstsq(x[::2], targets[::2].double(), driver="gelsd").solution
    rest = targets[1::2].double() - x[1::2] @ solved
    return float(rest.square().sum() / (targets[1::2] - targets[::2].mean(0)).square().sum())


def test_features_tell_more_of_the_teachers_than_those_of_a_fresh_body(tmp_path):
    made = data(shared=DeadLeaves(count=200, fraction=0.0, noise=0.7))
    made.setup()
    teacher = BrightRowTeacher()
    trained = module("resnet8", teacher=teacher, student_options={"norm": "group"}, optimizer=sgd(0.0))
    fresh = module("resnet8", teacher=BrightRowTeacher(), student_options={"norm": "group"})
    fresh.build(made.classes, made.image_shape)
    federation = fedkd.Federation(
        1, strategy=FeatureStart(dim=3, epochs=12), run_dir=tmp_path, trainer={"accelerator": "cpu"}
    )
    federation.fit(trained, made)
    other = DeadLeaves(count=200, seed=7, noise=0.7).load(made.train, np.empty(0, np.int64)).data.images.float() / 255
    targets = teacher.features(other)
    assert unexplained(trained.student, other, targets) < 0.7 * unexplained(fresh.student, other, targets)


def test_it_is_counted_repeatable_and_not_done_again_on_resume(tmp_path):
    strategy = Compose([FeatureStart(dim=2, epochs=2), ClosedFormHead("last")])
    whole, summary = run(tmp_path / "whole", strategy, 3, lr=0.01)
    _, without = run(tmp_path / "without", ClosedFormHead("last"), 3, lr=0.01)
    made = data()
    made.setup()
    clients = sum(len(shard) > 0 for shard in made.shards)
    sums = clients * 8 * (4 * 5 // 2 + 4 * 3)  # three features, three classes
    assert summary["bytes_up"] - without["bytes_up"] == sums
    again, _ = run(tmp_path / "again", strategy, 3, lr=0.01, backend=Remote())
    assert same(weights(whole), weights(again))
    run(tmp_path / "parts", strategy, 2, lr=0.01)
    parts, _ = run(tmp_path / "parts", strategy, 3, "last", lr=0.01)
    assert same(weights(whole), weights(parts))
    assert strategy.needs_teacher_features
    assert not Compose([ClosedFormHead()]).needs_teacher_features


def test_what_is_missing_is_one_line(tmp_path):
    without = fedkd.Federation(1, strategy=FeatureStart(), run_dir=tmp_path / "a", trainer={"accelerator": "cpu"})
    with pytest.raises(fedkd.FedKDError, match=r"distills a teacher's features: set model.teacher"):
        without.fit(module("resnet8"), data())
    with pytest.raises(fedkd.FedKDError, match="no shared images"):
        without.fit(module("resnet8", teacher=BrightRowTeacher()), data(shared=None))
    with pytest.raises(fedkd.FedKDError, match="dim"):
        FeatureStart(dim=0)
    with pytest.raises(fedkd.FedKDError, match="noise"):
        DeadLeaves(noise=1.5)


def test_noise_is_mixed_into_every_image_alone_and_falls_with_frequency():
    train = fedkd.data.ImageSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    nobody = np.empty(0, np.int64)
    plain, mixed, more = (
        DeadLeaves(count=count, noise=noise).load(train, nobody).data.images
        for count, noise in ((4, 0), (4, 0.7), (6, 0.7))
    )
    assert torch.equal(mixed, more[:4])
    assert all(not torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))
    noise = with_noise(np.full((3, 64, 64), 127, np.uint8), 1.0, np.random.default_rng(1)).astype(float)
    power = np.abs(np.fft.fft2(noise - noise.mean((1, 2), keepdims=True))) ** 2
    assert power[:, 1:4, 1:4].mean() > 10 * power[:, 20:30, 20:30].mean()
