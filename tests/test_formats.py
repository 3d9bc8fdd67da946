"""Foreign files, drawn here in their layouts, to records of data.json and back."""

import json
import math
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import main
from config import Config, UserError, build_config, preset_settings
from formats import FORMATS, dicom, isbi2015, labelstudio, spine
from formats.cl2023 import without_padding
from formats.common import Images, image_size, record_points
from images import read_image
from splits import load_data
from tools import convert

SIZE = (60, 50)
NAMES = ("a.png", "b (1).png")
# a label with U+2019, one that differs from another by case, fractions that decimal text does not hold exactly
TRUTH = {
    "a.png": {"S": (10.25, 20.5), "N": (1 / 3, 48.9), "Pog’": (59.0, 0.0), "s": (7.0, 8.0)},
    "b (1).png": {"S": (0.1 + 0.2, 3.0), "N": None, "Pog’": (12.0, 13.5), "s": (30.0, 31.0)},
}
WRITABLE = [name for name, module in FORMATS.items() if hasattr(module, "write")]


def draw_images(folder: Path, names=NAMES, size=SIZE) -> Path:
    """Images of noise in a folder."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(generator.integers(1, 255, size[::-1], dtype=np.uint8)).save(folder / name)
    return folder


def write_native(folder: Path) -> Path:
    """TRUTH as a data.json with its images; landmark s is occluded in the first, b's points stand in another order."""
    draw_images(folder / "imgs")
    records = []
    for number, (name, points) in enumerate(TRUTH.items()):
        entries = [
            {"pointName": f"point {label}", "pointAbbreviation": label, "X": xy and xy[0], "Y": xy and xy[1]}
            | ({"occluded": True} if (label, number) == ("s", 0) else {})
            for label, xy in points.items()
        ]
        records.append({"imagePath": name, "spacing": 0.1, "points": entries[:: -1 if number else 1]})
    (folder / "json").mkdir()
    (folder / "json" / "data.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return folder


def tables(reading) -> dict[str, dict]:
    """The points of a Reading by image and label."""
    return {record["imagePath"]: record_points(record) for _, record in reading.pairs}


def run(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit status and output of tools.convert."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    status = convert.main()
    streams = capsys.readouterr()
    return status, streams.out + "\n".join(line for line in streams.err.splitlines() if line.startswith("error"))


# --- Files of one data set in each format -----------------------------------------------------------


def write_via(folder: Path) -> Path:
    content = {}
    for name, points in TRUTH.items():
        regions = [
            {"shape_attributes": {"name": "point", "cx": xy[0], "cy": xy[1]}, "region_attributes": {"name": label}}
            for label, xy in points.items()
            if xy
        ]
        content[f"{name}12345"] = {"filename": name, "size": 12345, "regions": regions, "file_attributes": {}}
    (folder / "via.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "via.json"


def write_slicer(folder: Path) -> Path:
    for number, (name, points) in enumerate(TRUTH.items()):
        stem = name.removesuffix(".png")
        if number == 0:
            rows = [
                f"{i},{xy[0]!r},{xy[1]!r},0,0,0,0,1,1,1,0,{label},," for i, (label, xy) in enumerate(points.items())
            ]
            head = ["# Markups fiducial file version = 4.11", "# CoordinateSystem = LPS"]
            columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
            (folder / f"{stem}.fcsv").write_text("\n".join([*head, columns, *rows]) + "\n", encoding="utf-8")
        else:
            controls = [
                {"label": label, "position": [-xy[0], -xy[1], 0.0], "positionStatus": "defined"}
                if xy
                else {"label": label, "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"}
                for label, xy in points.items()
            ]
            markup = {"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": controls}
            (folder / f"{stem}.mrk.json").write_text(json.dumps({"markups": [markup]}), encoding="utf-8")
    return folder


def write_suh(folder: Path) -> Path:
    head = "image_name,image_width,image_height,n_landmarks," + ",".join(
        f"landmark_{n}_{a}" for n in (1, 2) for a in "xy"
    )
    (folder / "suh.csv").write_text(f"{head}\na.png,60,50,2,48,40,51,\nb (1).png,60,50,2,1,2,3,4\n", encoding="utf-8")
    return folder / "suh.csv"


def write_cl_csv(folder: Path, head="image file,spacing(mm)") -> Path:
    points = ",".join(f"p{n}{a}" for n in (1, 2) for a in "xy")
    (folder / "cl.csv").write_text(f"{head},{points}\na.png,0.1,1,2,3,4\nb (1).png,0.125,5,6,7,8.5\n", encoding="utf-8")
    return folder / "cl.csv"


def write_isbi_csv(folder: Path) -> Path:
    draw_images(folder, ["017.png", "151.png"])
    rows = [
        f"{name}," + ",".join(str(value) for value in range(start, start + 38))
        for name, start in (("017.png", 1), ("151.png", 2))
    ]
    (folder / "isbi.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "isbi.csv"


def write_hand(folder: Path) -> Path:
    draw_images(folder / "images", ["3142.png", "3143.png", "3150.png"], (300, 300))
    rows = []
    for id_ in (3142, 3143, 3150, 3999):
        values = np.arange(74).reshape(37, 2) + 5
        values[4] = values[0] + (30, 40)
        rows.append(f"{id_}," + ",".join(map(str, values.flatten())))
    (folder / "all.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "cv" / "set1").mkdir(parents=True)
    (folder / "cv" / "set1" / "train.txt").write_text("3142\n")
    (folder / "cv" / "set1" / "test.txt").write_text("3143\n")
    return folder


def spine_points(size=(200, 400)) -> np.ndarray:
    """A spine (68, 2) px that leans a little to the right going down."""
    width, height = size
    corners = np.array([(-20, -7), (20, -5), (-20, 5), (20, 7)])
    return np.vstack([(width / 2 + 2 * v, 20 + 22 * v) + corners for v in range(17)]).astype(float)


def write_spine(folder: Path, points=None, size=(200, 400)) -> Path:
    scipy_io = pytest.importorskip("scipy.io")
    draw_images(folder / "data" / "training", ["s 1.png"], size)
    labels = folder / "labels" / "training"
    labels.mkdir(parents=True)
    points = spine_points(size) if points is None else points
    (labels / "filenames.csv").write_text("s 1.png\n")
    (labels / "landmarks.csv").write_text(",".join(f"{value:.8f}" for value in (points / size).T.flatten()) + "\n")
    (labels / "angles.csv").write_text("41.139,14.63,40.147\n")
    scipy_io.savemat(labels / "s 1.png.mat", {"p2": points})
    return folder


def write_aariz(folder: Path) -> Path:
    draw_images(folder / "train" / "Cephalograms", ["x1.png"])
    draw_images(folder / "test" / "Cephalograms", ["x2.png"])
    for split, id_ in (("train", "x1"), ("test", "x2")):
        for who, shift in (("Senior", 0), ("Junior", 3)):
            landmarks = [
                {"landmark_id": "lm-01", "title": "A-point", "symbol": "A", "value": {"x": 13 + shift, "y": 10}},
                {"landmark_id": "lm-02", "title": "Sella", "symbol": "S", "value": {"x": 20, "y": 30 + shift}},
            ]
            path = folder / split / "Annotations" / "Cephalometric Landmarks" / f"{who} Orthodontists" / f"{id_}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps({"ceph_id": id_, "landmarks": landmarks, "dataset_name": "Aariz"}), encoding="utf-8"
            )
    table = "cephalogram_id,mode,machine,pixel_size\nx1,train,M1,0.1\nx2,test,M2,0.139\n"
    (folder / "cephalogram_machine_mappings.csv").write_text(table)
    return folder


def write_isbi(folder: Path) -> Path:
    """Three images of the ISBI archive's layout, the junior reader 3 px to the lower right."""
    for number, name in ((1, "TrainingData"), (2, "TrainingData"), (151, "Test1Data")):
        draw_images(folder / "RawImage" / name, [f"{number:03d}.bmp"])
        for reader, points in ISBI_POINTS.items():
            (folder / "AnnotationsByMD" / reader).mkdir(parents=True, exist_ok=True)
            lines = [f"{x},{y}" for x, y in points] + ["1", "2", "1"]  # the clinical classes
            (folder / "AnnotationsByMD" / reader / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
    return folder


ISBI_POINTS = {"400_senior": np.arange(38).reshape(19, 2) + 1, "400_junior": np.arange(38).reshape(19, 2) + 4}


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_isbi(tmp_path)


# --- What annotation programs write -----------------------------------------------------------------


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_for_a_program_is_read_back_the_same(tmp_path, name):
    source = FORMATS["native"].read(write_native(tmp_path / "native"))
    FORMATS[name].write(source.pairs, tmp_path / "written")
    (path, *_) = files = sorted((tmp_path / "written").iterdir())
    back = FORMATS[name].read(path.parent if len(files) > 1 else path, images=tmp_path / "native" / "imgs")
    found = tables(back)
    assert found.keys() == TRUTH.keys()
    for image, points in TRUTH.items():
        assert found[image].keys() == points.keys()
        for label, xy in points.items():
            assert found[image][label] == (None if xy is None else pytest.approx(xy, abs=1e-6))
    assert [path.name for path, _ in back.pairs] == list(TRUTH)
    assert back.notes == ["b (1).png: missing N"]


@pytest.mark.parametrize("name", ["coco", "cvat"])
def test_what_is_hidden_stays_hidden(tmp_path, name):
    source = FORMATS["native"].read(write_native(tmp_path / "native"))
    FORMATS[name].write(source.pairs, tmp_path / "written")
    (path,) = (tmp_path / "written").iterdir()
    (_, record), *_ = FORMATS[name].read(path, images=tmp_path / "native" / "imgs").pairs
    assert [point["pointAbbreviation"] for point in record["points"] if point.get("occluded")] == ["s"]


@pytest.mark.parametrize(("name", "write"), [("via", write_via), ("slicer", write_slicer)])
def test_what_a_program_wrote_is_read(tmp_path, name, write):
    draw_images(tmp_path)
    found = tables(FORMATS[name].read(write(tmp_path)))
    for image, points in TRUTH.items():
        assert found[image] == {label: xy and pytest.approx(xy, abs=1e-9) for label, xy in points.items()}


def test_slicers_mm_become_px_by_spacing_and_origin(tmp_path):
    draw_images(tmp_path)
    reading = FORMATS["slicer"].read(write_slicer(tmp_path), mm_per_px=0.5, origin=(-5.0, 1.0))
    assert tables(reading)["a.png"]["S"] == pytest.approx(((10.25 + 5) / 0.5, (20.5 - 1) / 0.5))
    assert reading.pairs[0][1]["spacing"] == 0.5


def test_several_people_annotated_an_image_and_one_is_chosen(tmp_path):
    draw_images(tmp_path)
    results = [
        {"result": [{"original_width": 60, "original_height": 50, "image_rotation": 0, "type": "keypointlabels",
                     "value": {"x": x, "y": 50, "keypointlabels": ["S"]}}]}
        for x in (10, 20)
    ]  # fmt: skip
    tasks = [{"data": {"image": "/data/upload/1/0a1b2c3d-a.png"}, "annotations": results}]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(UserError, match=r"task 1 \(a.png\): has 2 annotations; choose one"):
        FORMATS["labelstudio"].read(tmp_path / "tasks.json")
    assert tables(FORMATS["labelstudio"].read(tmp_path / "tasks.json", annotation=2)) == {"a.png": {"S": (12.0, 25.0)}}
    results[0]["result"][0]["image_rotation"] = 90
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(UserError, match="the image was rotated by 90"):
        FORMATS["labelstudio"].read(tmp_path / "tasks.json", annotation=1)


def test_a_landmark_twice_or_unknown_or_on_an_image_of_another_size_is_refused(tmp_path):
    native = write_native(tmp_path / "native")
    FORMATS["labelme"].write(FORMATS["native"].read(native).pairs, tmp_path / "labelme")
    file = tmp_path / "labelme" / "a.json"
    content = json.loads(file.read_text(encoding="utf-8"))

    def refused(**changes) -> str:
        file.write_text(json.dumps(content | changes), encoding="utf-8")
        with pytest.raises(UserError) as error:
            FORMATS["labelme"].read(tmp_path / "labelme", images=native / "imgs", landmarks=("S", "N", "Pog’", "s"))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "annotated on 61 x 50 px" in refused(imageWidth=61)
    assert "the label 'S' stands twice" in refused(shapes=[*content["shapes"], content["shapes"][0]])
    assert "the label 'Q' is none of S, N" in refused(shapes=[content["shapes"][0] | {"label": "Q"}])
    assert "found nan" in refused(shapes=[content["shapes"][0] | {"points": [[math.nan, 1]]}])
    assert "expected 2 numbers, found 3" in refused(shapes=[content["shapes"][0] | {"points": [[1, 2, 3]]}])
    file.rename(tmp_path / "labelme" / "c.json")
    file = tmp_path / "labelme" / "c.json"
    assert "its image ../elsewhere/d.png is not in" in refused(imagePath="../elsewhere/d.png")


def test_an_xml_that_declares_entities_is_refused(tmp_path):
    draw_images(tmp_path)
    (tmp_path / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotations>&a;</annotations>')
    with pytest.raises(UserError, match="declares a document type or entities"):
        FORMATS["cvat"].read(tmp_path / "a.xml")


# --- Data sets --------------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match=r"002\.txt.*19 lines x,y in px"):
        isbi2015.read(archive)


def test_an_image_without_annotation_is_refused(archive):
    (archive / "AnnotationsByMD" / "400_senior" / "151.txt").unlink()
    with pytest.raises(UserError, match=r"151\.txt does not exist"):
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
    assert reading.notes == ["3150: in neither list of fold 1, so it trains", "3999: skipped, there is no image of it"]
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
    assert np.array_equal(found, points) and notes == ["the corners of T6 were swapped, put in order"]


def test_a_vertebra_at_the_wrong_end_of_the_list_is_put_where_it_lies():
    points = spine_points()
    found, notes = spine.order_points(np.roll(points, -4, axis=0))
    assert np.array_equal(found, points)
    assert notes == ["the vertebrae do not stand from top to bottom (e.g. L5), put in order"]


def test_a_spine_that_leaves_doubt_is_left_as_it_is():
    points = spine_points()
    points[64:68] = points[40:44] + 1  # L5 upon T11
    found, notes = spine.order_points(points)
    assert np.array_equal(found, points) and "T11 is not where or what a vertebra can be, left as it is" in notes
    assert notes[-1].endswith("left as they are")


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
    assert "s 1.png: L5-BL at (100.0, 415.0) is outside the image of 200 x 400 px: missing" in reading.notes


@pytest.mark.parametrize("head", ["file,scale", "image file,spacing(mm)", "image path,spacing(mm)"])
def test_cl_detection_csv_has_a_spacing_for_each_image(tmp_path, head):
    draw_images(tmp_path)
    records = [record for _, record in FORMATS["cl_csv"].read(write_cl_csv(tmp_path, head)).pairs]
    assert [record["spacing"] for record in records] == [0.1, 0.125]
    assert record_points(records[1]) == {"1": (5, 6), "2": (7, 8.5)}


def write_cl2023(folder: Path) -> Path:
    """Two images of 20 x 30 and 35 x 40 px in a stack of 50 x 40; landmark 7 of the second is missing."""
    generator = np.random.default_rng(0)
    stack = np.zeros((2, 40, 50), np.uint8)
    stack[0, :30, :20], stack[1, :40, :35] = generator.integers(1, 255, (30, 20)), generator.integers(1, 255, (40, 35))
    simpleitk = pytest.importorskip("SimpleITK")
    simpleitk.WriteImage(simpleitk.GetImageFromArray(stack), str(folder / "train_stack.mha"))
    points = [
        {"name": str(n), "point": [n / 2, n / 4, slice_], "scale": scale}
        for n in range(38, 0, -1)
        for slice_, scale in ((2, "0.125"), (1, "0.1"))
        if (n, slice_) != (7, 2)
    ]
    (folder / "gt.json").write_text(json.dumps({"name": "Orthodontic landmarks", "points": points}))
    return folder / "gt.json"


def test_cl_detection_2023_is_read_from_its_stack_without_the_padding(tmp_path, monkeypatch, capsys):
    write_cl2023(tmp_path)
    status, output = run(monkeypatch, capsys, "cl2023", tmp_path / "gt.json", tmp_path / "out")
    assert (
        status == 0
        and "note: image 2: missing 7" in output
        and "2 images (no split 2) of 38 landmarks, 1 points" in output
    )
    records = json.loads((tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8"))
    assert [(record["imagePath"], record["spacing"]) for record in records] == [("001.png", 0.1), ("002.png", 0.125)]
    assert record_points(records[0])["3"] == (1.5, 0.75)
    simpleitk = pytest.importorskip("SimpleITK")
    stack = simpleitk.GetArrayFromImage(simpleitk.ReadImage(str(tmp_path / "train_stack.mha")))
    for record, kept in zip(records, (stack[0, :30, :20], stack[1, :, :35]), strict=True):
        with Image.open(tmp_path / "out" / "imgs" / record["imagePath"]) as image:
            assert np.array_equal(np.asarray(image), kept)


def test_an_image_that_is_black_everywhere_keeps_its_size():
    assert without_padding(np.zeros((4, 5), np.uint8)).shape == (4, 5)


def test_aariz_has_two_readers_a_spacing_by_machine_and_a_split_by_folder(tmp_path):
    write_aariz(tmp_path)
    records = {record["imagePath"]: record for _, record in FORMATS["aariz"].read(tmp_path).pairs}
    assert [(r["split"], r["spacing"]) for r in records.values()] == [("train", 0.1), ("test", 0.139)]
    assert record_points(records["x1.png"]) == {"A": (14.5, 10.0), "S": (20.0, 31.5)}
    assert records["x1.png"]["readers"] == {"junior": [[16, 10], [20, 33]], "senior": [[13, 10], [20, 30]]}
    (_, published), *_ = FORMATS["aariz"].read(tmp_path, reader="ceiling").pairs
    assert record_points(published) == {"A": (15, 10), "S": (20, 32)}
    assert published["points"][0]["pointName"] == "A-point"


def test_the_annotators_blanks_are_missing_points(tmp_path):
    draw_images(tmp_path)
    reading = FORMATS["suh"].read(write_suh(tmp_path))
    assert tables(reading) == {"a.png": {"1": (48, 40), "2": None}, "b (1).png": {"1": (1, 2), "2": (3, 4)}}
    assert reading.notes == ["a.png: missing 2"]


def test_our_own_predictions_go_into_an_annotation_program(tmp_path):
    native = write_native(tmp_path)
    rows = "image,landmark,x,y,x_true,y_true,error_mm,score\na.png,S,1.5,2.5,1,2,0.07,0.9\na.png,N,3,4,,,,0.8\n"
    (tmp_path / "predictions.csv").write_text(rows)
    reading = FORMATS["native"].read(tmp_path / "predictions.csv", images=native / "imgs")
    assert tables(reading) == {"a.png": {"S": (1.5, 2.5), "N": (3, 4)}}


# --- DICOM ------------------------------------------------------------------------------------------


def write_dicom(file: Path, pixels: np.ndarray, photometric="MONOCHROME2", bits=12, **tags) -> Path:
    """A small DICOM file of pixels (h, w), with some patient's name."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientName, data.PhotometricInterpretation, data.SamplesPerPixel = "Secret^Name", photometric, 1
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, bits, bits - 1, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(file, enforce_file_format=True)
    return file


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
    assert read.spacing == 0.15 and "magnified" in read.notes[0]
    none = dicom.read(write_dicom(tmp_path / "b.dcm", pixels, bits=16))
    assert none.spacing is None and none.notes == ["b.dcm: no PixelSpacing"]
    with pytest.raises(UserError, match="pixels that are not square"):
        dicom.read(write_dicom(tmp_path / "c.dcm", pixels, PixelSpacing=[0.1, 0.2]))
    (tmp_path / "d.dcm").write_bytes(b"no dicom")
    with pytest.raises(UserError, match=r"d\.dcm cannot be read as a DICOM image"):
        dicom.read(tmp_path / "d.dcm")


def test_dicom_images_become_png_with_their_spacing_and_without_the_patient(tmp_path, monkeypatch, capsys):
    (tmp_path / "imgs").mkdir()
    write_dicom(
        tmp_path / "imgs" / "a.dcm", np.random.default_rng(0).integers(0, 4096, (50, 60)), ImagerPixelSpacing=[0.2, 0.2]
    )
    (tmp_path / "predictions.csv").write_text("image,landmark,x,y\na.dcm,S,1.5,2.5\n")
    words = ("native", tmp_path / "predictions.csv", tmp_path / "out", "--images", tmp_path / "imgs")
    status, output = run(monkeypatch, capsys, *words)
    assert status == 0 and "ImagerPixelSpacing" in output
    text = (tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8")
    (record,) = json.loads(text)
    assert record["imagePath"] == "a.png" and record["spacing"] == 0.2
    assert not any(b"Secret" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    with Image.open(tmp_path / "out" / "imgs" / "a.png") as image:
        assert image.size == (60, 50) and image.mode.startswith("I")


# --- The command ------------------------------------------------------------------------------------


def test_a_converted_archive_is_read_by_the_preset(archive, tmp_path_factory, monkeypatch, capsys):
    out = tmp_path_factory.mktemp("converted") / "isbi"
    status, output = run(monkeypatch, capsys, "isbi2015", archive, out)
    assert status == 0 and "3 images (train 2, test1 1) of 19 landmarks, 0 points missing" in output
    assert f"train with: python main.py --preset isbi2015 --img_dir {out / 'imgs'}" in output
    places = dict(img_dir=str(out / "imgs"), json_path=str(out / "json" / "data.json"))
    data = load_data(build_config(Config, preset_settings(Config, ["isbi2015"]) | places))
    assert data.splits == {"train": (0, 1), "test1": (2,)} and data.unit == "mm"
    assert data.abbreviations[:3] == ("S", "N", "Or") and data.abbreviations[15] == "Pog’"
    assert np.array_equal(data.records[0].landmarks, ISBI_POINTS["400_senior"] + 1.5)


def test_linked_images_are_those_of_the_source(archive, tmp_path_factory, monkeypatch, capsys):
    out = tmp_path_factory.mktemp("linked") / "isbi"
    assert run(monkeypatch, capsys, "isbi2015", archive, out, "--link")[0] == 0
    assert (out / "imgs" / "001.bmp").resolve() == archive / "RawImage" / "TrainingData" / "001.bmp"


def test_a_data_set_that_exists_is_never_written_over(archive, monkeypatch, capsys):
    (archive / "out" / "json").mkdir(parents=True)
    (archive / "out" / "json" / "data.json").write_text("precious")
    status, output = run(monkeypatch, capsys, "isbi2015", archive, archive / "out")
    assert status == 2 and "holds a data set already" in output
    assert (archive / "out" / "json" / "data.json").read_text() == "precious"


def test_a_point_outside_its_image_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    native = write_native(tmp_path / "native")
    text = (native / "json" / "data.json").read_text(encoding="utf-8").replace("10.25", "60.25")
    (native / "json" / "data.json").write_text(text, encoding="utf-8")
    status, output = run(monkeypatch, capsys, "native", native, tmp_path / "out")
    assert status == 2 and "image a.png: point 'S' at (60.25, 20.5) lies outside its 60 x 50 px" in output
    assert not list((tmp_path / "out").iterdir())


def test_folders_and_files_that_are_not_there_are_named(tmp_path, monkeypatch, capsys):
    assert "RawImage is not a folder" in run(monkeypatch, capsys, "isbi2015", tmp_path, tmp_path / "out")[1]
    (tmp_path / "RawImage").mkdir()
    assert "holds no images" in run(monkeypatch, capsys, "isbi2015", tmp_path, tmp_path / "out")[1]
    status, output = run(monkeypatch, capsys, "coco", tmp_path / "none.json", tmp_path / "out")
    assert status == 2 and "none.json does not exist" in output


def test_the_list_has_every_format_with_a_line_of_its_own(monkeypatch, capsys):
    status, output = run(monkeypatch, capsys, "--list")
    assert status == 0 and [line.split()[0] for line in output.splitlines()] == list(FORMATS)
    assert all(
        f"({'read, write' if name in WRITABLE else 'read'})" in line
        for name, line in zip(FORMATS, output.splitlines(), strict=True)
    )


def test_a_data_set_is_written_for_a_program_by_the_command(tmp_path, monkeypatch, capsys):
    native = write_native(tmp_path / "native")
    status, output = run(monkeypatch, capsys, "native", native, tmp_path / "cvat", "--to", "cvat")
    assert status == 0 and (tmp_path / "cvat" / "annotations.xml").exists()
    status, output = run(monkeypatch, capsys, "cvat", tmp_path / "cvat" / "annotations.xml", tmp_path / "out",
                         "--images", native / "imgs", "--landmarks", "S, N, Pog’, s")  # fmt: skip
    assert (
        status == 0
        and "note: b (1).png: missing N" in output
        and "2 images (no split 2) of 4 landmarks, 1 points" in output
    )
    assert run(monkeypatch, capsys, "native", native, tmp_path / "cvat", "--to", "coco")[0] == 2  # not empty


@pytest.mark.parametrize("name", ["../../escaped/a.png", "/elsewhere/a.png", "sub/a.png"])
def test_nothing_is_written_outside_the_destination(tmp_path, monkeypatch, capsys, name):
    native = write_native(tmp_path / "native")
    file = native / "json" / "data.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"a.png"', json.dumps(name)), encoding="utf-8")
    assert run(monkeypatch, capsys, "native", native, tmp_path / "out" / "here")[0] == 0
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"here/imgs/a.png", "here/imgs/b (1).png", "here/json/data.json"}


def test_two_images_that_would_have_one_name_are_refused_and_the_source_stays(tmp_path, monkeypatch, capsys):
    folder = draw_images(tmp_path / "imgs", ["a.png"])
    write_dicom(folder / "a.dcm", np.zeros((50, 60)))
    before = (folder / "a.png").read_bytes()
    (tmp_path / "p.csv").write_text("image,landmark,x,y\na.png,S,1.5,2.5\na.dcm,S,1.5,2.5\n")
    words = ("native", tmp_path / "p.csv", tmp_path / "out", "--images", folder, "--link")
    status, output = run(monkeypatch, capsys, *words)
    assert status == 2 and "two images would be called a.png" in output and (folder / "a.png").read_bytes() == before


def test_an_image_that_is_turned_by_its_exif_has_the_size_that_is_seen(tmp_path):
    image = Image.fromarray(np.zeros((50, 60), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (50, 60)
    assert read_image(tmp_path / "a.jpg").shape[:2] == (60, 50)


def test_folders_that_both_know_must_agree(tmp_path):
    for patient in ("patient1", "patient2"):
        draw_images(tmp_path / patient, ["lateral.png"])
    images = Images(tmp_path)
    assert images.find("patient2/lateral.png") == tmp_path / "patient2" / "lateral.png"
    assert images.find("/data/upload/patient1/lateral") == tmp_path / "patient1" / "lateral.png"
    assert images.find("patient3/lateral.png") is None
    with pytest.raises(UserError, match="both answer to lateral.png"):
        images.find("lateral.png")
    (tmp_path / "patient2" / "lateral.png").unlink()
    assert Images(tmp_path).find("patient2/lateral.png") is None


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"patient": "b (1)", "image": "/data/local-files/?d=imgs/a.png"}, "a.png"),
        ({"picture": "https://host/x/b%20%281%29.png?token=5"}, "b (1).png"),
        ({"image": "/data/upload/3/0a1b2c3d-a.png"}, "a.png"),
        ({"image": "case7-a.png"}, "case7-a.png"),
    ],
)
def test_label_studios_addresses_become_names(tmp_path, data, found):
    draw_images(tmp_path)
    assert labelstudio.find_name(data, Images(tmp_path), "task 1") == found


def test_points_in_mm_are_not_taken_for_px(tmp_path):
    source = write_isbi_csv(tmp_path)
    draw_images(tmp_path, ["017.png", "151.png"], (600, 500))
    with pytest.raises(UserError, match="are they mm, ten times too small"):
        FORMATS["isbi_csv"].read(source)


def test_slicer_would_take_dots_per_inch_for_a_spacing_so_they_are_asked_for(tmp_path):
    draw_images(tmp_path, ["a.jpg", "b (1).png"])
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.jpg", dpi=(72, 72))
    with pytest.raises(UserError, match="72 dots per inch, which Slicer takes for 0.352778 mm per px"):
        FORMATS["slicer"].read(write_slicer(tmp_path))


def test_a_skeletons_points_are_read_and_those_outside_are_missing(tmp_path):
    draw_images(tmp_path)
    text = """<annotations><image id="0" name="a.png" width="60" height="50"><skeleton label="head">
    <points label="S" points="1.5,2.5" outside="0"/><points label="N" points="3,4" outside="1"/></skeleton></image>
    <image id="1" name="b (1).png" width="60" height="50"><points label="N" points="5,6"/></image></annotations>"""
    (tmp_path / "a.xml").write_text(text)
    found = tables(FORMATS["cvat"].read(tmp_path / "a.xml"))
    assert found == {"a.png": {"S": (1.5, 2.5), "N": None}, "b (1).png": {"S": None, "N": (5, 6)}}


def test_a_point_at_the_origin_is_refused(tmp_path):
    draw_images(tmp_path)
    (tmp_path / "cl.csv").write_text("file,scale,p1x,p1y\na.png,0.1,0,0\n")
    with pytest.raises(UserError, match=r"image a.png: '1' lies at \(0, 0\); if it is missing, leave it out"):
        FORMATS["cl_csv"].read(tmp_path / "cl.csv")


def test_half_a_px_lies_between_a_programs_corner_and_our_centre(tmp_path, monkeypatch, capsys):
    native = write_native(tmp_path / "native")
    assert run(monkeypatch, capsys, "native", native, tmp_path / "coco", "--to", "coco", "--corner")[0] == 0
    written = tmp_path / "coco" / "annotations.json"
    assert tables(FORMATS["coco"].read(written, images=native / "imgs"))["a.png"]["S"] == (10.75, 21.0)
    words = ("coco", written, tmp_path / "back", "--images", native / "imgs", "--corner")
    assert run(monkeypatch, capsys, *words)[0] == 0
    (record, _) = json.loads((tmp_path / "back" / "json" / "data.json").read_text(encoding="utf-8"))
    assert record_points(record)["S"] == (10.25, 20.5)


def test_images_without_annotation_are_named(tmp_path):
    draw_images(tmp_path, [*NAMES, "c.png"])
    assert FORMATS["suh"].read(write_suh(tmp_path)).notes[-1] == "1 images without annotation: c.png"


# --- Corrupted files --------------------------------------------------------------------------------

SOURCES = {  # format: how its files are made, and which of them are corrupted
    "labelme": None, "coco": None, "cvat": None, "labelstudio": None, "native": None, "via": write_via,
    "slicer": write_slicer, "suh": write_suh, "cl_csv": write_cl_csv, "isbi_csv": write_isbi_csv, "hand": write_hand,
    "spine": write_spine, "aariz": write_aariz, "isbi2015": write_isbi, "cl2023": write_cl2023,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """For each format a folder and what of it is read."""
    made = {}
    for name, write in SOURCES.items():
        folder = tmp_path_factory.mktemp(name)
        if write is not None:
            draw_images(folder)
            made[name] = (folder, write(folder))
        elif name == "native":
            write_native(folder / "set")
            made[name] = (folder, folder / "set" / "json" / "data.json")
        else:
            pairs = FORMATS["native"].read(write_native(folder / "set")).pairs
            FORMATS[name].write(pairs, folder / "set" / "imgs")
            files = [p for p in sorted((folder / "set" / "imgs").iterdir()) if p.suffix != ".png"]
            made[name] = (folder, files[0] if len(files) == 1 else files[0].parent)
    return made


def texts(source: Path) -> list[Path]:
    """The annotation files of a source."""
    endings = (".json", ".csv", ".txt", ".xml", ".fcsv")
    return [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.suffix in endings)


WEIRD = [None, True, "", "12", "x", -1, 1e999, [], [1], {}, {"a": 1}, "../../x.png", "/x/y.png"]


def change_value(content, choose, value):
    """Put a value somewhere into what a JSON file holds."""
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = choose(keys)
        deeper = place[key]
        if not isinstance(deeper, dict | list) or not deeper or choose([True, False, False]):
            place[key] = value
            return
        place = deeper


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_corrupted_file_ends_in_one_line_or_is_read_right(sources, name, data):
    _, source = sources[name]
    file = data.draw(st.sampled_from(texts(source)))
    whole = file.read_bytes()
    true = {point for points in tables(FORMATS[name].read(source)).values() for point in points.items()}
    kinds = ["cut", "lines", "bytes", "tokens"] + (["values"] * 3 if file.suffix == ".json" else [])
    kind = data.draw(st.sampled_from(kinds))
    start = data.draw(st.integers(0, len(whole)))
    if kind == "cut":
        broken = whole[:start]
    elif kind == "lines":
        lines = whole.splitlines(keepends=True)
        place, times = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.sampled_from([0, 2]))
        broken = b"".join(lines[:place] + lines[place : place + 1] * times + lines[place + 1 :])
    elif kind == "bytes":
        broken = whole[:start] + data.draw(st.binary(max_size=4)) + whole[start + data.draw(st.integers(0, 6)) :]
    elif kind == "values":
        content = json.loads(whole)
        change_value(content, lambda options: data.draw(st.sampled_from(options)), data.draw(st.sampled_from(WEIRD)))
        broken = json.dumps(content).encode()
    else:
        old = data.draw(st.sampled_from([b"[", b"]", b'"', b",", b"{", b":", b"1", b".", b"points", b"label", b"null"]))
        new = data.draw(st.sampled_from([b"", b"null", b"[]", b"{}", b"-", b"nan", b"1e999", b'"x"', b"true"]))
        broken = whole.replace(old, new, data.draw(st.integers(1, 3)))
    to = data.draw(st.sampled_from([None, None, *WRITABLE]))
    try:
        file.write_bytes(broken)
        with tempfile.TemporaryDirectory() as folder:
            destination = Path(folder) / "a" / "b"
            words = [name, str(source), str(destination), "--link", *(["--to", to] if to else [])]
            try:
                convert.convert(convert.make_parser().parse_args(words))
            except UserError as error:
                assert "\n" not in str(error)
                assert not destination.exists() or not any(destination.iterdir())
                return
            assert {path.relative_to(folder).parts[:2] for path in Path(folder).rglob("*") if path.is_file()} == {
                ("a", "b")
            }
        found = {point for points in tables(FORMATS[name].read(source)).values() for point in points.items()}
        for _, point in found:
            assert point is None or all(isinstance(v, int | float) and math.isfinite(v) for v in point)
        if kind == "lines" and name not in ("isbi2015", "spine", "hand"):  # a row or point less, or refused; none moved
            assert {p for p in found if p[1] is not None} <= true
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("name", SOURCES)
def test_the_command_that_convert_prints_last_loads_what_it_wrote(sources, name, tmp_path, monkeypatch, capsys):
    status, output = run(monkeypatch, capsys, name, sources[name][1], tmp_path / "out it")
    assert status == 0
    words = shlex.split(output.splitlines()[-1].removeprefix("train with: "))
    assert words[:2] == ["python", "main.py"]
    config = main.resolve_config(*main.parse_arguments(words[2:]))
    data = load_data(config.replace(split="same") if len(convert_splits(tmp_path)) < 2 else config)
    assert len(data.abbreviations) == config.num_landmarks and len(data.records) == len(
        list((tmp_path / "out it" / "imgs").iterdir())
    )


def convert_splits(folder: Path) -> set:
    """The splits that a converted set names."""
    records = json.loads((folder / "out it" / "json" / "data.json").read_text(encoding="utf-8"))
    return {record.get("split") for record in records}


def test_the_corruption_test_knows_every_format():
    assert set(FORMATS) == set(SOURCES)
