"""tools.predict.Predictor, the way to find landmarks from Python."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_records
from foreign_files import write_dicom
from PIL import Image

from data import make_loader
from evaluate import evaluate
from methods import METHODS, create_detector, load_detector
from reading.images import read_image
from reading.splits import load_data
from run_folder import read_checkpoint, save_checkpoint
from settings import UserError
from tools import predict
from tools.predict import Predictor
from train import checkpoint_state

CPU = torch.device("cpu")


def save_tiny(path: Path, folder: Path, seed: int = 0, **settings) -> Path:
    """An untrained checkpoint of the tiny detector for a folder of make_records."""
    config = tiny_config(folder, method="tiny", seed=seed, **settings)
    torch.manual_seed(seed)
    detector = create_detector(config).eval()
    save_checkpoint(path, checkpoint_state(config, load_data(config), detector, {"epoch": 1, "best_MRE": 9.0}))
    return path


@pytest.fixture
def film(dataset) -> Path:
    """One image of the data set."""
    return sorted((dataset / "imgs").iterdir())[0]


def run_command(monkeypatch, out: Path, *arguments) -> list[tuple[np.ndarray, np.ndarray]]:
    """Landmarks (N, 2) and scores (N,) of each image as tools.predict holds them before it rounds."""
    held = {}
    write = predict.write_predictions
    monkeypatch.setattr(predict, "write_predictions", lambda *values: [held.update(own=values[1]), write(*values)])
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--out", str(out), "--workers", "0"])
    assert predict.main() == 0
    return list(zip(held["own"].landmarks, held["own"].score, strict=True))


def assert_same(found, expected) -> None:
    """Landmarks and scores agree to the last bit."""
    for own, other in zip(found[:2], expected[:2], strict=True):
        assert own.dtype == other.dtype and np.array_equal(own, other)


@pytest.mark.parametrize("crop_follows", [False, True])
def test_a_file_gives_exactly_what_the_command_finds(dataset, film, tmp_path, monkeypatch, crop_follows):
    path = save_tiny(tmp_path / "a.pt", dataset, crop_follows=crop_follows, crop_margin=0.1)
    landmarks, scores, names = found = Predictor(path, device="cpu").find(film)
    assert landmarks.shape == (4, 2) and landmarks.dtype == np.float64 and scores.shape == (4,)
    assert names == ["R1", "R2", "A", "B"]
    (alone,) = run_command(monkeypatch, tmp_path / "alone", path, film)
    assert_same(found, alone)
    first, *others = run_command(monkeypatch, tmp_path / "all", path, dataset / "imgs")
    assert np.allclose(landmarks, first[0], atol=1e-4) and len(others) == 5
    assert not np.allclose(landmarks, others[0][0], atol=0.1 if crop_follows else 1)
    assert_same(Predictor(str(path)).find(str(film)), found)
    detector = load_detector(read_checkpoint(path))
    tested = evaluate(detector, make_loader(detector.config, load_data(detector.config).records, train=False), CPU)
    by_name = dict(zip(tested.names, tested.landmarks, strict=True))
    assert np.abs(landmarks - by_name[film.name]).max() < 1e-3


def test_views_and_an_ensemble_are_averaged_as_by_the_command(dataset, film, tmp_path, monkeypatch):
    paths = [save_tiny(tmp_path / f"{seed}.pt", dataset, seed) for seed in (0, 1)]
    state = read_checkpoint(paths[1])  # the second knows the landmarks in another order
    save_checkpoint(paths[1], state | {"abbreviations": state["abbreviations"][::-1]})
    arguments = (paths[0], film, "--ensemble", paths[1], "--views", "3", "--batch_size", "2")
    (expected,) = run_command(monkeypatch, tmp_path / "out", *arguments)
    predictor = Predictor(*paths, views=3, batch_size=2)
    assert_same(predictor.find(film), expected)
    single = [Predictor(path, views=3).find(film)[0] for path in paths]
    assert np.allclose(expected[0], (single[0] + single[1][::-1]) / 2, atol=1e-4)


def test_a_checkpoint_is_loaded_once(dataset, film, tmp_path, monkeypatch):
    built = []
    tiny = METHODS["tiny"]

    class Counted(tiny):
        def __init__(self, config) -> None:
            built.append(config)
            super().__init__(config)

    path = save_tiny(tmp_path / "a.pt", dataset)
    monkeypatch.setitem(METHODS, "tiny", Counted)
    predictor = Predictor(path)
    predictor.find(film)
    predictor.find(film)
    assert len(built) == 1
    run_command(monkeypatch, tmp_path / "out", path, film)
    assert len(built) == 2


def test_an_array_gives_what_its_file_gives(dataset, film, tmp_path):
    predictor = Predictor(save_tiny(tmp_path / "a.pt", dataset))
    grey = np.asarray(Image.open(film))
    expected = predictor.find(film)
    assert_same(predictor.find(grey), expected)
    assert_same(predictor.find(np.stack([grey] * 3, -1)), expected)
    colour = np.stack([grey, grey // 2, 255 - grey], -1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    assert_same(predictor.find(colour), predictor.find(tmp_path / "colour.png"))
    assert_same(predictor.find(colour[..., ::-1][..., ::-1]), predictor.find(colour))  # as cv2.imread's are turned
    deep = grey.astype(np.uint16) * 100 + 300
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.float32) / 7).save(tmp_path / "float.tif")
    assert_same(predictor.find(deep), predictor.find(tmp_path / "deep.png"))
    assert_same(predictor.find(deep.astype(np.float32) / 7), predictor.find(tmp_path / "float.tif"))


def test_a_dicom_file_is_read(dataset, film, tmp_path):
    pytest.importorskip("pydicom")
    predictor = Predictor(save_tiny(tmp_path / "a.pt", dataset))
    write_dicom(tmp_path / "film", read_image(film).astype(int) * 16)
    assert_same(predictor.find(tmp_path / "film"), predictor.find(read_image(tmp_path / "film")))


def test_what_is_not_an_image_is_refused(dataset, tmp_path):
    predictor = Predictor(save_tiny(tmp_path / "a.pt", dataset))
    (tmp_path / "notes.png").write_text("no image")
    nan = np.zeros((9, 9))
    nan[3, 4] = np.nan
    shapes = [np.zeros(shape, np.uint8) for shape in ((9,), (9, 9, 4), (2, 9, 9, 3), (0, 9))]
    for image in (tmp_path / "notes.png", tmp_path / "absent.png", tmp_path, nan, np.full((9, 9), "a"), *shapes):
        with pytest.raises(UserError, match="image") as error:
            predictor.find(image)
        assert "\n" not in str(error.value)
        assert not isinstance(image, Path) or str(image) in str(error.value)


def test_checkpoints_and_settings_are_checked(dataset, tmp_path):
    path = save_tiny(tmp_path / "a.pt", dataset)
    other = tmp_path / "b.pt"
    save_checkpoint(other, read_checkpoint(path) | {"abbreviations": ["R1", "R2", "A", "C"]})
    write_records(dataset, [])
    for checkpoints, settings, words in (
        ([path, other], {}, ("b.pt", "'B'")),
        ([tmp_path / "absent.pt"], {}, ("absent.pt",)),
        ([path], {"view": 3}, ("view",)),
        ([path], {"device": "nowhere"}, ("device",)),
    ):
        with pytest.raises(UserError) as error:
            Predictor(*checkpoints, **settings)
        assert all(word in str(error.value) for word in words)
