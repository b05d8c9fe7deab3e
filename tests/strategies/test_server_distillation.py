"""Distillation on the server: FedDF, the foundation model on public images, and BatchNorm measured there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import BrightRowTeacher, LinearStudent, Reversed, images, module, same, weights
from torch import nn

import fedkd
from fedkd.client.works import ClientContext, run_client
from fedkd.core.messages import ClientTask, ServerState
from fedkd.core.tensors import load_state, split_state
from fedkd.data import Augmentation, Batch, DeadLeaves, FederatedDataModule, PublicImages
from fedkd.losses.kd import kd_divergence
from fedkd.partition import ClassSpecific, Dirichlet
from fedkd.server.context import ServerContext
from fedkd.strategies import (
    SCAFFOLD,
    Combine,
    FedAvg,
    FedAvgM,
    FedDF,
    ReestimatedBatchNorm,
    ServerDistillation,
)
from fedkd.strategies.refinement.server_distillation import mixed_logits
from fedkd.training.unlabelled import Taught, distill

CPU = {"accelerator": "cpu"}


def data(public_fraction=0.4, count=60, **arguments):
    return FederatedDataModule.from_datasets(
        images(count),
        images(30, seed=1),
        **{"num_clients": 3, "batch_size": 10, "public_fraction": public_fraction, **arguments},
    )


def federate(run_dir, strategy, trained=None, datamodule=None, ckpt_path=None, **arguments):
    trained = trained or module(teacher=BrightRowTeacher())
    arguments = {"rounds": 2, "trainer": CPU, "strategy": strategy, "run_dir": run_dir, **arguments}
    fedkd.Federation(**arguments).fit(trained, datamodule or data(), ckpt_path=ckpt_path)
    return weights(trained)


def server(datamodule=None, trained=None, clients=(0, 1, 2), trainer=CPU):
    """Return a server's context after its clients have trained, their updates, and the averaged state."""
    datamodule, trained = datamodule or data(), trained or module(teacher=BrightRowTeacher())
    datamodule.setup()
    trained.build(datamodule.classes, datamodule.image_shape)
    start = ServerState(0, *split_state(trained.student))
    logits = trained.teacher(datamodule.train.images.float() / 255)
    context = ClientContext(trained, datamodule, trainer, FedAvg(), teacher_logits=logits)
    updates = [run_client(context, ClientTask(0, k, start.parameters, start.buffers)) for k in clients]
    return ServerContext.of(context, start), updates, FedAvg().aggregate(start, updates)


def pixels(context):
    return context.datamodule.train.images[context.datamodule.public_indices].float() / 255


def answers(context, parameters, buffers, seen):
    load_state(context.module.student, parameters, buffers)
    with torch.no_grad():
        return context.module.student.eval()(seen)


@pytest.mark.parametrize(
    "strategy",
    [FedDF(epochs=0), FedDF(1.0, epochs=0), ServerDistillation(epochs=0), ServerDistillation(1, 1, epochs=0)],
)
def test_without_epochs_it_is_fedavg(tmp_path, strategy):
    assert same(federate(tmp_path / "a", strategy), federate(tmp_path / "b", FedAvg()))


def test_an_ensemble_of_one_says_what_its_client_says():
    context, updates, _ = server(clients=(1,))
    found = context.ensemble_logits(updates, context.common_images())
    moved = {name: value + updates[0].delta[name] for name, value in context.start.parameters.items()}
    torch.testing.assert_close(found, answers(context, moved, updates[0].buffers, pixels(context)))


