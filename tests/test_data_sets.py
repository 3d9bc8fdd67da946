"""The public data sets in their layouts, and DICOM images."""

import json
import re

import numpy as np
import pytest
from conftest import mentions, refuses
from foreign_files import (
    ISBI_POINTS,
    draw_images,
    optional,
    spine_points,
    tables,
    write_aariz,
    write_cl2023,
    write_cl_csv,
    write_dicom,
    write_hand,
    write_isbi_csv,
    write_native,
    write_spine,
    write_suh,
)
from PIL import Image

from reading import dicom
from tools import convert
from tools.formats import FORMATS, isbi2015, spine
from tools.formats.cl2023 import without_padding
from tools.formats.common import record_points


def test_isbi_points_are_the_mean_of_both_readers_or_one_of_them_and_both_are_kept(archive):
    for reader, offset in (("senior", 0), ("junior", 3), ("mean", 1.5)):
        _, record = isbi2015.read(archive, reader).pairs[0]
        found = np.array([(point["X"], point["Y"]) for point in record["points"]])
        assert np.array_equal(found, ISBI_POINTS["400_senior"] + offset)
        assert np.array_equal(record["readers"]["junior"], ISBI_POINTS["400_junior"])


def test_isbi_has_the_official_split_and_a_tenth_of_a_millimetre_per_px(archive):
    records = [record for _, record in isbi2015.read(archive).pairs]
    assert [record["split"] for record in records] == ["train", "train", "test1"]
    assert {record["spacing"] for record in records} == {0.1}


@pytest.mark.parametrize("content", ["1,2\n3,4\n", "a,b\n" * 19, "1,2,3\n" * 19, "", "nan,1\n" * 19])
def test_an_annotation_that_is_cut_off_or_no_points_is_refused(archive, content):
    (archive / "AnnotationsByMD" / "400_junior" / "002.txt").write_text(content)
    with refuses("002.txt", "19"):
        isbi2015.read(archive)


def test_an_image_without_annotation_is_refused(archive):
    (archive / "AnnotationsByMD" / "400_senior" / "151.txt").unlink()
    with refuses("151.txt"):
        isbi2015.read(archive)


def test_a_csv_copy_of_isbi_has_the_split_of_its_numbers(tmp_path):
    records = [record for _, record in FORMATS["isbi_csv"].read(write_isbi_csv(tmp_path)).pairs]
    assert [(record["imagePath"], record["split"]) for record in records] == [
        ("017.png", "train"),
        ("151.png", "test1"),
    ]
    assert record_points(records[0])["S"] == (1, 2) and record_points(records[1])["ar"] == (38, 39)


def test_a_hand_has_its_spacing_from_the_wrist_and_its_split_from_the_fold(tmp_path):
    reading = FORMATS["hand"].read(write_hand(tmp_path))
    records = {record["imagePath"]: record for _, record in reading.pairs}
    assert {name: record["split"] for name, record in records.items()} == {
        "3142.png": "train", "3143.png": "test", "3150.png": "train",
    }  # fmt: skip
    assert all(record["spacing"] == 1.0 for record in records.values())  # 50 px are 50 mm
    assert len(reading.notes) == 2 and mentions(reading.notes[0], "3150", "fold 1") and "3999" in reading.notes[1]
    assert "split" not in FORMATS["hand"].read(tmp_path, fold=0).pairs[0][1]


def test_a_spine_reads_the_same_from_csv_and_mat(tmp_path):
    write_spine(tmp_path)
    (_, csv), (_, mat) = (spine.read(tmp_path, labels).pairs[0] for labels in ("csv", "mat"))
    found = [np.array(list(record_points(record).values())) for record in (csv, mat)]
    assert np.allclose(found[0], spine_points(), atol=1e-4) and np.allclose(found[1], spine_points())
    assert list(record_points(csv))[:5] == ["T1-TL", "T1-TR", "T1-BL", "T1-BR", "T2-TL"]
    assert csv["cobb_angles"] == [41.139, 14.63, 40.147]


