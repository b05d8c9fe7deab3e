"""What answers at once: help, version, the list of teachers, and completion, which import no library."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from fedkd.cli.completion import completion_script
from fedkd.cli.subcommands import PLAIN, SECTIONS, SUBCOMMANDS

HEAVY = ("torch", "lightning", "jsonargparse", "transformers", "torchvision", "numpy")


def run(*arguments: str) -> tuple[str, list[str]]:
    """Run the command in a new process; return what it printed, and which heavy packages it imported."""
    code = f"import sys\nfrom fedkd.cli.main import main\ntry: main({list(arguments)!r})\nexcept SystemExit: pass\n"
    code += f"print('imported', *(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    printed, _, imported = done.stdout.rpartition("imported")
    return printed, imported.split()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], [*SUBCOMMANDS, "Run a federation."]),
        (["-h"], ["usage: fedkd"]),
        (["--version"], ["fedkd 0."]),
        (["teachers"], ["dinov2-s", "facebook/dinov2-small", "(in the package)", "CLIP"]),
        (["compare", "--help"], ["usage: fedkd compare GRID --out DIR"]),
        (["report", "--help"], ["usage: fedkd report RUN [RUN ...]"]),
        (["init", "--help"], ["usage: fedkd init", "medical"]),
        (["students", "--help"], ["usage: fedkd students", "--image_size"]),
    ],
)
def test_no_library_is_imported(arguments, expected):
    printed, imported = run(*arguments)
    assert [text for text in expected if text not in printed] == []
    assert imported == []


@pytest.mark.slow
def test_the_public_names_of_teachers_are_those_of_its_all():
    code = "import fedkd.teachers as t, sys; assert not [m for m in ('torch', 'numpy') if m in sys.modules]\n"
    code += "assert set(t.__all__) <= set(dir(t)); print(all(getattr(t, name) is not None for name in t.__all__))\n"
    code += "from fedkd.teachers import *; print(RidgeHead.__name__, t.teachers is teachers)\n"
    code += "try: t.RidgeHed\nexcept AttributeError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "True",
        "RidgeHead True",
        "module 'fedkd.teachers' has no attribute 'RidgeHed'",
    ]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_subcommands_and_their_options(tmp_path):
    script = tmp_path / "fedkd.bash"
    script.write_text(completion_script())

    def complete(*words: str) -> list[str]:
        code = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _fedkd; "
        code += 'echo "${COMPREPLY[@]}"'
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert complete("fedkd", "te") == ["test", "teachers"]
    assert complete("fedkd", "fit", "--federation.rou") == ["--federation.rounds"]
    assert complete("fedkd", "compare", "--j") == ["--jobs"]
    assert complete("fedkd", "report", "--o") == ["--out", "--overwrite"]
    assert complete("fedkd", "partition", "--federation.rou") == []
    assert set(SECTIONS) | set(PLAIN) | {"completion"} == set(SUBCOMMANDS)
