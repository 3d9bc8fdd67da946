"""Random damage to all that users hand in: it is read right or refused in one line, and nothing else happens.

A draw is repeated by its number, the seed of its generator.
"""

import argparse
import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import make_records, tiny_config, write_records
from foreign_files import SOURCES, WRITABLE, tables, write_dicom, write_source
from PIL import Image
from torch import Tensor

import main
from config import CHOICES
from methods import METHODS, load_detector, method_class
from reading.images import image_size, read_image
from reading.splits import load_data
from run_folder import read_checkpoint, read_metrics, save_checkpoint
from settings import UserError, setting_types
from tools import convert
from tools.formats import FORMATS
from tools.formats.common import record_points
from train import start_or_resume, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

DRAWS = 300
CPU = torch.device("cpu")


def try_all(attempt: Callable[[np.random.Generator], Any]) -> None:
    """Try all draws: each must be accepted or refused in one line, and both must occur."""
    accepted = 0
    for draw in range(DRAWS):
        try:
            attempt(np.random.default_rng(draw))
            accepted += 1
        except UserError as error:
            assert len(str(error).splitlines()) == 1, f"draw {draw}: {error}"
        except Exception as error:
            raise AssertionError(f"draw {draw} ends in {error!r}") from error
    assert 0 < accepted < DRAWS


# --- Damage ---

DEEP: list = []
for _ in range(40):
    DEEP = [DEEP]
ODD = [
    None, True, False, 0, 1, -1, 0.5, 1e-320, 1e308, -(10**400), 10**25, math.inf, math.nan, "", " ", "12", "1e999",
    "nan", "none", "true", "a,b", "0.1,0.9", "0,0,1,1", "x\0", "\ud800", "..", "../../x.png", "/x/y.png", "a\nb",
    "\u2028", "\x1b[2J", "x" * 5000, "Z\u0308", "test", "val", "pooled",
    [], {}, [1], [None], ["R1", "R2"], {"a": 1}, DEEP,
]  # fmt: skip
WORDS = [odd for odd in ODD if not isinstance(odd, list | dict)]


def pick(generator: np.random.Generator, options: Any) -> Any:
    """One of the options."""
    return options[generator.integers(len(options))]


