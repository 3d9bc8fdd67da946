"""What annotation programs write, read and written back."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import mentions, refuses
from foreign_files import NAMES, TRUTH, WRITABLE, draw_images, tables, write_native, write_slicer, write_suh, write_via
from PIL import Image

from reading.images import image_size, read_image
from settings import UserError
from tools.formats import FORMATS, labelstudio
from tools.formats.common import Images


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
    assert len(back.notes) == 1 and mentions(back.notes[0], "b (1).png", "N")


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
    with refuses("task 1", "a.png", "2"):
        FORMATS["labelstudio"].read(tmp_path / "tasks.json")
    assert tables(FORMATS["labelstudio"].read(tmp_path / "tasks.json", annotation=2)) == {"a.png": {"S": (12.0, 25.0)}}
    results[0]["result"][0]["image_rotation"] = 90
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    with refuses("a.png", "90"):
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

    assert mentions(refused(imageWidth=61), "a.json", "61 x 50")
    assert "'S'" in refused(shapes=[*content["shapes"], content["shapes"][0]])
    assert "'Q'" in refused(shapes=[content["shapes"][0] | {"label": "Q"}])
    assert "nan" in refused(shapes=[content["shapes"][0] | {"points": [[math.nan, 1]]}])
    assert "3" in refused(shapes=[content["shapes"][0] | {"points": [[1, 2, 3]]}])
    file.rename(tmp_path / "labelme" / "c.json")
    file = tmp_path / "labelme" / "c.json"
    assert "../elsewhere/d.png" in refused(imagePath="../elsewhere/d.png")


def test_an_xml_that_declares_entities_is_refused(tmp_path):
    draw_images(tmp_path)
    (tmp_path / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotations>&a;</annotations>')
    with refuses("a.xml"):
        FORMATS["cvat"].read(tmp_path / "a.xml")


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
    with refuses("lateral.png", "patient1", "patient2"):
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
    images = Images(tmp_path)
    name = labelstudio.find_name(data, images, "task 1")
    assert (images.find(name) or Path(name)).name == found


def test_slicer_would_take_dots_per_inch_for_a_spacing_so_they_are_asked_for(tmp_path):
    draw_images(tmp_path, ["a.jpg", "b (1).png"])
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.jpg", dpi=(72, 72))
    with refuses("a.jpg", "72", "0.352778"):
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
    with refuses("a.png", "(0, 0)"):
        FORMATS["cl_csv"].read(tmp_path / "cl.csv")


def test_images_without_annotation_are_named(tmp_path):
    draw_images(tmp_path, [*NAMES, "c.png"])
    assert FORMATS["suh"].read(write_suh(tmp_path)).notes[-1].endswith(": c.png")
