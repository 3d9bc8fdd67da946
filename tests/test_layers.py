"""The layers of the source: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (  # from the lowest: a module imports only from lower layers, and within its own package without a circle
    "settings", "config", "utils", "machine", "reading", "data", "run_folder", "detector", "networks", "model",
    "methods", "evaluate", "reporting", "train", "main", "tools", "experiments",
)  # fmt: skip
SOURCES = sorted(path for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(ROOT).parts))


def module(path: Path) -> str:
    """The dotted name of a source file; that of its package for an __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in SOURCES}


def imported(path: Path) -> set[str]:
    """The modules of this repository that a file imports, wherever in it the import is."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & MODULES.keys() - {module(path)}


def test_every_source_file_belongs_to_a_layer():
    assert {name.split(".")[0] for name in MODULES} == set(LAYERS)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_lower_layers(name):
    own = name.split(".")[0]
    for other in imported(MODULES[name]):
        layer = other.split(".")[0]
        assert layer == own or LAYERS.index(layer) < LAYERS.index(own), f"{name} imports {other}"


def test_no_imports_form_a_circle():
    left = {name: imported(path) for name, path in MODULES.items()}
    while leaves := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left


def test_nothing_is_loaded_with_code_in_it():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert text.count("torch.load(") == text.count("weights_only=True")


@pytest.mark.parametrize("name", ["main", "experiments.make_phantom"])
def test_importing_a_file_starts_nothing(name, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_no_einsum_has_more_than_two_factors():
    """With more, the optional package opt_einsum chooses their order where it is installed: other numbers there."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "einsum":
                assert len(node.args) <= 3, f"{path}:{node.lineno}"
