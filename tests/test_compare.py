import math
import re

import numpy as np
import pytest
import xlrd
from conftest import mentions
from made_runs import ABBREVIATIONS, ERRORS, IMAGES, NAMES, TRUTH, numbers, rows_of, write_run
from PIL import Image

from evaluate import Predictions
from reporting.charts import draw_differences, draw_error_curves
from reporting.predictions import write_predictions
from tools.significance import paired_difference
from utils import error_figures


def test_a_constant_shift_is_found_exactly_and_as_sure_as_its_images_allow(run_compare, tmp_path):
    write_run(tmp_path / "a", ERRORS)
    write_run(tmp_path / "b", ERRORS + 0.5)
    status, output = run_compare(tmp_path / "a", tmp_path / "b")
    assert status == 0 and mentions(output, "headline", "R1")
    (pair,) = rows_of(tmp_path / "out" / "pairs.csv")
    assert (pair["run"], pair["against"]) == ("b", "a")
    names = ("MRE_difference", "MRE_low", "MRE_high", "MRE_p", "MRE_p_corrected")
    assert numbers(pair, *names) == pytest.approx([0.5, 0.5, 0.5, 2 / 256, 2 / 256], abs=1e-4)
    assert "b against a  +0.50 (+0.50 to +0.50)  0.0078     0.0078" in output
    for row in rows_of(tmp_path / "out" / "landmark_pairs.csv"):
        cells = numbers(row, "difference", "low", "high", "p", "p_corrected")
        assert cells == pytest.approx([0.5, 0.5, 0.5, 2 / 256, 4 / 256], abs=1e-4)  # of two landmarks
    assert "b against a: 2 of 2 landmarks differ" in output
    a, b = rows_of(tmp_path / "out" / "comparison.csv")
    figures = error_figures(ERRORS[:, 1:].ravel(), (2.0, 4.0))
    assert numbers(a, "MRE", "SD", "SDR_2.0", "SDR_4.0") == pytest.approx(
        [figures[name] for name in ("MRE", "SD", "SDR_2.0", "SDR_4.0")], abs=1e-4
    )
    assert (b["n_images"], b["n_landmarks"], b["unit"]) == ("8", "16", "mm")
    assert float(b["MRE"]) - float(a["MRE"]) == pytest.approx(0.5, abs=1e-4)


def test_identical_runs_differ_by_nothing_with_p_1(run_compare, tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, ERRORS)
    status, output = run_compare(*(tmp_path / name for name in "abc"))
    pairs = rows_of(tmp_path / "out" / "pairs.csv")
    assert status == 0 and [(p["run"], p["against"]) for p in pairs] == [("b", "a"), ("c", "a"), ("c", "b")]
    for pair in pairs:
        for figure in ("MRE", "SDR_2.0"):
            assert numbers(pair, *(f"{figure}_{n}" for n in ("difference", "low", "high", "p", "p_corrected"))) == [
                0, 0, 0, 1, 1,
            ]  # fmt: skip
    assert output.count("0 of 2 landmarks differ") == 3


def test_the_mre_without_mean_errors_does_not_see_a_habit_of_the_readers(run_compare, tmp_path):
    apart = np.tile((1.0, 0.0), (IMAGES, 3, 1))  # mm: to the right in one half of the images, to the left in the other
    apart[::2] *= -1
    for name, habit in (("a", np.zeros(2)), ("b", np.array([3.0, -4.0]))):
        path = write_run(tmp_path / name, np.ones((IMAGES, 3))) / "test" / "predictions.csv"
        score, spacing = np.ones((IMAGES, 3)), np.full(IMAGES, 0.1)
        predictions = Predictions(NAMES, TRUTH + 10 * (apart + habit), TRUTH, score, spacing)
        write_predictions(path, predictions, ABBREVIATIONS, "mm")
    status, output = run_compare(tmp_path / "a", tmp_path / "b")
    assert status == 0 and "MRE without each landmark's mean error: a 1.00, b 1.00 mm" in output
    a, b = rows_of(tmp_path / "out" / "comparison.csv")
    far = (math.hypot(4, 4) + math.hypot(2, 4)) / 2
    assert numbers(a, "MRE", "MRE_centred") == pytest.approx([1, 1], abs=1e-3)
    assert numbers(b, "MRE", "MRE_centred") == pytest.approx([far, 1], abs=1e-3)


