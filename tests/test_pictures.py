import math

import numpy as np
import pytest
from conftest import make_records, tiny_config, write_records
from PIL import Image

from evaluate import Predictions
from reading.splits import load_data
from reporting.charts import draw_curves, draw_rates
from reporting.pictures import (
    BLUE,
    RED,
    YELLOW,
    draw_activations,
    draw_overlay,
    draw_overlays,
    draw_progress,
    picture_name,
    spread_of_images,
)  # fmt: skip
from reporting.predictions import PredictionTable, read_predictions, write_predictions


def test_an_overlay_has_the_detection_red_the_truth_blue_and_a_line_between():
    image = np.zeros((1200, 1000, 3), np.uint8)
    picture = np.asarray(draw_overlay(image, np.array([[100.0, 200.0]]), np.array([[300.0, 200.0]]), "caption"))
    assert tuple(picture[200, 100]) == RED and tuple(picture[200, 300]) == BLUE and tuple(picture[200, 200]) == YELLOW
    assert picture.shape[0] > 1200 and picture[1200:].max() == 255  # the caption stands below the image


def test_an_overlay_of_a_small_image_is_enlarged_with_its_points():
    image = np.zeros((120, 100), np.uint8)
    picture = np.asarray(draw_overlay(image, np.array([[9.5, 19.5]]), np.full((1, 2), math.nan), ""))
    assert picture.shape[1] == 1000 and tuple(picture[200, 100]) == RED
    assert not (picture[:1200] == BLUE).all(-1).any()


@pytest.mark.parametrize("width", [400, 600, 2000])
def test_the_caption_fits_also_below_a_narrow_image(width):
    point = np.full((1, 2), math.nan)
    caption = "sunhl-1th-01-Jan-2017-000 A AP.jpg   MRE 28.01 px   "
    image = np.zeros((1200, width), np.uint8)

    def blue_below(truth: np.ndarray) -> np.ndarray:
        band = np.asarray(draw_overlay(image, point, truth, caption))[1200:].astype(int)
        return (band[..., 2] > 150) & (band[..., 0] < 120)  # of the last words

    blue = blue_below(np.full((1, 2), 100.0))
    assert blue.any() and not blue[:, -2:].any()
    assert not blue_below(point).any()  # no truth, no words about it


def test_overlays_run_from_the_best_image_to_the_worst(tmp_path):
    write_records(tmp_path, make_records(tmp_path))
    records = load_data(tiny_config(tmp_path)).records
    truth = np.stack([record.landmarks for record in records])
    offsets = np.array([5, 0, 4, 1, 3, 2.0])[:, None, None]
    predictions = Predictions([r.name for r in records], truth + offsets, truth, np.ones((6, 4)), np.full(6, 0.5))
    write_predictions(tmp_path / "predictions.csv", predictions, ["R1", "R2", "A", "B"], "mm")
    draw_overlays(tmp_path, read_predictions(tmp_path / "predictions.csv"), records, 3)
    names = sorted(path.name for path in (tmp_path / "overlays").iterdir())
    assert len(names) == 3 and names[0] == "001_image 1 (ä).png" and names[-1] == "006_image 0 (ä).png"


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("P01/lateral.png", "007_P01_lateral.png"), ("P01\\pre\\lateral.PNG", "007_P01_pre_lateral.png"),
        ("../films/a.b.tif", "007_films_a.b.png"), ("/data/1.2.840.10", "007_data_1.2.840.10.png"),
        ("ä" * 200 + "/last.jpg", "007_" + "ä" * 97 + "_last.png"),
    ],
)  # fmt: skip
def test_the_picture_of_an_image_is_named_by_its_folder_too(name, picture):
    assert picture_name(7, name) == picture


ERRORS = ("val_MRE", "val_median")


@pytest.mark.parametrize(
    ("columns", "panels"),
    [
        ((), 1),
        (ERRORS, 2),
        ((*ERRORS, "val_error_A", "val_error_S", "val_dice"), 4),
        (("accuracy_P_fake", "gradient_P", *ERRORS), 4),
    ],
)
def test_curves_have_a_panel_for_each_kind_of_figure(tmp_path, columns, panels):
    rows = [{"epoch": e, "lr": 0.1, "coarse": 1 / e, "loss": 2 / e, "seconds": 1.0} for e in (1, 2, 3)]
    rows = [row | {name: 3 / row["epoch"] for name in columns} for row in rows]
    draw_curves(rows, tmp_path / "curves.png", "mm")
    assert Image.open(tmp_path / "curves.png").size == {1: (550, 396), 2: (1100, 396), 4: (1100, 792)}[panels]


def test_pictures_of_an_image_are_drawn_epoch_by_epoch(tmp_path):
    write_records(tmp_path, make_records(tmp_path, count=1))
    record = load_data(tiny_config(tmp_path, val_fraction=0.0, test_fraction=0.0)).records[0]
    for epoch, shift in ((10, 20), (20, 10), (30, 0)):
        draw_progress(tmp_path, epoch, record, record.landmarks + shift, "mm")
    names = sorted(path.name for path in (tmp_path / "progress").iterdir())
    assert names == ["epoch_0010.png", "epoch_0020.png", "epoch_0030.png"]