@pytest.mark.parametrize("order", [(1, 0, 3, 2), (2, 3, 0, 1), (0, 1, 3, 2), (3, 2, 1, 0)])
def test_swapped_corners_are_put_in_order(order):
    points = spine_points()
    wrong = points.copy()
    wrong[20:24] = points[20:24][list(order)]
    found, notes = spine.order_points(wrong)
    assert np.array_equal(found, points) and len(notes) == 1 and mentions(notes[0], "T6", "corners")


def test_a_vertebra_at_the_wrong_end_of_the_list_is_put_where_it_lies():
    points = spine_points()
    found, notes = spine.order_points(np.roll(points, -4, axis=0))
    assert np.array_equal(found, points)
    assert len(notes) == 1 and mentions(notes[0], "vertebrae", "L5")


def test_a_spine_that_leaves_doubt_is_left_as_it_is():
    points = spine_points()
    points[64:68] = points[40:44] + 1  # L5 upon T11
    found, notes = spine.order_points(points)
    assert np.array_equal(found, points) and any("T11" in note for note in notes)


def test_a_spine_of_any_tilt_below_45_degrees_is_in_order():
    for degrees in range(-40, 41, 4):
        angle = np.radians(degrees)
        turned = (spine_points() - 200) @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        found, notes = spine.order_points(turned)
        assert np.array_equal(found, turned) and not notes


def test_a_point_outside_its_image_is_missing_and_named(tmp_path):
    points = spine_points()
    points[66] = (100, 415)
    reading = spine.read(write_spine(tmp_path, points))
    assert record_points(reading.pairs[0][1])["L5-BL"] is None
    assert any(mentions(note, "s 1.png", "L5-BL", "(100.0, 415.0)", "200 x 400") for note in reading.notes)


@pytest.mark.parametrize("head", ["file,scale", "image file,spacing(mm)", "image path,spacing(mm)"])
def test_cl_detection_csv_has_a_spacing_for_each_image(tmp_path, head):
    draw_images(tmp_path)
    records = [record for _, record in FORMATS["cl_csv"].read(write_cl_csv(tmp_path, head)).pairs]
    assert [record["spacing"] for record in records] == [0.1, 0.125]
    assert record_points(records[1]) == {"1": (5, 6), "2": (7, 8.5)}