def test_the_share_within_the_first_threshold_is_compared_in_pairs_too(run_compare, tmp_path):
    write_run(tmp_path / "a", np.full((IMAGES, 3), 2.9), sdr_thresholds=[3.0, 5.0])
    errors = np.full((IMAGES, 3), 2.9)
    errors[:6, 1] = 3.1  # of 16 points 6 are no longer within 3 mm, each in another image
    write_run(tmp_path / "b", errors)
    status, output = run_compare(tmp_path / "a", tmp_path / "b")
    (pair,) = rows_of(tmp_path / "out" / "pairs.csv")
    assert status == 0 and "SDR 3 mm, %" in output
    assert numbers(pair, "SDR_3.0_difference", "SDR_3.0_p") == pytest.approx([-600 / 16, 2 / 64])


def test_a_landmark_that_alone_differs_is_the_one_that_is_named(run_compare, tmp_path):
    generator = np.random.default_rng(3)
    errors = generator.uniform(1, 2, (40, 3))
    others = errors + generator.normal(0, 0.2, errors.shape)
    others[:, 2] = errors[:, 2] + generator.normal(0.3, 0.2, 40)
    truth, names = generator.uniform(50, 400, (40, 3, 2)).round(2), [f"{number}.png" for number in range(40)]
    write_run(tmp_path / "a", errors, truth, names)
    write_run(tmp_path / "b", others, truth, names)
    status, output = run_compare(tmp_path / "a", tmp_path / "b", "--part", "all", "--resamples", 1000)
    assert status == 0 and re.search(r"b against a: 1 of 3 landmarks differ.* B \+0\.3", output)
    (pair,) = rows_of(tmp_path / "out" / "pairs.csv")
    expected = paired_difference(others, errors, resamples=1000)
    names = ("MRE_difference", "MRE_low", "MRE_high")
    assert numbers(pair, *names) == pytest.approx(list(expected.values()), abs=2e-4)


def test_the_parts_are_those_of_the_report(run_compare, tmp_path):
    shift = np.array([0.9, 0.3, 0.6])
    hidden = np.zeros(ERRORS.shape, bool)
    hidden[:4, 2] = True
    write_run(tmp_path / "a", ERRORS, occluded=hidden, report_exclude=["A"])
    write_run(tmp_path / "b", ERRORS + shift, occluded=hidden)
    for part, difference, points in (("headline", 0.75, 16), ("all", 0.6, 24), ("occluded", 0.6, 4)):
        out = tmp_path / part
        status, output = run_compare(tmp_path / "a", tmp_path / "b", "--part", part, "--out", out)
        assert status == 0
        assert float(rows_of(out / "pairs.csv")[0]["MRE_difference"]) == pytest.approx(difference, abs=1e-4)
        assert rows_of(out / "comparison.csv")[1]["n_landmarks"] == str(points)
    assert mentions(output, "no landmark can differ", "0.12", "4 images", "300 resamples")


def test_missing_landmarks_count_nowhere_and_what_one_run_lacks_counts_in_none(run_compare, tmp_path):
    truth = TRUTH.copy()
    truth[0, 1] = math.nan
    errors = ERRORS + 0.5
    errors[1, 2] = math.nan  # this run finds nothing there
    write_run(tmp_path / "a", ERRORS, truth)
    write_run(tmp_path / "b", errors, truth)
    status, output = run_compare(tmp_path / "a", tmp_path / "b")
    assert status == 0 and re.search(r"note: .*\bb\b.*\b1\b", output)
    rows = rows_of(tmp_path / "out" / "comparison.csv")
    assert [row["n_landmarks"] for row in rows] == ["14", "14"]
    assert float(rows_of(tmp_path / "out" / "pairs.csv")[0]["MRE_difference"]) == pytest.approx(0.5, abs=1e-4)


