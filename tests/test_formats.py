"""Foreign archives, drawn here in their layouts, to data.json and back through the reader."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from config import Config, UserError, build_config, preset_settings
from formats import isbi2015
from splits import load_data
from tools import convert

POINTS = {"400_senior": np.arange(38).reshape(19, 2) + 1, "400_junior": np.arange(38).reshape(19, 2) + 4}


@pytest.fixture
def archive(tmp_path):
    """Three images of the ISBI archive's layout, 60 x 50 px, the junior reader 3 px to the lower right."""
    generator = np.random.default_rng(0)
    for number, folder in ((1, "TrainingData"), (2, "TrainingData"), (151, "Test1Data")):
        (tmp_path / "RawImage" / folder).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (50, 60), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "RawImage" / folder / f"{number:03d}.bmp")
        for reader, points in POINTS.items():
            (tmp_path / "AnnotationsByMD" / reader).mkdir(parents=True, exist_ok=True)
            lines = [f"{x},{y}" for x, y in points] + ["1", "2", "1"]  # the clinical classes
            (tmp_path / "AnnotationsByMD" / reader / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit status and output of tools.convert."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    status = convert.main()
    streams = capsys.readouterr()
    return status, streams.out + streams.err.splitlines()[-1] if streams.err else streams.out


def test_isbi_points_are_the_mean_of_both_readers_or_one_of_them(archive):
    for reader, offset in (("senior", 0), ("junior", 3), ("mean", 1.5)):
        _, record = isbi2015.read(archive, reader)[0]
        found = np.array([(point["X"], point["Y"]) for point in record["points"]])
        assert np.array_equal(found, POINTS["400_senior"] + offset)


def test_isbi_has_the_official_split_and_a_tenth_of_a_millimetre_per_px(archive):
    records = [record for _, record in isbi2015.read(archive)]
    assert [record["split"] for record in records] == ["train", "train", "test1"]
    assert {record["spacing"] for record in records} == {0.1}


def test_a_converted_archive_is_read_by_the_preset(archive, tmp_path_factory, monkeypatch, capsys):
    out = tmp_path_factory.mktemp("converted") / "isbi"
    status, output = run(monkeypatch, capsys, "isbi2015", archive, out)
    assert status == 0 and "3 images (train 2, test1 1) of 19 landmarks" in output
    settings = dict(img_dir=str(out / "imgs"), json_path=str(out / "json" / "data.json"))
    data = load_data(build_config(Config, preset_settings(Config, ["isbi2015"]) | settings))
    assert data.splits == {"train": (0, 1), "test1": (2,)} and data.unit == "mm"
    assert data.abbreviations[:3] == ("S", "N", "Or") and data.abbreviations[15] == "Pog’"
    assert np.array_equal(data.records[0].landmarks, POINTS["400_senior"] + 1.5)


def test_a_data_set_that_exists_is_never_written_over(archive, tmp_path, monkeypatch, capsys):
    (archive / "out" / "json").mkdir(parents=True)
    (archive / "out" / "json" / "data.json").write_text("precious")
    status, output = run(monkeypatch, capsys, "isbi2015", archive, archive / "out")
    assert status == 2 and "holds a data set already" in output
    assert (archive / "out" / "json" / "data.json").read_text() == "precious"


def test_a_folder_that_is_no_archive_is_refused(tmp_path, monkeypatch, capsys):
    assert "no folder RawImage" in run(monkeypatch, capsys, "isbi2015", tmp_path, tmp_path / "out")[1]
    (tmp_path / "RawImage").mkdir()
    assert "holds no images" in run(monkeypatch, capsys, "isbi2015", tmp_path, tmp_path / "out")[1]


@pytest.mark.parametrize("content", ["1,2\n3,4\n", "a,b\n" * 19, "1,2,3\n" * 19, ""])
def test_an_annotation_that_is_cut_off_or_no_points_is_refused(archive, content):
    (archive / "AnnotationsByMD" / "400_junior" / "002.txt").write_text(content)
    with pytest.raises(UserError, match=r"002\.txt.*19 lines x,y in px"):
        isbi2015.read(archive)


def test_an_image_without_annotation_is_refused(archive):
    (archive / "AnnotationsByMD" / "400_senior" / "151.txt").unlink()
    with pytest.raises(UserError, match=r"151\.txt does not exist"):
        isbi2015.read(archive)


def test_the_json_that_is_written_is_the_native_format(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("native")
    convert.write_data_set(isbi2015.read(archive), out)
    records = json.loads((out / "json" / "data.json").read_text(encoding="utf-8"))
    assert records[0]["imagePath"] == "001.bmp"
    assert records[0]["points"][0].keys() == {"pointName", "pointAbbreviation", "X", "Y"}
