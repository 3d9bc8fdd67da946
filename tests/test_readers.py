import json
from pathlib import Path

import numpy as np
import pytest
from conftest import mentions
from made_runs import ABBREVIATIONS, ERRORS, IMAGES, NAMES, TRUTH, numbers, rows_of, write_run

from reporting.readers import mean_is_truth, noise_floor, reader_errors


def write_data(folder: Path, apart: np.ndarray, **keys) -> Path:
    """A data.json whose two readers are apart (I, N, 2) px, their mean the truth; landmarks in an order of its own."""
    order = [1, 2, 0]
    records = [
        {
            "imagePath": name, **keys,
            "points": [{"pointAbbreviation": ABBREVIATIONS[n], "X": t[n, 0], "Y": t[n, 1]} for n in order],
            "readers": {"one": (t + d / 2)[order].tolist(), "two": (t - d / 2)[order].tolist()},
        }
        for name, t, d in zip(NAMES, TRUTH, apart, strict=True)
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("where", ["record", "settings", "errors"])
def test_readers_stand_in_the_table_with_the_spacing_of_the_run(run_compare, tmp_path, where):
    # 6 px apart in x in every image, and 8 px in y, up in one half of the images and down in the other
    apart = np.tile((6.0, 8.0), (IMAGES, 3, 1))
    apart[::2, :, 1] *= -1
    data = write_data(tmp_path / "data", apart, **({"spacing": 0.1} if where == "record" else {}))
    spacing = {"spacing": 0.1} if where == "settings" else {"spacing": "ruler"}
    write_run(tmp_path / "a", ERRORS, json_path=str(data), **spacing)
    status, output = run_compare(tmp_path / "a")
    assert status == 0 and "landmarks differ" not in output and "one reader against their mean  0.50 (0.50" in output
    rows = {row["run"]: row for row in rows_of(tmp_path / "out" / "comparison.csv")}
    names = ("MRE", "SD", "SDR_2.0", "n_landmarks")
    # half of 10 px; without the habit of 6 px, half of 8 px
    assert numbers(rows["one reader against their mean"], *names) == pytest.approx([0.5, 0, 100, 16], abs=1e-4)
    assert numbers(rows["noise floor of their mean"], *names) == pytest.approx([0.4, 0, 100, 16], abs=1e-4)
    landmark = rows_of(tmp_path / "out" / "landmarks.csv")[0]
    assert landmark["landmark"] == "A" and float(landmark["MRE noise floor of their mean"]) == pytest.approx(
        0.4, abs=1e-4
    )


def test_readers_whose_mean_is_not_the_truth_are_left_out(run_compare, tmp_path):
    data = write_data(tmp_path / "data", np.full((IMAGES, 3, 2), 4.0))
    write_run(tmp_path / "a", ERRORS, TRUTH + 0.02, json_path=str(data))
    status, output = run_compare(tmp_path / "a")
    assert status == 0 and "their mean" in output and "noise floor" not in output


def test_without_readers_there_is_no_row_of_them_and_no_error(run_compare, tmp_path):
    data = write_data(tmp_path / "data", np.zeros((IMAGES, 3, 2)))
    write_run(tmp_path / "a", ERRORS, json_path=str(data))
    records = json.loads(data.read_text(encoding="utf-8"))
    data.write_text(json.dumps(records[1:]), encoding="utf-8")
    status, output = run_compare(tmp_path / "a", "--out", tmp_path / "1")
    assert status == 0 and mentions(output, data, "image 0")
    for record in records:
        del record["readers"]
    data.write_text(json.dumps(records), encoding="utf-8")
    status, output = run_compare(tmp_path / "a", "--out", tmp_path / "2")
    assert status == 0 and "their mean" not in output and "note" not in output
    status, output = run_compare(tmp_path / "a", "--data", data, "--out", tmp_path / "3")
    assert status == 0 and mentions(output, data, "readers")
    data.unlink()
    status, output = run_compare(tmp_path / "a", "--out", tmp_path / "4")
    assert status == 0 and "their mean" not in output and "note" not in output
    status, output = run_compare(tmp_path / "a", "--data", data, "--out", tmp_path / "5")
    assert status == 2 and output.startswith("error: ") and str(data) in output


def test_the_noise_floor_is_the_error_of_the_best_of_all_methods():
    generator = np.random.default_rng(0)
    habits = generator.uniform(-20, 20, (2, 1, 4, 2))  # of each reader, landmark by landmark
    one, two = habits + generator.normal(0, 5, (2, 20_000, 4, 2))
    readers, spacing = np.stack([one, two], 1), np.full(20_000, 0.1)
    best = habits.mean(0)  # knows where the points lie (at 0) and both habits, but not what noise is drawn
    off = 0.1 * np.linalg.norm((one + two) / 2 - best, axis=-1)
    assert noise_floor(readers, spacing).mean() == pytest.approx(off.mean(), rel=0.01)
    assert reader_errors(readers, spacing).mean() > 1.2 * off.mean()


def test_a_point_that_one_reader_lacks_counts_nowhere():
    readers = np.zeros((3, 2, 1, 2))
    readers[0, 0, 0] = np.nan
    readers[1:, 0, 0] = (6, 8), (0, 0)
    assert np.allclose(reader_errors(readers, np.ones(3))[:, 0], [np.nan, 5, 0], equal_nan=True)
    assert np.allclose(noise_floor(readers, np.ones(3))[:, 0], [np.nan, 2.5, 2.5], equal_nan=True)
    truth = readers.mean(1)
    assert mean_is_truth(readers, truth) and not mean_is_truth(readers, truth + 0.02)
    assert not mean_is_truth(readers, np.full((3, 1, 2), np.nan))
