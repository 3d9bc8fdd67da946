"""Write the sheets of results.xls: landmarks, images, measurements, definitions and settings."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xlwt

from reporting.measurements import Measured
from reporting.predictions import PredictionTable
from utils import error_figures, finite_mean

BOLD = xlwt.easyxf("font: bold on; borders: bottom thin")
NUMBER = xlwt.easyxf(num_format_str="0.00")
PRECISE = xlwt.easyxf(num_format_str="0.000000")
PLAIN = xlwt.easyxf()

MOST_ROWS = 65_535  # of an xls sheet, below its titles

Figures = Mapping[str, Any]  # by name: numbers, or figures of a part


def add_sheet(book: xlwt.Workbook, name: str, titles: Sequence[str], widths: Mapping[int, int]) -> xlwt.Worksheet:
    """Add a sheet with a row of titles. widths: letters that fit into a column, by its number from 0."""
    sheet = book.add_sheet(name)
    write_row(sheet, 0, titles, BOLD)
    for column, letters in widths.items():
        sheet.col(column).width = 256 * letters
    return sheet


def write_row(sheet: xlwt.Worksheet, row: int, values: Sequence[Any], style: xlwt.XFStyle | None = None) -> None:
    """Write one row; nan and None stay blank. NumPy's numbers are cast, because xlwt refuses them."""
    for column, value in enumerate(values):
        if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
            continue
        if isinstance(value, float | np.floating):
            sheet.write(row, column, float(value), style or NUMBER)
        elif isinstance(value, int | np.integer):
            sheet.write(row, column, int(value), style or PLAIN)
        else:
            sheet.write(row, column, str(value)[:32767], style or PLAIN)


def write_table(
    book: xlwt.Workbook, name: str, titles: Sequence[str], rows: Sequence[Sequence[Any]], below: Sequence[Any] = ()
) -> None:
    """Write rows, and below them rows of precise numbers, into a sheet; what does not fit goes into "name 2", ..."""
    everything = [*((row, None) for row in rows), *((row, PRECISE) for row in below)]
    for start in range(0, max(1, len(everything)), MOST_ROWS):
        sheet = add_sheet(book, f"{name} {start // MOST_ROWS + 1}" if start else name, titles, {0: 30})
        for row, (values, style) in enumerate(everything[start : start + MOST_ROWS], 1):
            write_row(sheet, row, values, style)


def describe(errors: np.ndarray, thresholds: Sequence[float] = ()) -> dict[str, float]:
    """Return n, the figures of utils.error_figures and max of the known errors; nan where there are none."""
    known = errors[np.isfinite(errors)]
    greatest = float(known.max()) if known.size else math.nan
    return {"n": known.size} | error_figures(known, tuple(thresholds)) | {"max": greatest}


def write_landmark_sheet(
    book: xlwt.Workbook, table: PredictionTable, names: Sequence[str], thresholds: Sequence[float], summary: Figures
) -> None:
    """Write a row per landmark, then per part of the summary its figures and both ends of their 95 % intervals."""
    figures = (*(f"SDR_{threshold}" for threshold in thresholds), "MRE", "SD", "median")
    titles = ["NO", "abbreviation", "name", "n", *(f"SDR <= {t:g} {table.unit} (%)" for t in thresholds)]
    titles += [*(f"{name} ({table.unit})" for name in ("MRE", "SD", "median", "max")), *table.extras]
    sheet = add_sheet(book, "landmarks", titles, {2: 34})
    for n, (abbreviation, name) in enumerate(zip(table.abbreviations, names, strict=True)):
        own = describe(table.errors[:, n], thresholds)
        means = [finite_mean(extra[:, n]) for extra in table.extras.values()]
        write_row(sheet, n + 1, [n + 1, abbreviation, name, *(own[key] for key in ("n", *figures, "max")), *means])
    row = len(table.abbreviations)
    for part, parted in landmark_parts(summary).items():
        row, label = row + 1, part_label(part, parted)
        for end, words in (("", label), ("_low", "95 % interval, low"), ("_high", "95 % interval, high")):
            row += 1
            values = [part if not end else None, words, parted["n_landmarks"], *(parted[key + end] for key in figures)]
            write_row(sheet, row, [None, *values, *([None, *parted["measures"].values()] if not end else [])])
    sheet.set_panes_frozen(True)
    sheet.set_horz_split_pos(1)