def test_the_order_of_images_and_landmarks_is_free(run_compare, tmp_path):
    images, landmarks = [5, 3, 0, 1, 7, 2, 6, 4], [2, 0, 1]
    write_run(tmp_path / "a", ERRORS)
    mixed = np.ix_(images, landmarks)
    names, abbreviations = [NAMES[i] for i in images], [ABBREVIATIONS[n] for n in landmarks]
    write_run(tmp_path / "b", (ERRORS + 0.25)[mixed], TRUTH[mixed], names, abbreviations)
    path = tmp_path / "b" / "test" / "predictions.csv"
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *rows[::-1]]), encoding="utf-8")
    assert run_compare(tmp_path / "a", tmp_path / "b")[0] == 0
    for row in rows_of(tmp_path / "out" / "landmark_pairs.csv"):
        assert numbers(row, "low", "high") == pytest.approx([0.25, 0.25], abs=2e-4)


def test_the_files_hold_what_was_printed_and_can_be_opened(run_compare, tmp_path):
    for name, shift in (("a", 0), ("b", 0.2), ("c", 2.5)):
        write_run(tmp_path / name, ERRORS + shift)
    out = tmp_path / "deep" / "out"
    status, output = run_compare(*(tmp_path / name for name in "abc"), "--out", out)
    assert status == 0
    assert {path.name for path in out.iterdir()} == {
        "comparison.csv", "pairs.csv", "landmarks.csv", "landmark_pairs.csv", "comparison.xls", "curves.png",
        "differences.png",
    }  # fmt: skip
    book = xlrd.open_workbook(out / "comparison.xls")
    assert book.sheet_names() == ["comparison", "pairs", "landmarks", "landmark_pairs", "settings"]
    for name in book.sheet_names()[:4]:
        sheet, rows = book.sheet_by_name(name), rows_of(out / f"{name}.csv")
        assert sheet.row_values(0) == list(rows[0]) and sheet.nrows == 1 + len(rows)
        for number, row in enumerate(rows, 1):
            for cell, text in zip(sheet.row_values(number), row.values(), strict=True):
                assert cell == text if isinstance(cell, str) else cell == pytest.approx(float(text))
    assert [row["landmark"] for row in rows_of(out / "landmarks.csv")] == ["A", "B"]
    settings = dict(book.sheet_by_name("settings").row_values(row) for row in range(1, 15))
    assert settings["b: command"] == "python main.py --epochs 3" and settings["c: commit"] == "abc123"
    assert settings["resamples"] == 300 and settings["a: predictions"].endswith("predictions.csv")
    for name in ("curves.png", "differences.png"):
        with Image.open(out / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10


def test_a_curve_passes_through_its_shares(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("reporting.charts.pyplot.close", lambda figure: drawn.update(figure=figure))
    draw_error_curves({"a": np.array([[1.0, 3.0], [2.0, math.nan]])}, {}, (2.0, 4.0), "mm", tmp_path / "curves.png")
    (line,) = (line for line in drawn["figure"].axes[0].lines if line.get_label() == "a: 2.00 mm")
    assert line.get_drawstyle() == "steps-post"
    assert np.allclose(line.get_xydata(), [[0, 0], [1, 100 / 3], [2, 200 / 3], [3, 100]])


def test_a_name_is_drawn_as_it_stands(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("reporting.charts.pyplot.close", lambda figure: drawn.update(figure=figure))
    errors = {name: np.array([[1.0, 3.0]]) for name in ("x$_{$", "_under")}
    draw_error_curves(errors, {}, (2.0,), "mm", tmp_path / "curves.png")
    labels = [text.get_text() for text in drawn["figure"].axes[0].get_legend().get_texts()]
    assert labels == [r"x\$_{\$: 2.00 mm", " _under: 2.00 mm"]
    panels = {"a$\nagainst b$": (np.array([[0.1, 0.0, 0.2]]), np.array([True]))}
    draw_differences(["A"], panels, "mm", tmp_path / "differences.png")


def test_a_full_disk_does_not_block_the_same_command(run_compare, tmp_path, fill_disk):
    write_run(tmp_path / "a", ERRORS)
    write_run(tmp_path / "b", ERRORS + 0.5)
    for writes in (0, 3, 5):
        fill_disk(writes)
        status, output = run_compare(tmp_path / "a", tmp_path / "b")
        assert status == 2 and mentions(output, tmp_path / "out", "No space left", "repeat")
    fill_disk(None)
    assert run_compare(tmp_path / "a", tmp_path / "b")[0] == 0 and not (tmp_path / "out" / "unfinished").exists()