def test_images_are_spread_from_the_best_to_the_worst_whatever_is_missing():
    errors = np.array([[3.0, math.nan], [1.0, 2.0], [math.nan, math.nan], [9.0, 9.0]])
    assert spread_of_images(errors, 9) == [(1, 2), (2, 1), (3, 0), (4, 3)]
    assert spread_of_images(errors, 2) == [(1, 2), (4, 3)] and spread_of_images(errors, 0) == []


def test_an_activation_lies_over_the_place_in_the_image_that_it_belongs_to(tmp_path):
    write_records(tmp_path, make_records(tmp_path, size=(240, 192)))
    record = load_data(tiny_config(tmp_path)).records[0]
    maps = np.zeros((2, 48, 60), np.float32)
    maps[0, 30:33, 40:43] = 1  # a map of a quarter of the size; its px (41, 31) is the image's (165.5, 125.5)
    nowhere, here = np.full(2, math.nan), np.array([20.0, 100.0])
    points = {"A": np.stack([here, nowhere]), "B": np.stack([nowhere, nowhere])}
    sheet = np.asarray(draw_activations(record, maps, np.array([[4, 0, 1.5], [0, 4, 1.5]]), points)).astype(int)
    assert sheet.shape == (240 + 20, 2 * 300, 3)
    first, second = sheet[20:, :300], sheet[20:, 300:]
    y, x = np.nonzero(np.abs(first - second).sum(-1) > 60)
    cross = (np.abs(x - 25) < 11) & (np.abs(y - 125) < 11)  # at 5/4 of its place in the image
    assert tuple(first[125, 31]) == RED
    assert x[~cross].mean() == pytest.approx(166 * 1.25 - 0.5, abs=0.7)
    assert y[~cross].mean() == pytest.approx(126 * 1.25 - 0.5, abs=0.7)


def test_the_rates_have_a_bar_for_each_landmark_also_where_none_is_annotated(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("reporting.charts.pyplot.close", lambda figure: drawn.update(figure=figure))
    truth = np.zeros((3, 2, 2))
    truth[:, 1] = math.nan
    found = truth + np.array([1.0, 2.0, 5.0])[:, None, None] * (1, 0)
    write_predictions(
        tmp_path / "predictions.csv",
        Predictions(list("abc"), found, truth, np.ones((3, 2)), np.ones(3)),
        ["A", "B"],
        "mm",
    )
    draw_rates(tmp_path, read_predictions(tmp_path / "predictions.csv"), (2.0, 4.0, 5.0))
    heights = [[bar.get_height() for bar in bars] for bars in drawn["figure"].axes[0].containers]  # the widest first
    assert np.allclose(heights, [[100, math.nan], [200 / 3, math.nan], [200 / 3, math.nan]], equal_nan=True)
    with Image.open(tmp_path / "rates.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(100_000)}
    assert len([c for c in colours if c[2] > c[0] + 40]) >= 2  # two shades of blue


def test_a_name_is_written_beside_its_point_and_covers_no_dot():
    image, points = np.zeros((1200, 1000), np.uint8), np.array([[500.0, 600.0], [530.0, 600.0], [5.0, 5.0]])
    plain = np.asarray(draw_overlay(image, points, points + (0, 40), "")).astype(int)
    named = np.asarray(draw_overlay(image, points, points + (0, 40), "", ["S", "N", "Me"])).astype(int)
    changed = np.abs(named - plain).sum(-1) > 0
    assert changed[570:630, 450:560].any() and changed[:60, :60].any()  # also in the corner, inside the picture
    dots = (plain[:1200] == (255, 60, 50)).all(-1) | (plain[:1200] == (60, 140, 255)).all(-1)
    assert not (changed[:1200] & dots).any() and not changed[1200:].any()


@pytest.mark.parametrize("count", [1, 60])
def test_names_that_find_no_room_are_left_out(count):
    points = np.full((count, 2), 60.0)
    points[-1] = math.nan
    draw_overlay(np.zeros((120, 100), np.uint8), points, points, "", [f"L{n}" for n in range(count)])


@pytest.mark.parametrize("count", [1, 3, 52])
def test_the_legend_of_the_rates_is_inside_the_picture(tmp_path, monkeypatch, count):
    drawn = {}
    monkeypatch.setattr("reporting.charts.pyplot.close", lambda figure: drawn.update(figure=figure))
    table = PredictionTable(["a"], [f"L{n}" for n in range(count)], {"error": np.ones((1, count))}, "mm")
    draw_rates(tmp_path, table, (2.0, 2.5, 3.0, 4.0))
    legend = drawn["figure"].axes[0].get_legend().get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= drawn["figure"].bbox.width and legend.y1 <= drawn["figure"].bbox.height