def test_an_ensemble_says_the_mean_of_its_clients_logits_each_with_its_own_statistics():
    context, updates, _ = server(trained=module("resnet8", teacher=BrightRowTeacher()))
    start = context.start.parameters
    each = [
        answers(context, {n: v + u.delta[n] for n, v in start.items()}, u.buffers, pixels(context)) for u in updates
    ]
    found = context.ensemble_logits(updates, context.common_images())
    torch.testing.assert_close(found, (each[0] + each[1] + each[2]) / 3, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(each[0], each[1], atol=1e-2)


def test_a_mixture_teaches_what_its_members_do():
    torch.manual_seed(0)
    student = torch.randn(5, 4, requires_grad=True)
    sources, T = [(0.3, torch.randn(5, 4)), (1.2, 3 * torch.randn(5, 4))], 2.5
    apart = sum(weight * kd_divergence(student, logits, T) for weight, logits in sources)
    joined = 1.5 * kd_divergence(student, mixed_logits(sources, T), T)
    (expected,) = torch.autograd.grad(apart, student)
    (found,) = torch.autograd.grad(joined, student)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert mixed_logits(sources[:1], T) is sources[0][1]


def test_one_step_is_adams_on_the_gradient_of_the_divergence():
    # Adam's first step is lr * g / (|g| + eps), whatever g's size; the one batch holds all public images
    context, updates, state = server(data(batch_size=1000))
    after = ServerDistillation(2.0, 1.0, epochs=1, lr=0.01, temperature=3.0).refine(state, updates, context)
    common = context.common_images()
    student = LinearStudent()
    load_state(student, state.parameters, state.buffers)
    said = student(pixels(context))
    loss = 2 * kd_divergence(said, common.teacher_logits, 3.0)
    loss = loss + kd_divergence(said, context.ensemble_logits(updates, common), 3.0)
    gradients = torch.autograd.grad(9 * loss, list(student.parameters()))
    for gradient, (name, before) in zip(gradients, state.parameters.items(), strict=True):
        expected = before - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after.parameters[name], expected, rtol=0, atol=1e-5)
    assert after.round == state.round


def test_the_loss_is_weighted_and_of_one_size_at_every_temperature():
    # Adam forgets a gradient's size, so this is asked of the loss itself
    torch.manual_seed(0)
    student, seen, logits = LinearStudent(), torch.rand(4, 1, 8, 8), torch.randn(4, 3)
    batch = Batch(seen, torch.zeros(4, dtype=torch.int64), torch.arange(4), logits)
    found = Taught(student, num_steps=1, lr=0.1, temperature=3.0, weight=0.5).training_step(batch, 0)
    torch.testing.assert_close(found, 0.5 * 9 * kd_divergence(student(seen), logits, 3.0))


def test_the_learning_rate_falls_along_a_cosine_to_zero():
    context, updates, state = server(data(batch_size=12))  # 24 public images: 2 batches a pass
    rates = []

    class Watched(Taught):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedkd.training.unlabelled.Taught", Watched)
        FedDF(epochs=2, lr=0.1).refine(state, updates, context)
    # (1 + cos(pi t / 4)) / 2 at t = 0..3
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-4)


def test_a_perfect_teacher_makes_the_student_right_on_public_images():
    context, updates, state = server(data(partitioner=ClassSpecific(1)))
    targets = context.datamodule.train.targets[context.datamodule.public_indices]

    def accuracy(state):
        said = answers(context, state.parameters, state.buffers, pixels(context))
        return float((said.argmax(1) == targets).float().mean())

    after = ServerDistillation(epochs=40, lr=0.02).refine(state, updates, context)
    assert accuracy(state) < 0.9
    assert accuracy(after) == 1.0


def test_the_run_reports_the_refined_student(tmp_path):
    plain, taught = module(teacher=BrightRowTeacher()), module(teacher=BrightRowTeacher())
    arguments = {"rounds": 1, "trainer": CPU}
    split = {"partitioner": ClassSpecific(1)}
    before = fedkd.Federation(run_dir=tmp_path / "a", **arguments).fit(plain, data(**split))
    strategy = ServerDistillation(epochs=40, lr=0.02)
    after = fedkd.Federation(run_dir=tmp_path / "b", strategy=strategy, **arguments).fit(taught, data(**split))
    assert after["balanced_accuracy"] > before["balanced_accuracy"]
    assert (after["bytes_up"], after["bytes_down"]) == (before["bytes_up"], before["bytes_down"])


@pytest.mark.parametrize("strategy", [FedDF(1.0), ReestimatedBatchNorm()])
def test_labels_of_public_images_are_never_read(tmp_path, strategy):
    def run(name, poison):
        datamodule = data()
        datamodule.setup()
        if poison:
            datamodule.train.targets[torch.from_numpy(datamodule.public_indices)] = 0
        trained = module("resnet8", teacher=BrightRowTeacher())
        return federate(tmp_path / name, strategy, trained, datamodule, rounds=1)

    assert same(run("clean", False), run("poisoned", True))


