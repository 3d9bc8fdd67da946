"""The command: a foreign data set to imgs/ and data.json, or into a program; whatever is broken."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import mentions
from foreign_files import ISBI_POINTS, SOURCES, WRITABLE, draw_images, tables, write_dicom, write_native, write_source
from PIL import Image

import main
from config import Config
from reading.splits import load_data
from settings import build_config, preset_settings
from tools import convert
from tools.formats import FORMATS
from tools.formats.common import record_points


def test_dicom_images_become_png_with_their_spacing_and_without_the_patient(tmp_path, run_program):
    (tmp_path / "imgs").mkdir()
    write_dicom(
        tmp_path / "imgs" / "a.dcm", np.random.default_rng(0).integers(0, 4096, (50, 60)), ImagerPixelSpacing=[0.2, 0.2]
    )
    (tmp_path / "predictions.csv").write_text("image,landmark,x,y\na.dcm,S,1.5,2.5\n")
    words = ("native", tmp_path / "predictions.csv", tmp_path / "out", "--images", tmp_path / "imgs")
    status, output = run_program(convert, *words)
    assert status == 0 and "ImagerPixelSpacing" in output
    text = (tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8")
    (record,) = json.loads(text)
    assert record["imagePath"] == "a.png" and record["spacing"] == 0.2
    assert not any(b"Secret" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    with Image.open(tmp_path / "out" / "imgs" / "a.png") as image:
        assert image.size == (60, 50) and image.mode.startswith("I")


@pytest.mark.parametrize("name", WRITABLE)
def test_a_full_disk_does_not_block_the_same_command(tmp_path, run_program, fill_disk, name):
    words = ("native", write_native(tmp_path / "set"), tmp_path / "out", "--to", name)
    for writes in (0, 1):
        fill_disk(writes)
        status, output = run_program(convert, *words)
        assert status == (2 if writes == 0 or name == "labelme" else 0)
        if status == 2:
            assert output.startswith("error: ") and mentions(output, tmp_path / "out", "No space left", "repeat")
    fill_disk(None)
    status, output = run_program(convert, *words)
    assert status == 0 if name == "labelme" else "exists already" in output
    assert not (tmp_path / "out" / "unfinished").exists()


def test_a_converted_archive_is_read_by_the_preset(archive, tmp_path_factory, run_program):
    out = tmp_path_factory.mktemp("converted") / "isbi"
    status, output = run_program(convert, "isbi2015", archive, out)
    assert status == 0 and mentions(output, "3 images", "train 2", "test1 1", "19 landmarks", "0 points")
    assert mentions(output.split("train with: ")[1], "python main.py --preset isbi2015", f"--img_dir {out / 'imgs'}")
    places = dict(img_dir=str(out / "imgs"), json_path=str(out / "json" / "data.json"))
    data = load_data(build_config(Config, preset_settings(Config, ["isbi2015"]) | places))
    assert data.splits == {"train": (0, 1), "test1": (2,)} and data.unit == "mm"
    assert data.abbreviations[:3] == ("S", "N", "Or") and data.abbreviations[15] == "Pog’"
    assert np.array_equal(data.records[0].landmarks, ISBI_POINTS["400_senior"] + 1.5)


def test_linked_images_are_those_of_the_source(archive, tmp_path_factory, run_program):
    out = tmp_path_factory.mktemp("linked") / "isbi"
    assert run_program(convert, "isbi2015", archive, out, "--link")[0] == 0
    assert (out / "imgs" / "001.bmp").resolve() == archive / "RawImage" / "TrainingData" / "001.bmp"


def test_a_data_set_that_exists_is_never_written_over(archive, run_program):
    (archive / "out" / "json").mkdir(parents=True)
    (archive / "out" / "json" / "data.json").write_text("precious")
    status, output = run_program(convert, "isbi2015", archive, archive / "out")
    assert status == 2 and str(archive / "out") in output
    assert (archive / "out" / "json" / "data.json").read_text() == "precious"


def test_a_point_outside_its_image_leaves_nothing_behind(tmp_path, run_program):
    native = write_native(tmp_path / "native")
    text = (native / "json" / "data.json").read_text(encoding="utf-8").replace("10.25", "60.25")
    (native / "json" / "data.json").write_text(text, encoding="utf-8")
    status, output = run_program(convert, "native", native, tmp_path / "out")
    assert status == 2 and mentions(output, "a.png", "'S'", "(60.25, 20.5)", "60 x 50 px")
    assert not list((tmp_path / "out").iterdir())


def test_folders_and_files_that_are_not_there_are_named(tmp_path, run_program):
    assert "RawImage" in run_program(convert, "isbi2015", tmp_path, tmp_path / "out")[1]
    (tmp_path / "RawImage").mkdir()
    assert "RawImage" in run_program(convert, "isbi2015", tmp_path, tmp_path / "out")[1]
    status, output = run_program(convert, "coco", tmp_path / "none.json", tmp_path / "out")
    assert status == 2 and "none.json" in output


def test_the_list_has_every_format_with_a_line_of_its_own(run_program):
    status, output = run_program(convert, "--list")
    assert status == 0 and [line.split()[0] for line in output.splitlines()] == list(FORMATS)
    assert all(
        f"({'read, write' if name in WRITABLE else 'read'})" in line
        for name, line in zip(FORMATS, output.splitlines(), strict=True)
    )


def test_a_data_set_is_written_for_a_program_by_the_command(tmp_path, run_program):
    native = write_native(tmp_path / "native")
    status, output = run_program(convert, "native", native, tmp_path / "cvat", "--to", "cvat")
    assert status == 0 and (tmp_path / "cvat" / "annotations.xml").exists()
    status, output = run_program(convert, "cvat", tmp_path / "cvat" / "annotations.xml", tmp_path / "out",
                         "--images", native / "imgs", "--landmarks", "S, N, Pog’, s")  # fmt: skip
    assert (
        status == 0
        and re.search(r"note: b \(1\)\.png: .*\bN\b", output)
        and mentions(output, "2 images", "no split 2", "4 landmarks", "1 point")
    )
    assert run_program(convert, "native", native, tmp_path / "cvat", "--to", "coco")[0] == 2  # not empty


@pytest.mark.parametrize("name", ["../../escaped/a.png", "/elsewhere/a.png", "sub/a.png"])
def test_nothing_is_written_outside_the_destination(tmp_path, name, run_program):
    native = write_native(tmp_path / "native")
    file = native / "json" / "data.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"a.png"', json.dumps(name)), encoding="utf-8")
    assert run_program(convert, "native", native, tmp_path / "out" / "here")[0] == 0
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"here/imgs/a.png", "here/imgs/b (1).png", "here/json/data.json"}


def test_two_images_that_would_have_one_name_are_refused_and_the_source_stays(tmp_path, run_program):
    folder = draw_images(tmp_path / "imgs", ["a.png"])
    write_dicom(folder / "a.dcm", np.zeros((50, 60)))
    before = (folder / "a.png").read_bytes()
    (tmp_path / "p.csv").write_text("image,landmark,x,y\na.png,S,1.5,2.5\na.dcm,S,1.5,2.5\n")
    words = ("native", tmp_path / "p.csv", tmp_path / "out", "--images", folder, "--link")
    status, output = run_program(convert, *words)
    assert status == 2 and "a.png" in output and (folder / "a.png").read_bytes() == before


def test_half_a_px_lies_between_a_programs_corner_and_our_centre(tmp_path, run_program):
    native = write_native(tmp_path / "native")
    assert run_program(convert, "native", native, tmp_path / "coco", "--to", "coco", "--corner")[0] == 0
    written = tmp_path / "coco" / "annotations.json"
    assert tables(FORMATS["coco"].read(written, images=native / "imgs"))["a.png"]["S"] == (10.75, 21.0)
    words = ("coco", written, tmp_path / "back", "--images", native / "imgs", "--corner")
    assert run_program(convert, *words)[0] == 0
    (record, _) = json.loads((tmp_path / "back" / "json" / "data.json").read_text(encoding="utf-8"))
    assert record_points(record)["S"] == (10.25, 20.5)


@pytest.mark.parametrize("name", SOURCES)
def test_the_command_that_convert_prints_last_loads_what_it_wrote(name, tmp_path, run_program):
    (tmp_path / "source").mkdir()
    status, output = run_program(convert, name, write_source(name, tmp_path / "source"), tmp_path / "out it")
    assert status == 0
    words = shlex.split(output.split("train with: ")[1].splitlines()[0])
    assert words[:2] == ["python", "main.py"]
    config = main.resolve_config(*main.parse_arguments(words[2:]))
    data = load_data(config.replace(split="same") if len(convert_splits(tmp_path)) < 2 else config)
    assert config.num_landmarks in (None, len(data.abbreviations))
    assert len(data.records) == len(list((tmp_path / "out it" / "imgs").iterdir()))


def convert_splits(folder: Path) -> set:
    """The splits that a converted set names."""
    records = json.loads((folder / "out it" / "json" / "data.json").read_text(encoding="utf-8"))
    return {record.get("split") for record in records}


def test_the_foreign_files_are_of_every_format():
    assert set(FORMATS) == set(SOURCES)


def write_small(folder: Path, images: dict[str, int], **keys) -> Path:
    """A data set of images of noise, by their seed, with landmarks A and B and further keys in every record."""
    (folder / "imgs").mkdir(parents=True)
    (folder / "json").mkdir()
    records = []
    for name, seed in images.items():
        (folder / "imgs" / name).parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 255, (40, 50), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "imgs" / name)
        points = [{"pointAbbreviation": n, "pointName": n, "X": seed + i, "Y": 9} for i, n in enumerate("AB", 1)]
        records.append({"imagePath": name, **keys, "points": points})
    (folder / "json" / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def test_data_sets_are_joined_and_keep_what_they_state(tmp_path, run_program):
    readers = {"readers": [[[1, 2], [3, 4]], [[1, 2], [3, 4]]]}
    old = write_small(tmp_path / "old", {"a.png": 1, "b.png": 2}, spacing=0.1, split="test1", patient="p", **readers)
    new = write_small(tmp_path / "new", {"a.png": 1, "c.png": 3}, spacing=0.1, device="X")
    more = write_small(tmp_path / "more", {"d.png": 4}, spacing=0.3)
    status, output = run_program(convert, "native", new, tmp_path / "out", "--join", old, more)
    assert status == 0 and mentions(output, "4 images", "test1 2", "train 2", "name no split", "c.png", "d.png")
    records = json.loads((tmp_path / "out" / "json" / "data.json").read_text())
    by_name = {record.pop("imagePath"): record for record in records}
    assert list(by_name) == ["d.png", "a.png", "b.png", "c.png"]
    assert by_name["c.png"]["split"] == "train" and by_name["c.png"]["device"] == "X"
    first = json.loads((old / "json" / "data.json").read_text())[0]
    assert by_name["a.png"] == {key: value for key, value in first.items() if key != "imagePath"} | {"device": "X"}
    for name, folder in {"a.png": old, "b.png": old, "c.png": new, "d.png": more}.items():
        assert (tmp_path / "out" / "imgs" / name).read_bytes() == (folder / "imgs" / name).read_bytes()


def test_what_does_not_belong_together_is_not_joined(tmp_path, run_program):
    old = write_small(tmp_path / "old", {"a.png": 1, "b.png": 2}, split="test", spacing=0.2)
    wrong = {
        "another image": write_small(tmp_path / "other", {"b.png": 7}),
        "another annotation": write_small(tmp_path / "moved", {"b.png": 2}),
        "only one of both": write_small(tmp_path / "renamed", {"c.png": 3}),
        "another name": write_small(tmp_path / "named", {"c.png": 2}),
        "split test instead of train": write_small(tmp_path / "split", {"b.png": 2}, split="train"),
        "spacing 0.2 instead of 0.1": write_small(tmp_path / "spacing", {"b.png": 2}, spacing=0.1),
    }
    for folder, change in (
        ("moved", ('"X": 3', '"X": 5')),
        ("renamed", ('"pointAbbreviation": "B"', '"pointAbbreviation": "C"')),
    ):
        path = tmp_path / folder / "json" / "data.json"
        path.write_text(path.read_text().replace(*change))
    for words, folder in wrong.items():
        status, output = run_program(convert, "native", folder, tmp_path / "out", "--join", old)
        assert status == 2 and mentions(output, words, old) and not (tmp_path / "out").exists(), words
    status, output = run_program(convert, "native", old, tmp_path / "out", "--join", tmp_path / "nothing")
    assert status == 2 and mentions(output, tmp_path / "nothing", "imgs/ and json/")


def test_a_spacing_of_the_command_is_written_into_all_joined_records_without_one(tmp_path, run_program):
    old, new = write_small(tmp_path / "old", {"a.png": 1}, spacing=0.3), write_small(tmp_path / "new", {"b.png": 2})
    more = write_small(tmp_path / "more", {"c.png": 3})
    words = ("native", new, tmp_path / "out", "--join", old, more, "--spacing", "0.2")
    assert run_program(convert, *words)[0] == 0
    records = json.loads((tmp_path / "out" / "json" / "data.json").read_text())
    assert {record["imagePath"]: record["spacing"] for record in records} == {"a.png": 0.3, "b.png": 0.2, "c.png": 0.2}


def test_the_landmarks_of_joined_sets_stand_in_one_order(tmp_path, run_program):
    old, new = write_small(tmp_path / "old", {"a.png": 1}), write_small(tmp_path / "new", {"b.png": 2})
    records = json.loads((new / "json" / "data.json").read_text())
    records[0]["readers"] = [[[point["X"] + n, point["Y"]] for point in records[0]["points"]] for n in (0, 1)]
    records[0]["points"].reverse()
    for reader in records[0]["readers"]:
        reader.reverse()
    (new / "json" / "data.json").write_text(json.dumps(records))
    assert run_program(convert, "native", new, tmp_path / "out", "--join", old)[0] == 0
    joined = json.loads((tmp_path / "out" / "json" / "data.json").read_text())
    assert [list(record_points(record)) for record in joined] == [["A", "B"]] * 2
    assert joined[1]["readers"] == [[[3, 9], [4, 9]], [[4, 9], [5, 9]]]
