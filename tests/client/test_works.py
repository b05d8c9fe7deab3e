"""The works of a client, by hand: what each sends, computed again without fedkd."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers import LinearStudent, images, module, same, sgd

import fedkd
from fedkd.client.fit_to_teacher import send_entropy_sums, send_feature_moments
from fedkd.client.works import distill_pool, evaluate_held_out, model_of, model_state, predict
from fedkd.core.messages import ClientTask, Weights
from fedkd.data import FederatedDataModule
from fedkd.partition import IID

LOGITS = torch.randn(60, 3, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def data() -> FederatedDataModule:
    """Return 60 images, of which 15 are public, over two clients that hold a fifth of theirs out."""
    settings = {"num_clients": 2, "partitioner": IID(), "public_fraction": 0.25, "val_fraction": 0.2, "batch_size": 100}
    made = FederatedDataModule.from_datasets(images(60), images(30, seed=1), **settings)
    made.setup()
    return made


def site(data: FederatedDataModule, teacher_logits: torch.Tensor | None = LOGITS, **arguments):
    trained = module(optimizer=sgd(0.5), **arguments)
    trained.build(data.classes, data.image_shape)
    own = data.site(
        1,
        modules=(trained.for_clients(),),
        teacher_logits=teacher_logits,
        pools=data.pools(LOGITS),
        trainer={"accelerator": "cpu"},
    )
    return own, Weights.of(trained.student)


def student_of(weights: Weights) -> LinearStudent:
    student = LinearStudent()
    weights.load_into(student)
    return student


def test_train_takes_the_steps_of_sgd(data):
    own, start = site(data, teacher_logits=None)
    update = fedkd.train(own, ClientTask(0, 1, start))
    student = student_of(start)
    pictures, targets = own.rows.images.float() / 255, own.rows.targets
    F.cross_entropy(student(pictures), targets).backward()  # one batch has all images
    for name, value in student.named_parameters():
        torch.testing.assert_close(update.delta[name], -0.5 * value.grad, rtol=1e-5, atol=1e-6)
    assert (update.client, update.num_examples, update.num_steps) == (1, len(own.rows), 1)


def test_no_images_stay_in_memory_after_training(data, monkeypatch):
    """They would until the next garbage collection, since a Trainer is part of cycles of references."""
    own, start = site(data, teacher_logits=None)
    gathered, make = [], type(own).train_loader

    def train_loader(*arguments):
        loader = make(*arguments)
        gathered.append(weakref.ref(loader._own))
        return loader

    monkeypatch.setattr(type(own), "train_loader", train_loader)
    gc.disable()
    try:
        fedkd.train(own, ClientTask(0, 1, start))
        assert [each() for each in gathered] == [None]
    finally:
        gc.enable()


def test_predict_sends_the_logits_of_the_pool(data):
    own, start = site(data)
    update = predict(own, ClientTask(0, 1, start, settings={"pool": "public"}))
    public = torch.from_numpy(data.public_indices)
    expected = student_of(start)(data.train.images[public].float() / 255)
    torch.testing.assert_close(update.extras["logits"], expected, rtol=1e-5, atol=1e-6)


def test_held_out_images_are_counted(data):
    own, start = site(data)
    update = evaluate_held_out(own, ClientTask(0, 1, start))
    predicted = student_of(start)(own.held_out.images.float() / 255).argmax(dim=1)
    assert len(own.held_out) > 0
    assert update.metrics == {"num_correct": int((predicted == own.held_out.targets).sum())}
    assert update.num_bytes == 0


def test_distilling_nearer_to_the_logits_keeps_the_model_on_the_client(data):
    own, start = site(data)
    wanted = own.pools["public"].rows.teacher_logits
    settings = {"pool": "public", "epochs": 60, "lr": 0.05, "temperature": 1.0}
    update = distill_pool(own, ClientTask(0, 1, start, {"logits": wanted}, settings=settings))
    assert update.num_bytes == 0  # nothing is sent

    def distance(weights):
        logits = student_of(weights)(own.pools["public"].rows.images.float() / 255)
        return float(F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"))

    assert distance(model_of(update.client_state)) < 0.5 * distance(start)
    assert same(model_of(model_state(start)).tensors, start.tensors)


def test_entropies_are_summed_over_the_clients_own_rows(data):
    own, _ = site(data, loss=fedkd.KD(temperature="auto"))
    task = ClientTask(0, 1, extras={"temperatures": torch.tensor([1.0, 4.0], dtype=torch.float64)})
    found = send_entropy_sums(own, task).extras["sums"]
    mine = LOGITS[torch.from_numpy(data.shards[1])]
    for temperature, value in zip((1.0, 4.0), found, strict=False):
        p = (mine / temperature).softmax(1).double()
        assert float(value) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)
    assert float(found[-1]) == len(mine)


def test_a_work_says_what_its_site_lacks(data):
    own, start = site(data)
    with pytest.raises(fedkd.FedKDError, match="Client 1 has no teacher features"):
        send_feature_moments(own, ClientTask(0, 1))
    with pytest.raises(fedkd.FedKDError, match=r"Client 1 has no module to train: make its site with modules="):
        fedkd.train(data.site(1), ClientTask(0, 1, start))
