"""Teachers that installed packages announce, and teachers of one's own in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.teachers import Teacher, TeacherEntry
from fedkd.teachers.registry import TeacherRegistry

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "examples" / "teacher_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example's package with pip, into a folder of its own."""
    pytest.importorskip("hatchling")
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-build-isolation", "--no-compile", "--no-index", "--quiet", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


SCRIPT = """
import json, sys, torch
from fedkd.cli.main import main
from fedkd.teachers import create, teachers
found = {"known": "gradients" in teachers, "imported": "fedkd_gradients" in sys.modules}
teacher = create("gradients")
images = torch.zeros(1, 1, 8, 8)
images[..., 4:] = 1  # one edge, between the columns 3 and 4, in each of the 8 rows
found |= {"dim": teacher.feature_dim, "edge": float(teacher.features(images)[0, 64:].sum())}
try:
    create("gradients", gian=1)
except ValueError as error:
    found["error"] = str(error)
main(["teachers"])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_an_installed_package_brings_a_teacher(installed: Path) -> None:
    path = os.pathsep.join([str(installed), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["known"]
    assert not found["imported"], "nothing is imported before its name is looked up"
    assert found["dim"] == 64 + 7 * 8 + 8 * 7
    assert found["edge"] == 8.0
    assert "Unknown option of teacher gradients 'gian'" in found["error"]
    (row,) = (line for line in table if "gradients" in line)
    assert "fedkd_gradients.Gradients" in row
    assert "Apache-2.0" in row


def test_the_examples_are_short() -> None:
    plugin = [path for path in PLUGIN.iterdir() if path.is_file()]
    assert {path.name for path in plugin} == {"pyproject.toml", "fedkd_gradients.py"}
    assert sum(len(path.read_text().splitlines()) for path in plugin) < 40
    assert len((ROOT / "examples" / "custom_teacher.py").read_text().splitlines()) < 40


Announce = Callable[..., TeacherRegistry]


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Announce:
    """Return a function that pretends packages are installed, and gives a registry that sees them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**packages: str) -> TeacherRegistry:
        for package, entry in packages.items():
            folder = tmp_path / f"{package}-1.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            (folder / "entry_points.txt").write_text(f"[fedkd.teachers]\n{entry}\n")
        return TeacherRegistry("teacher")

    return write


class Mine(Teacher):
    """Announced by this very module, under the name that pytest imports it by."""


HERE = __name__


def test_names_are_listed_without_an_import_and_loaded_when_asked_for(announce: Announce) -> None:
    registry = announce(one=f"mine = {HERE}:Mine", two="broken = no_such_module:Teacher")
    assert "mine" in registry
    assert {"mine", "broken"} <= set(registry)
    assert len(registry) == len(list(registry))
    assert "mine" not in registry.registered
    assert registry["mine"].factory is Mine
    assert registry["mine"] is registry["mine"]
    with pytest.raises(MissingResourceError, match=r"'broken' of the package two cannot be imported from no_such_mod"):
        registry["broken"]
    with pytest.raises(FedKDError, match=r"Unknown teacher 'mime'\. Did you mean 'mine'\?"):
        registry["mime"]


def test_what_is_announced_must_be_a_class_or_a_function(announce: Announce) -> None:
    with pytest.raises(FedKDError, match=rf"'mine' of the package one: {HERE}:HERE is not a class or function"):
        announce(one=f"mine = {HERE}:HERE")["mine"]


def test_a_name_used_twice_is_an_error_that_names_both(announce: Announce) -> None:
    registry = announce(one=f"mine = {HERE}:Mine", two=f"mine = {HERE}:announce", three=f"taken = {HERE}:Mine")
    with pytest.raises(
        FedKDError, match=r"'mine' is used twice, by the packages (one|two) .* and (one|two) .*uninstall"
    ):
        registry["mine"]
    registry.add("taken", TeacherEntry("taken", TeacherEntry, "org/checkpoint"))
    with pytest.raises(FedKDError) as caught:
        registry["taken"]
    assert f"by fedkd.teachers.registry.TeacherEntry of 'org/checkpoint' and by the package three ({HERE}:Mine)" in str(
        caught.value
    )


def test_a_package_may_say_more_of_its_teacher_by_registering_it(announce: Announce) -> None:
    registry = announce(one=f"mine = {HERE}:Mine")
    registry.add("mine", TeacherEntry("mine", Mine, family="of mine"))
    assert registry["mine"].family == "of mine"
    other = announce(two=f"yours = {HERE}:Mine")
    assert other["yours"].family == "custom"
    with pytest.raises(FedKDError, match="'yours' is already used"):
        other.add("yours", TeacherEntry("yours", TeacherEntry))


def test_what_makes_no_teacher_is_named(announce: Announce) -> None:
    registry = announce()
    registry.add("number", TeacherEntry("number", lambda: 3))  # type: ignore[arg-type, return-value]
    with pytest.raises(FedKDError, match=r"Teacher 'number': .*lambda> must return a fedkd.Teacher, got 3"):
        registry["number"].create()


def test_a_notebooks_cell_may_run_again(announce: Announce) -> None:
    registry = announce()

    def cell() -> type[Mine]:
        class InACell(Mine):
            pass

        registry.forget("cell", InACell)
        registry.add("cell", TeacherEntry("cell", InACell))
        return InACell

    cell()
    again = cell()
    assert registry["cell"].factory is again
    registry.forget("cell", Mine)  # another's is not forgotten
    assert "cell" in registry
