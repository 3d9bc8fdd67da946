import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_shapes import heads

from reading.annotation import Record
from tools import inspect_data
from tools.label_check import find_doubts

NAMES = [f"L{n}" for n in range(12)]


def records(points: np.ndarray, spacing: float) -> list[Record]:
    """Records of points (I, N, 2) in original px."""
    nothing = np.zeros(points.shape[1], bool)
    return [Record(f"{i}.png", Path("x"), own, nothing, spacing=spacing) for i, own in enumerate(points)]


@pytest.mark.parametrize("spacing", [0.1, math.nan])
def test_slips_are_listed_worst_first_with_their_landmark_distance_and_kind(spacing):
    points = heads(60) * 10  # px of 0.1 mm
    points[5, 2] += (150, 0)
    points[20, [1, 8]] = points[20, [8, 1]]
    points[40] = points[40] * (-1, 1) + (1000, 0)
    doubts = find_doubts(NAMES, records(points, spacing))
    assert [each.image for each in doubts[:3]] in (["40.png", "20.png", "5.png"], ["40.png", "5.png", "20.png"])
    by_image = {each.image: each for each in doubts}
    assert len(by_image) == 60 and "mirrored" in by_image["40.png"].slip
    assert by_image["5.png"].landmark == "L2" and by_image["5.png"].slip == "far off"
    unit = 1 if math.isnan(spacing) else spacing
    assert by_image["5.png"].distance == pytest.approx(150 * unit, rel=0.2)
    assert {by_image["20.png"].landmark, by_image["20.png"].slip[-2:]} == {"L1", "L8"}


def write_set(folder: Path, count: int) -> Path:
    """A data set of heads with landmark L2 of the last one far off."""
    points = heads(count) * 2 + 100
    points[-1, 2] += (40, 0)
    (folder / "imgs").mkdir(parents=True)
    (folder / "json").mkdir()
    content = []
    for number, own in enumerate(points):
        noise = np.random.default_rng(number).integers(0, 255, (420, 420), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "imgs" / f"{number}.png")
        entries = [{"pointAbbreviation": n, "X": float(x), "Y": float(y)} for n, (x, y) in zip(NAMES, own, strict=True)]
        content.append({"imagePath": f"{number}.png", "spacing": 0.5, "points": entries})
    (folder / "json" / "data.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_inspect_data_lists_doubtful_annotations_and_opens_them_for_review(tmp_path, run_program):
    folder = write_set(tmp_path / "set", 24)
    status, output = run_program(inspect_data, folder, "--review")
    assert status == 0 and "23.png: L2 is" in output and "mm from where the other landmarks put it" in output
    with open(folder / "inspection" / "doubtful.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and (rows[0]["image"], rows[0]["landmark"]) == ("23.png", "L2")
    assert float(rows[0]["distance_mm"]) == pytest.approx(20, rel=0.25)
    page = (folder / "inspection" / "doubtful.html").read_text(encoding="utf-8")
    assert page.count('<script type="text/plain" id="image-') == 15  # shown; the others are saved unchanged
    assert page.index("23.png") < page.index(f"{rows[1]['image']}") and rows[20]["image"] in page


def test_too_few_images_are_said_to_be_too_few(tmp_path, run_program):
    status, output = run_program(inspect_data, write_set(tmp_path / "set", 12), "--review")
    assert status == 0 and "20 images" in output
    assert not list((tmp_path / "set" / "inspection").glob("doubtful.*"))
    two = [Record(f"{i}.png", Path("x"), np.zeros((2, 2)) + i, np.zeros(2, bool)) for i in range(30)]
    assert find_doubts(["A", "B"], two) == []  # any two points fit


def test_a_set_that_faces_both_ways_has_no_mirrored_images_but_other_slips():
    points = heads(60) * 10
    points[::4] = points[::4] * (-1, 1) + (1000, 0)
    points[5, 2] += (150, 0)
    doubts = find_doubts(NAMES, records(points, 0.1))
    assert (doubts[0].image, doubts[0].landmark) == ("5.png", "L2")
    assert not any("mirrored" in each.slip for each in doubts)


def test_an_image_that_shares_too_few_landmarks_with_the_others_is_left_out():
    points = heads(30)
    points[:, 9:] = math.nan
    points[3] = math.nan
    points[3, 8:] = heads(30)[3, 8:]  # of the others' landmarks it has one
    assert {each.image for each in find_doubts(NAMES, records(points, 0.1))} == {f"{n}.png" for n in range(30)} - {
        "3.png"
    }


def test_predictions_in_the_folder_of_a_data_set_do_not_disturb_its_review(tmp_path, run_program):
    folder = write_set(tmp_path / "set", 24)
    (folder / "found" / "json").mkdir(parents=True)
    (folder / "found" / "json" / "data.json").write_text((folder / "json" / "data.json").read_text())
    status, output = run_program(inspect_data, folder, "--review")
    assert status == 0 and (folder / "inspection" / "doubtful.html").exists(), output
