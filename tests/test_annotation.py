import json
import logging
import math
import os
import re
import shutil

import numpy as np
import pytest
from conftest import (
    ABBREVIATIONS,
    data_refusal,
    draw_image,
    make_records,
    mentions,
    refuses,
    tiny_config,
    write_records,
)
from PIL import Image

from reading.annotation import read_annotation
from reading.splits import load_data

# --- What is read ---


def test_a_record_keeps_its_single_values_and_two_readers_in_the_order_of_the_landmarks(dataset):
    records = json.loads((dataset / "json" / "data.json").read_text(encoding="utf-8"))
    records[0] |= {"gender": "f", "age": 12, "cobb_angles": [1, 2, 3]}
    records[1]["readers"] = {"one": [[1, 2], None, [5, 6], [7, 8]], "two": [[1, 1]] * 4}
    records[1]["points"].reverse()
    records[2]["readers"] = {"only": [[1, 1]] * 4}
    _, _, found = read_annotation(write_records(dataset, records), dataset / "imgs")
    assert found[0].keys == {"imagePath": records[0]["imagePath"], "gender": "f", "age": 12}
    assert found[0].readers is None and found[2].readers is None
    assert np.array_equal(found[1].readers[0], [[7, 8], [5, 6], [math.nan] * 2, [1, 2]], equal_nan=True)
    records[1]["readers"]["two"].pop()
    with refuses("record 2", "readers", "4"):
        read_annotation(write_records(dataset, records), dataset / "imgs")


def test_points_are_matched_by_abbreviation_not_by_position(dataset):
    records = json.loads((dataset / "json" / "data.json").read_text(encoding="utf-8"))
    straight = load_data(tiny_config(dataset))
    for record in records[1:]:
        record["points"].reverse()
    write_records(dataset, records)
    shuffled = load_data(tiny_config(dataset))
    assert shuffled.abbreviations == straight.abbreviations == ABBREVIATIONS
    for a, b in zip(straight.records, shuffled.records, strict=True):
        assert np.array_equal(a.landmarks, b.landmarks)


def test_the_order_of_a_checkpoint_overrides_that_of_the_file(dataset):
    _, names, records = read_annotation(
        dataset / "json" / "data.json", dataset / "imgs", abbreviations=("B", "A", "R2", "R1")
    )
    _, _, straight = read_annotation(dataset / "json" / "data.json", dataset / "imgs")
    assert names == ("point B", "point A", "point R2", "point R1")
    assert np.array_equal(records[0].landmarks, straight[0].landmarks[::-1])


def test_abbreviations_that_differ_by_a_mark_alone_stay_apart(dataset):
    records = json.loads((dataset / "json" / "data.json").read_text(encoding="utf-8"))
    for record in records:
        record["points"][3]["pointAbbreviation"] = "A’"
    write_records(dataset, records)
    assert load_data(tiny_config(dataset)).abbreviations == ("R1", "R2", "A", "A’")


def test_null_coordinates_are_a_missing_landmark(dataset):
    records = json.loads((dataset / "json" / "data.json").read_text(encoding="utf-8"))
    records[2]["points"][3] |= {"X": None, "Y": None}
    write_records(dataset, records)
    assert np.isnan(load_data(tiny_config(dataset)).records[2].landmarks[3]).all()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_data_set_with_a_byte_order_mark_is_read(dataset, encoding):
    path = dataset / "json" / "data.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert len(load_data(tiny_config(dataset)).records) == 6


@pytest.mark.parametrize("visible", [False, 0])
def test_a_point_that_is_not_visible_is_a_missing_landmark(dataset, visible):
    records = make_records(dataset)
    records[2]["points"][3] |= {"X": 0, "Y": 0, "visible": visible}
    records[2]["points"][2] |= {"visible": True}
    write_records(dataset, records)
    assert np.isnan(load_data(tiny_config(dataset)).records[2].landmarks).any(1).tolist() == [False] * 3 + [True]


