import logging
import math
import re

import numpy as np
import pytest
import xlrd
from conftest import refuses
from foreign_files import spine_points

from evaluate import Predictions
from reporting.measurements import cobb_angles, measure
from reporting.predictions import read_predictions, write_predictions
from reporting.report import summary_table, write_report

CORNERS = tuple(str(n) for n in range(68))
UNKNOWN = [math.nan] * 3  # spacing
JAWS = ("S", "N", "A", "B", "Is1u", "Is1l")
JAW_POINTS = np.array([(0, 0), (70, 0), (75, 60), (70, 90), (78, 76), (75, 74)], float)


def turned(points: np.ndarray, vertebra: int, degrees: float) -> np.ndarray:
    """Corners (68, 2) with one vertebra turned about its centre."""
    points, angle = points.copy(), math.radians(degrees)
    own = points[4 * vertebra : 4 * vertebra + 4]
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    own[:] = (own - own.mean(0)) @ matrix.T + own.mean(0)
    return points


def test_a_straight_spine_has_no_angle():
    assert np.allclose(cobb_angles(spine_points(), 400), 0, atol=1e-4)


def test_the_main_angle_is_between_the_two_most_tilted_vertebrae_and_the_others_to_the_ends():
    points = turned(turned(turned(spine_points(), 4, 20), 10, -15), 16, 4)
    assert cobb_angles(points, 400) == pytest.approx((35, 20, 19), abs=1e-4)


def test_an_s_shaped_spine_has_its_other_angles_beyond_the_main_curve():
    points = spine_points()
    bend = np.array([15 * math.sin(2 * math.pi * v / 16) for v in range(17)])
    points[:, 0] += np.repeat(bend, 4)
    low = turned(turned(turned(points, 2, 12), 9, -10), 13, 30)  # main: T10 to L2, in the lower half
    assert cobb_angles(low, 400) == pytest.approx((40, 22, 12), abs=1e-4)  # above: to T3; above that: to T1
    high = turned(turned(turned(points, 3, 30), 6, -10), 12, 8)  # main: T4 to T7, in the upper half
    assert cobb_angles(high, 400) == pytest.approx((40, 30, 18), abs=1e-4)


def test_a_spine_with_a_missing_corner_has_no_angles():
    points = spine_points()
    points[7] = math.nan
    assert all(math.isnan(angle) for angle in cobb_angles(points, 400))


def test_the_scores_of_a_set_are_those_of_its_formulas():
    truth = np.stack([turned(spine_points(), 4, 20), turned(spine_points(), 4, 10)])
    found = np.stack([turned(spine_points(), 4, 30), turned(spine_points(), 4, 10)]) + (2.0, 4.0)
    found[1, 5] = math.nan
    measured = measure("spine", CORNERS, found, truth, [(200, 400), (100, 200)], UNKNOWN[:2])
    squares = np.array([[0.01, 0.01]] * 68 + [[0.02, 0.02]] * 67) ** 2  # the shift alone, normalised
    rotated = slice(16, 20)
    squares[rotated] = ((found[0, rotated] - truth[0, rotated]) / (200, 400)) ** 2
    assert measured.figures["MSE"] == pytest.approx(squares.mean())
    assert measured.figures["NMSE"] == pytest.approx(2 * squares.mean())
    assert 0.99 < measured.figures["correlation"] < 1
    assert measured.predicted[0] == pytest.approx((30, 0, 30), abs=1e-4) and np.isnan(measured.predicted[1]).all()
    assert measured.figures["SMAPE"] == pytest.approx(100 * 20 / 100, abs=1e-3)  # 10 + 0 + 10 of 60 + 40


def test_measures_stand_in_the_summary_and_on_a_sheet_of_their_own(tmp_path):
    truth = np.stack([turned(spine_points(), 4, 20)])
    found = np.stack([turned(spine_points(), 4, 30)])
    predictions = Predictions(["a.png"], found, truth, np.ones((1, 68)), np.full(1, math.nan))
    write_predictions(tmp_path / "predictions.csv", predictions, CORNERS, "px")
    measured = measure("spine", CORNERS, found, truth, [(200, 400)], UNKNOWN[:1])
    summary = write_report(tmp_path, read_predictions(tmp_path / "predictions.csv"), CORNERS, (), (10.0,), {}, measured)
    assert summary["measurements"]["mean error of MT (degrees)"] == pytest.approx(10, abs=1e-4)
    assert "SMAPE 20" in summary_table(summary, (10.0,))
    book = xlrd.open_workbook(tmp_path / "results.xls")
    assert book.sheet_names() == ["summary", "landmarks", "images", "measurements", "settings"]
    sheet = book.sheet_by_name("measurements")
    assert sheet.row_values(0) == ["image", "measure", "predicted", "true", "error"] and sheet.nrows == 4
    row = sheet.row_values(1)
    assert row[:2] == ["a.png", "MT (degrees)"] and row[2:] == pytest.approx([30, 20, 10], abs=1e-4)


def test_other_landmarks_are_refused():
    with refuses("spine", "68"):
        measure("spine", CORNERS[:19], np.zeros((1, 19, 2)), np.zeros((1, 19, 2)), [(1, 1)], UNKNOWN[:1])


