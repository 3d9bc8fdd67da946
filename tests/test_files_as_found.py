"""Images of patients' folders, paths of Windows, and the odd entries of real annotation files."""

import base64
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import mentions, refuses
from foreign_files import WRITABLE, draw_images, tables, write_dicom, write_native
from PIL import Image

from reading.annotation import read_annotation, read_images
from reading.paths import find_file, visible_files
from tools import convert, inspect_data
from tools.formats import FORMATS, native

PATIENTS = {"P01/lateral.png": 11.0, "P02/lateral.png": 12.0}  # x of S
POINT = {"S": (11.0, 20.0)}


def write_patients(folder: Path) -> Path:
    """A native data set of a folder per patient, with one file name."""
    points = {"pointName": "S", "pointAbbreviation": "S", "Y": 20.0}
    for name in PATIENTS:
        draw_images(folder / "imgs" / name.split("/")[0], ["lateral.png"])
    (folder / "json").mkdir()
    records = [{"imagePath": name, "points": [points | {"X": x}]} for name, x in PATIENTS.items()]
    (folder / "json" / "data.json").write_text(json.dumps(records))
    return folder


def write_json(file: Path, content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def labelme(file: Path, image: str, label="S", x=11.0, **keys) -> Path:
    """A LabelMe file with a point."""
    shapes = [{"label": label, "points": [[x, 20.0]], "shape_type": "point"}]
    content = {"shapes": shapes, "imagePath": image, "imageData": None, "imageHeight": 50, "imageWidth": 60}
    return write_json(file, content | keys)


def results(*labels, **keys) -> list[dict]:
    """Points of Label Studio."""
    common = {
        "original_width": 60,
        "original_height": 50,
        "image_rotation": 0,
        "type": "keypointlabels",
        "to_name": "i",
    }
    return [common | {"value": {"x": 10, "y": 50, "keypointlabels": [label]}} | keys for label in labels]


# --- Paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITABLE)
def test_patients_folders_with_one_file_name_are_written_and_read_back(tmp_path, name):
    source = FORMATS["native"].read(write_patients(tmp_path / "set"))
    FORMATS[name].write(source.pairs, tmp_path / "out")
    (only, *more) = sorted((tmp_path / "out").iterdir())
    back = FORMATS[name].read(only.parent if more else only, images=tmp_path / "set" / "imgs")
    assert {image: points["S"] for image, points in tables(back).items()} == {
        image: pytest.approx((x, 20)) for image, x in PATIENTS.items()
    }


@pytest.mark.parametrize("name", WRITABLE)
def test_the_image_of_one_patient_is_never_taken_for_anothers(tmp_path, name):
    source = FORMATS["native"].read(write_patients(tmp_path / "set"))
    FORMATS[name].write(source.pairs, tmp_path / "out")
    images = tmp_path / "set" / "imgs"
    (images / "P01" / "lateral.png").rename(images / "lateral.png")
    (only, *more) = sorted((tmp_path / "out").iterdir())
    with refuses("P01"):
        FORMATS[name].read(only.parent if more else only, images=images)


@pytest.mark.parametrize("name", ["csv", "via", "slicer"])
def test_patients_folders_are_read_from_every_format(tmp_path, name):
    folder = write_patients(tmp_path)
    for image, x in PATIENTS.items():
        markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [{"label": "S", "position": [x, 20]}]}
        write_json((tmp_path / "imgs" / image).with_suffix(".mrk.json"), {"markups": [markup]})
    (tmp_path / "cl.csv").write_text("file,scale,p1x,p1y\n" + "".join(f"{i},0.1,{x},20\n" for i, x in PATIENTS.items()))
    entries = {
        image: {
            "filename": image.replace("/", "\\").upper(),
            "regions": [{"shape_attributes": {"name": "point", "cx": x, "cy": 20}, "region_attributes": {"n": "S"}}],
        }
        for image, x in PATIENTS.items()
    }
    source = {"csv": tmp_path / "cl.csv", "via": write_json(tmp_path / "via.json", entries), "slicer": folder / "imgs"}
    read = FORMATS["cl_csv" if name == "csv" else name].read
    found = tables(read(source[name], images=None if name == "slicer" else folder / "imgs"))
    assert {image: next(iter(points.values()))[0] for image, points in found.items()} == PATIENTS


