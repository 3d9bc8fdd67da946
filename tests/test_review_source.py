import json
import shutil
import sys

import numpy as np
import pytest
from conftest import make_records, mentions, refuses, tiny_config, write_records
from PIL import Image

from evaluate import Predictions, Verdict
from reading.splits import load_data
from reporting.predictions import read_predictions, write_predictions
from tools import review
from tools.review_source import read_source, read_unannotated

ABBREVIATIONS = ["R1", "R2", "A", "B"]


def predicted(folder, name="test", shift=2.0, spacing=0.5, score=0.5, truth=True, **judged):
    """The test folder of a run in folder/run, whose predictions of all images of folder lie `shift` px to the right.

    shift and score: one for all images, or one for each. judged: verdicts and extras of the predictions.
    """
    records = json.loads((folder / "json" / "data.json").read_text(encoding="utf-8"))
    true = np.array([[[point["X"], point["Y"]] for point in record["points"]] for record in records])
    count = len(records)
    known = true if truth else np.full_like(true, np.nan)
    found = true + np.stack(np.broadcast_arrays(shift, 0.0), -1).reshape(-1, 1, 2)
    scores = np.zeros(true.shape[:2]) + np.reshape(score, (-1, 1))
    names = [record["imagePath"] for record in records]
    predictions = Predictions(names, found, known, scores, np.full(count, spacing), **judged)
    test = folder / "run" / name
    test.mkdir(parents=True, exist_ok=True)
    unit = "mm" if np.isfinite(spacing) else "px"
    write_predictions(test / "predictions.csv", predictions, ABBREVIATIONS, unit)
    settings = {"img_dir": str(folder / "imgs"), "json_path": str(folder / "json" / "data.json")}
    (folder / "run" / "config.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")
    return test


def test_predictions_keep_what_the_data_set_says_of_images_and_points(dataset):
    records = make_records(dataset)
    for record in records:
        record |= {"gender": "f", "patient": 12345678901234567890}
        record["points"][2] |= {"occluded": True, "visible": False}
    write_records(dataset, records)
    (shown,) = read_source(predicted(dataset), None, None)
    assert shown.predicted and shown.landmarks == {name: f"point {name}" for name in ABBREVIATIONS}
    record = shown.images[0].record
    assert record["gender"] == "f" and record["patient"] == 12345678901234567890
    assert record["points"][2]["occluded"] and record["points"][2]["visible"]
    assert record["points"][0]["X"] == pytest.approx(records[0]["points"][0]["X"] + 2, abs=1e-4)
    assert '"patient": 12345678901234567890' in review.record_keys(record)


def test_the_spacing_is_that_by_which_the_report_counted(dataset):
    (shown,) = read_source(predicted(dataset, spacing=0.5), None, None)
    assert [image.spacing for image in shown.images] == pytest.approx([0.5] * 6, rel=1e-4)
    (shown,) = read_source(predicted(dataset, spacing=float("nan")), None, None)
    assert shown.unit == "px" and [image.spacing for image in shown.images] == [1.0] * 6


def test_an_image_without_error_has_the_spacing_of_the_others(dataset):
    test = predicted(dataset)
    lines = (test / "predictions.csv").read_text(encoding="utf-8").splitlines()
    cells = [line.split(",") for line in lines]
    for row in cells[1:5]:  # no truth in the first image
        row[4:7] = ["", "", ""]
    (test / "predictions.csv").write_text("\n".join(map(",".join, cells)), encoding="utf-8")
    (shown,) = read_source(test, None, None)
    assert shown.images[0].truth is None and shown.images[0].spacing == pytest.approx(0.5, rel=1e-4)


