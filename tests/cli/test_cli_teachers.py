"""``fedkd teachers``: the list, one teacher alone on the data, and clearing the cache."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_cli import ROOT, fedkd

EXAMPLES = ROOT / "examples"
QUICKSTART = EXAMPLES / "quickstart.yaml"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers"


def test_the_list_says_what_each_teacher_is(tmp_path: Path) -> None:
    out = fedkd("teachers", cwd=tmp_path).stdout
    (row,) = (line for line in out.splitlines() if "dinov2-with-registers-small" in line)
    assert re.split(r"\s*│\s*", row.strip("│ ")) == [
        "dinov2-s-registers",
        "facebook/dinov2-with-registers-small",
        "DINOv2",
        "22 M",
        "224",
        "Apache-2.0",
    ]
    assert "(in the package)" in out


@pytest.mark.slow
def test_one_teacher_is_measured_and_the_cache_is_cleared(tmp_path: Path, cache: Path) -> None:
    out = fedkd("teachers", "digits-tiny", "--config", QUICKSTART, cwd=tmp_path).stdout
    assert out.startswith("digits-tiny, alone on 359 test images")
    (balanced,) = re.findall(r"balanced accuracy\s+│\s+([\d.]+)%", out)
    assert float(balanced) > 90
    assert len(re.findall(r"│ \d +│ +[\d.]+%", out)) == 10
    assert re.search(r"calibration error \(15 bins\)\s+│\s+0\.\d{4}", out)
    assert re.findall(r"at T = (\d)", out) == ["1", "2", "4", "8"]
    assert re.search(r"images/s on cpu\s+│\s+\d+\.\d", out)
    assert not (tmp_path / "runs").exists()

    held = sum(path.stat().st_size for kind in ("npy", "sha256") for path in cache.glob(f"*.{kind}"))
    assert held > 0
    adapters = cache.parent / "adapters"  # as LoRA leaves them
    adapters.mkdir()
    (adapters / "a.lock").touch()
    (adapters / "a.safetensors").write_bytes(bytes(10))
    assert f"({held + 10} bytes)" in fedkd("teachers", "--clear-cache", cwd=tmp_path).stdout
    assert not [*cache.glob("*.npy"), *cache.glob("*.sha256"), *adapters.glob("*.safetensors")]
    assert "(0 bytes)" in fedkd("teachers", "--clear-cache", cwd=tmp_path).stdout


def test_options_reach_a_named_teacher(tmp_path: Path, cache: Path) -> None:
    arguments = ["digits-tiny", "--config", QUICKSTART, "--options.image_size", "17"]
    assert "alone on 359" in fedkd("teachers", *arguments, cwd=tmp_path).stdout
    assert len(list(cache.glob("*.npy"))) == 2  # train and test
    done = fedkd("teachers", *arguments[:3], "--options.image_sise", "17", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Unknown option of teacher digits-tiny 'image_sise'. Did you mean 'image_size'?" in done.stderr


def test_a_class_of_the_users_is_measured_from_the_yaml_that_it_shows(tmp_path: Path, cache: Path) -> None:
    code = (EXAMPLES / "custom_teacher.py").read_text()
    shown = yaml.safe_load(code[code.index("    model:") : code.index('"""', 3)])
    assert shown["model"]["teacher"]["class_path"] == "custom_teacher.RandomFeatures"
    shown["model"]["teacher"]["init_args"]["count"] = 300
    (tmp_path / "custom_teacher.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(shown))
    out = fedkd("teachers", "--config", QUICKSTART, "--config", "mine.yaml", cwd=tmp_path).stdout
    assert out.startswith("RandomFeatures, alone on 359 test images")
    (balanced,) = re.findall(r"balanced accuracy\s+│\s+([\d.]+)%", out)
    assert float(balanced) > 95
    (train, _) = sorted(cache.glob("RandomFeatures*.npy"), key=lambda path: -path.stat().st_size)
    assert np.load(train, mmap_mode="r").shape == (1438, 1, 300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-tinny", "--config", str(QUICKSTART)], "Did you mean 'digits-tiny'?"),
        (["--options.image_size", "17"], "options need a teacher's name"),
        (["digits-tiny", "--config", "nofile.yaml"], "nofile.yaml"),
        (["--model.teacher", "no_such_module.Teacher"], "no_such_module.Teacher"),
    ],
)
def test_a_wrong_value_is_one_clear_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = fedkd("teachers", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_clearing_takes_no_name(tmp_path: Path, cache: Path) -> None:
    done = fedkd("teachers", "digits-tiny", "--clear-cache", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "--clear-cache takes no name, got 'digits-tiny'" in done.stderr
