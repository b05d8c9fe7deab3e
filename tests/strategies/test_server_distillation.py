"""Distillation on the server: FedDF, the foundation model on public images, and BatchNorm measured there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import BrightRowTeacher, LinearStudent, Reversed, images, module, same, weights
from torch import nn

import fedkd
from fedkd.core.messages import ClientTask, ServerState, Weights
from fedkd.data import Augmentation, Batch, DeadLeaves, FederatedDataModule, PublicImages, Rows
from fedkd.losses.kd import kd_divergence
from fedkd.partition import ClassSpecific, Dirichlet
from fedkd.runs.checkpoint import load_checkpoint
from fedkd.strategies import (
    SCAFFOLD,
    Compose,
    FedAvg,
    FedAvgM,
    FedDF,
    ReestimatedBatchNorm,
    RoundContext,
    ServerDistillation,
)
from fedkd.strategies.refinement.server_distillation import mixed_logits
from fedkd.training.unlabeled import Distiller, distill

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


def context_of(datamodule, trained, start, logits=None, shared_logits=None, **changes):
    """Return what a strategy works with on the server."""
    settings = {
        "exchange": None,
        "num_clients": datamodule.num_clients,
        "clients": {client: len(shard) for client, shard in enumerate(datamodule.shards) if len(shard)},
        "held_out": {},
        "modules": (trained.for_clients(),),
        "classes": datamodule.classes,
        "test": Rows.of(datamodule.test),
        "pools": datamodule.pools(logits, shared_logits),
        "trainer": CPU,
        "eval_batch_size": datamodule.eval_batch_size,
        "seed": 0,
        "start": start,
    }
    return RoundContext(**{**settings, **changes})


def server(datamodule=None, trained=None, clients=(0, 1, 2), trainer=CPU, teacher=True, **changes):
    """Return a server's context after its clients have trained, their updates, and the averaged state."""
    datamodule, trained = datamodule or data(), trained or module(teacher=BrightRowTeacher())
    datamodule.setup()
    trained.build(datamodule.classes, datamodule.image_shape)
    start = ServerState(0, Weights.of(trained.student))
    logits = trained.teacher(datamodule.train.images.float() / 255)
    sites = datamodule.sites(modules=(trained.for_clients(),), trainer=trainer, teacher_logits=logits)
    updates = [fedkd.train(sites(k), ClientTask(0, k, start.weights)) for k in clients]
    given = (logits, logits if datamodule.shared is not None else None) if teacher else (None, None)
    context = context_of(datamodule, trained, start, *given, trainer=trainer, **changes)
    return context, updates, FedAvg().aggregate(start, updates)


def pixels(context):
    return context.pool("public").rows.images.float() / 255


def outputs(context, weights, seen):
    student = context.module().student
    weights.load_into(student)
    with torch.no_grad():
        return student.eval()(seen)


def moved(context, update):
    """Return a client's own weights."""
    start = context.start.weights.parameters
    return Weights({name: value + update.delta[name] for name, value in start.items()}, update.buffers)


@pytest.mark.parametrize(
    "strategy",
    [FedDF(epochs=0), FedDF(1.0, epochs=0), ServerDistillation(epochs=0), ServerDistillation(1, 1, epochs=0)],
)
def test_without_epochs_it_is_fedavg(tmp_path, strategy):
    assert same(federate(tmp_path / "a", strategy), federate(tmp_path / "b", FedAvg()))


def test_an_ensemble_of_one_says_what_its_client_says():
    context, updates, _ = server(clients=(1,))
    found = context.ensemble_logits(updates, context.pool("public"))
    torch.testing.assert_close(found, outputs(context, moved(context, updates[0]), pixels(context)))


def test_an_ensemble_says_the_mean_of_its_clients_logits_each_with_its_own_statistics():
    context, updates, _ = server(trained=module("resnet8", teacher=BrightRowTeacher()))
    each = [outputs(context, moved(context, update), pixels(context)) for update in updates]
    found = context.ensemble_logits(updates, context.pool("public"))
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
    pool = context.pool("public")
    student = LinearStudent()
    state.weights.load_into(student)
    logits = student(pixels(context))
    loss = 2 * kd_divergence(logits, pool.teacher_logits, 3.0)
    loss = loss + kd_divergence(logits, context.ensemble_logits(updates, pool), 3.0)
    gradients = torch.autograd.grad(9 * loss, list(student.parameters()))
    for gradient, (name, before) in zip(gradients, state.weights.parameters.items(), strict=True):
        expected = before - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after.weights.parameters[name], expected, rtol=0, atol=1e-5)
    assert after.round == state.round