def test_cl_detection_2023_is_read_from_its_stack_without_the_padding(tmp_path, run_program):
    write_cl2023(tmp_path)
    status, output = run_program(convert, "cl2023", tmp_path / "gt.json", tmp_path / "out")
    assert (
        status == 0
        and re.search(r"note: image 2: .*\b7\b", output)
        and mentions(output, "2 images", "no split 2", "38 landmarks", "1 point")
    )
    records = json.loads((tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8"))
    assert [(record["imagePath"], record["spacing"]) for record in records] == [("001.png", 0.1), ("002.png", 0.125)]
    assert record_points(records[0])["3"] == (1.5, 0.75)
    simpleitk = optional("SimpleITK")
    stack = simpleitk.GetArrayFromImage(simpleitk.ReadImage(str(tmp_path / "train_stack.mha")))
    for record, kept in zip(records, (stack[0, :30, :20], stack[1, :, :35]), strict=True):
        with Image.open(tmp_path / "out" / "imgs" / record["imagePath"]) as image:
            assert np.array_equal(np.asarray(image), kept)


def test_an_image_that_is_black_everywhere_keeps_its_size():
    assert without_padding(np.zeros((4, 5), np.uint8)).shape == (4, 5)


def test_aariz_has_two_readers_a_spacing_by_machine_and_a_split_by_folder(tmp_path):
    write_aariz(tmp_path)
    records = {record["imagePath"]: record for _, record in FORMATS["aariz"].read(tmp_path).pairs}
    kept = [(r["split"], r["spacing"], r["device"]) for r in records.values()]
    assert kept == [("train", 0.1, "M1"), ("test", 0.139, "M2")]
    assert record_points(records["x1.png"]) == {"A": (14.5, 10.0), "S": (20.0, 31.5)}
    assert records["x1.png"]["readers"] == {"junior": [[16, 10], [20, 33]], "senior": [[13, 10], [20, 30]]}
    (_, published), *_ = FORMATS["aariz"].read(tmp_path, reader="ceiling").pairs
    assert record_points(published) == {"A": (15, 10), "S": (20, 32)}
    assert published["points"][0]["pointName"] == "A-point"


def test_the_annotators_blanks_are_missing_points(tmp_path):
    draw_images(tmp_path)
    reading = FORMATS["suh"].read(write_suh(tmp_path))
    assert tables(reading) == {"a.png": {"1": (48, 40), "2": None}, "b (1).png": {"1": (1, 2), "2": (3, 4)}}
    assert len(reading.notes) == 1 and mentions(reading.notes[0], "a.png", "2")


def test_our_own_predictions_go_into_an_annotation_program(tmp_path):
    native = write_native(tmp_path)
    rows = "image,landmark,x,y,x_true,y_true,error_mm,score\na.png,S,1.5,2.5,1,2,0.07,0.9\na.png,N,3,4,,,,0.8\n"
    (tmp_path / "predictions.csv").write_text(rows)
    reading = FORMATS["native"].read(tmp_path / "predictions.csv", images=native / "imgs")
    assert tables(reading) == {"a.png": {"S": (1.5, 2.5), "N": (3, 4)}}


def test_a_dicom_image_is_windowed_and_monochrome1_is_turned(tmp_path):
    pixels = np.array([[0, 1000, 2000], [3000, 4000, 4095]])
    plain = dicom.read(write_dicom(tmp_path / "a.dcm", pixels, PixelSpacing=[0.1, 0.1]))
    assert plain.spacing == 0.1 and plain.notes == [] and plain.image.dtype == np.uint16
    assert np.abs(plain.image - pixels / 4095 * 65535).max() <= 0.5
    turned = dicom.read(write_dicom(tmp_path / "b.dcm", pixels, "MONOCHROME1", PixelSpacing=[0.1, 0.1]))
    assert np.abs(65535 - turned.image.astype(int) - plain.image).max() <= 1
    window = dict(WindowCenter=2000.5, WindowWidth=2001, PixelSpacing=[0.1, 0.1])
    shown = dicom.read(write_dicom(tmp_path / "c.dcm", pixels, **window)).image
    assert shown[0, 0] == shown[0, 1] == 0 and shown[1, 0] == shown[1, 2] == 65535 and 32000 < shown[0, 2] < 33500


def test_a_detectors_spacing_is_taken_with_a_note_on_magnification(tmp_path):
    pixels = np.arange(6).reshape(2, 3)
    read = dicom.read(write_dicom(tmp_path / "a.dcm", pixels, bits=16, ImagerPixelSpacing=[0.15, 0.15]))
    assert read.spacing == 0.15 and mentions(read.notes[0], "a.dcm", "ImagerPixelSpacing")
    none = dicom.read(write_dicom(tmp_path / "b.dcm", pixels, bits=16))
    assert none.spacing is None and not none.notes
    with refuses("c.dcm", "square"):
        dicom.read(write_dicom(tmp_path / "c.dcm", pixels, PixelSpacing=[0.1, 0.2]))
    (tmp_path / "d.dcm").write_bytes(b"no dicom")
    with refuses("d.dcm", "DICOM"):
        dicom.read(tmp_path / "d.dcm")


def test_points_in_mm_are_not_taken_for_px(tmp_path):
    source = write_isbi_csv(tmp_path)
    draw_images(tmp_path, ["017.png", "151.png"], (600, 500))
    with refuses("mm"):
        FORMATS["isbi_csv"].read(source)
