"""Different students on different clients, which learn from each other through logits."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from helpers import BrightRowTeacher, Reversed, images, same, sgd
from safetensors.torch import load_file

import fedkd
from fedkd.cli.display import print_clients
from fedkd.cli.main import main
from fedkd.core.messages import ClientTask, Weights
from fedkd.core.sealed import read_record
from fedkd.core.seeding import seeded
from fedkd.data import Augmentation, FederatedDataModule
from fedkd.partition import ClassSpecific, Dirichlet
from fedkd.strategies import FedMD
from fedkd.strategies.fedmd import score

CPU = {"accelerator": "cpu"}
MIXED = ["cnn", "resnet8"]


def data(**arguments):
    arguments = {"num_clients": 3, "batch_size": 10, "public_fraction": 0.4, **arguments}
    return FederatedDataModule.from_datasets(images(60), images(30, seed=1), **arguments)


def module(**arguments):
    return fedkd.DistillationModule(**{"teacher": BrightRowTeacher(), "optimizer": sgd(0.02), **arguments})


OPTIONS = {"students", "ensemble_weight", "teacher_weight", "distill_epochs", "distill_lr", "temperature", "images"}


def federate(run_dir, datamodule=None, trained=None, ckpt_path=None, **arguments):
    options = {"students": MIXED} | {name: arguments.pop(name) for name in OPTIONS & set(arguments)}
    arguments = {"rounds": 2, "trainer": CPU, "run_dir": run_dir, "strategy": FedMD(**options), **arguments}
    return fedkd.Federation(**arguments).fit(trained or module(), datamodule or data(), ckpt_path=ckpt_path)


def saved(run_dir):
    """Return all clients' tensors."""
    files = sorted((run_dir / "clients").glob("*/student.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def rows(run_dir):
    with open(run_dir / "metrics.csv") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its summary."""
    run_dir = tmp_path_factory.mktemp("fedmd") / "run"
    return run_dir, federate(run_dir)


def test_without_distillation_every_client_is_alone(tmp_path):
    federate(tmp_path, distill_epochs=0)
    datamodule = data()
    datamodule.setup()
    for client in range(3):
        own = module(student=MIXED[client % 2])
        with seeded(0, "student", client):
            own.build(datamodule.classes, datamodule.image_shape)
        logits = own.teacher(datamodule.train.images.float() / 255).half().float()  # as the cache keeps them
        site = datamodule.site(client, modules=(own,), trainer=CPU, teacher_logits=logits)
        for round in range(2):
            fedkd.train(site, ClientTask(round, client, Weights.of(own.student)))
        found = fedkd.load_student(tmp_path / "clients" / str(client)).state_dict()
        for name, value in own.student.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_each_client_has_its_student_and_its_row(run):
    run_dir, summary = run
    assert [each["student"] for each in summary["clients"]] == ["cnn", "resnet8", "cnn"]
    assert [each["num_examples"] for each in summary["clients"]] == [12, 12, 12]
    datamodule = data()
    datamodule.setup()
    said = []
    for each in summary["clients"]:
        student = fedkd.load_student(run_dir / "clients" / str(each["client"]))
        assert each["parameters"] == sum(p.numel() for p in student.parameters())
        with torch.no_grad():
            said.append(student(datamodule.test.images.float() / 255))
        assert each["accuracy"] == pytest.approx(float((said[-1].argmax(1) == datamodule.test.targets).float().mean()))
    own = [each["balanced_accuracy"] for each in summary["clients"]]
    assert summary["balanced_accuracy"] == pytest.approx(sum(own) / 3)
    together = (sum(said).argmax(1) == datamodule.test.targets).float().mean()
    assert summary["ensemble"]["accuracy"] == pytest.approx(float(together))
    assert read_record(run_dir / "summary.json") == summary
    final = rows(run_dir)[-1]
    assert [float(final[f"client_{k}/balanced_accuracy"]) for k in range(3)] == pytest.approx(own)
    assert float(final["balanced_accuracy"]) == pytest.approx(summary["balanced_accuracy"])


def test_logits_on_public_images_are_all_that_travels(run):
    # 3 clients x 24 public images x 3 classes x 4 bytes, up and down
    run_dir, summary = run
    assert [(row["bytes_up"], row["bytes_down"]) for row in rows(run_dir)] == [("864", "864")] * 2
    assert (summary["bytes_up"], summary["bytes_down"]) == (1728, 1728)


def test_clients_begin_with_weights_of_their_own(tmp_path):
    federate(tmp_path, distill_epochs=0, rounds=1, trained=module(optimizer=sgd(1e-12)))
    found = saved(tmp_path)
    assert not torch.allclose(found["0/head.weight"], found["2/head.weight"], atol=1e-3)


def test_scores_are_counted_class_by_class():
    logits = torch.eye(3)[[0, 0, 1, 2, 0]] * 4.0
    found = score(logits, torch.tensor([0, 0, 1, 1, 1]), ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["accuracy/a"] == 1
    assert found["accuracy/b"] == pytest.approx(1 / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)  # class c has no image
    assert found["accuracy/c"] != found["accuracy/c"]


def test_the_consensus_is_the_mean_of_the_clients_logits(tmp_path, monkeypatch):
    told = []

    class Watched(FedMD):
        def _consensus(self, ensemble, pool):
            consensus = super()._consensus(ensemble, pool)
            told.append((ensemble, consensus, pool.teacher_logits))
            return consensus

    monkeypatch.setattr(sys.modules[__name__], "FedMD", Watched)
    federate(tmp_path / "a", rounds=1)
    federate(tmp_path / "b", rounds=1, ensemble_weight=3.0, teacher_weight=1.0, temperature=1.0)
    (mean, consensus, _), (again, mixed, teacher) = told
    assert mean.shape == (24, 3)
    assert consensus is mean
    expected = 0.75 * again.softmax(-1) + 0.25 * teacher.softmax(-1)
    torch.testing.assert_close(mixed.softmax(-1), expected)


def test_a_perfect_teacher_reaches_clients_of_one_class(tmp_path):
    # on their shards the clients see one class each, and no teacher: what they know of the others they have digested
    split, trained = {"partitioner": ClassSpecific(1)}, {"loss": fedkd.KD(ce_weight=1.0, kd_weight=0.0)}
    options = {"students": ["cnn"], "rounds": 1, "ensemble_weight": 0.0, "teacher_weight": 1.0, "distill_lr": 5e-3}
    alone = federate(tmp_path / "a", data(**split), module(**trained), **options, distill_epochs=0)
    taught = federate(tmp_path / "b", data(**split), module(**trained), **options, distill_epochs=20)
    assert alone["balanced_accuracy"] < 0.5
    assert taught["balanced_accuracy"] > 0.8


def test_every_client_draws_afresh_in_every_round(tmp_path, monkeypatch):
    seeds = []

    def watched(student, model, pool, consensus, *, seed, **options):
        seeds.append(seed)
        return model

    monkeypatch.setattr("fedkd.client.works.distill", watched)
    federate(tmp_path, students=["cnn"])
    assert len(set(seeds)) == 2 * 3


def test_labels_of_public_images_are_never_read(tmp_path):
    def run(name, poison):
        datamodule = data()
        datamodule.setup()
        if poison:
            datamodule.train.targets[torch.from_numpy(datamodule.public_indices)] = 0
        federate(tmp_path / name, datamodule, rounds=1, teacher_weight=1.0)
        return saved(tmp_path / name)

    assert same(run("clean", False), run("poisoned", True))


def test_order_of_clients_and_a_resume_change_no_bit(tmp_path):
    def run(name, **arguments):
        split = data(partitioner=Dirichlet(0.3), augmentation=Augmentation(1, True), views=2)
        arguments = {"students": ["resnet8", "cnn"], "teaching": "consistent", **arguments}
        summary = federate(tmp_path / name, split, **arguments)
        return saved(tmp_path / name), rows(tmp_path / name), summary["clients"]

    whole, backward = run("whole"), run("backward", backend=Reversed())
    run("parts", rounds=1)
    resumed = run("parts", ckpt_path="last")
    for other in (backward, resumed):
        assert same(whole[0], other[0])
        assert whole[1:] == other[1:]
    assert run("parts", ckpt_path="last")[1:] == whole[1:]  # nothing is left to do
    assert {row["bytes_up"] for row in whole[1]} == {str(3 * 24 * 2 * 3 * 4)}  # two views


def test_another_run_is_refused_on_resume(tmp_path):
    federate(tmp_path, rounds=1, students=["cnn"])
    with pytest.raises(fedkd.FedKDError, match=r"its strategy is .*\['cnn'\].*, this run's is .*\['cnn', 'resnet8'\]"):
        federate(tmp_path, ckpt_path="last")
    with pytest.raises(fedkd.FedKDError, match=r"strategy is .*distill_lr=0\.001.* this run's is .*distill_lr=0\.01"):
        federate(tmp_path, ckpt_path="last", students=["cnn"], distill_lr=0.01)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precisions_and_clients_of_none_or_one_image(tmp_path, precision):
    split = data(partitioner=Dirichlet(0.05), num_clients=12)
    split.setup()
    sizes = [len(shard) for shard in split.shards]
    assert {0, 1} <= set(sizes)
    summary = federate(tmp_path, split, rounds=1, trainer={**CPU, "precision": precision})
    found = saved(tmp_path)
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in found.values())
    assert [each["client"] for each in summary["clients"]] == [k for k, size in enumerate(sizes) if size]
    assert all(each["student"] == MIXED[each["client"] % 2] for each in summary["clients"])


def test_what_the_module_says_reaches_every_client(tmp_path):
    federate(tmp_path, rounds=1, trained=module(student_options={"norm": "group"}))
    assert not any("running_mean" in name for name in saved(tmp_path))
    with pytest.raises(fedkd.FedKDError, match="Unknown option of student 'cnn' 'width'"):
        federate(tmp_path / "b", trained=module(student_options={"width": 8}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"students": []}, "students is empty"),
        ({"students": ["resnet9"]}, "Unknown student 'resnet9'. Did you mean 'resnet"),
        ({"rounds": 0}, "rounds must be >= 1, got 0"),
        ({"ensemble_weight": -1}, "ensemble_weight must be >= 0, got -1"),
        ({"ensemble_weight": 0}, "ensemble_weight and teacher_weight are both 0"),
        ({"distill_epochs": -1}, "distill_epochs must be >= 0, got -1"),
        ({"distill_lr": 0}, "distill_lr must be > 0, got 0"),
        ({"temperature": 0}, "temperature must be > 0, got 0"),
        ({"teacher_weight": 1.0, "trained": module(teacher=None)}, "teacher_weight 1 needs a teacher"),
        ({"datamodule": data(public_fraction=0.0)}, r"There are no public images: set data\.public_fraction"),
        ({"images": "shared"}, r"There are no shared images: set data\.shared"),
    ],
)
def test_mistakes_are_said_before_any_work(tmp_path, arguments, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        federate(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_client_that_diverges_in_distillation_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.strategies.fedmd.mixed_logits", lambda sources, temperature: sources[0][1] * torch.nan)
    with pytest.raises(
        fedkd.FedKDError,
        match=r"Client 0, round 0: The student became infinite or NaN .* distill_lr",
    ):
        federate(tmp_path)


def test_the_table_shows_every_client(run, capsys):
    print_clients(run[1])
    lines = [line for line in capsys.readouterr().out.splitlines() if "resnet8" in line or "cnn" in line]
    assert len(lines) == 3
    assert "12" in lines[0]
    assert f"{run[1]['clients'][0]['balanced_accuracy']:.1%}" in lines[0]


@pytest.mark.slow
def test_the_command_runs_the_example_and_goes_on(tmp_path, capsys):
    example = Path(__file__).resolve().parents[2] / "examples" / "fedmd.yaml"
    quick = [
        "--federation.strategy.students",
        "[cnn]",
        "--trainer.max_epochs",
        "1",
        "--data.num_clients",
        "2",
        "--data.public_fraction",
        "0.05",
    ]
    command = ["fit", "--config", str(example), "--run_dir", str(tmp_path / "run"), *quick]
    main([*command, "--federation.rounds", "1"])
    main([*command, "--federation.rounds", "2", "--ckpt_path", "last"])
    assert len(rows(tmp_path / "run")) == 2
    assert "mean of logits" in capsys.readouterr().out
    assert "students:" in (tmp_path / "run" / "config.yaml").read_text()
    main(["test", str(tmp_path / "run" / "clients" / "1")])
    last = float(rows(tmp_path / "run")[-1]["client_1/balanced_accuracy"])
    assert f"{last:.4f}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["test", str(tmp_path / "run")])
    assert "has a student for each client: name one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--federation.strategy.students", "[cnm]"])
    assert "Unknown student 'cnm'. Did you mean 'cnn'?" in capsys.readouterr().err
