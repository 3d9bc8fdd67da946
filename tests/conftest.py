"""Small data sets and settings, drawn here, for every test file."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import write_isbi
from PIL import Image
from review_browser import Page, start_browser
from torch import nn

import main
from config import Config
from detector import LandmarkDetector
from machine import keep_freed_memory
from methods import METHODS
from reading.splits import load_data
from settings import UserError
from tools import compare
from utils import decode_heatmaps, gaussian_heatmaps

ABBREVIATIONS = ("R1", "R2", "A", "B")


def draw_image(generator: np.random.Generator, landmarks: np.ndarray, size=(96, 80)) -> np.ndarray:
    """A grey picture (h, w) with a differently sized bright blob at each landmark."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    image = generator.normal(40, 4, (height, width))
    for number, (px, py) in enumerate(landmarks):
        image += (90 + 30 * number) * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (1.5 + number) ** 2))
    return np.clip(image, 0, 255).astype(np.uint8)


def make_records(folder: Path, count: int = 6, size=(96, 80), seed: int = 0) -> list[dict]:
    """`count` images in folder/imgs and their records; the ruler R1-R2 is 20 px long."""
    generator = np.random.default_rng(seed)
    (folder / "imgs").mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        ruler = generator.uniform((5, 5), (20, 20))
        anatomy = generator.uniform((35, 30), (85, 70), (2, 2))
        landmarks = np.vstack([ruler, ruler + (0, 20), anatomy]).round(2)
        name = f"image {number} (ä).png"
        Image.fromarray(draw_image(generator, landmarks, size)).save(folder / "imgs" / name)
        points = [
            {"pointName": f"point {abbreviation}", "pointAbbreviation": abbreviation, "X": float(x), "Y": float(y)}
            for abbreviation, (x, y) in zip(ABBREVIATIONS, landmarks, strict=True)
        ]
        records.append({"imagePath": name, "points": points})
    return records


def write_records(folder: Path, records) -> Path:
    """records as folder/json/data.json."""
    path = folder / "json" / "data.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


class TinyDetector(LandmarkDetector):
    """A method of three layers, with batch norm and dropout: what the loop does, it does to this one too."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 9, padding=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(8, config.num_landmarks, 9, padding=4),
        )  # fmt: skip

    def loss(self, batch, epoch: int) -> dict[str, torch.Tensor]:
        target = gaussian_heatmaps(batch.landmarks, batch.image.shape[-2:], self.config.sigma)
        with self.autocast(batch.image.device):
            heatmaps = self.network(batch.image)
        squares = (heatmaps.float() - target) ** 2
        return {"squares": squares.mean(), "peaks": (squares * target).mean()}

    def predict(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return decode_heatmaps(self.network(image), self.config.decode, self.config.sigma)


@pytest.fixture
def tiny_method(monkeypatch) -> None:
    """TinyDetector under the name "tiny"."""
    monkeypatch.setitem(METHODS, "tiny", TinyDetector)


def tiny_config(folder: Path, **settings) -> Config:
    """Settings for a folder of make_records that train in seconds."""
    defaults = dict(
        img_dir=str(folder / "imgs"), json_path=str(folder / "json" / "data.json"), num_landmarks=4,
        height=64, width=96, sigma=3.0, lr=1e-3, decode="subpixel", backbone_weights="none", epochs=2, batch_size=2,
        workers=0, device="cpu", val_fraction=0.2, test_fraction=0.2, overlays=2, save_every=2,
    )  # fmt: skip
    return Config(**defaults | settings)


METHOD_SETTINGS = {  # what a method needs beside tiny_config to be small and to learn in few steps
    "farnet": dict(lr=3e-4),
    "noothout": dict(lr=3e-3, norm="batch", patch_size=8, local_size=16),
    "posenet": dict(
        lr=3e-3, norm="batch", stacks=2, hourglass_depth=2, channels=32, discriminator_channels=16, pretrain_epochs=0,
    ),
    "readme": dict(lr=1e-3),
    "unet": dict(lr=3e-3, backbone="resnet18", norm="batch", label_radius=6, erosion=2, erosion_epochs=1),
}  # fmt: skip


def refusal(folder, records, **settings) -> str:
    """The message with which load_data refuses these records; one line."""
    write_records(folder, records)
    with pytest.raises(UserError) as error:
        load_data(tiny_config(folder, **settings))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with imgs/ and json/data.json of six images."""
    write_records(tmp_path, make_records(tmp_path))
    return tmp_path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder in the layout of the ISBI archive."""
    return write_isbi(tmp_path)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """The run folder of `main.py` on six tiny images for two epochs, tested and reported."""
    folder = tmp_path_factory.mktemp("trained")
    write_records(folder, make_records(folder))
    (folder / "settings.json").write_text(json.dumps(tiny_config(folder).to_dict()), encoding="utf-8")
    main.run(["--config", str(folder / "settings.json"), "--run_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture
def run_compare(monkeypatch, capsys, tmp_path):
    """tools.compare with these arguments: its exit status and what it says; files in tmp_path/out."""

    def call(*arguments) -> tuple[int, str]:
        words = list(map(str, arguments))
        words += [] if "--out" in words else ["--out", str(tmp_path / "out")]
        words += [] if "--resamples" in words else ["--resamples", "300"]
        monkeypatch.setattr(sys, "argv", ["compare", *words])
        status = compare.main()
        streams = capsys.readouterr()
        return status, streams.out + streams.err

    return call


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, one for all tests. Where there is none they are skipped, but not where CI is set."""
    session = start_browser()
    if session is None:
        assert not os.environ.get("CI"), "install chromium and chromium-driver"
        pytest.skip("no chromium and chromedriver here")
    yield session
    session.quit()


@pytest.fixture
def open_page(browser, tmp_path, monkeypatch):
    """Opens a page; at the end: no error on its console, no request that leaves it."""
    monkeypatch.setattr(sys, "argv", [])
    for log in ("browser", "performance"):
        browser.get_log(log)
    yield lambda *arguments: Page(browser, tmp_path, *arguments)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """The tests' numbers do not depend on how many cores there are; and memory is kept as in a run."""
    torch.set_num_threads(2)
    keep_freed_memory(torch.device("cpu"))