def test_a_name_may_differ_from_its_file_in_case_and_composition(dataset):
    records = json.loads((dataset / "json" / "data.json").read_text(encoding="utf-8"))
    records[0]["imagePath"] = records[0]["imagePath"].upper().replace("Ä", "a\u0308")
    write_records(dataset, records)
    assert load_data(tiny_config(dataset)).records[0].path.is_file()


def test_images_without_a_record_are_reported(dataset, caplog):
    shutil.copy(dataset / "imgs" / "image 0 (ä).png", dataset / "imgs" / "spare.png")
    logging.getLogger("farnet").propagate = True
    load_data(tiny_config(dataset))
    assert "spare.png" in caplog.text and "1 images" in caplog.text


def test_images_in_subfolders_and_native_dicom_files_without_a_record_are_reported_but_not_hidden_ones(dataset, caplog):
    logging.getLogger("farnet").propagate = True
    for name in ("P01/spare.png", ".thumbnails/spare.png", "__MACOSX/spare.png"):
        (dataset / "imgs" / name).parent.mkdir()
        (dataset / "imgs" / name).write_bytes((dataset / "imgs" / "image 0 (ä).png").read_bytes())
    (dataset / "imgs" / "1.2.840").write_bytes(bytes(128) + b"DICM")
    load_data(tiny_config(dataset))
    assert mentions(caplog.text, "2 images", "P01/spare.png", "1.2.840")


@pytest.mark.parametrize("name", ["./image 0 (ä).png", "IMAGE 0 (Ä).png", ".\\image 0 (ä).png"])
def test_two_records_of_one_file_are_refused_however_they_name_it(dataset, name):
    records = make_records(dataset)
    records[3]["imagePath"] = name
    assert mentions(data_refusal(dataset, records), "image 0 (ä).png", name, "keep one")


# --- What is refused ---


def test_a_json_that_is_not_a_list_is_refused(dataset):
    assert mentions(data_refusal(dataset, {"records": []}), "data.json", "list")


def test_a_json_that_is_cut_off_is_refused(dataset):
    path = dataset / "json" / "data.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with refuses("data.json", "JSON"):
        load_data(tiny_config(dataset))


def test_a_json_that_does_not_exist_is_refused(dataset):
    with refuses("none.json", "json_path"):
        load_data(tiny_config(dataset, json_path=str(dataset / "none.json")))


def test_an_empty_data_set_is_refused(dataset):
    assert "data.json" in data_refusal(dataset, [])


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 500 + "]" * 500, '{"a": ' * 30 + "1" + "}" * 30])
def test_a_deeply_nested_data_set_is_refused(dataset, text):
    (dataset / "json" / "data.json").write_text(text)
    with refuses("data.json", "nested", "levels"):
        load_data(tiny_config(dataset))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Linux")
def test_a_pipe_a_device_and_a_folder_are_refused_as_data_sets(dataset):
    os.mkfifo(dataset / "pipe")
    for path in (dataset / "pipe", "/dev/zero", dataset):
        with refuses(path, "not a file", "json_path"):
            load_data(tiny_config(dataset, json_path=str(path)))


def test_points_at_zero_that_may_mean_missing_are_refused(dataset):
    records = make_records(dataset)
    records[1]["points"][2] |= {"X": 0, "Y": 0}
    message = data_refusal(dataset, records)
    assert mentions(message, "record 2", "'A'", "(0, 0)", "null", "0.01") and "others" not in message
    records[4]["points"][3] |= {"X": 0.0, "Y": 0}
    assert mentions(data_refusal(dataset, records), "record 2", "'A'", "1 others")
    for record in records[1:5]:
        record["points"][2] |= {"visible": False}
    records[4]["points"][3] |= {"X": None, "Y": None}
    write_records(dataset, records)
    load_data(tiny_config(dataset))