def test_predictions_keep_the_spacing_by_which_their_run_counted(dataset, monkeypatch, capsys):
    test = predicted(dataset, shift=np.arange(1, 7), spacing=0.3)  # by their own ruler of 20 px it would be 0.5
    (shown,) = read_source(test, None, None)
    assert [image.record["spacing"] for image in shown.images] == [0.3] * 6 and not shown.notes
    records = [image.record for image in shown.images]
    for record in records:  # a ruler that was found 1 px long
        record["points"][1] |= {"X": record["points"][0]["X"] + 1, "Y": record["points"][0]["Y"]}
    path = write_records(test, records)
    assert [record.spacing for record in load_data(tiny_config(dataset, json_path=str(path))).records] == [0.3] * 6
    shutil.rmtree(dataset / "json")
    (shown,) = read_source(test.parent, None, None)  # a run that knows of its images by the csv alone
    assert [image.record["spacing"] for image in shown.images] == [0.3] * 6
    monkeypatch.setattr(sys, "argv", ["review", str(test)])
    assert review.main() == 0 and "--spacing" not in capsys.readouterr().out


def test_a_spacing_of_its_own_stays_as_the_data_set_has_it(dataset):
    records = make_records(dataset)
    for number, record in enumerate(records):
        record |= {"spacing": 0.1 + number} if number < 3 else {}
    write_records(dataset, records)
    (shown,) = read_source(predicted(dataset, spacing=0.3), None, None)
    spacing = [image.record["spacing"] for image in shown.images]
    assert spacing[:3] == [0.1, 1.1, 2.1] and spacing[3:] == [0.3] * 3


def test_images_of_one_size_with_spacings_of_their_own_are_not_given_one(dataset):
    test = predicted(dataset, spacing=0.3)
    lines = (test / "predictions.csv").read_text(encoding="utf-8").splitlines()
    lines = [line.replace("0.6000", "1.2000") if line.startswith("image 5") else line for line in lines]
    (test / "predictions.csv").write_text("\n".join(lines), encoding="utf-8")
    (shown,) = read_source(test, None, None)
    assert [image.record["spacing"] for image in shown.images] == pytest.approx([0.3] * 5 + [0.6], rel=1e-4)


def test_what_a_method_said_of_its_points_is_not_saved_as_truth(dataset):
    test = predicted(dataset)
    lines = (test / "predictions.csv").read_text(encoding="utf-8").splitlines()
    lines = [line + (",0.9" if number else ",dice") for number, line in enumerate(lines)]
    (test / "predictions.csv").write_text("\n".join(lines), encoding="utf-8")
    plain = make_records(dataset)
    records = make_records(dataset)
    for record in records:
        for point in record["points"]:
            point |= {"score": 0.5, "vote_spread": 3.5, "dice": 0.9}
    write_records(test, records)
    (shown,) = read_source(test, None, None)
    assert [point.keys() for point in shown.images[1].record["points"]] == [p.keys() for p in plain[1]["points"]]
    (shown,) = read_source(test / "json" / "data.json", dataset / "imgs", None)
    assert shown.predicted and shown.images[0].score == [0.5] * 4
    saved = [image.record for image in shown.images]
    assert not any({"score", "vote_spread"} & point.keys() for record in saved for point in record["points"])
    write_records(dataset, saved)
    assert not read_source(dataset, None, None)[0].predicted  # now they are truth


def test_verdict_and_radius_are_shown_and_not_saved(dataset):
    verdicts = [Verdict("good"), Verdict("reject", "mirrored?"), *[Verdict("good")] * 4]
    judged = {"verdicts": verdicts, "extras": {"radius_90": np.full((6, 4), 0.9), "radius_95": np.full((6, 4), 1.5)}}
    (shown,) = read_source(predicted(dataset, **judged), None, None)
    assert [image.verdict for image in shown.images[:2]] == [("good", ""), ("reject", "mirrored?")]
    assert shown.images[0].radius == pytest.approx([3.0] * 4, rel=1e-3)  # 1.5 mm of 0.5 mm per px
    records = make_records(dataset)
    for record in records:  # as tools.predict writes them
        record |= {"verdict": "check", "reason": "low scores"}
        for point in record["points"]:
            point |= {"score": 0.5, "radius_90": 2.0, "radius_95": 3.0}
    write_records(dataset, records)
    (shown,) = read_source(dataset, None, None)
    assert shown.images[3].verdict == ("check", "low scores") and shown.images[3].radius == [3.0] * 4
    assert "verdict" not in shown.images[3].record
    assert set(shown.images[3].record["points"][0]) == set(make_records(dataset)[0]["points"][0])


