import csv
import json
import re

import numpy as np
import pytest
from conftest import make_records, mentions, write_records
from PIL import Image

from tools import inspect_data


@pytest.fixture
def described(tmp_path):
    """Six images of the set in conftest: one without landmark A, one with B hidden, two the same on both sides."""
    records = make_records(tmp_path)
    for number, record in enumerate(records):
        record["split"] = "train" if number < 4 else "test"
        record["readers"] = {
            who: [[point["X"] + shift, point["Y"]] for point in record["points"]]
            for who, shift in (("one", 0), ("two", 4))
        }
    records[1]["points"][2] |= {"X": None, "Y": None}
    records[2]["points"][3]["occluded"] = True
    (tmp_path / "imgs" / records[5]["imagePath"]).write_bytes(
        (tmp_path / "imgs" / records[0]["imagePath"]).read_bytes()
    )
    write_records(tmp_path, records)
    return tmp_path


def test_what_a_data_set_holds_is_told_and_drawn(described, run_program):
    status, output = run_program(inspect_data, described)
    assert status == 0
    assert mentions(output, "6 images", "4 landmarks", "train 4", "test 2", "96 x 80 px (6)")
    assert mentions(output, "0.5000", "mm/px") and re.search(r"missing.*\bA 1\b.*occluded.*\b1\b", output)
    assert re.search(r"identical.*image 0 \(ä\)\.png \(train\).*image 5 \(ä\)\.png \(test\)", output)
    assert re.search(r"readers in train.*2\.00.*mm.*1\.00 mm", output)  # 4 px of 0.5 mm
    with Image.open(described / "inspection" / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert ((pixels[..., 2] - pixels[..., 0]) > 100).sum() > 6 * 3 * 4  # the landmarks' blue dots
    assert Image.open(described / "inspection" / "scatter.png").size[0] > 500
    with open(described / "inspection" / "landmarks.csv", newline="", encoding="utf-8") as file:
        rows = {row["landmark"]: row for row in csv.DictReader(file)}
    assert (rows["A"]["n"], rows["A"]["missing"], rows["B"]["occluded"]) == ("5", "1", "1")
    assert rows["B"]["readers_mean_mm"] == "2.000"


def test_the_noise_of_two_readers_mean_is_half_their_distance():
    generator = np.random.default_rng(0)
    one, two = generator.normal(0, 1, (2, 100_000, 2))  # the truth is 0
    apart, off = np.linalg.norm(one - two, axis=1).mean(), np.linalg.norm((one + two) / 2, axis=1).mean()
    assert off == pytest.approx(apart / 2, rel=0.01)


def test_without_readers_nothing_is_said_of_them(dataset, run_program):
    status, output = run_program(inspect_data, dataset, "--out", dataset / "seen")
    assert status == 0 and "readers in" not in output and (dataset / "seen" / "scatter.png").exists()


def test_a_folder_without_data_or_with_broken_data_is_refused(tmp_path, run_program):
    status, output = run_program(inspect_data, tmp_path)
    assert status == 2 and "json/data.json" in output
    (tmp_path / "json").mkdir()
    for text in ("[]", "{}", json.dumps([{"imagePath": "a.png"}])):
        (tmp_path / "json" / "data.json").write_text(text)
        status, output = run_program(inspect_data, tmp_path)
        assert status == 2 and output.startswith("error: ")
