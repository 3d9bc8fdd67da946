import csv
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import xlrd
import xlwt
from conftest import refuses
from PIL import Image

from config import Config
from evaluate import Predictions
from reading.annotation import Record
from reporting import workbook
from reporting.charts import draw_agreement
from reporting.predictions import PredictionTable, pool_predictions, read_predictions, write_predictions
from reporting.report import compare_readings, group_figures, summary_table, write_report

ABBREVIATIONS, NAMES = ["R1", "A", "N’"], ["Ruler 1", "A point", "Soft tissue Nasion"]
THRESHOLDS = (2.0, 2.5, 3.0, 4.0)


def report_on(folder, *arguments) -> dict:
    """write_report of folder/predictions.csv."""
    return write_report(folder, read_predictions(folder / "predictions.csv"), *arguments)


def make_predictions(spacing=0.5) -> Predictions:
    """Two images, three landmarks, the last one of the second image not annotated; errors 3 4 10 / 0 5 px."""
    truth = np.array([[[10, 10], [20, 20], [30, 30]], [[11, 10], [21, 20], [math.nan, math.nan]]])
    landmarks = np.array([[[13, 10], [20, 24], [36, 38]], [[11, 10], [24, 24], [1, 2]]], float)
    score = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
    return Predictions(["a (1).jpg", "ä.jpg"], landmarks, truth, score, np.full(2, spacing))


@pytest.fixture
def reported(tmp_path):
    """The folder of a report on make_predictions, and its summary."""
    write_predictions(tmp_path / "predictions.csv", make_predictions(), ABBREVIATIONS, "mm")
    provenance = {"commit": "abc", "versions": {"torch": "2"}, "settings": {"epochs": 3, "ruler": ["R1", "R2"]}}
    return tmp_path, write_report(
        tmp_path, read_predictions(tmp_path / "predictions.csv"), NAMES, ("R1",), THRESHOLDS, provenance
    )


def sheets(folder) -> dict[str, list[list]]:
    """results.xls as rows of values by sheet."""
    book = xlrd.open_workbook(folder / "results.xls")
    return {sheet.name: [sheet.row_values(row) for row in range(sheet.nrows)] for sheet in book.sheets()}


def figures_of(summary: list[list], part: str) -> tuple[list, list]:
    """The titles of the table of parts in the sheet summary, and the row of a part."""
    (titles,) = [row for row in summary if row[0] == "part"]
    (row,) = [row for row in summary if row[0] == part]
    return titles, row


def test_predictions_survive_a_round_trip_through_their_csv(tmp_path):
    predictions = make_predictions()
    write_predictions(tmp_path / "predictions.csv", predictions, ABBREVIATIONS, "mm")
    names, abbreviations, columns, unit = read_predictions(tmp_path / "predictions.csv")
    assert (names, abbreviations, unit) == (predictions.names, ABBREVIATIONS, "mm")
    assert np.allclose(np.stack([columns["x"], columns["y"]], -1), predictions.landmarks, atol=1e-4)
    assert np.allclose(np.stack([columns["x_true"], columns["y_true"]], -1), predictions.truth, equal_nan=True)
    assert np.allclose(columns["error"], [[1.5, 2, 5], [0, 2.5, math.nan]], equal_nan=True)