def test_without_a_spacing_one_is_told_that_the_saved_ruler_makes_the_millimetres(dataset):
    (shown,) = read_source(predicted(dataset, spacing=float("nan")), None, None)
    assert mentions(shown.notes[0], "R1", "R2", "10 mm")
    assert not any("spacing" in image.record for image in shown.images)
    records = make_records(dataset)
    records[2]["points"][0]["score"] = 0.5  # as tools.predict writes them
    write_records(dataset, records)
    assert mentions(read_source(dataset, None, None)[0].notes[0], "R1", "R2")


def test_without_its_data_set_a_run_is_shown_by_the_csv_alone(dataset):
    test = predicted(dataset)
    shutil.move(dataset / "json", dataset / "elsewhere")
    (shown,) = read_source(test, None, None)
    assert "data.json" in shown.notes[0]
    assert shown.landmarks == {name: name for name in ABBREVIATIONS}
    names, _, columns, _ = read_predictions(test / "predictions.csv")
    assert [image.record["imagePath"] for image in shown.images] == names
    points = [[point["X"], point["Y"]] for point in shown.images[3].record["points"]]
    assert points == np.stack([columns["x"], columns["y"]], -1)[3].tolist()


def test_a_run_with_several_test_sets_gives_a_page_of_each(dataset):
    first, second = predicted(dataset, "test1"), predicted(dataset, "test2")
    assert [each.out.parent for each in read_source(first.parent, None, None)] == [first, second]
    assert [each.out.parent for each in read_source(first.parent, None, "test2")] == [second]


def test_a_folder_of_predictions_with_its_own_data_set_is_shown_with_that(dataset):
    test = predicted(dataset, truth=False)
    shutil.copytree(dataset / "json", test / "json")
    shutil.move(dataset / "run" / "config.json", test / "config.json")
    (shown,) = read_source(test, None, None)
    assert shown.images[0].truth is None and shown.landmarks["A"] == "point A"
    assert not any("data.json" in note for note in shown.notes)


def test_a_data_set_shows_one_split_and_keeps_the_others(dataset):
    records = make_records(dataset)
    for number, record in enumerate(records):
        record["split"] = "train" if number % 2 else "test1"
    write_records(dataset, records)
    (shown,) = read_source(dataset / "json" / "data.json", None, "train")
    assert [image.place for image in shown.images] == [1, 3, 5] and list(shown.others) == [0, 2, 4]
    with refuses("'val'", "test1", "train"):
        read_source(dataset, None, "val")


def test_images_are_found_as_main_finds_them(dataset):
    records = make_records(dataset)
    move_image(dataset)
    records[0]["imagePath"] = "IMAGE 0 (Ä).PNG"
    records[1]["imagePath"] = "image 1 (a\u0308).png"  # the letter in two parts
    records[2]["imagePath"] = "sub/image 2 (ä).png"
    write_records(dataset, records)
    (shown,) = read_source(dataset, None, None)
    known = load_data(tiny_config(dataset)).records
    assert [image.path for image in shown.images] == [record.path for record in known]


def test_a_point_outside_its_image_can_be_looked_at(dataset):
    records = make_records(dataset)
    records[0]["points"][0]["X"] = -30.0
    write_records(dataset, records)
    assert read_source(dataset, None, None)[0].images[0].record["points"][0]["X"] == -30.0


def test_pixels_are_embedded_upright_in_8_bit_and_not_larger_than_asked(tmp_path):
    deep = np.linspace(0, 60000, 40 * 30).reshape(40, 30).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    size, address, text = review.prepare_image(tmp_path / "deep.tif", 20, tmp_path)  # no browser shows it as it is
    assert size == (30, 40) and address == "" and text
    grey = Image.fromarray(np.zeros((40, 30), np.uint8))
    exif = grey.getexif()
    exif[0x0112] = 6  # lies on its side
    grey.save(tmp_path / "a b.jpg", exif=exif)
    assert review.prepare_image(tmp_path / "a b.jpg", 20, tmp_path / "pages") == ((40, 30), "../a%20b.jpg", "")


