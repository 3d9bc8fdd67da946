import math
from pathlib import Path

import numpy as np
import pytest
from conftest import mentions
from made_runs import ABBREVIATIONS, ERRORS, NAMES, TRUTH, rows_of, write_run


def test_a_run_is_named_by_its_folder_its_test_set_or_its_file(run_compare, tmp_path):
    one = write_run(tmp_path / "seed 1" / "run", ERRORS, test_set="test1")
    two = write_run(tmp_path / "seed 2" / "run", ERRORS, test_set="test1")
    write_run(tmp_path / "seed 3", ERRORS, test_set="test1").joinpath("config.json").unlink()
    places = (one, two / "test1", tmp_path / "seed 3" / "test1" / "predictions.csv", one)
    status, output = run_compare(*places)
    assert status == 0
    labels = [row["run"] for row in rows_of(tmp_path / "out" / "comparison.csv")]
    assert labels[1:3] == ["seed 2/run", "test1"] and len(set(labels)) == 4
    assert labels[0].endswith("seed 1/run (1)") and labels[3].endswith("seed 1/run (2)")
    status, output = run_compare(*places, "--names", *"wxyz", "--out", tmp_path / "named")
    assert [row["run"] for row in rows_of(tmp_path / "named" / "comparison.csv")] == list("wxyz")


def test_of_several_test_sets_one_is_asked_for(run_compare, tmp_path):
    run = write_run(tmp_path / "a", ERRORS, test_set="test1")
    (run / "config.json").unlink()
    write_run(run, ERRORS + 1, test_set="test2")
    status, output = run_compare(run)
    assert status == 2 and mentions(output, run, "--set", "test1, test2")
    assert run_compare(run, "--set", "test2")[0] == 0
    assert float(rows_of(tmp_path / "out" / "comparison.csv")[0]["MRE"]) == pytest.approx(
        ERRORS[:, 1:].mean() + 1, abs=1e-4
    )


def other_run(folder: Path, what: str) -> Path:
    """A run that cannot stand beside write_run(folder / "a", ERRORS)."""
    truth, names, abbreviations = TRUTH.copy(), list(NAMES), list(ABBREVIATIONS)
    if what == "image":
        names[3] = "another.png"
    elif what == "fewer images":
        return write_run(folder, ERRORS[:-1], TRUTH[:-1], NAMES[:-1])
    elif what == "landmark":
        abbreviations[2] = "C"
    elif what == "truth":
        truth[2:, 1, 0] += 0.02
    elif what == "truth absent":
        truth[4, 0] = math.nan
    return write_run(folder, ERRORS, truth, names, abbreviations, {"unit": math.nan, "spacing": 0.101}.get(what, 0.1))


@pytest.mark.parametrize(
    "what, words",
    [
        ("image", ["image 3 (ä).png"]),
        ("fewer images", ["image 7 (ä).png"]),
        ("landmark", ["landmark B"]),
        ("truth", ["image 2 (ä).png", "landmark A", "({0:.2f}, {1:.2f})", "({2:.2f}, {1:.2f})"]),
        ("truth absent", ["image 4 (ä).png", "landmark R1", "({3:.2f}, {4:.2f})"]),
        ("unit", ["mm in a", "px in b", "spacing"]),
        ("spacing", ["image 0 (ä).png", "0.1000 mm per px", "0.1010", "spacing"]),
    ],
)
def test_what_differs_is_refused_by_the_first_difference(run_compare, tmp_path, what, words):
    write_run(tmp_path / "a", ERRORS)
    other_run(tmp_path / "b", what)
    status, output = run_compare(tmp_path / "a", tmp_path / "b")
    (x, y), place = TRUTH[2, 1], TRUTH[4, 0]
    assert status == 2 and mentions(output, *(word.format(x, y, x + 0.02, *place) for word in words))
    assert output.startswith("error: ") and output.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_truth_that_was_rounded_is_the_same(run_compare, tmp_path):
    write_run(tmp_path / "a", ERRORS)
    write_run(tmp_path / "b", ERRORS, TRUTH + 0.005)
    assert run_compare(tmp_path / "a", tmp_path / "b")[0] == 0


def test_what_is_no_run_or_says_nothing_is_refused_in_one_line(run_compare, tmp_path):
    run = write_run(tmp_path / "a", ERRORS)
    blind = write_run(tmp_path / "blind", ERRORS, np.full(TRUTH.shape, math.nan))
    broken = write_run(tmp_path / "broken", ERRORS)
    foreign = write_run(tmp_path / "foreign", ERRORS)
    (foreign / "config.json").write_text("{}")
    path = broken / "test" / "predictions.csv"
    path.write_bytes(path.read_bytes()[:-12])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for arguments, words in (
        ([tmp_path / "nowhere"], [tmp_path / "nowhere", "predictions.csv"]),
        ([run, broken], [path, "row 25", "7", "8"]),
        ([run / "config.json"], [run / "config.json"]),
        ([blind], [blind / "test" / "predictions.csv"]),
        ([foreign], [foreign / "config.json", "'settings'"]),
        ([run, "--set", "test7", "--part", "all"], [run, "test7", "--set"]),
        ([run, run, "--names", "x"], ["--names", "2", "x"]),
        ([run, run, "--names", "x", "x"], ["--names", "2", "x, x"]),
        ([run, "--part", "occluded"], [run / "test" / "predictions.csv", "occluded"]),
        ([run, "--out", tmp_path / "full"], [tmp_path / "full"]),
        ([run, "--resamples", "0"], ["--resamples", "0"]),
    ):
        status, output = run_compare(*arguments)
        assert status == 2 and output.startswith("error: ") and output.count("\n") == 1, output
        assert mentions(output, *words), output
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_test_set_than_the_one_asked_for_is_refused(run_compare, tmp_path):
    run = write_run(tmp_path / "a", ERRORS, test_set="test1")
    for place in (run / "test1", run / "test1" / "predictions.csv"):
        status, output = run_compare(place, "--set", "test2")
        assert status == 2 and mentions(output, place, "test1", "test2", "--set")


def test_a_file_that_excel_has_saved_is_read(run_compare, tmp_path):
    run = write_run(tmp_path / "a", ERRORS)
    path = run / "test" / "predictions.csv"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert run_compare(run)[0] == 0


def test_a_place_for_the_files_that_cannot_be_made_is_refused_before_the_work(run_compare, tmp_path):
    run = write_run(tmp_path / "a", ERRORS)
    status, output = run_compare(run, run, "--out", run / "config.json" / "out")
    assert status == 2 and mentions(output, run / "config.json" / "out")