def test_without_spacing_errors_are_in_px_and_say_so(tmp_path):
    write_predictions(tmp_path / "predictions.csv", make_predictions(math.nan), ABBREVIATIONS, "px")
    assert "error_px" in (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()[0]
    assert np.allclose(read_predictions(tmp_path / "predictions.csv")[2]["error"][0], [3, 4, 10])
    summary = report_on(tmp_path, NAMES, (), THRESHOLDS, {})
    assert summary["all"]["unit"] == "px" and "MRE (px)" in sheets(tmp_path)["landmarks"][0]
    assert "2/2.5/3/4 px" in summary_table(summary, THRESHOLDS)


def test_the_summary_holds_every_figure_for_all_landmarks_and_for_the_headline(reported):
    folder, summary = reported
    plain = json.loads(json.dumps(summary).replace("NaN", "null"))  # two images have no interval
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == plain
    for part in ("all", "headline"):
        assert summary[part]["unit"] == "mm" and summary[part]["n_images"] == 2
    assert summary["all"]["n_landmarks"] == 5 and summary["headline"]["n_landmarks"] == 3
    assert summary["all"]["MRE"] == pytest.approx((1.5 + 2 + 5 + 0 + 2.5) / 5)
    assert summary["headline"]["MRE"] == pytest.approx((2 + 5 + 2.5) / 3)
    assert summary["headline"]["SDR_2.0"] == pytest.approx(100 / 3)
    assert summary["headline"]["SDR_2.5"] == pytest.approx(200 / 3)


def test_three_images_have_an_interval_around_every_figure(tmp_path):
    one = make_predictions()
    arrays = {name: getattr(one, name)[[0, 1, 0]] for name in ("landmarks", "truth", "score", "spacing")}
    write_predictions(tmp_path / "predictions.csv", one._replace(names=list("abc"), **arrays), ABBREVIATIONS, "mm")
    summary = report_on(tmp_path, NAMES, ("R1",), THRESHOLDS, {})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary
    for part in ("all", "headline"):
        for figure in ("MRE", "SD", "median", "SDR_2.0", "SDR_2.5", "SDR_3.0", "SDR_4.0"):
            assert summary[part][f"{figure}_low"] <= summary[part][figure] <= summary[part][f"{figure}_high"]
    titles, headline = figures_of(sheets(tmp_path)["summary"], "headline")
    for title, figure in {"MRE (mm)": "MRE", "SDR <= 2 mm (%)": "SDR_2.0", "SDR <= 4 mm (%)": "SDR_4.0"}.items():
        column = titles.index(title)
        ends = [summary["headline"][figure + end] for end in ("", "_low", "_high")]
        assert headline[column : column + 3] == pytest.approx(ends) and titles[column + 1 : column + 3] == [
            "low",
            "high",
        ]


def test_the_report_read_back_equals_the_predictions(reported):
    folder, summary = reported
    errors = read_predictions(folder / "predictions.csv")[2]["error"]
    rows = sheets(folder)["landmarks"]
    titles = rows[0]
    assert titles[:4] == ["NO", "abbreviation", "name", "n"]
    assert titles[4:8] == [f"SDR <= {t} mm (%)" for t in ("2", "2.5", "3", "4")]
    assert titles[8:] == ["MRE (mm)", "SD (mm)", "median (mm)", "max (mm)"]
    for number, row in enumerate(rows[1:4]):
        own = errors[:, number][np.isfinite(errors[:, number])]
        assert row[:4] == [number + 1, ABBREVIATIONS[number], NAMES[number], own.size]
        assert np.allclose(row[4:8], [100 * (own <= threshold).mean() for threshold in THRESHOLDS])
        assert np.allclose(row[8:], [own.mean(), own.std(), np.median(own), own.max()])
    for part in ("headline", "all"):  # two images: no interval
        titles, row = figures_of(sheets(folder)["summary"], part)
        figures = [summary[part][name] for name in ("MRE", "SD", "median", *(f"SDR_{each}" for each in THRESHOLDS))]
        assert row[4::3] == pytest.approx(figures) and set(row[5::3]) == set(row[6::3]) == {""}
        assert row[1:4] == [{"headline": "without R1", "all": "all landmarks"}[part], 2, summary[part]["n_landmarks"]]


def test_the_report_has_a_row_per_image_and_its_settings(reported):
    images, settings = sheets(reported[0])["images"], dict(sheets(reported[0])["settings"])
    assert [row[0] for row in images[1:]] == ["a (1).jpg", "ä.jpg"]
    assert images[1][1:3] == [2, pytest.approx(3.5)] and images[2][1:3] == [1, pytest.approx(2.5)]
    assert settings["epochs"] == 3 and settings["commit"] == "abc" and settings["ruler"] == '["R1", "R2"]'


def test_a_methods_measures_stand_in_the_predictions_the_summary_and_the_sheet(tmp_path):
    dice = np.array([[0.5, 1.0, 0.25], [0.75, 0.5, math.nan]])
    write_predictions(
        tmp_path / "predictions.csv", make_predictions()._replace(extras={"dice": dice}), ABBREVIATIONS, "mm"
    )
    assert np.array_equal(read_predictions(tmp_path / "predictions.csv")[2]["dice"], dice, equal_nan=True)
    summary = report_on(tmp_path, NAMES, ("R1",), THRESHOLDS, {})
    means = [summary[part]["measures"]["dice"] for part in ("all", "headline")]
    assert means == pytest.approx([0.6, 1.75 / 3]) and summary_table(summary, THRESHOLDS).endswith("; dice 0.60")
    rows = sheets(tmp_path)["landmarks"]
    column = rows[0].index("dice")
    assert [row[column] for row in rows[1:4]] == pytest.approx([0.625, 0.75, 0.25])
    assert len(rows) == 4


def test_a_landmark_that_is_annotated_nowhere_has_blank_figures(tmp_path):
    predictions = make_predictions()
    predictions.truth[:, 1] = math.nan
    write_predictions(tmp_path / "predictions.csv", predictions, ABBREVIATIONS, "mm")
    report_on(tmp_path, NAMES, (), THRESHOLDS, {})
    row = sheets(tmp_path)["landmarks"][2]
    assert row[3] == 0 and set(row[4:]) == {""}


def test_a_data_set_without_truth_has_a_report_without_figures(tmp_path):
    predictions = make_predictions()
    predictions.truth[:] = math.nan
    write_predictions(tmp_path / "predictions.csv", predictions, ABBREVIATIONS, "mm")
    summary = report_on(tmp_path, NAMES, ("R1",), THRESHOLDS, {})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["all"]["MRE"] is None
    assert summary["all"]["n_landmarks"] == 0 and "nan" in summary_table(summary, THRESHOLDS)


def test_a_report_of_300_landmarks_fits_into_xls(tmp_path):
    truth = np.random.default_rng(0).uniform(0, 100, (2, 300, 2))
    predictions = Predictions(["a", "b"], truth + 1, truth, np.ones((2, 300)), np.ones(2))
    abbreviations = [f"L{number}" for number in range(300)]
    write_predictions(tmp_path / "predictions.csv", predictions, abbreviations, "mm")
    report_on(tmp_path, abbreviations, (), THRESHOLDS, {})
    assert len(sheets(tmp_path)["landmarks"]) > 300


def test_what_something_hides_has_figures_of_its_own(tmp_path):
    hidden = np.array([[False, True, False], [False, False, True]])  # the last one is hidden and not annotated
    write_predictions(tmp_path / "predictions.csv", make_predictions()._replace(occluded=hidden), ABBREVIATIONS, "mm")
    summary = report_on(tmp_path, NAMES, ("R1",), THRESHOLDS, {})
    assert summary["occluded"]["MRE"] == 2.0 and summary["occluded"]["n_landmarks"] == 1
    assert summary["headline"]["n_landmarks"] == 3 and summary["all"]["measures"] == {}
    assert re.search(r"occluded.*: MRE 2\.00", summary_table(summary, THRESHOLDS))
    assert figures_of(sheets(tmp_path)["summary"], "occluded")[1][1] == "occluded landmarks"


def test_where_nothing_is_known_to_be_hidden_the_report_does_not_speak_of_it(tmp_path):
    nothing = np.zeros((2, 3), bool)
    write_predictions(tmp_path / "predictions.csv", make_predictions()._replace(occluded=nothing), ABBREVIATIONS, "mm")
    assert "occluded" not in (tmp_path / "predictions.csv").read_text(encoding="utf-8")
    assert "occluded" not in write_report(
        tmp_path, read_predictions(tmp_path / "predictions.csv"), NAMES, ("R1",), THRESHOLDS, {}
    )


def test_pooled_predictions_keep_their_columns_where_only_some_have_them(tmp_path):
    hidden = np.array([[False, True, False], [False, False, False]])
    dice = {"dice": np.full((2, 3), 0.5)}
    for name, occluded in (("one", np.zeros((2, 3), bool)), ("two", hidden)):
        predictions = make_predictions()._replace(extras=dice, occluded=occluded, names=[f"{name} 1", f"{name} 2"])
        write_predictions(tmp_path / f"{name}.csv", predictions, ABBREVIATIONS, "mm")
    for order in (("one", "two"), ("two", "one")):
        pool_predictions([tmp_path / f"{name}.csv" for name in order], tmp_path / "predictions.csv")
        summary = report_on(tmp_path, NAMES, (), THRESHOLDS, {})
        assert summary["occluded"]["n_landmarks"] == 1 and summary["all"]["measures"] == {"dice": 0.5}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [], "rows"),
        (lambda rows: rows[:1], "rows"),
        (lambda rows: [["image", "x"], ["a", "1"]], "column landmark"),
        (lambda rows: [row[:-2] for row in rows], "column error_px"),
        (lambda rows: [[";".join(row)] for row in rows], "semicolons commas"),
        (lambda rows: rows[:-1], "b.png B"),
        (lambda rows: [*rows, rows[1]], "a.png A 2"),
        (lambda rows: [*rows[:-1], rows[-1][:4]], "row 5 4 8"),
        (lambda rows: [rows[0], [*rows[1][:2], "1,5", *rows[1][3:]], *rows[2:]], "a.png A x '1,5'"),
        (lambda rows: [rows[0], [*rows[1][:2], "inf", *rows[1][3:]], *rows[2:]], "a.png A x 'inf'"),
    ],
)
def test_a_damaged_or_foreign_predictions_csv_ends_in_one_line(tmp_path, change, message):
    truth = np.array([[[1.0, 2], [3, 4]]] * 2)
    predictions = Predictions(["a.png", "b.png"], truth + 1, truth, np.ones((2, 2)), np.ones(2))
    path = tmp_path / "predictions.csv"
    write_predictions(path, predictions, ["A", "B"], "mm")
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(change(rows))
    with refuses(path, *message.split()):
        read_predictions(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Linux")
def test_a_pipe_in_place_of_a_predictions_csv_is_refused(tmp_path):
    os.mkfifo(tmp_path / "predictions.csv")
    with refuses("predictions.csv", "pipe"):
        read_predictions(tmp_path / "predictions.csv")


def test_a_predictions_csv_that_is_no_text_is_refused(tmp_path):
    for content in (b"\xff\xfe\x00", b'image,landmark\n"a', b"\x00"):
        (tmp_path / "predictions.csv").write_bytes(content)
        with refuses("predictions.csv"):
            read_predictions(tmp_path / "predictions.csv")


def test_the_order_of_the_rows_of_predictions_is_free(tmp_path):
    truth = np.random.default_rng(0).uniform(0, 90, (3, 2, 2))
    predictions = Predictions(["a", "b", "c"], truth + (3, 4), truth, np.arange(6.0).reshape(3, 2), np.ones(3))
    path = tmp_path / "predictions.csv"
    write_predictions(path, predictions, ["A", "B"], "mm")
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *(rows[n] for n in (4, 1, 0, 5, 3, 2))]), encoding="utf-8")
    names, abbreviations, columns, _ = read_predictions(path)
    assert (names, abbreviations) == (["c", "a", "b"], ["A", "B"])
    assert columns["score"].tolist() == [[4, 5], [0, 1], [2, 3]]