def test_the_loss_is_weighted_and_of_one_size_at_every_temperature():
    # Adam forgets a gradient's size, so this is asked of the loss itself
    torch.manual_seed(0)
    student, seen, logits = LinearStudent(), torch.rand(4, 1, 8, 8), torch.randn(4, 3)
    batch = Batch(seen, torch.zeros(4, dtype=torch.int64), torch.arange(4), logits)
    found = Distiller(student, lr=0.1, temperature=3.0, weight=0.5).training_step(batch, 0)
    torch.testing.assert_close(found, 0.5 * 9 * kd_divergence(student(seen), logits, 3.0))


def test_the_learning_rate_falls_along_a_cosine_to_zero():
    context, updates, state = server(data(batch_size=12))  # 24 public images: 2 batches a pass
    rates = []

    class Watched(Distiller):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedkd.training.unlabeled.Distiller", Watched)
        FedDF(epochs=2, lr=0.1).refine(state, updates, context)
    # (1 + cos(pi t / 4)) / 2 at t = 0..3
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-4)


def test_a_perfect_teacher_makes_the_student_right_on_public_images():
    context, updates, state = server(data(partitioner=ClassSpecific(1)))
    everything = data().dataset.load()[0]
    targets = everything.targets[context.pool("public").rows.index]

    def accuracy(state):
        return float((outputs(context, state.weights, pixels(context)).argmax(1) == targets).float().mean())

    after = ServerDistillation(epochs=40, lr=0.02).refine(state, updates, context)
    assert accuracy(state) < 0.9
    assert accuracy(after) == 1.0


def test_the_run_reports_the_refined_student(tmp_path):
    plain, taught = module(teacher=BrightRowTeacher()), module(teacher=BrightRowTeacher())
    arguments = {"rounds": 1, "trainer": CPU}
    split = {"partitioner": ClassSpecific(1)}
    before = fedkd.Federation(run_dir=tmp_path / "a", strategy=FedAvg(), **arguments).fit(plain, data(**split))
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
        strategy = Compose([SCAFFOLD(), FedAvgM(momentum=0.5), *parts])
        found = federate(tmp_path / name, strategy, module("resnet8", teacher=BrightRowTeacher()), **arguments)
        return found, load_checkpoint(next((tmp_path / name).rglob("*.ckpt")), {})[0].memory

    plain, before = run("plain", rounds=1)
    taught, after = run("taught", ServerDistillation(epochs=2), ReestimatedBatchNorm(), rounds=1)
    assert not same(plain, taught)
    assert {name.split("/")[0] for name in before} == {"0", "1"}
    assert same(before, after)  # control variates and momentum see the clients' deltas alone
    assert same(plain, run("off", ServerDistillation(epochs=0), rounds=1)[0])


def test_who_reads_single_updates():
    # what protects single updates (differential privacy) stands beside none that do
    assert FedDF().reads_updates
    assert ServerDistillation(1.0, 0.1).reads_updates
    assert not ServerDistillation().reads_updates
    assert not ReestimatedBatchNorm().reads_updates


@pytest.mark.parametrize("views", [None, 2])
def test_order_of_clients_and_a_resume_change_no_bit(tmp_path, views):
    def run(name, **arguments):
        strategy = Compose([FedDF(1.0, epochs=2), ReestimatedBatchNorm()])
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
    strategy = Compose([FedDF(1.0), ReestimatedBatchNorm()])
    first = strategy.refine(state, updates, context)
    assert torch.equal(torch.rand(3), expected)
    second = strategy.refine(state, updates, context)
    assert same(first.weights.tensors, second.weights.tensors)
    other = dataclasses.replace(context, seed=1)
    assert not same(first.weights.tensors, FedDF(1.0).refine(state, updates, other).weights.tensors)
    assert not context.module().objectives
    assert all(layer.momentum == 0.1 for layer in context.module().student.modules() if hasattr(layer, "momentum"))


@pytest.mark.parametrize("consistent", [True, False])
def test_the_ensemble_predicts_what_the_teachers_outputs_are_for(consistent):
    datamodule = data(augmentation=Augmentation(2, True), views=3)
    trained = module(teacher=BrightRowTeacher())
    context, updates, state = server(datamodule, trained)
    if consistent:
        everything, view = torch.arange(len(datamodule.train)), torch.arange(3)
        seen = [datamodule.augmentation(datamodule.train.images, everything, v, 0).float() / 255 for v in view]
        logits = torch.stack([trained.teacher(look) for look in seen], dim=1)
        context = dataclasses.replace(context, pools=datamodule.pools(logits))
    batches, inside = [], Distiller.training_step
    update = updates[:1]

    def watched(self, batch, batch_idx):
        batches.append(batch)
        return inside(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "training_step", watched)
        FedDF(epochs=2).refine(state, update, context)
    assert sum(len(batch.images) for batch in batches) == 48
    for batch in batches:
        seen = batch.images if consistent else datamodule.train.images[batch.index].float() / 255
        torch.testing.assert_close(batch.teacher_logits, outputs(context, moved(context, update[0]), seen))
        assert not batch.targets.any()