def test_it_composes_with_corrections_and_server_momentum(tmp_path):
    def run(name, *parts, **arguments):
        strategy = Combine([SCAFFOLD(), FedAvgM(momentum=0.5), *parts])
        return federate(tmp_path / name, strategy, module("resnet8", teacher=BrightRowTeacher()), **arguments), strategy

    plain, without = run("plain", rounds=1)
    taught, strategy = run("taught", ServerDistillation(epochs=2), ReestimatedBatchNorm(), rounds=1)
    assert not same(plain, taught)
    before, after = without.strategies[1].memory, strategy.strategies[1].memory
    assert before
    assert all(same(tensors, after[name]) for name, tensors in before.items())  # it sees the clients' deltas alone
    assert same(plain, run("off", ServerDistillation(epochs=0), rounds=1)[0])


def test_who_reads_single_updates():
    # what protects single updates (differential privacy) stands beside none that do
    assert FedDF().reads_updates()
    assert ServerDistillation(1.0, 0.1).reads_updates()
    assert not ServerDistillation().reads_updates()
    assert not ReestimatedBatchNorm().reads_updates()


@pytest.mark.parametrize("views", [None, 2])
def test_order_of_clients_and_a_resume_change_no_bit(tmp_path, views):
    def run(name, **arguments):
        strategy = Combine([FedDF(1.0, epochs=2), ReestimatedBatchNorm()])
        split = data(partitioner=Dirichlet(0.3), num_clients=5, augmentation=Augmentation(1, True), views=views)
        trained = module("resnet8", teacher=BrightRowTeacher())
        teaching = "fixed" if views is None else "consistent"
        return federate(tmp_path / name, strategy, trained, split, teaching=teaching, **arguments)

    whole = run("whole")
    assert same(whole, run("reversed", backend=Reversed()))
    run("parts", rounds=1)
    assert same(whole, run("parts", ckpt_path="last"))


def test_nothing_global_is_drawn_or_left_behind():
    context, updates, state = server(trained=module("resnet8", teacher=BrightRowTeacher()))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    strategy = Combine([FedDF(1.0), ReestimatedBatchNorm()])
    first = strategy.refine(state, updates, context)
    assert torch.equal(torch.rand(3), expected)
    second = strategy.refine(state, updates, context)
    assert same(dict(first.parameters), dict(second.parameters))
    assert same(dict(first.buffers), dict(second.buffers))
    other = dataclasses.replace(context, seed=1)
    assert not same(dict(first.parameters), dict(FedDF(1.0).refine(state, updates, other).parameters))
    assert not context.module.objectives
    assert all(layer.momentum == 0.1 for layer in context.module.student.modules() if hasattr(layer, "momentum"))


@pytest.mark.parametrize("consistent", [True, False])
def test_the_ensemble_judges_what_the_foundation_model_judges(consistent):
    datamodule = data(augmentation=Augmentation(2, True), views=3)
    context, updates, state = server(datamodule)
    if consistent:
        everything, view = torch.arange(len(datamodule.train)), torch.arange(3)
        looks = [datamodule.augmentation(datamodule.train.images, everything, v, 0).float() / 255 for v in view]
        logits = torch.stack([context.module.teacher(look) for look in looks], dim=1)
        context = dataclasses.replace(context, teacher_logits=logits)
    batches, inside = [], Taught.training_step
    update = updates[:1]
    moved = {name: value + update[0].delta[name] for name, value in context.start.parameters.items()}

    def watched(self, batch, batch_idx):
        batches.append(batch)
        return inside(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Taught, "training_step", watched)
        FedDF(epochs=2).refine(state, update, context)
    assert sum(len(batch.images) for batch in batches) == 48
    for batch in batches:
        seen = batch.images if consistent else datamodule.train.images[batch.index].float() / 255
        torch.testing.assert_close(batch.teacher_logits, answers(context, moved, {}, seen))
        assert not batch.targets.any()


def test_shared_images_are_taught_from_like_public_ones():
    context, updates, state = server(data(shared=PublicImages()))
    context = dataclasses.replace(context, shared_logits=context.teacher_logits)
    found = [FedDF(1.0, images=which).refine(state, updates, context).parameters for which in ("public", "shared")]
    assert same(dict(found[0]), dict(found[1]))


def test_generated_images_teach(tmp_path):
    datamodule = data(public_fraction=0.0, shared=DeadLeaves(count=20))
    strategy = ServerDistillation(images="shared")
    found = federate(tmp_path / "a", strategy, module(teacher=BrightRowTeacher()), datamodule, rounds=1)
    assert not same(found, federate(tmp_path / "b", FedAvg(), datamodule=datamodule, rounds=1))