def test_one_image_has_a_singular_and_no_interval(tmp_path):
    predictions = make_predictions()
    one = predictions._replace(**{name: getattr(predictions, name)[:1] for name in ("names", "landmarks", "truth")})
    one = one._replace(score=predictions.score[:1], spacing=predictions.spacing[:1])
    one.truth[:, 1:] = math.nan
    write_predictions(tmp_path / "predictions.csv", one, ABBREVIATIONS, "mm")
    summary = write_report(tmp_path, read_predictions(tmp_path / "predictions.csv"), NAMES, (), THRESHOLDS, {})
    text = summary_table(summary, THRESHOLDS)
    assert "1 image, 1 point" in text and "1 images" not in text and "no interval" in text


def test_more_images_than_a_sheet_has_rows_go_to_further_sheets(reported, monkeypatch):
    folder, _ = reported
    monkeypatch.setattr(workbook, "MOST_ROWS", 1)
    before = sheets(folder)["images"]
    report_on(folder, NAMES, ("R1",), THRESHOLDS, {"settings": {}})
    after = sheets(folder)
    assert after["images"] == before[:2] and after["images 2"] == [before[0], before[2]]


def test_a_sheet_holds_as_many_rows_as_the_format_allows(tmp_path):
    book = xlwt.Workbook()
    workbook.write_table(book, "images", ["n"], [[n] for n in range(workbook.MOST_ROWS + 1)])
    book.save(tmp_path / "results.xls")
    assert [sheet.nrows for sheet in xlrd.open_workbook(tmp_path / "results.xls").sheets()] == [65_536, 2]