@pytest.mark.parametrize("key", ["visible", "occluded"])
@pytest.mark.parametrize("value", ["false", "", 2, -1, 0.5, [], {}, float("nan")])
def test_a_mark_of_a_point_that_is_neither_true_nor_false_is_refused(dataset, key, value):
    records = make_records(dataset)
    records[1]["points"][2][key] = value
    assert mentions(data_refusal(dataset, records), "record 2", "'A'", key, "true or false")


@pytest.mark.parametrize("value", [True, False, 0, 1, None])
def test_a_mark_of_a_point_may_be_true_false_0_1_or_null(dataset, value):
    records = make_records(dataset)
    records[1]["points"][2] |= {"visible": value, "occluded": value}
    write_records(dataset, records)
    record = load_data(tiny_config(dataset)).records[1]
    assert np.isnan(record.landmarks[2]).all() == (value in (False, 0) and value is not None)
    assert record.occluded[2] == (value is not None and bool(value))


@pytest.mark.parametrize("letter", ["\0", "\n", "\r", "\x85", "\u2028", "\ud800", "\x1b"])
@pytest.mark.parametrize("key", ["imagePath", "pointName", "pointAbbreviation", "split", "patient"])
def test_a_name_that_no_file_or_table_holds_is_refused_with_its_record(dataset, key, letter):
    records = make_records(dataset)
    entries = records if key not in ("pointName", "pointAbbreviation") else [r["points"][1] for r in records]
    for entry in entries[1:]:
        entry[key] = f"a{letter}b"
    (dataset / "json" / "data.json").write_text(json.dumps(records))
    with refuses("data.json", "record 2", key, repr(letter)[1:-1]):
        load_data(tiny_config(dataset))


@pytest.mark.parametrize("points", [None, [], "S", [1]])
def test_a_record_without_points_is_refused(dataset, points):
    records = make_records(dataset)
    records[1]["points"] = points
    message = data_refusal(dataset, records)
    assert mentions(message, "record 2", "image 1 (ä).png", "point")


def test_a_record_without_image_name_is_refused(dataset):
    records = make_records(dataset)
    del records[1]["imagePath"]
    assert "record 2" in data_refusal(dataset, records)


def test_one_point_too_few_is_refused_by_its_name(dataset):
    records = make_records(dataset)
    del records[3]["points"][2]
    message = data_refusal(dataset, records)
    assert mentions(message, "record 4", "image 3 (ä).png", "3 points") and re.search(r"\bA\b", message)


def test_one_point_too_many_is_refused_by_its_name(dataset):
    records = make_records(dataset)
    records[3]["points"].append({"pointName": "", "pointAbbreviation": "Z", "X": 1, "Y": 1})
    message = data_refusal(dataset, records)
    assert mentions(message, "record 4", "image 3 (ä).png", "5 points", "Z")


def test_a_number_of_landmarks_that_disagrees_with_the_data_is_refused_with_the_right_one(dataset):
    assert mentions(data_refusal(dataset, make_records(dataset), num_landmarks=19), "num_landmarks", "19", "4")


def test_without_a_number_of_landmarks_the_first_record_says_which_there_are(dataset):
    records = make_records(dataset)
    for record in records:
        del record["points"][2]
    write_records(dataset, records)
    data = load_data(tiny_config(dataset, num_landmarks=None))
    assert data.abbreviations == ("R1", "R2", "B") and data.records[0].landmarks.shape == (3, 2)
    assert load_data(tiny_config(dataset, num_landmarks=3)).abbreviations == data.abbreviations
    del records[4]["points"][0]
    message = data_refusal(dataset, records, num_landmarks=None)
    assert mentions(message, "record 5", "image 4 (ä).png", "R1")


def test_a_headline_without_a_landmark_that_there_is_none_of_is_refused_but_the_default_ruler_is_not(dataset):
    records = make_records(dataset)
    assert mentions(data_refusal(dataset, records, report_exclude=("A", "Q")), "'Q'", "R1, R2, A, B")
    for record in records:
        del record["points"][:2]  # no ruler
    write_records(dataset, records)
    settings = dict(num_landmarks=None, spacing=0.1)
    assert tiny_config(dataset).report_exclude == ("R1", "R2")
    assert load_data(tiny_config(dataset, **settings)).abbreviations == ("A", "B")
    assert "'Q'" in data_refusal(dataset, records, report_exclude=("R1", "Q"), **settings)


