"""Imports run one way, and heavy libraries are loaded where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fedkd

PACKAGE = Path(fedkd.__file__).parent

# Each package may import itself and the packages below it; those that stand side by side may not import each other.
LAYERS = [
    {"core"},
    {"partition", "losses", "students"},
    {"data"},
    {"teachers"},
    {"training"},
    {"client"},
    {"strategies"},
    {"runs"},
    {"server"},
    {"study"},
    {"cli"},
    {"flower"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Return the file of every module by its dotted name."""
    return {
        ".".join(["fedkd", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the fedkd modules that a file imports: at run time, inside functions, and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedkd":
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else str(node.module))
    return found - {"fedkd"}  # the root gathers public names


def test_imports_run_one_way():
    known = modules()
    wrong = []
    for module, path in known.items():
        if module == "fedkd":
            continue
        here = module.split(".")[1]
        for imported in imports_of(path, known):
            there = imported.split(".")[1]
            if there != here and RANK[there] >= RANK[here]:
                wrong.append(f"{module} imports {imported}")
    assert not wrong, wrong


def test_no_module_imports_itself_through_others():
    known = modules()
    graph = {module: imports_of(path, known) - {module} for module, path in known.items() if module != "fedkd"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for imported in sorted(graph.get(module, ())):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


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
