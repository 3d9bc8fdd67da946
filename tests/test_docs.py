"""README and docs: their links, file tree, sizes, commands, settings and code are true."""

import inspect
import re
from pathlib import Path

import pytest
from conftest import TinyDetector, make_records, tiny_config, write_records

from config import PRESETS
from methods import METHODS
from settings import setting_types
from tools.formats import FORMATS
from train import train

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
SOURCES = [path for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(ROOT).parts)]
MAIN_OPTIONS = {"preset", "config", "resume", "test", "help"}
TORCHRUN_OPTIONS = {"nproc_per_node", "nnodes", "rdzv_endpoint"}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(text: str) -> list[str]:
    """The code of a page: spans in the text, and the lines of blocks without comments."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.S | re.M)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    return [" ".join(span.split()) for span in spans] + [
        line.partition("#")[0].strip() for block in blocks for line in block.splitlines()
    ]


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\s+", " ", TEXTS[page])):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"


def test_the_readme_and_the_pages_are_short():
    for page, text in TEXTS.items():
        most = {"README.md": 14_000, "docs/methods.md": 20_000}.get(page, 12_000)
        assert len(text.encode()) <= most, page


def test_the_file_tree_shows_every_source_file_and_nothing_else():
    tree = re.search(r"```text\n(farnet-52/\n.*?)```", TEXTS["docs/architecture.md"], re.S).group(1)
    shown, folder = set(), ""
    for indent, name in re.findall(r"^( {2,4})([\w./-]+)", tree, re.M):
        folder = name if len(indent) == 2 else folder
        shown.add(name if len(indent) == 2 else folder + name)
    assert {name for name in shown if not (ROOT / name).exists()} == set()
    assert {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"} <= shown


def test_the_readme_shows_the_whole_top_level():
    layout = TEXTS["README.md"].partition("## Layout")[2]
    top = {path.name for path in ROOT.glob("*.py")} | {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert {name for name in top if name not in layout} == set()


def test_every_tool_and_make_target_of_the_docs_exists():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for page, text in TEXTS.items():
        for package, name in re.findall(r"\b(tools|experiments)\.([a-z]\w+)", "\n".join(code(text))):
            assert page == "CHANGELOG.md" or (ROOT / package / f"{name}.py").exists(), f"{page}: {package}.{name}"
        for span in code(text):
            assert not span.startswith("make ") or span.split()[1] in targets, f"{page}: {span}"


def test_every_setting_and_preset_of_a_command_exists():
    known = {name for method in METHODS.values() for name in setting_types(method.Config)}
    known |= MAIN_OPTIONS | TORCHRUN_OPTIONS
    presets = {name for method in METHODS.values() for name in method.Config.presets} | PRESETS.keys()
    for page, text in TEXTS.items():
        for span in code(text):
            if "main.py" in span:
                assert set(re.findall(r" --(\w+)", span)) <= known, f"{page}: {span}"
            for names in re.findall(r"--preset ((?:\w+ ?)+)", span):
                assert set(names.split()) <= presets, f"{page}: {span}"


def test_every_other_option_of_the_docs_exists():
    known = {name for method in METHODS.values() for name in setting_types(method.Config)} | {"setting"}
    known |= {name for module in FORMATS.values() for name in inspect.signature(module.read).parameters}
    known |= {name for path in SOURCES for name in re.findall(r'"--(\w+)"', path.read_text(encoding="utf-8"))}
    for page, text in TEXTS.items():
        for option in re.findall(r"(?<![\w-])--(\w+)", text):
            assert option in known | MAIN_OPTIONS | TORCHRUN_OPTIONS, f"{page} names --{option}"


def test_the_manual_finds_landmarks_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "tiny", TinyDetector)
    records = make_records(tmp_path)
    write_records(tmp_path, records)
    (tmp_path / "runs" / "films").mkdir(parents=True)
    train(tiny_config(tmp_path, method="tiny", epochs=1), tmp_path / "runs" / "films")
    (tmp_path / "imgs" / records[0]["imagePath"]).rename(tmp_path / "film.png")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    block = re.search(r"## From Python.*?```python\n(.*?)```", TEXTS["docs/tools.md"], re.S).group(1)
    exec(compile(block, "tools.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [p["pointAbbreviation"] for p in records[0]["points"]]