def made_records(readers: bool = True, **keys) -> tuple[list[Record], PredictionTable]:
    """Twelve records of landmarks S and N, which two readers put 2 px to each side of the truth, and predictions."""
    generator = np.random.default_rng(0)
    truth = generator.uniform(20, 80, (12, 2, 2))
    shift = np.array([2.0, 0])
    records = [
        Record(
            f"{number}.png", Path("x"), own, np.zeros(2, bool), spacing=0.5, size=(100, 100),
            readers=np.stack([own + shift, own - shift]) if readers else None,
            keys={key: values[number] for key, values in keys.items()},
        )
        for number, own in enumerate(truth)
    ]  # fmt: skip
    found = truth + [1.0, -2.0]
    columns = {"x": found[..., 0], "y": found[..., 1], "x_true": truth[..., 0], "y_true": truth[..., 1]}
    columns |= {"error": np.full((12, 2), math.sqrt(5) / 2), "score": np.ones((12, 2))}
    return records, PredictionTable([record.name for record in records], ["S", "N"], columns, "mm")


def test_the_agreement_of_predictions_stands_beside_that_of_two_readers(tmp_path):
    records, table = made_records()
    measured, agreement, pairs = compare_readings("none", records, table)
    assert measured is None and list(pairs)[0].endswith("y (mm)")  # the worst first
    found, between = (agreement[name] for name in ("predictions", "readers"))
    assert list(found) == ["S x (mm)", "S y (mm)", "N x (mm)", "N y (mm)"] == list(between)
    assert [found["S x (mm)"]["bias"], found["N y (mm)"]["bias"]] == pytest.approx([0.5, -1])  # mm, of 0.5 per px
    assert [between["S x (mm)"]["bias"], between["N y (mm)"]["bias"]] == pytest.approx([2, 0])
    provenance = {"test set": "test1", "run": "farnet-1", "checkpoint": "best.pt", "commit": "abc"}
    summary = write_report(tmp_path, table, ["S", "N"], (), THRESHOLDS, provenance, None, {"agreement": agreement})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["agreement"] == summary["agreement"]
    head, first, *_ = sheets(tmp_path)["agreement"]
    row = dict(zip(head, first, strict=True))
    assert row["measure"] == "S x (mm)" and [row["bias"], row["readers: bias"]] == pytest.approx([0.5, 2])
    top = sheets(tmp_path)["summary"]
    assert [row[:2] for row in top[:4]] == [list(pair) for pair in provenance.items()]