def test_patients_folders_are_kept_by_the_command_and_read_by_main(tmp_path, run_program):
    assert run_program(convert, "native", write_patients(tmp_path / "set"), tmp_path / "out")[0] == 0
    names, _, records = read_annotation(tmp_path / "out" / "json" / "data.json", tmp_path / "out" / "imgs")
    records = read_images("data.json", tmp_path / "out" / "imgs", names, records)
    assert {record.name: record.landmarks[0, 0] for record in records} == PATIENTS


def test_a_path_of_windows_is_found_in_upper_or_lower_case(tmp_path):
    draw_images(tmp_path / "imgs" / "P01", ["lateral.png"])
    file = tmp_path / "imgs" / "P01" / "lateral.png"
    assert find_file(tmp_path / "imgs", "p01\\LATERAL.PNG") == file
    assert find_file(tmp_path / "imgs" / "P01", "..\\P01\\.\\lateral.png").samefile(file)
    assert find_file(tmp_path / "imgs", "lateral.png") is None
    names, _, records = read_annotation(
        write_json(
            tmp_path / "data.json",
            [{"imagePath": "P01\\Lateral.png", "points": [{"pointAbbreviation": "S", "X": 1, "Y": 2}]}],
        ),
        tmp_path / "imgs",
    )
    assert read_images("data.json", tmp_path / "imgs", names, records)[0].path == file


def test_of_two_files_that_differ_in_case_only_the_very_name_is_taken(tmp_path):
    draw_images(tmp_path, ["a.png", "A.png"])
    assert find_file(tmp_path, "A.png") == tmp_path / "A.png"
    assert find_file(tmp_path, "a.PNG") is None