def damage_tree(content: Any, generator: np.random.Generator, change: Callable[[Any], Any]) -> None:
    """Change, drop, add or double one value somewhere in nested dicts and lists."""
    place = content
    while True:
        key = pick(generator, list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or generator.random() < 0.15:
            break
        place = place[key]
    kind = pick(generator, ["change", "change", "change", "drop", "add", "double"])
    if kind == "change":
        place[key] = change(place[key])
    elif kind == "drop":
        del place[key]
    elif isinstance(place, list):
        place.append(change(place[key]) if kind == "add" else place[key])
    else:
        place[pick(generator, ["x", "visible", "patient", "split", "a\nb", "\ud800", *place])] = (
            change(place[key]) if kind == "add" else place[key]
        )


def damage_bytes(content: bytes, generator: np.random.Generator) -> bytes:
    """Cut a file off, or flip one to three of its bits."""
    if generator.random() < 0.3:
        return content[: generator.integers(len(content))]
    damaged = bytearray(content)
    for place in generator.integers(len(content), size=generator.integers(1, 4)):
        damaged[place] ^= 1 << generator.integers(8)
    return bytes(damaged)


# --- Data and settings ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set whose records have every key."""
    folder = tmp_path_factory.mktemp("data")
    records = make_records(folder)
    for number, record in enumerate(records):
        record |= {"spacing": 0.5, "split": ("train", "val", "test")[number % 3], "patient": f"p{number}"}
        for point in record["points"]:
            point |= {"visible": True, "occluded": False}
    write_records(folder, records)
    return folder


def test_a_data_json_is_read_or_refused(folder, tmp_path):
    whole = (folder / "json" / "data.json").read_text(encoding="utf-8")
    configs = [tiny_config(folder, **each) for each in ({}, {"split": "same"}, {"folds": 2, "fold": 1})]
    configs = [config.replace(json_path=str(tmp_path / "data.json")) for config in configs]

    def attempt(generator: np.random.Generator) -> None:
        content = json.loads(whole)
        for _ in range(generator.integers(1, 3)):
            if content:
                damage_tree(content, generator, lambda value: pick(generator, ODD))
        text = json.dumps(content).encode()
        (tmp_path / "data.json").write_bytes(damage_bytes(text, generator) if generator.random() < 0.1 else text)
        data = load_data(pick(generator, configs))
        read = json.loads((tmp_path / "data.json").read_bytes())
        expected = {entry["imagePath"]: record_points(entry) for entry in read}
        assert data.splits["train"] and {record.name for record in data.records} == expected.keys()
        for record in data.records:
            points = [expected[record.name][name] or (math.nan, math.nan) for name in data.abbreviations]
            assert np.array_equal(record.landmarks, points, equal_nan=True)

    try_all(attempt)


def test_settings_are_taken_or_refused(tmp_path):
    path = tmp_path / "settings.json"

    def attempt(generator: np.random.Generator) -> None:
        method = pick(generator, sorted(METHODS))
        names = [*setting_types(method_class(method).Config), "x", "epoch"]
        chosen = {}
        for name in sorted({pick(generator, names) for _ in range(generator.integers(1, 4))}):
            usual = getattr(method_class(method).Config, name, None)
            fitting = [list(usual)] if isinstance(usual, tuple) else [usual, *CHOICES.get(name, ())]
            fitting += [] if isinstance(usual, bool | str | tuple | None) else [usual * 2, usual / 4, usual + 1]
            chosen[name] = pick(generator, fitting if generator.random() < 0.5 else ODD)
        if generator.random() < 0.5:
            path.write_text(json.dumps({"method": method} | chosen))
            words = ["--config", str(path)]
        else:
            texts = {name: main.value_text(tuple(v) if isinstance(v, list) else v) for name, v in chosen.items()}
            words = [f"--method={method}", *(f"--{name}={text}" for name, text in texts.items())]
        config = main.resolve_config(*main.parse_arguments(words))
        if "--config" in words:
            chosen.pop("method", None)
            taken = config.to_dict()
            # a number such as 10**25 is taken as the float nearest to it
            assert all(
                taken[name] in (value, float(value) if type(value) is int else value) for name, value in chosen.items()
            )

    try_all(attempt)


# --- Runs ---


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> dict[float, Path]:
    """A run of one epoch for each ema."""
    runs = {}
    for ema in (0.0, 0.9):
        runs[ema] = tmp_path_factory.mktemp("run")
        train(tiny_config(folder, method="tiny", ema=ema, epochs=1, watch_every=0), runs[ema])
    return runs


def change_tensor(tensor: Tensor, generator: np.random.Generator) -> Tensor:
    """A tensor with other numbers, or of another shape, type or layout."""
    like = tensor.float()
    return pick(generator, [
        lambda: tensor.to(torch.complex64), lambda: tensor.long(), lambda: tensor.double(), lambda: tensor.half(),
        lambda: tensor.bool(), lambda: torch.full_like(like, math.nan), lambda: torch.full_like(like, math.inf),
        lambda: like + 1, lambda: tensor[None], lambda: tensor.flatten()[:0], lambda: tensor.flatten()[:1],
        lambda: tensor.flip(-1) if tensor.ndim else -tensor, lambda: tensor.to_sparse(), lambda: tensor.to("meta"),
        lambda: torch.nn.Parameter(like), lambda: torch.zeros(()).expand(tensor.shape),
    ])()  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Whether two trees of dicts, lists, tensors and plain values are equal, also in type and in each bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return a == b


def check_resumed(run: Path, config: Any, written: dict[str, Any]) -> None:
    """Resume a run: its detectors and optimisers must be those written to last.pt."""
    state = start_or_resume(config, run, CPU)
    assert same(dict(state.tested.state_dict()), dict(written["model"]))
    assert same(dict(state.detector.state_dict()), dict(written["training_model" if config.ema else "model"]))
    for name, optimizer in state.optimizers.items():
        assert same(optimizer.state_dict()["state"], written["optimizers"][name]["state"])
    assert (state.epoch, state.best_MRE) == (written["epoch"], written["best_MRE"])
    assert state.averaged is None or state.averaged.steps == written["averaged_steps"]


def test_a_checkpoint_is_loaded_as_it_was_written_or_refused(folder, runs, tmp_path):
    states = {ema: read_checkpoint(run / "last.pt") for ema, run in runs.items()}

    def attempt(generator: np.random.Generator) -> None:
        ema = pick(generator, list(runs))
        state = copy.deepcopy(states[ema])

        def change(value: Any) -> Any:
            if isinstance(value, Tensor) and generator.random() < 0.8:
                return change_tensor(value, generator)
            return pick(generator, [*ODD, torch.zeros(2, 2), {"a": torch.ones(2)}])

        damage_tree(state, generator, change)
        save_checkpoint(tmp_path / "last.pt", state)
        loaded = load_detector(read_checkpoint(tmp_path / "last.pt"))
        assert same(dict(loaded.state_dict()), dict(state["model"]))
        check_resumed(tmp_path, tiny_config(folder, method="tiny", ema=ema), state)

    try_all(attempt)


def test_a_damaged_checkpoint_file_is_read_whole_or_refused(runs, tmp_path):
    whole = read_checkpoint(runs[0.9] / "last.pt")
    content = (runs[0.9] / "last.pt").read_bytes()

    def attempt(generator: np.random.Generator) -> None:
        (tmp_path / "last.pt").write_bytes(damage_bytes(content, generator))
        state = read_checkpoint(tmp_path / "last.pt")
        load_detector(state)
        assert same(state, whole | {"path": state["path"]})

    try_all(attempt)


def test_the_damaged_files_of_a_run_are_read_or_refused(runs, tmp_path):
    run = runs[0.9]
    files = {name: (run / name).read_bytes() for name in ("config.json", "split.json", "metrics.csv", "last.pt")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    written = read_checkpoint(run / "last.pt")

    def attempt(generator: np.random.Generator) -> None:
        name = pick(generator, ("config.json", "split.json", "metrics.csv"))
        if name != "metrics.csv" and generator.random() < 0.5:
            content = json.loads(files[name])
            damage_tree(content, generator, lambda value: pick(generator, ODD))
            (tmp_path / name).write_text(json.dumps(content))
        else:
            (tmp_path / name).write_bytes(damage_bytes(files[name], generator))
        try:
            config, _ = main.resolve_resumed_config(
                argparse.Namespace(resume=str(tmp_path), preset=[], config=None), {}
            )
            check_resumed(tmp_path, config, written)
            assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.csv", 1)] == [1]
        finally:
            (tmp_path / name).write_bytes(files[name])

    try_all(attempt)


# --- Images ---


def test_a_damaged_image_is_read_or_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64))
    write_dicom(tmp_path / "a.dcm", pixels)
    for ending in ("png", "jpg", "tif"):
        Image.fromarray((pixels // 16).astype(np.uint8)).save(tmp_path / f"a.{ending}")
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "deep.tif", compression="tiff_lzw")
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "deep.png")
    files = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}

    def attempt(generator: np.random.Generator) -> None:
        name = pick(generator, list(files))
        (tmp_path / name).write_bytes(damage_bytes(files[name], generator))
        image = read_image(tmp_path / name)
        assert image_size(tmp_path / name) == image.shape[1::-1] and np.isfinite(image).all()

    try_all(attempt)