def test_without_readers_of_every_image_only_the_predictions_are_compared():
    records, table = made_records(readers=False)
    assert set(compare_readings("none", records, table)[1]) == {"predictions"}
    records, table = made_records()
    table.columns["x_true"][:] = math.nan  # nothing is known to be true: the readers are compared with nothing
    table.columns["y_true"][:] = math.nan
    assert compare_readings("none", records, table)[1:] == ({}, {})


def test_groups_have_figures_of_their_own_and_small_ones_are_named(tmp_path, caplog):
    records, table = made_records(gender=["f"] * 10 + ["m", "m"])
    table.columns["error"][10:] = 3.0
    config = Config(report_by=("gender",), report_exclude=("S",))
    groups = {"groups": group_figures(config, records, records[2:], table_of(table, slice(2, None)))}
    own = groups["groups"]["gender"]
    assert (own["f"]["n_images"], own["m"]["n_images"], own["m"]["n_landmarks"]) == (8, 2, 2)
    assert own["m"]["MRE"] == 3 and own["f"]["SDR_2.0"] == 100
    assert "gender f (8)" in caplog.text and "gender m (2)" in caplog.text
    summary = write_report(tmp_path, table, ["S", "N"], ("S",), THRESHOLDS, {}, None, groups)
    assert figures_of(sheets(tmp_path)["summary"], "gender: m")[1][1:5] == ["without S", 2, 2, 3]
    assert re.search(r"gender m: MRE 3\.00 mm", summary_table(summary, THRESHOLDS))


def table_of(table: PredictionTable, rows: slice) -> PredictionTable:
    """The table of some of its images."""
    columns = {name: values[rows] for name, values in table.columns.items()}
    return table._replace(names=table.names[rows], columns=columns)


def test_the_agreement_is_drawn_if_there_are_three_images(tmp_path):
    records, table = made_records()
    _, agreement, pairs = compare_readings("none", records, table)
    draw_agreement(tmp_path / "agreement.png", pairs, agreement)
    with Image.open(tmp_path / "agreement.png") as picture:
        assert picture.size[0] > 1000
    _, agreement, pairs = compare_readings("none", records[:2], table_of(table, slice(2)))
    draw_agreement(tmp_path / "none.png", pairs, agreement)
    assert not (tmp_path / "none.png").exists()
