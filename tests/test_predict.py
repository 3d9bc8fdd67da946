import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import METHOD_SETTINGS, make_records, mentions, tiny_config, write_records
from foreign_files import write_dicom
from PIL import Image
from test_shapes import heads

import main
from config import Config
from evaluate import Predictions, Verdict
from methods import create_detector, method_class
from reading import dicom
from reading.annotation import Record
from reading.images import read_image
from reading.splits import load_data
from reporting.memory import remember
from reporting.pictures import draw_overlay
from reporting.predictions import read_predictions, write_predictions
from run_folder import read_checkpoint, save_checkpoint
from settings import build_config
from tools import predict
from tools.review_source import read_source
from train import checkpoint_state
from utils import clip_to_image


@pytest.fixture
def images(trained_run) -> Path:
    """The folder of images of trained_run, its test image among them."""
    return trained_run.parent / "imgs"


def call(monkeypatch, *arguments) -> int:
    """tools.predict on the CPU, in this process."""
    words = ["predict", *map(str, arguments), "--device", "cpu", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", words)
    return predict.main()


def landmarks_of(out: Path) -> dict[str, np.ndarray]:
    """Landmarks (N, 2) of each image in a predictions.csv, by its file's name."""
    names, _, columns, _ = read_predictions(out / "predictions.csv")
    return {Path(name).name: np.stack([columns["x"][i], columns["y"][i]], -1) for i, name in enumerate(names)}


def save_untrained(path: Path, folder: Path, method="tiny", seed=0, **settings) -> Path:
    """A checkpoint of a method that has not been trained, for a folder of make_records."""
    plain = tiny_config(folder).to_dict() | METHOD_SETTINGS.get(method, {}) | settings
    config = build_config(method_class(method).Config, plain | {"method": method, "seed": seed})
    torch.manual_seed(seed)
    detector = create_detector(config).eval()
    save_checkpoint(path, checkpoint_state(config, load_data(config), detector, {"epoch": 1, "best_MRE": 9.0}))
    return path


def test_predictions_are_those_of_a_test_run_and_their_json_is_read(trained_run, images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert call(monkeypatch, trained_run / "best.pt", images, "--out", out, "--overlays", "2") == 0
    found, tested = landmarks_of(out), landmarks_of(trained_run / "test")
    assert len(found) == 6 and tested.keys() < found.keys()
    for name, points in tested.items():
        assert np.abs(found[name] - points).max() < 1e-3
    config = tiny_config(trained_run.parent, json_path=str(out / "json" / "data.json"))
    data = load_data(config)
    assert data.names == tuple(f"point {name}" for name in data.abbreviations)
    for record in data.records:
        inside = np.clip(found[record.name], -0.5, np.array(record.size) - 0.5)
        assert np.abs(record.landmarks - inside).max() < 1e-3
    (entry, *_) = json.loads((out / "json" / "data.json").read_text(encoding="utf-8"))
    assert all(0 <= point["score"] < 10 for point in entry["points"])
    assert len(list((out / "overlays").iterdir())) == 2
    assert "images/s" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["settings"]["img_dir"] == str(images)


def test_an_image_that_cannot_be_read_is_named_and_the_rest_is_done(trained_run, images, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(images, tmp_path / "films")
    good = sorted(path.name for path in folder.iterdir())
    (folder / "broken.png").write_bytes((folder / good[0]).read_bytes()[:100])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no image")
    (folder / f"._{good[0]}").write_bytes(b"left by a Mac")
    assert call(monkeypatch, trained_run / "best.pt", folder, "--out", tmp_path / "out") == 1
    assert sorted(landmarks_of(tmp_path / "out")) == good
    errors = capsys.readouterr().err
    skipped = (tmp_path / "out" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(skipped) == 2 and "broken.png" in skipped[0] and mentions(skipped[1], "empty.jpg", "0 bytes")
    assert "skipped: image" in errors and "broken.png" in errors and "Traceback" not in errors


def test_nothing_is_left_where_no_image_can_be_read(trained_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_text("no image")
    assert call(monkeypatch, trained_run / "best.pt", tmp_path / "a.png", "--out", tmp_path / "out") == 2
    assert "1 image" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_files_of_one_name_in_several_folders_stay_apart(trained_run, images, tmp_path, monkeypatch):
    first, second = sorted(images.iterdir())[:2]
    for folder, image in (("one", first), ("two", second)):
        (tmp_path / "films" / folder).mkdir(parents=True)
        shutil.copy(image, tmp_path / "films" / folder / "film.png")
    arguments = [tmp_path / "films" / "*" / "*.png", tmp_path / "films", "--out", tmp_path / "out"]
    assert call(monkeypatch, trained_run / "best.pt", *arguments) == 0
    names, *_ = read_predictions(tmp_path / "out" / "predictions.csv")
    assert names == ["one/film.png", "two/film.png"]
    settings = dict(
        split="same", img_dir=str(tmp_path / "films"), json_path=str(tmp_path / "out" / "json" / "data.json")
    )
    assert [record.name for record in load_data(tiny_config(tmp_path, **settings)).records] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CHECKPOINT", "nowhere/*.png", "--out", "OUT"], "nowhere/*.png"),
        (["nothing.pt", "IMAGES", "--out", "OUT"], "nothing.pt"),
        (["CHECKPOINT", "IMAGES", "--out", "IMAGES"], "imgs"),
        (["CHECKPOINT", "IMAGES", "--out", "OUT", "--batch_size", "0"], "batch_size: 0"),
        (["CHECKPOINT", "IMAGES", "--out", "OUT", "--overlays", "-1"], "--overlays"),
    ],
)
def test_mistakes_end_in_one_line(trained_run, images, tmp_path, monkeypatch, capsys, arguments, message):
    places = {"CHECKPOINT": trained_run / "best.pt", "IMAGES": images, "OUT": tmp_path / "out"}
    before = sorted(images.iterdir())
    assert call(monkeypatch, *(places.get(word, word) for word in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(images.iterdir()) == before and not (tmp_path / "out").exists()


def test_an_ensemble_gives_the_mean_and_how_far_its_members_are_apart(dataset, tmp_path, monkeypatch):
    paths = [save_untrained(tmp_path / f"{seed}.pt", dataset, seed=seed) for seed in (0, 1)]
    for number, path in enumerate(paths):
        assert call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / str(number)) == 0
    both = tmp_path / "both"
    assert call(monkeypatch, paths[0], dataset / "imgs", "--out", both, "--ensemble", paths[1]) == 0
    first, second, mean = (landmarks_of(tmp_path / name) for name in ("0", "1", "both"))
    names, _, columns, _ = read_predictions(both / "predictions.csv")
    for index, name in enumerate(names):
        assert np.abs(mean[name] - (first[name] + second[name]) / 2).max() < 1e-3
        distance = np.linalg.norm(first[name] - second[name], axis=-1)
        assert np.abs(columns["ensemble_spread"][index] - distance / 2).max() < 1e-3
    assert distance.max() > 1


def test_members_of_an_ensemble_are_matched_by_abbreviation(dataset, tmp_path, monkeypatch):
    path = save_untrained(tmp_path / "a.pt", dataset)
    state = read_checkpoint(path)
    swapped = [state["abbreviations"][n] for n in (1, 0, 2, 3)]
    save_checkpoint(tmp_path / "b.pt", state | {"abbreviations": swapped})
    assert call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / "one") == 0
    arguments = ["--out", tmp_path / "both", "--ensemble", tmp_path / "b.pt"]
    assert call(monkeypatch, path, dataset / "imgs", *arguments) == 0
    one, both = landmarks_of(tmp_path / "one"), landmarks_of(tmp_path / "both")
    for name, points in one.items():
        middle = points[:2].mean(0)
        assert np.abs(both[name] - [middle, middle, *points[2:]]).max() < 1e-3


def test_an_ensemble_of_other_landmarks_is_refused(dataset, tmp_path, monkeypatch, capsys):
    path = save_untrained(tmp_path / "a.pt", dataset)
    save_checkpoint(tmp_path / "b.pt", read_checkpoint(path) | {"abbreviations": ["R1", "R2", "A", "C"]})
    arguments = ["--out", tmp_path / "out", "--ensemble", tmp_path / "b.pt"]
    assert call(monkeypatch, path, dataset / "imgs", *arguments) == 2
    assert mentions(capsys.readouterr().err, "b.pt", "'B'")


def test_views_are_averaged_as_in_a_test(dataset, tmp_path, monkeypatch):
    path = save_untrained(tmp_path / "a.pt", dataset, views=3)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    main.run(["--test", str(path), "--run_dir", str(tmp_path / "run"), "--device", "cpu", "--workers", "0",
              "--split", "same"])  # fmt: skip
    assert call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / "out", "--batch_size", "4") == 0
    found, tested = landmarks_of(tmp_path / "out"), landmarks_of(tmp_path / "run" / "test")
    assert found.keys() == tested.keys()
    assert all(np.abs(found[name] - points).max() < 1e-3 for name, points in tested.items())


def test_a_dicom_film_gives_what_its_png_gives_and_its_spacing(dataset, tmp_path, monkeypatch):
    path = save_untrained(tmp_path / "a.pt", dataset, spacing=None)
    pixels = read_image(next((dataset / "imgs").iterdir())).astype(int) * 16
    films = tmp_path / "films"
    films.mkdir()
    write_dicom(films / "film", pixels, PixelSpacing=[0.2, 0.2])  # no ending
    Image.fromarray(dicom.read(films / "film").image).save(films / "film.png")
    assert call(monkeypatch, path, films, "--out", tmp_path / "out") == 0
    found = landmarks_of(tmp_path / "out")
    assert np.array_equal(found["film"], found["film.png"])
    entries = json.loads((tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8"))
    assert [entry.get("spacing") for entry in entries] == [0.2, None]


def test_predictions_keep_the_spacing_of_the_records_and_say_what_takes_the_place_of_an_absent_one(
    dataset, tmp_path, monkeypatch, capsys
):
    records = make_records(dataset)
    for record in records:
        record["spacing"] = 0.3
    write_records(dataset, records)
    path = save_untrained(tmp_path / "a.pt", dataset, spacing=None)
    for record in records[1:]:
        del record["spacing"]
    write_records(dataset, records)

    def spacings(*options) -> list:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert call(monkeypatch, path, dataset / "imgs", "--out", out, *options) == 0
        return [entry.get("spacing") for entry in json.loads((out / "json" / "data.json").read_text(encoding="utf-8"))]

    assert spacings() == [0.3] + [None] * 5
    assert mentions(capsys.readouterr().err, "5 images state no mm per px", "images had 0.3", "--spacing MM")
    assert spacings("--spacing", "0.2") == [0.3] + [0.2] * 5
    assert mentions(capsys.readouterr().err, "--spacing is not used for 1 images", "image 0")
    del records[0]["points"]
    write_records(dataset, records)
    assert spacings("--spacing", "0.2") == [0.2] * 6
    assert mentions(capsys.readouterr().err, "not used", "data.json", "record 1")


def test_a_method_s_uncertainty_stands_beside_its_landmarks(dataset, tmp_path, monkeypatch):
    path = save_untrained(tmp_path / "a.pt", dataset, "noothout")
    assert call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / "out") == 0
    (entry, *_) = json.loads((tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8"))
    assert all(point["vote_spread"] > 0 and "global_error" not in point for point in entry["points"])


def test_a_landmark_beside_its_image_is_put_on_the_border_in_the_json(tmp_path):
    record = Record("a.png", tmp_path / "a.png", np.zeros((2, 2)), np.zeros(2, bool), size=(60, 40))
    found = np.array([[[-3.0, 20.0], [61.0, 45.0]]])
    predictions = Predictions(["a.png"], found, np.full((1, 2, 2), math.nan), np.ones((1, 2)), np.full(1, math.nan))
    predict.write_records(tmp_path / "json" / "data.json", predictions, [record], {"A": "a", "B": "b"}, {0: 0, 1: 1})
    (entry,) = json.loads((tmp_path / "json" / "data.json").read_text(encoding="utf-8"))
    assert [(point["X"], point["Y"]) for point in entry["points"]] == [(-0.5, 20.0), (59.5, 39.5)]


def test_measurements_use_the_ruler_that_was_found(tmp_path):
    names = ["R1", "R2", "Is1u", "Is1l", "N", "S"]
    found = np.array([[[0, 0], [0, 50], [83, 60], [80, 64], [70, 0], [0, 0]]], float)  # 10 mm are 50 px
    record = Record("a.png", tmp_path, np.full((6, 2), math.nan), np.zeros(6, bool), size=(100, 100))
    predictions = Predictions(["a.png"], found, np.full((1, 6, 2), math.nan), np.ones((1, 6)), np.full(1, math.nan))
    state = {"abbreviations": names, "names": names}
    for config, expected in ((Config(), "1.000"), (Config(measurements="none"), "1.000"), (Config(spacing=None), "")):
        path = tmp_path / "measurements.csv"
        scaled, notes = predict.find_spacing(config, names, [record], predictions, None)
        assert predict.write_measurements(path, config, predictions, scaled, state) and not notes
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert rows == [["image", "mm per px", "MW (mm)"], ["a.png", "0.2" if expected else "", expected]]


def test_one_image_without_a_ruler_leaves_the_others_their_millimetres(tmp_path, capsys):
    names = ["R1", "R2", "Is1u", "Is1l", "N", "S"]
    points = np.array([[0, 0], [0, 50], [83, 60], [80, 64], [70, 0], [0, 0]], float)
    flat = points.copy()
    flat[1] = flat[0]
    blank = np.full((6, 2), math.nan), np.zeros(6, bool)
    records = [Record(f"{size}.png", tmp_path, *blank, size=(size, size)) for size in (100, 101)]
    unknown = np.full((2, 6, 2), math.nan)
    predictions = Predictions(
        ["100.png", "101.png"], np.stack([points, flat]), unknown, np.ones((2, 6)), np.full(2, math.nan)
    )
    state = {"abbreviations": names, "names": names}
    scaled, notes = predict.find_spacing(Config(), names, records, predictions, None)
    assert predict.write_measurements(tmp_path / "measurements.csv", Config(), predictions, scaled, state)
    with open(tmp_path / "measurements.csv", newline="", encoding="utf-8") as file:
        assert [row[1:] for row in csv.reader(file)][1:] == [["0.2", "1.000"], ["", ""]]
    assert mentions(notes[0], "mm", "1 images", "101.png", "one place", "--spacing")


def test_a_rejected_image_has_no_measurements_and_its_verdict_stands_in_every_file(tmp_path):
    names = ["S", "N", "A"]
    points = np.array([[0, 0], [70, 0], [60, 50]], float)
    records = [Record(name, tmp_path, np.full((3, 2), math.nan), np.zeros(3, bool), size=(100, 100)) for name in "ab"]
    verdicts = [Verdict("good"), Verdict("reject", "mirrored?")]
    predictions = Predictions(
        ["a", "b"], np.stack([points, points]), np.full((2, 3, 2), math.nan), np.ones((2, 3)), np.full(2, math.nan),
        verdicts=verdicts,
    )  # fmt: skip
    state = {"abbreviations": names, "names": names}
    predict.write_measurements(tmp_path / "measurements.csv", Config(), predictions, records, state)
    with open(tmp_path / "measurements.csv", newline="", encoding="utf-8") as file:
        _, first, second = csv.reader(file)
    assert first[2] and second == ["b", "", ""]
    own = dict(zip(names, names, strict=True)), dict(enumerate(range(len(names))))
    predict.write_records(tmp_path / "json" / "data.json", predictions, records, *own)
    entries = json.loads((tmp_path / "json" / "data.json").read_text(encoding="utf-8"))
    assert [(entry["verdict"], entry["reason"]) for entry in entries] == verdicts
    write_predictions(tmp_path / "predictions.csv", predictions, names, "px")
    assert read_predictions(tmp_path / "predictions.csv").verdicts == verdicts
    assert predict.describe_flagged(predictions) == ["reject: b: mirrored?"]


def test_a_spacing_of_the_settings_is_not_used_where_the_anatomy_would_have_another_size(tmp_path):
    heads_px = heads(80)
    score = np.full((60, 12), 0.8)
    memory = remember(heads_px[:60], np.full(60, 0.1), [(100, 120)] * 60, score, heads_px[:60], heads_px[:60])
    names = [f"L{n}" for n in range(12)]
    found = np.stack([heads_px[70], heads_px[71] / 2, heads_px[72] / 2, heads_px[73] / 2, heads_px[74]])
    blank = np.full((12, 2), math.nan), np.zeros(12, bool)
    stated = (math.nan, math.nan, 0.2, math.nan, 1.0)  # the last one is ten times too large
    records = [Record(f"{n}.png", tmp_path, *blank, own, size=(100, 120)) for n, own in enumerate(stated)]
    verdicts = [Verdict("good")] * 3 + [Verdict("reject", "mirrored?"), Verdict("good")]
    predictions = Predictions([r.name for r in records], found, found, score[:5], np.ones(5), verdicts=verdicts)
    own, notes = predict.find_spacing(Config(spacing=0.1), names, records, predictions, memory)
    assert [record.spacing for record in own] == pytest.approx([0.1, math.nan, 0.2, 0.1, math.nan], nan_ok=True)
    assert mentions(*notes, "2 images", "1.png", "anatomy is 0.5", "4.png", "--spacing")


def test_rulers_of_images_of_one_size_are_believed_if_they_agree(tmp_path):
    names = ["R1", "R2", "A"]
    blank = np.full((3, 2), math.nan), np.zeros(3, bool)
    records = [Record(f"{n}.png", tmp_path, *blank, size=(100, 100)) for n in range(4)]
    found = np.zeros((4, 3, 2))
    found[:, 2] = 90

    def spacings(*lengths):
        found[:, 1, 1] = lengths
        predictions = Predictions([r.name for r in records], found, found * math.nan, np.ones((4, 3)), np.ones(4))
        own, notes = predict.find_spacing(Config(), names, records, predictions, None)
        return [record.spacing for record in own], notes

    assert spacings(50, 51, 49, 0) == ([0.2] * 4, [])  # the last one's ends were found at one place
    values, notes = spacings(50, 100, 49, 0)
    assert np.isnan(values).all() and mentions(notes[0], "100 x 100 px", "0.1 to 0.204")


def test_odd_names_and_spoilt_images_stop_nothing(trained_run, images, tmp_path, monkeypatch, capsys):
    films = tmp_path / "films"
    films.mkdir()
    first = sorted(images.iterdir())[0]
    for name in ("line\nbreak.png", "x" * 240 + ".png"):
        shutil.copy(first, films / name)
    (films / "nowhere.png").symlink_to(tmp_path / "nothing")
    deep = np.asarray(Image.open(first), np.float32)
    deep[3, 4] = math.nan
    Image.fromarray(deep).save(films / "nan.tif")
    with open(os.fsencode(films) + b"/bad\xff.png", "wb") as file:
        file.write(first.read_bytes())
    assert call(monkeypatch, trained_run / "best.pt", films, "--out", tmp_path / "out") == 1
    assert len(landmarks_of(tmp_path / "out")) == 2 and len(list((tmp_path / "out" / "overlays").iterdir())) == 2
    errors = capsys.readouterr().err
    skipped = (tmp_path / "out" / "skipped.txt").read_text(encoding="utf-8")
    for reason in ("UTF-8", "nan.tif", "nan or infinite", "nowhere.png", "No such file or directory"):
        assert reason in errors and reason in skipped


def test_a_full_disk_does_not_block_the_same_command(trained_run, images, tmp_path, monkeypatch, capsys, fill_disk):
    words = (trained_run / "best.pt", sorted(images.iterdir())[0], "--out", tmp_path / "out")
    for writes in range(4):
        fill_disk(writes)
        assert call(monkeypatch, *words) == 2
        assert mentions(capsys.readouterr().err, tmp_path / "out", "No space left", "repeat")
        assert (tmp_path / "out" / "predictions.csv").exists() == (writes > 0)
    fill_disk(None)
    assert call(monkeypatch, *words) == 0 and not (tmp_path / "out" / "unfinished").exists()
    assert call(monkeypatch, *words) == 2 and mentions(capsys.readouterr().err, "exists already")


def test_weights_that_are_nan_end_in_one_line(dataset, tmp_path, monkeypatch, capsys):
    path = save_untrained(tmp_path / "a.pt", dataset)
    state = read_checkpoint(path)
    for weights in state["model"].values():
        weights.fill_(math.nan) if weights.is_floating_point() else None
    save_checkpoint(path, state)
    assert call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert mentions(error, "nan", "weights") and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_wide_low_image_has_an_overlay_of_bounded_size():
    point = np.full((1, 2), 1.0)
    assert max(draw_overlay(np.zeros((3, 2000), np.uint8), point, point, "a").size) <= 3000


def test_strict_needs_a_checkpoint_that_can_judge(dataset, tmp_path, monkeypatch, capsys):
    path = save_untrained(tmp_path / "last.pt", dataset)
    assert call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / "out", "--strict") == 2
    assert mentions(capsys.readouterr().err, "--strict", "best.pt") and not (tmp_path / "out").exists()


def test_proposals_for_other_landmarks_are_filled_in_where_both_have_them(dataset, tmp_path, monkeypatch, capsys):
    path = save_untrained(tmp_path / "last.pt", dataset)
    found = read_checkpoint(path)["abbreviations"]
    wanted = ["Pn", found[2], "Gn", found[0]]
    points = [{"pointAbbreviation": name, "pointName": f"the {name}", "X": 1, "Y": 2} for name in wanted]
    (tmp_path / "like.json").write_text(json.dumps([{"imagePath": "x.png", "points": points}]))
    out = tmp_path / "out"
    assert call(monkeypatch, path, dataset / "imgs", "--out", out, "--landmarks", tmp_path / "like.json") == 0
    streams = capsys.readouterr()
    assert mentions(streams.err, "2 landmarks", "Pn, Gn") and mentions(streams.out, "tools.review", "data.json", "imgs")
    table = landmarks_of(out)
    for record in json.loads((out / "json" / "data.json").read_text(encoding="utf-8")):
        points = {point["pointAbbreviation"]: point for point in record["points"]}
        assert list(points) == wanted and points["Gn"]["pointName"] == "the Gn"
        assert points["Pn"]["X"] is None and points["Gn"]["Y"] is None
        for name in (found[0], found[2]):
            inside = clip_to_image(table[record["imagePath"]][found.index(name)], (96, 80))
            assert (points[name]["X"], points[name]["Y"]) == pytest.approx(inside, abs=1e-3)
    status = call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / "no", "--landmarks", tmp_path / "last.pt")
    assert status == 2 and mentions(capsys.readouterr().err, "last.pt")
    (tmp_path / "like.json").write_text(json.dumps([{"imagePath": "x.png", "points": [{"pointAbbreviation": "Q"}]}]))
    status = call(monkeypatch, path, dataset / "imgs", "--out", tmp_path / "no", "--landmarks", tmp_path / "like.json")
    assert status == 2 and mentions(capsys.readouterr().err, "--landmarks", "none of them", "Q")


def test_an_image_whose_own_ruler_says_otherwise_does_not_get_the_spacing_of_the_others(tmp_path):
    points = heads(80) * 2
    points[:, 1] = points[:, 0] + (0, 20)  # a ruler of 10 mm at 0.5 mm per px
    score, names = np.full((60, 12), 0.8), ["R1", "R2", *(f"L{n}" for n in range(10))]
    exact = remember(points[:60], np.full(60, 0.5), [(100, 120)] * 60, score, points[:60], points[:60] + 0.1, [0, 1])
    found = points[60:65].copy()
    found[4, 1] = found[4, 0] + (0, 16.4)  # 0.61 mm per px
    found[3, 1] = found[3, 0] + (0, 0.01)  # not to be read

    def spacings(size, memory):
        blank = np.full((12, 2), math.nan), np.zeros(12, bool)
        records = [Record(f"{n}.png", tmp_path, *blank, size=size) for n in range(5)]
        verdicts = [Verdict("good")] * 5
        predictions = Predictions([r.name for r in records], found, found, score[:5], np.ones(5), verdicts=verdicts)
        own, notes = predict.find_spacing(Config(), names, records, predictions, memory)
        return [record.spacing for record in own], notes

    for size in ((100, 120), (300, 360)):  # one known from training, and a new one
        values, notes = spacings(size, exact)
        assert values == pytest.approx([0.5] * 4 + [math.nan], rel=0.02, nan_ok=True)
        assert mentions(*notes, "4.png", "0.6")
    unknown = remember(points[:60], np.full(60, 0.5), [(100, 120)] * 60, score, found[:0], found[:0], [0, 1])
    assert all(map(math.isnan, spacings((300, 360), unknown)[0]))  # how exact a ruler is found, nobody knows


def test_what_is_known_of_a_film_stays_with_it_where_other_landmarks_are_proposed(dataset, tmp_path, monkeypatch):
    path = save_untrained(tmp_path / "last.pt", dataset)
    points = [{"pointAbbreviation": name, "pointName": name, "X": 1, "Y": 2} for name in ("A", "Q")]
    (tmp_path / "like.json").write_text(json.dumps([{"imagePath": "x.png", "points": points}]))
    shutil.copytree(dataset / "imgs", tmp_path / "films")
    words = (
        path,
        tmp_path / "films",
        "--out",
        tmp_path / "out",
        "--spacing",
        "0.2",
        "--landmarks",
        tmp_path / "like.json",
    )
    assert call(monkeypatch, *words) == 0
    (shown,) = read_source(tmp_path / "out", None, None)
    assert {image.record["spacing"] for image in shown.images} == {0.2} and "A" in shown.landmarks
