import math

import numpy as np
import pytest
import xlrd
from foreign_files import spine_points

from config import UserError
from evaluate import Predictions
from measurements import cobb_angles, measure
from report import summary_table, write_predictions, write_report


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
    measured = measure("spine", found, truth, [(200, 400), (100, 200)])
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
    abbreviations = [str(n) for n in range(68)]
    predictions = Predictions(["a.png"], found, truth, np.ones((1, 68)), np.full(1, math.nan))
    write_predictions(tmp_path / "predictions.csv", predictions, abbreviations, "px")
    measured = measure("spine", found, truth, [(200, 400)])
    summary = write_report(tmp_path, abbreviations, (), (10.0,), {}, measured)
    assert summary["measurements"]["mean error of MT (degrees)"] == pytest.approx(10, abs=1e-4)
    assert "SMAPE 20" in summary_table(summary, (10.0,))
    book = xlrd.open_workbook(tmp_path / "results.xls")
    assert book.sheet_names() == ["landmarks", "images", "measurements", "settings"]
    row = book.sheet_by_name("measurements").row_values(1)
    assert row[0] == "a.png" and row[1:4] == pytest.approx([30, 20, 10], abs=1e-4)


def test_other_landmarks_are_refused():
    with pytest.raises(UserError, match="spine needs the 68 corners"):
        measure("spine", np.zeros((1, 19, 2)), np.zeros((1, 19, 2)), [(1, 1)])