def jaws(*moves: tuple[str, float, float]) -> np.ndarray:
    """JAW_POINTS (6, 2), some of them moved."""
    points = JAW_POINTS.copy()
    for name, x, y in moves:
        points[JAWS.index(name)] += (x, y)
    return points


def test_the_classification_success_rate_counts_images_of_the_class_of_their_truth():
    truth = np.stack([jaws(), jaws(), jaws(("A", 10, 0))])  # ANB 4.8 (class I) twice, 14.0 (class II)
    found = np.stack([jaws(("A", -5, 0)), jaws(("A", 0.5, 0)), jaws(("A", 11, 0))])  # class III, I, II
    measured = measure("cephalogram", JAWS, found, truth, [(100, 100)] * 3, [0.5] * 3)
    rates = dict(measured.figures["same class (%)"])
    assert rates["ANB"] == pytest.approx(200 / 3) and rates["SNB"] == 100
    assert measured.figures["mean over classes (%)"]["ANB"] == pytest.approx(75)  # half of class I, all of class II
    assert rates.pop("mean") == pytest.approx(np.mean(list(rates.values()))) and len(rates) == 4
    assert [pair.tolist() for pair in measured.classes["ANB (degrees)"]] == [
        ["class III", "class I", "class II"], ["class I", "class I", "class II"],
    ]  # fmt: skip
    column = measured.names.index("MW (mm)")
    assert measured.true[:, column] == pytest.approx(0.5 * math.hypot(3, 2))


def test_an_image_without_a_class_counts_in_no_rate():
    truth = np.stack([jaws(), jaws(("A", math.nan, 0))])
    found = np.stack([jaws(), jaws(("A", -20, 0))])
    measured = measure("cephalogram", JAWS, found, truth, [(100, 100)] * 2, UNKNOWN[:2])
    rates = measured.figures["same class (%)"]
    assert rates["ANB"] == 100 and "MW" not in rates  # no spacing, no mm


def test_auto_measures_what_the_landmarks_allow():
    points = np.stack([jaws()])
    assert measure("auto", JAWS, points, points, [(9, 9)], [0.1]).names[:3] == (
        "SNA (degrees)", "SNB (degrees)", "ANB (degrees)",
    )  # fmt: skip
    for kind, names in (("auto", CORNERS[:6]), ("none", JAWS)):
        assert measure(kind, names, points, points, [(9, 9)], [0.1]) is None
    with refuses("measurements", "0, 1"):
        measure("cephalogram", CORNERS[:6], points, points, [(9, 9)], [0.1])


def test_a_report_tells_classes_definitions_and_success_rates(tmp_path):
    truth = np.stack([jaws(), jaws(("A", 10, 0))])
    found = np.stack([jaws(("A", -5, 0)), jaws(("A", 10, 0))])
    predictions = Predictions(["a.png", "b.png"], found, truth, np.ones((2, 6)), np.full(2, 0.5))
    write_predictions(tmp_path / "predictions.csv", predictions, JAWS, "mm")
    measured = measure("auto", JAWS, found, truth, [(100, 100)] * 2, [0.5] * 2)
    summary = write_report(tmp_path, read_predictions(tmp_path / "predictions.csv"), JAWS, (), (2.0,), {}, measured)
    assert summary["measurements"]["same class (%)"]["ANB"] == 50
    assert re.search(r"fall in the class of their truth \(SNA .*, ANB 50,", summary_table(summary, (2.0,)))
    book = xlrd.open_workbook(tmp_path / "results.xls")
    sheet = book.sheet_by_name("measurements")
    head, *rows = (sheet.row_values(row) for row in range(sheet.nrows))
    assert len(rows) == 2 * len(measured.names)
    (row,) = [dict(zip(head, own, strict=True)) for own in rows if own[:2] == ["a.png", "ANB (degrees)"]]
    assert (row["predicted class"], row["true class"]) == ("class III", "class I")
    assert row["error"] == pytest.approx(measured.true[0, 2] - measured.predicted[0, 2])
    sheet = book.sheet_by_name("definitions")
    anb = dict(zip(sheet.row_values(0), sheet.row_values(3), strict=True))
    assert anb["measure"] == "ANB (degrees)" and "Steiner 1953" in anb["definition"] and anb["n"] == 2
    assert anb["same class (%)"] == 50 and anb["true classes"] == "class I 1, class II 1"


def test_auto_says_why_there_are_no_angles_and_which_abbreviations_it_knows(caplog):
    points = np.zeros((1, 3, 2))
    with caplog.at_level(logging.INFO, "farnet"):
        assert measure("auto", ["Sella", "Nasion", "Menton"], points, points, [(9, 9)], [math.nan]) is None
    assert "Sella, Nasion, Menton" in caplog.text and "S, N, A, B, Me, Go" in caplog.text
    caplog.clear()
    assert measure("none", ["Sella", "Nasion", "Menton"], points, points, [(9, 9)], [math.nan]) is None
    assert measure("auto", JAWS, jaws()[None], jaws()[None], [(9, 9)], [math.nan]) is not None
    assert not caplog.text