def test_an_unknown_abbreviation_is_refused_also_in_the_first_record(dataset):
    records = make_records(dataset)
    records[0]["points"][3]["pointAbbreviation"] = "b"
    message = data_refusal(dataset, records)
    assert "record 1" in message and {"b", "B"} <= set(re.findall(r"\w+", message))


def test_a_doubled_abbreviation_is_refused(dataset):
    records = make_records(dataset)
    records[5]["points"][3]["pointAbbreviation"] = "A"
    message = data_refusal(dataset, records)
    assert mentions(message, "record 6", "'A'")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "12", True, [1], None])
def test_a_coordinate_that_is_no_finite_number_is_refused(dataset, value):
    records = make_records(dataset)
    records[1]["points"][2]["Y"] = value
    message = data_refusal(dataset, records)
    assert mentions(message, "record 2", "image 1 (ä).png", "'A'", "Y")


@pytest.mark.parametrize("x", [-0.6, 95.6, 1000])
def test_a_point_outside_its_image_is_refused(dataset, x):
    records = make_records(dataset)
    records[1]["points"][2]["X"] = x
    message = data_refusal(dataset, records)
    assert mentions(message, "record 2", "image 1 (ä).png", "'A'", f"{x:g}", "96 x 80")


def test_a_point_on_the_edge_of_the_outermost_pixel_is_inside(dataset):
    records = make_records(dataset)
    records[1]["points"][2] |= {"X": -0.5, "Y": 79.5}
    write_records(dataset, records)
    load_data(tiny_config(dataset))


def test_an_image_that_is_missing_is_refused(dataset):
    records = make_records(dataset)
    records[1]["imagePath"] = "none.png"
    assert "none.png" in data_refusal(dataset, records)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(lambda b: b"", "0 bytes"), (lambda b: b"no image", "not an image"), (lambda b: b[:600], "damaged")],
)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_an_image_that_is_empty_corrupt_or_cut_off_is_refused(dataset, damage, words, ending):
    records = make_records(dataset)
    records[1]["imagePath"] = f"bad [1].{ending}"
    path = dataset / "imgs" / f"bad [1].{ending}"
    Image.fromarray(draw_image(np.random.default_rng(0), np.zeros((4, 2)))).save(path)
    path.write_bytes(damage(path.read_bytes()))
    message = data_refusal(dataset, records)
    assert mentions(message, f"bad [1].{ending}", words)


def test_a_name_that_no_file_can_have_is_refused(dataset):
    records = make_records(dataset)
    records[0]["imagePath"] = "x" * 5000
    assert "xxx" in data_refusal(dataset, records)


def test_two_records_of_one_image_are_refused(dataset):
    records = make_records(dataset)
    assert mentions(data_refusal(dataset, [*records, records[0]]), "image 0 (ä).png")


def test_an_image_folder_that_does_not_exist_is_refused(dataset):
    assert "img_dir" in data_refusal(dataset, make_records(dataset), img_dir=str(dataset / "none"))


@pytest.mark.parametrize("spacing", [0, -1, "0.1", True, float("nan"), float("inf"), 1e9, 1e-9, [0.1]])
def test_a_spacing_that_is_no_positive_number_is_refused(dataset, spacing):
    records = make_records(dataset)
    records[1]["spacing"] = spacing
    assert mentions(data_refusal(dataset, records), "record 2", "image 1 (ä).png", "spacing", repr(spacing))


def test_test_sets_whose_names_differ_in_case_alone_are_refused(dataset):
    records = make_records(dataset)
    for record, split in zip(records, ("train", "train", "Test1", "Test1", "test1", "val"), strict=True):
        record["split"] = split
    assert mentions(data_refusal(dataset, records), "record 5", "'test1'", "'Test1'")


