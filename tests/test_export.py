import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import METHOD_SETTINGS, make_records, needs, refuses, tiny_config, write_records
from PIL import Image
from torch.utils.data import default_collate

from data import make_sample
from methods import METHODS, create_detector, method_class
from reading.splits import load_data
from run_folder import save_checkpoint
from settings import build_config
from tools import export
from train import checkpoint_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cv2.__version__ < "5", reason="needs OpenCV 5, which the graph repeats"),
    needs("onnx", "onnxscript", "onnxruntime"),
]


def save_trained(folder: Path, method: str, steps: int = 40, **settings) -> Path:
    """A checkpoint of a method after some steps on two images of make_records: its maps have peaks."""
    torch.manual_seed(0)
    plain = tiny_config(folder).to_dict() | METHOD_SETTINGS.get(method, {}) | settings
    config = build_config(method_class(method).Config, plain | {"method": method})
    data = load_data(config)
    detector = create_detector(config).train()
    batch = default_collate([make_sample(config, record) for record in data.records[:2]])
    optimizers = detector.configure_optimizers()
    for _ in range(steps):
        detector.train_step(batch, 0, optimizers)
    save_checkpoint(folder / "best.pt", checkpoint_state(config, data, detector, {"epoch": 1, "best_MRE": 9.0}))
    return folder / "best.pt"


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory) -> Path:
    """The checkpoint of each method in turn, beside its data set."""
    folder = tmp_path_factory.mktemp(request.param)
    write_records(folder, make_records(folder))
    return save_trained(folder, request.param, steps=80)  # a U-Net after 40 has more than a peak in its maps


@pytest.mark.parametrize("kind", export.FORMATS)
def test_an_exported_graph_finds_what_the_method_finds(trained, kind, tmp_path, monkeypatch, capsys):
    dataset, out = trained.parent, tmp_path / "graph"
    with Image.open(sorted((dataset / "imgs").iterdir())[0]) as first:  # other sizes: nothing of one is frozen
        first.resize((300, 200)).save(tmp_path / "large.png")
        first.crop((10, 0, 90, 70)).save(tmp_path / "small.png")
    places = (dataset / "imgs", tmp_path / "large.png", tmp_path / "small.png")
    words = ["export", trained, "--format", kind, "--out", out, "--images", *places]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    assert export.main() == 0, capsys.readouterr().err
    assert float(re.search(r"no landmark is more than (\S+) px", capsys.readouterr().out)[1]) <= 0.05
    images = np.stack([np.asarray(Image.open(each).convert("L")) for each in sorted((dataset / "imgs").iterdir())])
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(out)
        about = session.get_modelmeta().custom_metadata_map
        landmarks, scores = session.run(None, {"image": images})
        (turned, _) = session.run(None, {"image": np.ascontiguousarray(images[:1].transpose(0, 2, 1))})
    else:
        about = {"landmarks": ""}
        graph = torch.jit.load(out, _extra_files=about)
        fixed = [c for c in graph.graph.findAllNodes("prim::Constant") if "Device" in str(c.output().type())]
        assert not fixed  # it computes on the device of its input
        landmarks, scores = (each.detach().numpy() for each in graph(torch.from_numpy(images)))
        turned = graph(torch.from_numpy(images[:1].transpose(0, 2, 1).copy()))[0].detach().numpy()
    assert json.loads(about["landmarks"]) == ["R1", "R2", "A", "B"]
    assert landmarks.shape == (6, 4, 2) and scores.shape == (6, 4) and turned.shape == (1, 4, 2)
    truth = load_data(tiny_config(dataset)).records[0].landmarks
    assert np.linalg.norm(landmarks[0] - truth, axis=-1).max() < 8  # px of the image, not of the network


@pytest.mark.parametrize(
    ("decode", "crop", "kind"),
    [
        ("argmax", dict(crop=(0.02, 0.03, 0.97, 0.99)), "torchscript"),
        ("subpixel", dict(crop=(0.02, 0.03, 0.97, 0.99)), "torchscript"),
        ("subpixel", dict(crop_follows=True, crop_margin=0.2), "torchscript"),
        ("subpixel", dict(crop_follows=True, crop_margin=0.2), "onnx"),
    ],
)
def test_every_decoding_and_crop_is_exported(dataset, decode, crop, kind):
    path = save_trained(dataset, "posenet", decode=decode, **crop)
    message = export.export(str(path), kind, dataset / "graph", [str(dataset / "imgs")], 6)
    assert "6 images" in message


def test_a_graph_that_finds_other_landmarks_is_not_written(dataset, monkeypatch):
    path = save_trained(dataset, "posenet", steps=1)
    good = export.make_eager

    def shifted(predictor):
        return lambda images: (good(predictor)(images)[0] + 0.06, good(predictor)(images)[1])

    monkeypatch.setattr(export, "make_eager", shifted)
    with refuses("px off", "0.05 px"):
        export.export(str(path), "torchscript", dataset / "graph", [str(dataset / "imgs")], 2)
    assert {each.name for each in dataset.iterdir()} == {"imgs", "json", "best.pt"}


def test_mistakes_end_in_one_line(dataset, monkeypatch, capsys):
    path = save_trained(dataset, "posenet", steps=1)
    before = path.read_bytes()
    cases = {
        (path, "--images", dataset / "nothing"): "nothing",
        (path, "--checks", 0): "--checks",
        (path, "--out", path): "best.pt",
        (path, "--out", "."): "--out",
        (path, "--out", dataset / "none" / "a.onnx"): "none",
        (dataset / "none.pt",): "none.pt",
    }
    for words, message in cases.items():
        monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
        assert export.main() == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert path.read_bytes() == before
    monkeypatch.setattr(sys, "argv", ["export", str(path)])
    (dataset / "imgs").rename(dataset / "elsewhere")
    assert export.main() == 2
    assert "--images" in capsys.readouterr().err


def test_a_coloured_image_is_checked_as_it_is_read_for_the_graph(tmp_path):
    Image.new("RGB", (90, 80), (200, 10, 0)).save(tmp_path / "red.png")
    ((name, image),) = export.read_for_check(tiny_config(tmp_path), [str(tmp_path / "red.png")], 3)
    assert name == "red.png" and np.array_equal(image, np.asarray(Image.open(tmp_path / "red.png").convert("L")))


def test_an_exported_network_is_fed_deep_and_turned_files_as_they_are_shown(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (6, 8)).astype(np.uint8)
    grey[0, :2] = 0, 255
    Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(grey).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(export.read_input(tmp_path / "deep.png"), grey[None])
    assert np.array_equal(export.read_input(str(tmp_path / "turned.png")), np.rot90(grey, -1)[None])
