"""Small data sets, settings, methods and runs for every test file; what is skipped, and where that fails."""

import errno
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import default_collate

import main
from config import Config
from data import Sample, make_sample
from detector import LandmarkDetector
from machine import keep_freed_memory
from methods import METHODS
from model import FARNet, FARNetNetwork
from reading.splits import load_data
from settings import UserError
from utils import decode_heatmaps, gaussian_heatmaps

ABBREVIATIONS = ("R1", "R2", "A", "B")
# Where CI is set, a test that is skipped for another reason than these fails the run.
ANNOUNCED_SKIPS = ("needs CUDA", "needs OpenCV 5", "only Linux")

# --- Skips ---


def needs(*modules: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test, or a file of tests as its pytestmark, where a module is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    reason = f"needs {', '.join(missing)}: pip install -r requirements-dev.txt"
    return pytest.mark.skipif(bool(missing), reason=reason)


def pytest_collection_modifyitems(items) -> None:
    """Mark the tests in the browser as slow."""
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session) -> None:
    """Fail a run of continuous integration in which a test was skipped for a reason that is not announced."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or hasattr(session.config, "workerinput") or reporter is None:
        return
    reasons = {report.longrepr[2] for report in reporter.stats.get("skipped", ()) if isinstance(report.longrepr, tuple)}
    surprising = sorted(reason for reason in reasons if not any(known in reason for known in ANNOUNCED_SKIPS))
    if surprising:
        reporter.ensure_newline()
        reporter.write_line(f"CI is set and tests were skipped without announcement: {'; '.join(surprising)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Compute on one thread, here and in programs that tests start: they share the cores. Keep memory as in a run."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_freed_memory(torch.device("cpu"))


# --- Data ---


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


# --- Methods and settings ---


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


class NarrowFARNet(FARNet):
    """FARNet with an eighth of its channels behind the backbone."""

    def __init__(self, config: Config, network: nn.Module | None = None) -> None:
        names = config.backbone, config.backbone_weights, config.norm
        super().__init__(config, network or FARNetNetwork(config.num_landmarks, *names, width=32))


@pytest.fixture(autouse=True, scope="session")
def small_methods():
    """Run TinyDetector as "tiny" and NarrowFARNet as "farnet"; model.FARNet itself is as wide as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "tiny", TinyDetector)
        patch.setitem(METHODS, "farnet", NarrowFARNet)
        yield


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
    "refined": dict(lr=1e-3, refine=2, height=128, width=192),
    "unet": dict(lr=3e-3, backbone="resnet18", norm="batch", label_radius=6, erosion=2, erosion_epochs=1),
}  # fmt: skip


def make_batch(config: Config, count: int = 2) -> Sample:
    """The first `count` images of a data set as a collated batch."""
    return default_collate([make_sample(config, record) for record in load_data(config).records[:count]])


def noise_batch(landmarks: torch.Tensor, size=(64, 96)) -> Sample:
    """Noise (B, 3, *size) with these landmarks (B, N, 2), of files twice as large with 0.1 mm per px."""
    count = len(landmarks)
    to_original = torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5]], dtype=torch.float64).repeat(count, 1, 1)
    spacing = torch.full((count,), 0.1, dtype=torch.float64)
    return Sample(torch.randn(count, 3, *size), landmarks, to_original, spacing, [f"{n}.png" for n in range(count)])


# --- Refusals and programs ---


def refusal(work: Callable, *arguments, **keywords) -> str:
    """The one line with which work(*arguments, **keywords) is refused."""
    with pytest.raises(UserError) as error:
        work(*arguments, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


@contextmanager
def refuses(*words):
    """Within: what is refused in one line that names each of these words."""
    with pytest.raises(UserError) as error:
        yield
    assert "\n" not in str(error.value) and mentions(str(error.value), *words)


def mentions(text: str, *words) -> bool:
    """Whether a text holds each of these words."""
    return all(str(word) in text for word in words)


def data_refusal(folder: Path, records, **settings) -> str:
    """The one line with which load_data refuses these records."""
    write_records(folder, records)
    return refusal(load_data, tiny_config(folder, **settings))


@pytest.fixture
def run_program(monkeypatch, capsys):
    """A program, such as tools.compare, with these arguments: its exit status and what it says; if 2, on stderr."""

    def call(program, *arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
        status = program.main()
        streams = capsys.readouterr()
        return status, streams.err if status == 2 else streams.out + streams.err

    return call


@pytest.fixture
def fill_disk(monkeypatch):
    """Let so many more writes succeed; None: all again."""
    fsync = os.fsync

    def fill(writes: int | None) -> None:
        left = iter(range(10**6 if writes is None else writes))

        def write(descriptor: int) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", write)

    return fill


# --- Data sets and runs ---


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with imgs/ and json/data.json of six images."""
    write_records(tmp_path, make_records(tmp_path))
    return tmp_path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder in the layout of the ISBI archive."""
    from foreign_files import write_isbi

    return write_isbi(tmp_path)


def whole_run(folder: Path, **settings) -> Path:
    """The run folder of `main.py` on six tiny images, tested and reported."""
    write_records(folder, make_records(folder))
    (folder / "settings.json").write_text(json.dumps(tiny_config(folder, **settings).to_dict()), encoding="utf-8")
    main.run(["--config", str(folder / "settings.json"), "--run_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A whole run of the tiny method, beside its data set."""
    return whole_run(tmp_path_factory.mktemp("trained"), method="tiny")


@pytest.fixture(scope="session")
def farnet_run(tmp_path_factory) -> Path:
    """A whole run of a narrow FARNet, beside its data set."""
    return whole_run(tmp_path_factory.mktemp("farnet"), num_landmarks=None)


@pytest.fixture
def run_compare(run_program, tmp_path):
    """tools.compare with these arguments: its exit status and what it says; files in tmp_path/out."""
    from tools import compare

    def call(*arguments) -> tuple[int, str]:
        words = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        words += [] if "--resamples" in arguments else ["--resamples", "300"]
        return run_program(compare, *arguments, *words)

    return call


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, one for all tests."""
    pytest.importorskip("selenium", reason="needs selenium: pip install -r requirements-dev.txt")
    from review_browser import start_browser

    session = start_browser()
    if session is None:
        pytest.skip("needs a browser: install chromium and its driver (Debian: apt install chromium chromium-driver)")
    yield session
    session.quit()


@pytest.fixture
def open_page(browser, tmp_path, monkeypatch):
    """Opens a page; at the end: no error on its console, no request that leaves it."""
    from review_browser import Page

    monkeypatch.setattr(sys, "argv", [])
    for log in ("browser", "performance"):
        browser.get_log(log)
    yield lambda *arguments, **options: Page(browser, tmp_path, *arguments, **options)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