# --- Formats ---

TOKENS = [b"[", b"]", b'"', b",", b"{", b":", b"1", b".", b"points", b"label", b"null", b"<", b">", b"="]
INSTEAD = [b"", b"null", b"[]", b"{}", b"-", b"nan", b"1e999", b'"x"', b"true", b"\xff"]
PARSER = convert.make_parser()


def damage_cell(text: str, generator: np.random.Generator) -> str:
    """Change, drop or double a cell of a csv."""
    lines = [line.split(",") for line in text.splitlines()]
    cells = pick(generator, lines)
    place, kind = generator.integers(len(cells)), pick(generator, ["change", "drop", "double"])
    odd = str(pick(generator, WORDS)).encode("utf-8", "replace").decode()
    cells[place : place + 1] = {"change": [odd], "drop": [], "double": [cells[place]] * 2}[kind]
    return "\n".join(",".join(cells) for cells in lines) + "\n"


def damage_xml(text: str, generator: np.random.Generator) -> str:
    """Change or drop an attribute, a text or an element."""
    root = ElementTree.fromstring(text)
    parents = [element for element in root.iter() if len(element) or element.attrib]
    element = pick(generator, parents)
    odd = re.sub("[^ -~]", "", str(pick(generator, WORDS)))
    if len(element) and generator.random() < 0.5:
        child = pick(generator, list(element))
        element.remove(child) if generator.random() < 0.5 else element.append(child)
    elif element.attrib:
        key = pick(generator, list(element.attrib))
        element.attrib[key if generator.random() < 0.8 else "x"] = odd
        if generator.random() < 0.3:
            del element.attrib[key]
    else:
        element.text = odd
    return ElementTree.tostring(root, encoding="unicode")