def test_shared_images_are_taught_from_like_public_ones():
    context, updates, state = server(data(shared=PublicImages()))
    found = [FedDF(1.0, images=which).refine(state, updates, context).weights for which in ("public", "shared")]
    assert same(found[0].tensors, found[1].tensors)


def test_generated_images_teach(tmp_path):
    datamodule = data(public_fraction=0.0, shared=DeadLeaves(count=20))
    strategy = ServerDistillation(images="shared")
    found = federate(tmp_path / "a", strategy, module(teacher=BrightRowTeacher()), datamodule, rounds=1)
    assert not same(found, federate(tmp_path / "b", FedAvg(), datamodule=datamodule, rounds=1))


def test_where_nobody_teaches_the_ensemble_judges_fixed_views():
    datamodule = data(augmentation=Augmentation(2, True), views=3)
    alone = server(datamodule, teacher=False)[0]
    assert alone.pool("public").views == datamodule.image_views
    assert server(datamodule)[0].pool("public").views is None


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
    seen = state.weights.parameters["scale"] * pixels(context)
    parts = seen[:16], seen[16:]
    torch.testing.assert_close(after.weights.buffers["norm.running_mean"], sum(p.mean() for p in parts)[None] / 2)
    torch.testing.assert_close(after.weights.buffers["norm.running_var"], sum(p.var() for p in parts)[None] / 2)
    assert int(after.weights.buffers["norm.num_batches_tracked"]) == 2
    assert same(dict(after.weights.parameters), dict(state.weights.parameters))
    assert context.module().student.norm.momentum == 0.3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precisions_and_clients_of_none_or_one_image(tmp_path, precision):
    split = data(partitioner=Dirichlet(0.05), num_clients=8, count=30, seed=3)
    split.setup()
    assert {0, 1} <= {len(shard) for shard in split.shards}
    trained = module("resnet8", teacher=BrightRowTeacher())
    strategy = Compose([FedDF(1.0), ReestimatedBatchNorm()])
    found = federate(tmp_path, strategy, trained, split, trainer={**CPU, "precision": precision})
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("strategy", [ServerDistillation(epochs=1), ReestimatedBatchNorm()], ids=repr)
def test_a_batch_of_one_pool_image_is_one_line(tmp_path, strategy):
    layers = [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    split = FederatedDataModule.from_datasets(  # 21 public images, and 14 on each client
        images(63), images(30, seed=1), num_clients=3, batch_size=10, eval_batch_size=20, public_fraction=1 / 3
    )
    with pytest.raises(fedkd.FedKDError, match=r"A BatchNorm of the student got a batch of one image .* batch_size"):
        federate(tmp_path, strategy, module(nn.Sequential(*layers), teacher=BrightRowTeacher()), split)


@pytest.mark.parametrize(
    ("strategy", "change", "message"),
    [
        (FedDF(), {"public_fraction": 0.0}, r"There are no public images: set data\.public_fraction above 0"),
        (FedDF(), {"public_fraction": 0.001}, r"data\.public_fraction 0\.001 of the training images is not one image"),
        (FedDF(images="shared"), {}, r"There are no shared images: set data\.shared"),
        (ReestimatedBatchNorm(), {"trained": module()}, "the student has no BatchNorm whose statistics"),
        (ServerDistillation(), {"trained": module()}, r"ServerDistillation: teacher_weight 1 needs a teacher"),
        (FedDF(0.5), {"trained": module()}, r"FedDF: teacher_weight 0\.5 needs a teacher"),
        (Compose([FedAvg(), FedDF(images="pubic")]), {}, r"Unknown images 'pubic'\. Did you mean 'public'"),
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
    datamodule = data()
    context, updates, state = server(datamodule)
    logits = torch.full((60, 3), torch.nan)
    unsound = dataclasses.replace(context, pools=datamodule.pools(logits))
    with pytest.raises(fedkd.FedKDError, match=r"Round 0: the student became infinite or NaN in distillation"):
        ServerDistillation().refine(state, updates, unsound)


def test_a_run_tells_its_settings_apart(tmp_path):
    assert repr(FedDF()) == "FedDF(teacher_weight=0.0, epochs=1, lr=0.001, temperature=1.0, images='public')"
    federate(tmp_path, FedDF(), rounds=1)
    with pytest.raises(fedkd.FedKDError, match=r"its strategy is .FedDF\(.*epochs=1.*this run's is .FedDF\(.*epochs=2"):
        federate(tmp_path, FedDF(epochs=2), ckpt_path="last")


def test_the_engine_leaves_a_model_alone_without_epochs():
    context, _, state = server()
    pool = context.pool("public")
    options = {"lr": 0.1, "temperature": 1.0, "trainer": CPU, "seed": 0}
    found = distill(context.module().student, state.weights, pool, pool.teacher_logits, epochs=0, **options)
    assert same(found.tensors, state.weights.tensors)