def test_hidden_files_and_those_that_systems_leave_are_left_out(tmp_path):
    for folder in ("", "__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        draw_images(tmp_path / folder, ["a.png", "._a.png"])
    assert visible_files(tmp_path) == [tmp_path / "a.png"]


# --- LabelMe -------------------------------------------------------------------------------------


def test_labelmes_image_path_is_relative_to_its_file(tmp_path):
    for patient, x in (("P01", 11.0), ("P02", 12.0)):
        draw_images(tmp_path / "imgs" / patient, ["lateral.png"])
        labelme(tmp_path / "ann" / patient / "a.json", f"..\\..\\imgs\\{patient}\\lateral.png", x=x)
    expected = {"P01/lateral.png": {"S": (11.0, 20.0)}, "P02/lateral.png": {"S": (12.0, 20.0)}}
    found = tables(FORMATS["labelme"].read(tmp_path / "ann"))
    assert {name.removeprefix("imgs/"): points for name, points in found.items()} == expected
    assert tables(FORMATS["labelme"].read(tmp_path / "ann", images=tmp_path / "imgs")) == expected


def test_a_labelme_file_whose_image_is_lost_does_not_get_another_patients(tmp_path):
    draw_images(tmp_path / "P02", ["lateral.png"])
    labelme(tmp_path / "P01" / "lateral.json", "lateral.png")
    for images in (None, tmp_path):
        with refuses("P01", "lateral.png", "--images"):
            FORMATS["labelme"].read(tmp_path, images=images)


def test_what_is_written_for_labelme_leads_to_the_images(tmp_path):
    source = FORMATS["native"].read(write_patients(tmp_path / "set"))
    FORMATS["labelme"].write(source.pairs, tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.json"):
        assert (file.parent / json.loads(file.read_text())["imagePath"]).is_file()
    assert [points["S"][0] for points in tables(FORMATS["labelme"].read(tmp_path / "out")).values()] == [11, 12]


@pytest.mark.parametrize("apart", [False, True])
def test_a_stale_image_path_yields_to_the_image_called_like_the_file(tmp_path, apart):
    images = draw_images(tmp_path / "imgs" if apart else tmp_path / "ann", ["001.tif"])
    labelme(tmp_path / "ann" / "001.json", "1.tif")
    reading = FORMATS["labelme"].read(tmp_path / "ann", images=images if apart else None)
    assert tables(reading) == {"001.tif": POINT} and mentions(reading.notes[0], "001.json", "1.tif", "001.tif")


def test_a_picture_that_only_labelmes_file_holds_is_written_out(tmp_path, run_program):
    draw_images(tmp_path / "a", ["a.png"])
    data = base64.b64encode((tmp_path / "a" / "a.png").read_bytes()).decode()
    labelme(tmp_path / "b" / "a.json", "C:\\x\\a.jpg", imageData=data)
    status, output = run_program(convert, "labelme", tmp_path / "b", tmp_path / "out")
    assert status == 0 and mentions(output, "note: a.json", "imageData")
    with Image.open(tmp_path / "out" / "imgs" / "a.png") as found, Image.open(tmp_path / "a" / "a.png") as true:
        assert np.array_equal(found, true)
    labelme(tmp_path / "b" / "a.json", "a.jpg", imageData=data, imageWidth=61)
    with refuses("a.json", "61"):
        FORMATS["labelme"].read(tmp_path / "b")
    labelme(tmp_path / "b" / "a.json", "a.jpg", imageData="AAAA")
    with refuses("a.json", "imageData"):
        FORMATS["labelme"].read(tmp_path / "b")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_deep_picture_inside_a_labelme_file_keeps_its_greys(tmp_path, channels):
    film = np.arange(3000, dtype=np.uint16).reshape(50, 60)
    done, png = cv2.imencode(".png", film if channels == 1 else np.dstack([film] * 3))
    labelme(tmp_path / "a.json", "lost.png", imageData=base64.b64encode(png.tobytes()).decode())
    ((picture, _),) = FORMATS["labelme"].read(tmp_path).pairs
    assert done and picture().dtype == np.uint16
    assert np.abs(picture() - film * (65535 / 2999)).max() <= 1


def test_odd_entries_of_labelme_are_skipped_and_named(tmp_path):
    draw_images(tmp_path, ["a.png"])
    shapes = [
        {"label": "S", "points": [[11.0, 20.0]], "shape_type": "point"},
        {"label": "", "points": [[1.0, 2.0]], "shape_type": "point"},
        {"points": [[1.0, 2.0], [3.0, 4.0]], "shape_type": "rectangle"},
    ]
    labelme(tmp_path / "a.json", "a.png", shapes=shapes)
    labelme(tmp_path / "b.json", "b.png", shapes=[])
    (tmp_path / "._a.json").write_bytes(b"\x00\x05\x16\x07\xff")
    reading = FORMATS["labelme"].read(tmp_path)
    assert tables(reading) == {"a.png": POINT}
    assert mentions(" ".join(reading.notes), "a.json: skipped shape 2", "a rectangle", "b.json: skipped")


@pytest.mark.parametrize(("rare", "common"), [("n", "N"), ("Pog'", "Pog’"), ("Stm-S", "Stms")])
def test_a_rare_spelling_of_a_label_is_noted_with_the_common_one(tmp_path, rare, common):
    draw_images(tmp_path, ["a.png", "b.png", "c.png"])
    for name in "abc":
        labelme(tmp_path / f"{name}.json", f"{name}.png", rare if name == "c" else common)
    (note, *_) = FORMATS["labelme"].read(tmp_path).notes
    assert mentions(note, repr(rare), "c.png", repr(common))


# --- Label Studio, COCO, VIA, CVAT ---------------------------------------------------------------


def test_odd_results_of_label_studio_are_skipped_and_named(tmp_path):
    draw_images(tmp_path, ["a.png", "b.png"])
    odd = [
        {"type": "relation", "from_id": "1", "to_id": "2", "direction": "right"},
        *results("N", value={"keypointlabels": ["N"]}),
        *results("N", value={"x": 1, "y": 2, "keypointlabels": []}),
    ]
    cancelled = {"was_cancelled": True, "result": results("N")}
    tasks = [
        {"data": {"image": "a.png"}, "annotations": [cancelled, {"result": results("S") + odd}]},
        {"data": {"image": "lost.png"}, "annotations": [cancelled]},
    ]
    reading = FORMATS["labelstudio"].read(write_json(tmp_path / "t.json", tasks))
    assert tables(reading) == {"a.png": {"S": (6.0, 25.0)}}
    assert mentions(" ".join(reading.notes), "task 1 (a.png): skipped a relation", "result 3", "result 4", "task 2")
    tasks[0]["annotations"][1]["result"][0]["value"]["x"] = "left"
    with refuses("task 1", "a.png", "left"):
        FORMATS["labelstudio"].read(write_json(tmp_path / "t.json", tasks))


def test_an_annotator_is_chosen_by_name(tmp_path):
    draw_images(tmp_path, ["a.png", "b.png"])
    ann = {"id": 7, "email": "ann@x.org", "first_name": "Ann", "last_name": "Lee"}
    two = [{"completed_by": ann, "result": results("S")}, {"completed_by": 8, "result": results("N")}]
    tasks = [{"data": {"image": "a.png"}, "annotations": two}, {"data": {"image": "b.png"}, "annotations": two[1:]}]
    file = write_json(tmp_path / "t.json", tasks)
    for name in ("7", "Ann Lee", "ANN@x.org"):
        reading = FORMATS["labelstudio"].read(file, annotator=name)
        assert tables(reading) == {"a.png": {"S": (6.0, 25.0)}} and mentions(reading.notes[0], "b.png", name)
    assert len(FORMATS["labelstudio"].read(file, annotator="8").pairs) == 2
    with refuses("Bob", "ann lee", "8"):
        FORMATS["labelstudio"].read(file, annotator="Bob")


def coco(file: Path, images=("a.png",), empty=()) -> Path:
    """A COCO file with a point S in each image, only a box in those of `empty`."""
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "keypoints": [] if name in empty else [11.0, 20.0, 2]}
        for n, name in enumerate(images)
    ]
    described = [{"id": n, "file_name": name, "width": 60, "height": 50} for n, name in enumerate(images)]
    categories = [{"id": 1, "name": "c", "keypoints": ["S"]}]
    return write_json(file, {"images": described, "annotations": annotations, "categories": categories})


