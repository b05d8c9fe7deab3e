"""SuperNodes whose images are theirs alone: the server has the test set, and nothing of a client but numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from PIL import Image

from fedkd.core.errors import FedKDError
from fedkd.data import Digits
from flower.app import app, fit, on_grid

CLIENTS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write digits as PNG: the server's test set and pool, and a folder for each client with classes of its own."""
    root = tmp_path_factory.mktemp("folders")
    train, test = Digits().load()
    for k in range(200):
        write(root / "server" / "test", test, k)
    for k in range(240):
        label = int(train.targets[k])
        write(root / ("server" if k % 4 == 0 else f"client{label % CLIENTS}") / "train", train, k)
    return root


def write(folder: Path, data, k: int) -> None:
    path = folder / data.classes[int(data.targets[k])]
    path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.images[k, 0].numpy()).save(path / f"{k}.png")


def own(folders: Path, tmp_path: Path, arguments: str = "", **roots: str):
    """Return a run whose clients have images of their own, and its grid."""
    data = f"--data.dataset ImageFolder --data.dataset.root {folders / 'server'} --data.num_clients {CLIENTS}"
    config = app(tmp_path, f"{data} {arguments}", **{"own-data": True})
    there = {
        100 + k: {
            "partition-id": k,
            "num-partitions": CLIENTS,
            "data-root": roots.get(f"c{k}", str(folders / f"client{k}")),
        }
        for k in range(CLIENTS)
    }
    return on_grid(config, there)


def test_clients_with_images_of_their_own_train_a_student(folders: Path, tmp_path: Path):
    run, _ = own(folders, tmp_path, "--federation.rounds 2 --data.val_fraction 0.2")
    summary = fit(run, tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "partition.json").read_text())
    there = [len(list((folders / f"client{k}").rglob("*.png"))) for k in range(CLIENTS)]
    assert sum(map(sum, counts["counts"])) + counts["validation"] == sum(there)
    assert "indices" not in counts
    assert counts["public"] == len(list((folders / "server" / "train").rglob("*.png")))
    assert summary["teacher"]["balanced_accuracy"] > 0.8
    assert all(0 <= value <= 1 for value in summary["client_val_accuracy"])
    assert summary["balanced_accuracy"] > 0.2
    assert (tmp_path / "run" / "report.html").exists()


def test_no_image_leaves_a_client(folders: Path, tmp_path: Path):
    run, grid = own(folders, tmp_path, "--federation.rounds 1 --data.public_fraction 0")
    answers: list = []
    grid.fault = lambda message, answer: answers.append(answer) or answer
    fit(run, tmp_path / "run")
    train, _ = Digits().load()
    pixels = [train.images[k].numpy().tobytes() for k in range(240)]
    for answer in answers:
        for array in answer.content.array_records.values():
            for each in array.values():
                assert not any(image in each.data for image in pixels)
    assert len(answers) > CLIENTS


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["class", "shape"])
def test_other_classes_or_shapes_are_refused_by_name(folders: Path, tmp_path: Path, broken: str):
    odd = tmp_path / "odd"
    folder = odd / "train" / ("eleven" if broken == "class" else "3")
    folder.mkdir(parents=True)
    side = 8 if broken == "class" else 12
    Image.fromarray(np.zeros((side, side), np.uint8)).save(folder / "1.png")
    run, _ = own(folders, tmp_path, c1=str(odd))
    expected = "Unknown class in .*odd/train 'eleven'" if broken == "class" else r"are \(1, 12, 12\) .* \(1, 8, 8\)"
    with pytest.raises(FedKDError, match=f"SuperNode 101: it cannot take part: .*{expected}"):
        fit(run, tmp_path / "run")


@pytest.mark.slow
def test_images_of_three_equal_channels_become_grayscale_where_the_others_are(folders: Path, tmp_path: Path):
    import shutil

    colorless = Path(shutil.copytree(folders / "client1", tmp_path / "rgb"))
    for path in colorless.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    arguments = "--federation.rounds 1 --model.teacher null --federation.strategy FedAvg"
    for name, c1 in (("as_gray", folders / "client1"), ("as_rgb", colorless)):
        run, _ = own(folders, tmp_path, arguments, c1=str(c1))
        fit(run, tmp_path / name)
    student = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("as_gray", "as_rgb")]
    assert student[0] == student[1]


@pytest.mark.slow
def test_a_run_of_other_images_is_not_gone_on_with(folders: Path, tmp_path: Path):
    run, _ = own(folders, tmp_path, "--federation.rounds 1 --model.teacher null --federation.strategy FedAvg")
    fit(run, tmp_path / "run")
    text = "--federation.rounds 2 --model.teacher null --federation.strategy FedAvg"
    again, _ = own(folders, tmp_path, text, c1=str(folders / "client0"))
    with pytest.raises(FedKDError, match="data set"):
        fit(again, tmp_path / "run", ckpt_path="last")


@pytest.mark.slow
def test_two_nodes_with_different_images_of_the_same_client_are_refused(folders: Path, tmp_path: Path):
    run, grid = own(folders, tmp_path, "--model.teacher null --federation.strategy FedAvg")
    grid.nodes[200] = {**grid.nodes[101], "data-root": str(folders / "client0")}
    with pytest.raises(FedKDError, match="SuperNode 200 has partition-id 1 and other images of client 1"):
        fit(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--data.shared PublicImages", "data.shared"),
        ("--federation.strategy FedMD --federation.strategy.students '[cnn]'", "FedMD"),
    ],
)
def test_what_needs_the_pool_on_clients_is_refused(folders: Path, tmp_path: Path, arguments: str, named: str):
    run, _ = own(folders, tmp_path, arguments)
    with pytest.raises(FedKDError, match=f"{named} needs the public images on every client"):
        fit(run, tmp_path / "run")
