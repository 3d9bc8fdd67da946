"""Write the sheets of results.xls: summary, landmarks, images, measurements, definitions, agreement and settings."""

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

AGREEMENT = {  # figures of agreement.agreement, and their titles
    "bias": "bias", "limit_low": "95 % limit of agreement, low", "limit_high": "high", "dahlberg": "Dahlberg's error",
    "ICC": "ICC(2,1)", "ICC_low": "low", "ICC_high": "high", "within_2": "within 2 (%)",
}  # fmt: skip
MOST_ROWS = 65_535  # of an xls sheet, below its titles

Figures = Mapping[str, Any]  # by name: numbers, or figures of a part


def add_sheet(book: xlwt.Workbook, name: str, titles: Sequence[str], widths: Mapping[int, int]) -> xlwt.Worksheet:
    """Add a sheet with a row of titles. widths: letters that fit into a column, by its number from 0."""
    sheet = book.add_sheet(name)
    write_row(sheet, 0, titles, BOLD)
    for column, letters in widths.items():
        sheet.col(column).width = 256 * letters
    sheet.set_panes_frozen(True)
    sheet.set_horz_split_pos(1)
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


def write_table(book: xlwt.Workbook, name: str, titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows into a sheet; what does not fit goes into the sheets "name 2", ..."""
    for start in range(0, max(1, len(rows)), MOST_ROWS):
        sheet = add_sheet(book, f"{name} {start // MOST_ROWS + 1}" if start else name, titles, {0: 30, 1: 24})
        for row, values in enumerate(rows[start : start + MOST_ROWS], 1):
            write_row(sheet, row, values)


def describe(errors: np.ndarray, thresholds: Sequence[float] = ()) -> dict[str, float]:
    """Return n, the figures of utils.error_figures and max of the known errors; nan where there are none."""
    known = errors[np.isfinite(errors)]
    greatest = float(known.max()) if known.size else math.nan
    return {"n": known.size} | error_figures(known, tuple(thresholds)) | {"max": greatest}


def write_summary_sheet(book: xlwt.Workbook, summary: Figures, thresholds: Sequence[float], about: Figures) -> None:
    """Write the answer: what was tested, the figures of each part and group with their 95 % intervals, agreement.

    about: the provenance of the run, with "test set", "run" and "checkpoint".
    """
    parts = landmark_parts(summary)
    unit = next(iter(parts.values()))["unit"]
    names = ["MRE", "SD", "median", *(f"SDR_{threshold}" for threshold in map(float, thresholds))]
    titles = [f"{name} ({unit})" for name in names[:3]] + [f"SDR <= {t:g} {unit} (%)" for t in thresholds]
    ends = [cell for title in titles for cell in (title, "low", "high")]
    known = [(name, about[name]) for name in ("test set", "run", "checkpoint", "started", "commit") if about.get(name)]
    rows: list[tuple[Sequence[Any], xlwt.XFStyle | None]] = [(row, None) for row in known]
    rows += [((), None), (["part", "landmarks", "images", "points", *ends], BOLD)]
    labelled = {(part, part_label(part, own)): own for part, own in parts.items()}
    headline = part_label("headline", summary["headline"])
    for key, groups in summary.get("groups", {}).items():
        labelled |= {(f"{key}: {name}", headline): own for name, own in groups.items()}
    for label, own in labelled.items():
        figures = [own[f"{name}{end}"] for name in names for end in ("", "_low", "_high")]
        rows.append(([*label, own["n_images"], own["n_landmarks"], *figures], None))
    measured = summary.get("measurements", {})
    rates = {name: own for name, own in measured.items() if isinstance(own, Mapping)}
    if rates:
        rows += [((), None), (["angles and distances", *next(iter(rates.values()))], BOLD)]
        rows += [([name, *own.values()], None) for name, own in rates.items()]
    others = [(name, value) for name, value in measured.items() if name not in rates]
    rows += [((), None), *((row, PRECISE) for row in others)] if others else []
    if coverage := summary.get("coverage"):
        titles = ["radius", f"mean ({unit})", "images", "points", "errors within it (%)", "low", "high"]
        rows += [((), None), (titles, BOLD)]
        keys = ("mean", "n_images", "n_landmarks", "coverage", "coverage_low", "coverage_high")
        rows += [([name, *(own[key] for key in keys)], None) for name, own in coverage.items()]
    if flagged := summary.get("flagged"):
        rows += [((), None), (list(flagged[0]), BOLD), *((list(each.values()), None) for each in flagged)]
    sheet = book.add_sheet("summary")
    for row, (values, style) in enumerate(rows):
        write_row(sheet, row, values, style)
    for column, letters in {0: 34, 1: 30}.items():
        sheet.col(column).width = 256 * letters


def write_agreement_sheet(book: xlwt.Workbook, agreement: Figures) -> None:
    """Write a row per angle, distance and coordinate: how predictions agree with the truth, and two readers beside."""
    titles, own, others = ["measure", "n", *AGREEMENT.values()], agreement["predictions"], agreement.get("readers", {})
    titles += [f"readers: {title}" for title in titles[1:]] if others else []
    blank = dict.fromkeys(("n", *AGREEMENT))
    rows = [
        [name, *(figures[key] for key in blank), *((others.get(name, blank)[key] for key in blank) if others else ())]
        for name, figures in own.items()
    ]
    write_table(book, "agreement", titles, rows)


def write_landmark_sheet(
    book: xlwt.Workbook, table: PredictionTable, names: Sequence[str], thresholds: Sequence[float]
) -> None:
    """Write a row per landmark: how often it is annotated, SDR, MRE, SD, median, largest error, means of the extras."""
    figures = (*(f"SDR_{threshold}" for threshold in thresholds), "MRE", "SD", "median")
    titles = ["NO", "abbreviation", "name", "n", *(f"SDR <= {t:g} {table.unit} (%)" for t in thresholds)]
    titles += [*(f"{name} ({table.unit})" for name in ("MRE", "SD", "median", "max")), *table.extras]
    sheet = add_sheet(book, "landmarks", titles, {2: 34})
    for n, (abbreviation, name) in enumerate(zip(table.abbreviations, names, strict=True)):
        own = describe(table.errors[:, n], thresholds)
        means = [finite_mean(extra[:, n]) for extra in table.extras.values()]
        write_row(sheet, n + 1, [n + 1, abbreviation, name, *(own[key] for key in ("n", *figures, "max")), *means])


def landmark_parts(summary: Figures) -> dict[str, Figures]:
    """Return the parts of a summary that are about landmarks, not about measurements."""
    return {part: own for part, own in summary.items() if part in ("headline", "all", "occluded")}


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
    """Write a row per image and measure, then a sheet of definitions."""
    blank = np.full(len(names), "")
    rows = [
        [image, name, measured.predicted[i, m], measured.true[i, m], measured.errors[i, m]]
        + [own[i] for own in measured.classes.get(name, (blank, blank))]
        for i, image in enumerate(names)
        for m, name in enumerate(measured.names)
    ]
    titles = ["image", "measure", "predicted", "true", "error", "predicted class", "true class"]
    write_table(book, "measurements", titles if measured.classes else titles[:5], rows)

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