def test_where_nobody_teaches_the_ensemble_judges_fixed_views():
    context, _, _ = server(data(augmentation=Augmentation(2, True), views=3))
    alone = dataclasses.replace(context, teacher_logits=None)
    assert alone.common_images().views == alone.datamodule.image_views
    assert context.common_images().views is None


class OneNorm(nn.Module):
    """A network whose only BatchNorm sees what can be worked out by hand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.norm = nn.BatchNorm2d(1, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(self.norm(self.scale * self.drop(images)).flatten(1))


def test_batch_norm_statistics_are_the_mean_over_batches():
    datamodule = data(eval_batch_size=16)  # 24 public images: batches of 16 and 8
    context, updates, state = server(datamodule, module(OneNorm(), teacher=BrightRowTeacher()))
    after = ReestimatedBatchNorm().refine(state, updates, context)
    seen = state.parameters["scale"] * pixels(context)
    parts = seen[:16], seen[16:]
    torch.testing.assert_close(after.buffers["norm.running_mean"], sum(p.mean() for p in parts)[None] / 2)
    torch.testing.assert_close(after.buffers["norm.running_var"], sum(p.var() for p in parts)[None] / 2)
    assert int(after.buffers["norm.num_batches_tracked"]) == 2
    assert same(dict(after.parameters), dict(state.parameters))
    assert context.module.student.norm.momentum == 0.3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precisions_and_clients_of_none_or_one_image(tmp_path, precision):
    split = data(partitioner=Dirichlet(0.05), num_clients=8, count=30, seed=3)
    split.setup()
    assert {0, 1} <= {len(shard) for shard in split.shards}
    trained = module("resnet8", teacher=BrightRowTeacher())
    strategy = Combine([FedDF(1.0), ReestimatedBatchNorm()])
    found = federate(tmp_path, strategy, trained, split, trainer={**CPU, "precision": precision})
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize(
    ("strategy", "change", "message"),
    [
        (FedDF(), {"public_fraction": 0.0}, r"There are no public images: set data\.public_fraction above 0"),
        (FedDF(images="shared"), {}, r"There are no shared images: set data\.shared"),
        (ReestimatedBatchNorm(), {"trained": module()}, "the student has no BatchNorm whose statistics"),
        (ServerDistillation(), {"trained": module()}, r"ServerDistillation: teacher_weight 1 needs a teacher"),
        (FedDF(0.5), {"trained": module()}, r"FedDF: teacher_weight 0\.5 needs a teacher"),
        (Combine([FedAvg(), FedDF(images="pubic")]), {}, r"Unknown images 'pubic'\. Did you mean 'public'"),
    ],
)
def test_what_is_missing_is_said_before_any_work(tmp_path, strategy, change, message):
    trained = change.pop("trained", None)
    with pytest.raises(fedkd.FedKDError, match=message) as error:
        federate(tmp_path / "run", strategy, trained, data(**change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_weight": -1}, "teacher_weight must be >= 0, got -1"),
        ({"ensemble_weight": float("nan")}, "ensemble_weight must be >= 0, got nan"),
        ({"epochs": -1}, "epochs must be >= 0, got -1"),
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"temperature": 0}, "temperature must be > 0, got 0"),
        ({"teacher_weight": 0}, "teacher_weight and ensemble_weight are both 0"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        ServerDistillation(**arguments)


def test_divergence_on_the_server_is_named():
    context, updates, state = server()
    unsound = dataclasses.replace(context, teacher_logits=context.teacher_logits * torch.nan)
    with pytest.raises(fedkd.FedKDError, match=r"Round 0: the student became infinite or NaN in distillation"):
        ServerDistillation().refine(state, updates, unsound)


def test_a_run_tells_its_settings_apart(tmp_path):
    assert repr(FedDF()) == "FedDF(teacher_weight=0.0, epochs=1, lr=0.001, temperature=1.0, images='public')"
    federate(tmp_path, FedDF(), rounds=1)
    with pytest.raises(fedkd.FedKDError, match=r"its strategy is .FedDF\(.*epochs=1.*this run's is .FedDF\(.*epochs=2"):
        federate(tmp_path, FedDF(epochs=2), ckpt_path="last")


def test_the_engine_leaves_a_model_alone_without_epochs():
    context, _, state = server()
    model, common = (state.parameters, state.buffers), context.common_images()
    options = {"lr": 0.1, "temperature": 1.0, "trainer": CPU, "seed": 0}
    found = distill(context.module.student, model, common, common.teacher_logits, epochs=0, **options)
    assert same(dict(found[0]), dict(state.parameters))