@pytest.mark.parametrize(
    "split",
    ["", 1, "../up", ".", "..", " .. ", "a\\b", "best.pt", "Config.json", "progress", "x" * 300, "CON", "aux.1", "a:b"],
)
def test_a_split_that_is_no_name_is_refused(dataset, split):
    records = make_records(dataset)
    records[1]["split"] = split
    assert mentions(data_refusal(dataset, records), "record 2", "image 1 (ä).png", "split", repr(split))


# --- Spacing ---


def test_the_spacing_is_the_median_ruler_of_the_images_of_one_size(dataset):
    records = make_records(dataset)
    records[0]["points"][1]["Y"] = records[0]["points"][0]["Y"] + 30  # one badly clicked ruler of 30 px
    write_records(dataset, records)
    spacings = [record.spacing for record in load_data(tiny_config(dataset)).records]
    assert np.allclose(spacings, 0.5)  # the others are 20 px for 10 mm


def test_images_of_another_size_have_their_own_ruler(dataset, tmp_path):
    records = make_records(dataset)
    other = make_records(tmp_path / "other", count=1, size=(192, 160))[0] | {"imagePath": "large.png"}
    (tmp_path / "other" / "imgs" / "image 0 (ä).png").rename(dataset / "imgs" / "large.png")
    other["points"][1]["Y"] = other["points"][0]["Y"] + 40
    write_records(dataset, [*records, other])
    spacings = [record.spacing for record in load_data(tiny_config(dataset)).records]
    assert np.allclose(spacings, [0.5] * 6 + [0.25])


def test_a_records_own_spacing_wins(dataset):
    records = make_records(dataset)
    records[0]["spacing"] = 0.1
    write_records(dataset, records)
    assert load_data(tiny_config(dataset)).records[0].spacing == 0.1
    assert load_data(tiny_config(dataset, spacing=0.3)).records[0].spacing == 0.1
    assert load_data(tiny_config(dataset, spacing=0.3)).records[1].spacing == 0.3


def test_without_spacing_the_unit_is_px(dataset):
    assert load_data(tiny_config(dataset, spacing=None)).unit == "px"
    assert load_data(tiny_config(dataset)).unit == "mm"


def test_spacing_in_some_records_only_is_refused(dataset):
    records = make_records(dataset)
    records[0]["spacing"] = 0.1
    assert mentions(data_refusal(dataset, records, spacing=None), "5 of 6", "spacing")


def test_a_ruler_that_is_not_among_the_landmarks_is_refused(dataset):
    assert mentions(data_refusal(dataset, make_records(dataset), ruler=("R1", "R9")), "R9", "ruler", "R1, R2, A, B")


def test_a_ruler_of_nearly_no_length_is_refused(dataset):
    records = make_records(dataset)
    for record in records:
        record["points"][1] |= {"X": record["points"][0]["X"] + 1e-6, "Y": record["points"][0]["Y"]}
    assert mentions(data_refusal(dataset, records), "ruler", "mm per px", "R1 and R2", "ruler_mm")


def test_occluded_landmarks_are_marked_and_keep_their_place(tmp_path):
    records = make_records(tmp_path)
    before = load_data(tiny_config(write_records(tmp_path, records).parents[1])).records[1].landmarks
    records[1]["points"][3]["occluded"] = True
    write_records(tmp_path, records)
    data = load_data(tiny_config(tmp_path))
    assert data.records[1].occluded.tolist() == [False, False, False, True]
    assert not data.records[0].occluded.any() and np.array_equal(data.records[1].landmarks, before)
    records[1]["points"][3] |= {"X": None, "Y": None}  # hidden, and its place is not known
    write_records(tmp_path, records)
    assert not load_data(tiny_config(tmp_path)).records[1].occluded.any()
    records[1]["points"][3]["occluded"] = "yes"
    assert mentions(data_refusal(tmp_path, records), "record 2", "'B'", "occluded", "'yes'", "true", "false")