def landmark_parts(summary: Figures) -> dict[str, Figures]:
    """Return the parts of a summary that are about landmarks, not about measurements."""
    return {part: figures for part, figures in summary.items() if part != "measurements"}


def part_label(part: str, figures: Figures) -> str:
    """Return in words which landmarks a part of the summary covers."""
    if part == "occluded":
        return "occluded landmarks"
    return f"without {', '.join(figures['without'])}" if figures.get("without") else "all landmarks"


def write_image_sheet(
    book: xlwt.Workbook, table: PredictionTable, thresholds: Sequence[float], exclude: Sequence[str]
) -> None:
    """Write a row per image, over the headline landmarks."""
    rates = [f"SDR <= {t:g} {table.unit} (%)" for t in thresholds]
    titles = ["image", "n", *(f"{name} ({table.unit})" for name in ("MRE", "SD", "median"))]
    errors = np.where(table.part("headline", exclude), table.errors, math.nan)
    rows = [[name, *describe(own, thresholds).values()] for name, own in zip(table.names, errors, strict=True)]
    write_table(book, "images", [*titles, *rates, f"max ({table.unit})"], rows)


def write_measurement_sheets(book: xlwt.Workbook, names: Sequence[str], measured: Measured) -> None:
    """Write a row per image with every measure, below them the figures of the set; then a sheet of definitions."""
    columns: dict[str, Any] = {"image": names}
    arrays = (measured.predicted.T, measured.true.T, measured.errors.T)
    for name, predicted, true, error in zip(measured.names, *arrays, strict=True):
        columns |= {f"{name}, predicted": predicted, f"{name}, true": true, f"{name}, error": error}
        if name in measured.classes:
            found, real = measured.classes[name]
            columns |= {f"{name}, predicted class": found, f"{name}, true class": real}
    flat: dict[str, float] = {}
    for name, value in measured.figures.items():
        flat |= {f"{name}, {key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    rows = list(zip(*columns.values(), strict=True))
    write_table(book, "measurements", list(columns), rows, [(), *flat.items()])

    if not measured.sources:
        return
    titles = ["measure", "definition", "n", "mean error", "SD", "max", "same class (%)", "true classes"]
    sheet = add_sheet(book, "definitions", titles, {0: 26, 1: 70, 7: 60})
    for row, (name, source) in enumerate(zip(measured.names, measured.sources, strict=True), 1):
        own = describe(measured.errors[:, row - 1])
        values: list[Any] = [name, source, *(own[key] for key in ("n", "MRE", "SD", "max"))]
        if name in measured.classes:
            found, real = measured.classes[name]
            known = (found != "") & (real != "")
            counts = ", ".join(f"{label} {count}" for label, count in Counter(real[real != ""].tolist()).most_common())
            values += [100 * float(np.mean((found == real)[known])), counts]
        write_row(sheet, row, values)


def write_settings_sheet(book: xlwt.Workbook, provenance: Mapping[str, Any]) -> None:
    """Write name and value of everything that the figures depend on: commit, versions and settings."""
    sheet = add_sheet(book, "settings", ["name", "value"], {0: 30, 1: 30})
    flat = {**{k: v for k, v in provenance.items() if k != "settings"}, **provenance.get("settings", {})}
    for row, (name, value) in enumerate(flat.items(), 1):
        write_row(sheet, row, [name, value if isinstance(value, str | int | float) else json.dumps(value)])
