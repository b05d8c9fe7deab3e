"""Imports run one way, and heavy libraries are loaded where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fedkd

PACKAGE = Path(fedkd.__file__).parent

# each layer may import itself and the layers below; who stands side by side may not import each other
LAYERS = [
    {"errors", "paths", "seeding", "tensors", "progress"},
    {"registry", "types", "losses", "metrics", "partition"},
    {"data", "students", "classifier", "objective"},
    {"teachers"},
    {"taught"},
    {"distillation"},
    {"strategies"},
    {"client"},
    {"server.backends", "server.sampling", "server.checkpoint", "server.evaluation", "server.trainer_arguments"},
    {"server.common_images"},
    {"server.run_dir", "server.report", "server.display", "server.unlabelled"},
    {"server.batch_norm"},
    {"server.context"},
    {"server.inference", "server.federation", "server.mutual_clients"},
    {"server.mutual"},
    {"cli_errors", "cli_arguments"},
    {"cli_base"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def part_of(module: str) -> str:
    """Return the layer's name of ``fedkd.a.b``."""
    names = module.split(".")[1:]
    return ".".join(names[:2]) if names[:1] == ["server"] else ".".join(names[:1])


def imports_of(path: Path) -> set[str]:
    """Return the fedkd modules that a file imports at run time, inside functions too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only a type checker sees is not an import
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            plain = node.module == "fedkd"
            found |= {f"fedkd.{alias.name}" for alias in node.names} if plain else {node.module or ""}
    return {name for name in found if name.startswith("fedkd.") and name != "fedkd.__version__"}


def test_imports_run_one_way():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(["fedkd", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        here = part_of(module)
        if here in ("", "server"):
            continue  # the package roots gather public names
        for imported in imports_of(path):
            there = part_of(imported)
            if there != here and RANK[there] >= RANK[here]:
                wrong.append(f"{module} imports {imported}")
    assert not wrong, wrong


def test_partition_needs_numpy_alone():
    code = "import sys; sys.modules['fedkd'] = type(sys)('fedkd'); sys.modules['fedkd'].__path__ = [sys.argv[1]]\n"
    code += (
        "import fedkd.partition; print([m for m in ('torch', 'lightning', 'matplotlib', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, str(PACKAGE)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_import_is_light():
    heavy = ["transformers", "sklearn", "matplotlib", "torchvision", "timm", "jsonargparse", "PIL"]
    code = "import sys, lightning; before = set(sys.modules); import fedkd\n"
    code += f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in fedkd.__all__:
        assert getattr(fedkd, name) is not None