def test_a_data_set_of_a_run_with_half_a_character_is_left_out_with_a_note(dataset):
    test = predicted(dataset)
    (shown,) = read_source(test, None, None)
    write_first(dataset, patient="\ud800")
    (noted,) = read_source(test, None, None)
    assert not shown.notes and "data.json" in noted.notes[0]


def write_settings(folder, settings):
    """The run in folder/run with other settings."""
    known = {"img_dir": str(folder / "imgs"), "json_path": str(folder / "json" / "data.json")}
    content = known | settings if isinstance(settings, dict) else settings
    (folder / "run" / "config.json").write_text(json.dumps({"settings": content}), encoding="utf-8")
    return folder / "run"


def move_image(folder):
    """One image into a subfolder, where main.py does not look."""
    (folder / "imgs" / "sub").mkdir()
    (folder / "imgs" / "image 2 (ä).png").rename(folder / "imgs" / "sub" / "image 2 (ä).png")


def write_first(folder, **keys):
    """The data set, its first record with other keys."""
    records = make_records(folder)
    records[0] |= keys
    (folder / "json" / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda folder: folder / "nowhere", "nowhere"),
        (lambda folder: folder / "imgs", "predictions.csv json/data.json"),
        (lambda folder: folder / "imgs" / "image 0 (ä).png", "predictions.csv data.json"),
        (lambda folder: (folder / "imgs" / "image 3 (ä).png").unlink() or folder, "(ä).png record 4"),
        (lambda folder: write_first(folder, imagePath="image 0 (ä)"), "(ä) record 1"),
        (lambda folder: move_image(folder) or folder, "2 (ä).png record 3"),
        (lambda folder: move_image(folder) or folder / "run", "csv 2 (ä).png"),
        (lambda folder: (folder / "run/test/predictions.csv").write_text("a,b\n1,2\n") and folder / "run/test",
         "predictions.csv column image"),
        (lambda folder: (folder / "run/test/predictions.csv").write_text("") or folder / "run/test",
         "predictions.csv rows"),
        (lambda folder: (folder / "run/config.json").unlink() or folder / "run", "images"),
        (lambda folder: (folder / "json/data.json").write_text("[{}]") and folder, "imagePath"),
        (lambda folder: (folder / "imgs" / "image 3 (ä).png").write_bytes(b"no") and folder, "3 (ä).png"),
        (lambda folder: write_settings(folder, {"sdr_thresholds": []}), "sdr_thresholds"),
        (lambda folder: write_settings(folder, {"sdr_thresholds": "x"}), "sdr_thresholds"),
        (lambda folder: write_settings(folder, {"sdr_thresholds": ["x"]}), "sdr_thresholds 1"),
        (lambda folder: write_settings(folder, [1]), "config.json settings"),
        (lambda folder: write_settings(folder, {"img_dir": 5}), "img_dir 5"),
        (lambda folder: write_settings(folder, {"json_path": 5}), "json_path 5"),
        (lambda folder: write_first(folder, patient="\ud800"), "1 '\\ud800'"),
        (lambda folder: write_first(folder, spacing=10**400), "data.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_one_line(dataset, break_it, words, monkeypatch, capsys):
    predicted(dataset)
    source = break_it(dataset)
    monkeypatch.setattr(sys, "argv", ["review", str(source)])
    assert review.main() == 2
    error = capsys.readouterr().err
    assert mentions(error, *words.split()) and error.count("\n") == 1 and "Traceback" not in error
    assert not list(dataset.rglob("review.html*"))


def test_a_folder_of_a_data_set_and_a_file_without_landmarks_are_refused(dataset, tmp_path):
    with refuses("json/data.json", "--landmarks"):
        read_unannotated(dataset / "imgs", dataset / "json" / "data.json")
    (tmp_path / "new").mkdir(exist_ok=True)
    (tmp_path / "list.json").write_text("{}")
    with refuses("list.json", "data.json"):
        read_unannotated(tmp_path / "new", tmp_path / "list.json")