def damage_annotation(file: Path, generator: np.random.Generator) -> tuple[str, bytes]:
    """A kind of damage, and the content of a file with it."""
    whole = file.read_bytes()
    kind = pick(generator, ["bits", "lines", "tokens", "values", "values", "values"])
    if kind == "bits":
        return kind, damage_bytes(whole, generator)
    if kind == "lines":
        lines = whole.splitlines(keepends=True)
        place = generator.integers(len(lines))
        return kind, b"".join(lines[:place] + lines[place : place + 1] * pick(generator, [0, 2]) + lines[place + 1 :])
    if kind == "tokens":
        return kind, whole.replace(pick(generator, TOKENS), pick(generator, INSTEAD), int(generator.integers(1, 4)))
    text = whole.decode("utf-8")
    if file.suffix == ".json":
        content = json.loads(text)
        damage_tree(content, generator, lambda value: pick(generator, ODD))
        return kind, json.dumps(content).encode()
    return kind, (damage_xml if file.suffix == ".xml" else damage_cell)(text, generator).encode()


@pytest.mark.parametrize("name", SOURCES)
def test_a_foreign_file_is_converted_right_or_refused(name, tmp_path):
    folder, outside = tmp_path / "source", tmp_path / "outside"
    folder.mkdir()
    source = write_source(name, folder)
    endings = (".json", ".csv", ".txt", ".xml", ".fcsv")
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.suffix in endings)
    whole = {file: file.read_bytes() for file in files}
    true = {point for points in tables(FORMATS[name].read(source)).values() for point in points.items()}

    def attempt(generator: np.random.Generator) -> None:
        file, to = pick(generator, files), pick(generator, [None, None, None, *WRITABLE])
        top = outside / f"{generator.integers(2**40)}"
        destination = top / "a" / "b"
        kind, content = damage_annotation(file, generator)
        file.write_bytes(content)
        try:
            reading = FORMATS[name].read(source)
            if to is None:
                convert.write_data_set(reading, destination, link=True)
            else:
                convert.convert(PARSER.parse_args([name, str(source), str(destination), "--to", to]))
        except UserError:
            assert not any(path.is_file() for path in top.rglob("*"))
            raise
        finally:
            file.write_bytes(whole[file])
        assert {path.relative_to(top).parts[:2] for path in top.rglob("*") if path.is_file()} == {("a", "b")}
        found = {point for points in tables(reading).values() for point in points.items()}
        assert all(point is None or all(math.isfinite(value) for value in point) for _, point in found)
        if kind == "lines" and name not in ("isbi2015", "spine", "hand"):  # a point or row less, or refused; none moved
            assert {each for each in found if each[1] is not None} <= true

    before = [*tmp_path.iterdir(), outside, *sorted(folder.rglob("*"))]
    try_all(attempt)
    assert [*sorted(tmp_path.iterdir(), reverse=True), *sorted(folder.rglob("*"))] == before