def test_an_image_of_coco_with_only_a_box_is_skipped(tmp_path):
    draw_images(tmp_path, ["a.png", "b.png"])
    reading = FORMATS["coco"].read(coco(tmp_path / "c.json", ("a.png", "b.png"), empty=("b.png",)))
    assert tables(reading) == {"a.png": POINT} and reading.notes[0].startswith("b.png: skipped")


def test_roboflows_folders_become_splits(tmp_path, run_program):
    for split in ("train", "valid", "test"):
        draw_images(tmp_path / split, ["a.png"])
        coco(tmp_path / split / "_annotations.coco.json")
    assert run_program(convert, "coco", tmp_path, tmp_path / "out")[0] == 0
    records = json.loads((tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8"))
    assert {record["imagePath"]: record["split"] for record in records} == {
        "train/a.png": "train", "valid/a.png": "val", "test/a.png": "test"
    }  # fmt: skip
    coco_file = tmp_path / "test" / "_annotations.coco.json"
    coco_file.write_text(coco_file.read_text().replace('"S"', '"N"'))
    with refuses("_annotations.coco.json", "N", "S"):
        FORMATS["coco"].read(tmp_path)


def test_regions_of_via_without_a_label_are_skipped_and_named(tmp_path):
    draw_images(tmp_path, ["a.png"])
    regions = [
        {"shape_attributes": {"name": "rect", "x": 1, "y": 2}, "region_attributes": {}},
        {"shape_attributes": {"name": "point", "cx": 11.0, "cy": 20.0}, "region_attributes": {"name": "S"}},
        {"shape_attributes": {"name": "point", "cx": 1, "cy": 2}, "region_attributes": {"name": ""}},
    ]
    lost = {"filename": "lost.png", "regions": []}
    content = {"a": {"filename": "a.png", "regions": regions}, "b": lost}
    reading = FORMATS["via"].read(write_json(tmp_path / "v.json", content))
    assert tables(reading) == {"a.png": POINT}
    assert mentions(" ".join(reading.notes), "a.png: skipped a rect", "a.png: skipped region 3", "lost.png: skipped")


def test_an_image_of_via_without_regions_and_a_region_without_a_shape_are_skipped(tmp_path):
    draw_images(tmp_path, ["a.png", "b.png"])
    point = {"shape_attributes": {"name": "point", "cx": 11, "cy": 20}, "region_attributes": {"name": "S"}}
    regions = {"a.png": [point, {"region_attributes": {"name": "N"}}], "b.png": None}
    content = {name: {"filename": name, "regions": own} for name, own in regions.items()}
    reading = FORMATS["via"].read(write_json(tmp_path / "via.json", content))
    assert tables(reading) == {"a.png": POINT} and len(reading.notes) == 3


def test_a_task_of_label_studio_without_annotations_is_skipped(tmp_path):
    draw_images(tmp_path, ["a.png", "b.png", "c.png"])
    done = {"a.png": [{"result": results("S")}], "b.png": None, "c.png": [{"result": None}]}
    tasks = [{"data": {"image": name}, "annotations": own} for name, own in done.items()]
    reading = FORMATS["labelstudio"].read(write_json(tmp_path / "tasks.json", tasks))
    assert list(tables(reading)) == ["a.png"] and "task 2 (b.png)" in reading.notes[0]


@pytest.mark.parametrize("name", WRITABLE)
def test_names_with_percent_and_hash_signs_are_written_and_read_back(tmp_path, name):
    draw_images(tmp_path / "set" / "imgs", ["a%20b.png", "a b.png", "c #1.png"])
    point = {"pointName": "S", "pointAbbreviation": "S", "X": 11.0, "Y": 20.0}
    records = [{"imagePath": name, "points": [point]} for name in ("a%20b.png", "c #1.png")]
    source = FORMATS["native"].read(write_json(tmp_path / "set" / "json" / "data.json", records))
    FORMATS[name].write(source.pairs, tmp_path / "out")
    (only, *more) = sorted((tmp_path / "out").iterdir())
    back = FORMATS[name].read(only.parent if more else only, images=tmp_path / "set" / "imgs")
    assert sorted(tables(back)) == ["a%20b.png", "c #1.png"]


def test_a_second_box_of_coco_in_which_nothing_was_labelled_is_left_out(tmp_path):
    draw_images(tmp_path, ["a.png"])
    boxes = [{"image_id": 1, "category_id": 1, "keypoints": own} for own in ([0] * 3, [11, 20, 2], [0] * 3)]
    category = {"id": 1, "name": "film", "keypoints": ["S"]}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": boxes, "categories": [category]}
    assert tables(FORMATS["coco"].read(write_json(tmp_path / "coco.json", content))) == {"a.png": POINT}


@pytest.mark.parametrize("flag", ["occluded", "outside"])
def test_a_flag_of_cvat_that_is_neither_0_nor_1_is_refused(tmp_path, flag):
    draw_images(tmp_path, ["a.png"])
    point = f'<points label="S" points="11,20" {flag}="true"/>'
    text = f'<annotations><image name="a.png" width="60" height="50">{point}</image></annotations>'
    (tmp_path / "a.xml").write_text(text)
    with refuses("a.png", flag, "'true'", "0 or 1"):
        FORMATS["cvat"].read(tmp_path / "a.xml")


def test_an_image_of_cvat_without_points_need_not_be_there(tmp_path):
    draw_images(tmp_path, ["a.png"])
    (tmp_path / "a.xml").write_text(
        '<annotations><image name="P01\\A.PNG" width="60" height="50"><points label="S" points="11,20"/></image>'
        '<image name="Thumbs.db" width="1" height="1"/></annotations>'
    )
    reading = FORMATS["cvat"].read(tmp_path / "a.xml")
    assert tables(reading) == {"a.png": POINT} and reading.notes[0].startswith("Thumbs.db: skipped")


def test_two_images_of_one_name_in_via_are_told_apart_by_their_size(tmp_path):
    content = {}
    for patient, side in (("P01", 50), ("P02", 40)):
        file = draw_images(tmp_path / patient, ["lateral.png"], (60, side)) / "lateral.png"
        region = {"shape_attributes": {"name": "point", "cx": side, "cy": 2}, "region_attributes": {"name": "S"}}
        content[patient] = {"filename": "lateral.png", "size": file.stat().st_size, "regions": [region]}
    assert tables(FORMATS["via"].read(write_json(tmp_path / "v.json", content))) == {
        "P01/lateral.png": {"S": (50, 2)}, "P02/lateral.png": {"S": (40, 2)}
    }  # fmt: skip


# --- Slicer, DICOM, spacing, csv -----------------------------------------------------------------


def markups(file: Path, **keys) -> Path:
    """Markups of Slicer with S at (1.1, 2) mm."""
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [{"label": "S", "position": [1.1, 2, 0]}]}
    return write_json(file, {"markups": [markup | keys]})


def test_markups_on_dicom_use_the_spacing_and_origin_of_its_file(tmp_path):
    tags = {"PixelSpacing": [0.1, 0.1]}
    write_dicom(tmp_path / "a.dcm", np.zeros((50, 60)), **tags)
    markups(tmp_path / "a.mrk.json")
    assert tables(FORMATS["slicer"].read(tmp_path))["a.dcm"]["S"] == pytest.approx((11, 20))
    write_dicom(tmp_path / "a.dcm", np.zeros((50, 60)), **tags, ImagePositionPatient=[0.1, -1, 0])
    assert tables(FORMATS["slicer"].read(tmp_path))["a.dcm"]["S"] == pytest.approx((10, 30))
    write_dicom(tmp_path / "a.dcm", np.zeros((50, 60)), **tags, ImagerPixelSpacing=[0.11, 0.11])
    with refuses("a.dcm", "0.11", "--mm_per_px"):
        FORMATS["slicer"].read(tmp_path)
    assert tables(FORMATS["slicer"].read(tmp_path, mm_per_px=0.1))["a.dcm"]["S"] == pytest.approx((11, 20))


def test_the_units_of_markups_are_read_and_other_types_are_skipped(tmp_path):
    draw_images(tmp_path, ["a.png"])
    markups(tmp_path / "a.mrk.json", coordinateUnits="cm")
    markups(tmp_path / "L.mrk.json", type="Line")
    reading = FORMATS["slicer"].read(tmp_path)
    assert tables(reading)["a.png"]["S"] == pytest.approx((11, 20))
    assert mentions(" ".join(reading.notes), "L.mrk.json", "Line")
    markups(tmp_path / "a.mrk.json", coordinateUnits="inch")
    with refuses("a.mrk.json", "inch", "mm"):
        FORMATS["slicer"].read(tmp_path)


def test_dicom_without_an_ending_is_found_and_becomes_png(tmp_path, run_program):
    shutil.move(write_dicom(tmp_path / "a.dcm", np.zeros((50, 60)), PixelSpacing=[0.1, 0.1]), tmp_path / "1.2.840.1")
    (tmp_path / "p.csv").write_text("image,landmark,x,y\n1.2.840.1,S,1.5,2.5\n")
    words = ("native", tmp_path / "p.csv", tmp_path / "out", "--images", tmp_path)
    assert run_program(convert, *words)[0] == 0
    (record,) = json.loads((tmp_path / "out" / "json" / "data.json").read_text())
    assert record["imagePath"] == "1.2.840.1.png" and record["spacing"] == 0.1


def test_a_spacing_given_once_is_written_into_the_records_that_have_none(tmp_path, run_program):
    set_ = write_native(tmp_path / "set")
    file = set_ / "json" / "data.json"
    records = json.loads(file.read_text(encoding="utf-8"))
    del records[1]["spacing"]
    write_json(file, records)
    status, output = run_program(convert, "native", set_, tmp_path / "out", "--spacing", "0.2")
    assert status == 0 and "--spacing none" not in output and mentions(output, "note: --spacing", "a.png")
    written = json.loads((tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8"))
    assert [record["spacing"] for record in written] == [0.1, 0.2]
    status, output = run_program(convert, "native", set_, tmp_path / "no", "--spacing", "-1")
    assert status == 2 and "--spacing" in output
    status, output = run_program(inspect_data, set_, "--spacing", "0.2")
    assert status == 0 and "0.1000 to 0.2000 mm/px" in output


def test_a_csv_as_excel_writes_it_is_read(tmp_path):
    draw_images(tmp_path, ["a.png"])
    for separator, first, encoding in ((";", "", "utf-8"), (";", "sep=;\r\n", "utf-8-sig"), ("\t", "", "utf-16")):
        text = first + "image;landmark;x;y\r\na.png;S;11,25;,5\r\n".replace(";", separator)
        (tmp_path / "p.csv").write_bytes(text.encode(encoding))
        assert tables(native.read(tmp_path / "p.csv", images=tmp_path)) == {"a.png": {"S": (11.25, 0.5)}}
    (tmp_path / "p.csv").write_text('image,landmark,x,y\na.png,S,"11,25",5\n')
    with refuses("p.csv", "line 2", "11,25"):
        native.read(tmp_path / "p.csv", images=tmp_path)


def test_predictions_beside_the_image_go_to_its_border_with_a_note(tmp_path, run_program):
    draw_images(tmp_path / "imgs", ["a.png"])
    width, height = Image.open(tmp_path / "imgs" / "a.png").size
    (tmp_path / "p.csv").write_text(f"image,landmark,x,y\na.png,S,{width + 3},-2\na.png,N,5,6\n")
    reading = native.read(tmp_path / "p.csv", images=tmp_path / "imgs")
    assert tables(reading) == {"a.png": {"S": (width - 0.5, -0.5), "N": (5.0, 6.0)}}
    assert mentions(reading.notes[0], "a.png", "S") and "N" not in reading.notes[0].split(":")[-1]
    arguments = ("native", tmp_path / "p.csv", tmp_path / "out", "--images", tmp_path / "imgs")
    assert run_program(convert, *arguments)[0] == 0


def test_decimal_commas_in_an_fcsv_are_refused(tmp_path):
    draw_images(tmp_path, ["a.png"])
    row = "F_1,{},{},0,0,0,0,1,1,1,0,S,,"
    for x, y, good in (("-5.25", "-6.5", True), ("-5,25", "-6,5", False)):
        (tmp_path / "a.fcsv").write_text("# CoordinateSystem = 0\n" + row.format(x, y) + ",2,0\n")
        if good:
            assert tables(FORMATS["slicer"].read(tmp_path)) == {"a.png": {"S": (5.25, 6.5)}}
        else:
            with refuses("a.fcsv", "columns", "18"):
                FORMATS["slicer"].read(tmp_path)
