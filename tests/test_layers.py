"""The house has floors: a file imports only from files below it. And the README's tree shows every file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "config": 0, "utils": 1, "machine": 1, "cephalometry": 1, "dicom": 1,
    "images": 2, "annotation": 2, "splits": 2, "data": 2, "run_folder": 2,
    "measurements": 2, "report": 2, "pictures": 2, "formats": 2,
    "detector": 3, "backbone": 3, "heads": 3, "model": 3,
    "methods": 4, "evaluate": 5, "explain": 5, "train": 5, "main": 6, "tools": 7,
}  # fmt: skip
ON_ONE_FLOOR = {  # within a floor, too, imports go one way
    "images": set(), "annotation": {"images"}, "splits": {"annotation"}, "data": {"annotation", "images"},
    "run_folder": set(), "measurements": set(), "report": {"measurements"},
    "pictures": {"annotation", "images", "report"},
    "detector": set(), "backbone": set(), "heads": set(),
    "model": {"detector", "backbone", "heads"}, "evaluate": set(), "explain": set(), "train": {"evaluate"},
    "formats": {"formats", "annotation", "images"}, "methods": {"methods"}, "tools": {"tools"},
}  # fmt: skip
SOURCES = sorted(path for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(ROOT).parts))


def module(path: Path) -> str:
    """The top-level name of a source file."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The top-level names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_floors_below(path):
    own = module(path)
    for name in imported(path) & FLOORS.keys():
        assert FLOORS[name] < FLOORS[own] or name in ON_ONE_FLOOR.get(own, set()), f"{own} imports {name}"


def test_every_source_file_has_a_floor():
    assert {module(path) for path in SOURCES} == FLOORS.keys()


def test_nothing_is_loaded_with_code_in_it():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert text.count("torch.load(") == text.count("weights_only=True")


@pytest.mark.parametrize("name", ["train", "main", "tools.make_phantom"])
def test_importing_a_file_starts_nothing(name, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_tree_in_the_readme_shows_every_source_file_and_nothing_else():
    tree = re.search(r"```text\n(farnet-52/\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S).group(1)
    shown, folder = set(), ""
    for indent, name in re.findall(r"^( {2,4})([\w./-]+)", tree, re.M):
        folder = name if len(indent) == 2 else folder
        shown.add(name if len(indent) == 2 else folder + name)
    assert all((ROOT / name).exists() for name in shown)
    assert {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"} <= shown
