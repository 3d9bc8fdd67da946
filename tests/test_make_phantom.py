"""The phantom generator and the bundled data set it drew."""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import make_phantom

BUNDLED = Path(__file__).resolve().parents[1] / "CustomDataSet"
SEED = 0
WITH_QUOTATION_MARK = {"Gl’", "N’", "Pog’", "Gn’", "Me’"}


@cache
def drawn(index: int):
    """Picture and landmarks (52, 2) px of one phantom, drawn once for all tests."""
    return make_phantom.draw_phantom(SEED, index)[:2]


@cache
def bundled_records() -> list[dict]:
    """The records of the bundled data.json."""
    return json.loads((BUNDLED / "json" / "data.json").read_text(encoding="utf-8"))


def coordinates(record: dict) -> np.ndarray:
    """Landmarks (52, 2) px of a record."""
    return np.array([(point["X"], point["Y"]) for point in record["points"]])


def run(monkeypatch, *arguments) -> int:
    """Exit status of the program for these arguments."""
    monkeypatch.setattr(sys, "argv", ["make_phantom", *map(str, arguments)])
    return make_phantom.main()


def test_same_seed_and_index_draw_the_same_picture_and_points():
    picture, points, _ = make_phantom.draw_phantom(SEED, 1)
    assert np.array_equal(picture, drawn(1)[0])
    assert np.array_equal(points, drawn(1)[1])


def test_another_index_draws_another_picture_and_other_points():
    assert not np.array_equal(drawn(1)[0], drawn(2)[0])
    assert np.linalg.norm(drawn(1)[1] - drawn(2)[1], axis=1).mean() > 3


def test_abbreviations_are_unique_and_five_end_in_a_quotation_mark():
    for record in bundled_records():
        names = [point["pointAbbreviation"] for point in record["points"]]
        assert len(set(names)) == len(names) == 52
        assert {name for name in names if "\u2019" in name} == WITH_QUOTATION_MARK
        assert not any("'" in name for name in names)


def test_records_carry_image_and_points_only():
    assert {key for record in bundled_records() for key in record} == {"imagePath", "points"}


def test_every_bundled_point_lies_four_px_inside_its_picture():
    for record in bundled_records():
        with Image.open(BUNDLED / "imgs" / record["imagePath"]) as picture:
            assert picture.size == (600, 720)
            assert picture.mode == "L"
        points = coordinates(record)
        assert (points >= 4).all()
        assert (points <= np.array([600, 720]) - 1 - 4).all()


def test_ruler_points_are_ten_mm_apart():
    for record in bundled_records():
        first, second = coordinates(record)[:2]
        assert np.linalg.norm(second - first) * 0.3 == pytest.approx(10, abs=1e-2)


@pytest.mark.parametrize("index", [1, 2])
def test_bundled_record_is_what_the_program_draws(index):
    record = bundled_records()[index - 1]
    assert record["imagePath"] == f"phantom_{index:03d}.jpg"
    np.testing.assert_allclose(coordinates(record), drawn(index)[1], atol=1e-3)
    picture = np.asarray(Image.open(BUNDLED / "imgs" / record["imagePath"]), float)
    assert np.abs(picture - drawn(index)[0]).mean() < 4  # grey levels that JPEG may take


def test_bundled_pictures_and_records_match_and_stay_below_six_mb():
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    assert {path.name for path in files if path.suffix == ".jpg"} == {
        record["imagePath"] for record in bundled_records()
    }


def test_the_mean_position_is_a_bad_prediction():
    points = np.array([coordinates(record) for record in bundled_records()])
    assert np.linalg.norm(points - points.mean(0), axis=2).mean() * 0.3 > 8


def test_second_run_into_the_same_folder_is_refused_and_leaves_the_file(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--out", tmp_path, "--count", 1) == 0
    file = tmp_path / "json" / "data.json"
    before = file.read_bytes(), file.stat().st_mtime_ns
    capsys.readouterr()
    assert run(monkeypatch, "--out", tmp_path, "--count", 1, "--seed", 5) == 2
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("index", [1, 2, 3])
def test_an_implant_hides_one_to_three_landmarks_of_the_same_head(index):
    plain, points = drawn(index)
    picture, same, occluded = make_phantom.draw_phantom(SEED, index, implants=True)
    assert np.array_equal(points, same) and 1 <= occluded.sum() <= 3 and not occluded[:2].any()
    columns, rows = np.round(points).astype(int).T
    lighter = picture.astype(int) - plain
    changed = np.abs(lighter) > 40
    assert changed.mean() < 0.03  # a plate of at most 24 x 14 mm, elsewhere at most some grain
    for x, y, hidden in zip(columns, rows, occluded, strict=True):
        if hidden:  # nothing of the head shines through
            around = picture[y - 2 : y + 3, x - 2 : x + 3]
            assert around.min() > 200
        else:
            assert not changed[y, x]


def test_what_an_implant_hides_stands_in_the_annotation(tmp_path, monkeypatch):
    assert run(monkeypatch, "--out", tmp_path, "--count", 2, "--implants") == 0
    records = json.loads((tmp_path / "json" / "data.json").read_text(encoding="utf-8"))
    for index, record in enumerate(records, 1):
        _, _, occluded = make_phantom.draw_phantom(SEED, index, implants=True)
        assert [bool(point.get("occluded")) for point in record["points"]] == occluded.tolist()
        assert np.allclose(coordinates(record), drawn(index)[1], atol=6e-4)
