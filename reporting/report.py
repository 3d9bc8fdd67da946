"""The report of a test: predictions -> summary.json, results.xls, and the pictures of pictures.py."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xlwt

from config import Config
from reading.annotation import Record
from reading.splits import LandmarkData
from reporting.measurements import Measured, measure
from reporting.pictures import draw_overlays, draw_rates
from reporting.predictions import PredictionTable
from utils import error_figures, finite_mean, summarise_errors

MEAN_ERROR = "mean error of "  # a measure

# --- Figures and tables --------------------------------------------------------------------------


def report(
    config: Config, run_dir: Path, folder: Path, data: LandmarkData, records: Sequence[Record], table: PredictionTable
) -> str:
    """Write everything derived from the predictions of these records into folder; return the summary as text."""
    by_name = {record.name: record for record in records}
    own = [by_name[name] for name in table.names]
    sizes, spacing = [record.size for record in own], [record.spacing for record in own]
    measured = measure(config.measurements, table.abbreviations, table.landmarks, table.truth, sizes, spacing)
    provenance = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    thresholds = config.sdr_thresholds
    summary = write_report(folder, table, data.names, config.report_exclude, thresholds, provenance, measured)
    draw_overlays(folder, table, records, config.overlays)
    draw_rates(folder, table, thresholds)
    return summary_table(summary, thresholds)


def write_report(
    folder: Path,
    table: PredictionTable,
    landmark_names: Sequence[str],
    exclude: Sequence[str],
    thresholds: Sequence[float],
    provenance: Mapping[str, Any],
    measured: Measured | None = None,
) -> dict[str, Any]:
    """Write summary.json and results.xls of a predictions.csv into folder; return the summary.

    The summary holds the figures of utils.summarise_errors and the unit under "all" and, without the landmarks
    in `exclude`, under "headline", each with "measures": the means of the method's extras, such as Dice. If there are
    occluded landmarks, also under "occluded", for these alone. measured: angles and distances; their figures are
    under "measurements".
    """
    names, abbreviations, errors, unit = table.names, table.abbreviations, table.errors, table.unit
    thresholds, extras = tuple(thresholds), table.extras
    kept = [index for index, abbreviation in enumerate(abbreviations) if abbreviation not in exclude]
    summary: dict[str, Any] = {
        "headline": summarise_errors(errors[:, kept], thresholds) | {"unit": unit, "without": list(exclude)},
        "all": summarise_errors(errors, thresholds) | {"unit": unit},
    }
    if "occluded" in table.columns:
        hidden = np.where(table.part("occluded", exclude), errors, math.nan)
        summary["occluded"] = summarise_errors(hidden, thresholds) | {"unit": unit}
    for part in summary:
        inside = table.part(part, exclude)
        summary[part]["measures"] = {name: finite_mean(values[inside]) for name, values in extras.items()}

    if measured is not None:
        deviations = np.abs(measured.predicted - measured.true).T
        means = {f"{MEAN_ERROR}{name}": finite_mean(own) for name, own in zip(measured.names, deviations, strict=True)}
        summary["measurements"] = {**measured.figures, **means}

    def blank(figures: Mapping[str, Any]) -> dict[str, Any]:
        """JSON has no nan."""
        return {k: blank(v) if isinstance(v, dict) else None if v != v else v for k, v in figures.items()}

    (folder / "summary.json").write_text(json.dumps(blank(summary), indent=2, ensure_ascii=False), encoding="utf-8")

    book = xlwt.Workbook(encoding="utf-8")
    write_landmark_sheet(book, abbreviations, landmark_names, errors, thresholds, summary, unit, extras)
    write_image_sheet(book, names, errors, kept, thresholds, unit)
    if measured is not None:
        write_measurement_sheets(book, names, measured)
    write_settings_sheet(book, provenance)
    book.save(str(folder / "results.xls"))
    return summary


BOLD = xlwt.easyxf("font: bold on; borders: bottom thin")
NUMBER = xlwt.easyxf(num_format_str="0.00")
PRECISE = xlwt.easyxf(num_format_str="0.000000")
PLAIN = xlwt.easyxf()


def write_row(sheet: xlwt.Worksheet, row: int, values: Sequence[Any], style: xlwt.XFStyle | None = None) -> None:
    """One row; nan and None stay blank. xlwt refuses numpy's numbers, so they are cast."""
    for column, value in enumerate(values):
        if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
            continue
        if isinstance(value, float | np.floating):
            sheet.write(row, column, float(value), style or NUMBER)
        elif isinstance(value, int | np.integer):
            sheet.write(row, column, int(value), style or PLAIN)
        else:
            sheet.write(row, column, str(value)[:32767], style or PLAIN)


def write_landmark_sheet(book, abbreviations, landmark_names, errors, thresholds, summary, unit, extras) -> None:
    """Sheet 1: a row per landmark, then the overall rows with the ends of their 95 % intervals."""
    sheet = book.add_sheet("landmarks")
    rates = [f"SDR_{threshold}" for threshold in thresholds]
    titles = ["NO", "abbreviation", "name", "n", *(f"SDR <= {t:g} {unit} (%)" for t in thresholds)]
    titles += [*(f"{figure} ({unit})" for figure in ("MRE", "SD", "median", "max")), *extras]
    write_row(sheet, 0, titles, BOLD)
    row = 0
    for row, (abbreviation, name) in enumerate(zip(abbreviations, landmark_names, strict=True), 1):
        own = errors[:, row - 1][np.isfinite(errors[:, row - 1])]
        figures = error_figures(own, thresholds)
        values = [figures[key] for key in (*rates, "MRE", "SD", "median")]
        values += [own.max() if own.size else None, *(finite_mean(each[:, row - 1]) for each in extras.values())]
        write_row(sheet, row, [row, abbreviation, name, own.size, *values])
    for part, figures in landmark_parts(summary).items():
        row, label = row + 1, part_label(part, figures)
        for end, words in (("", label), ("_low", "95 % interval, low"), ("_high", "95 % interval, high")):
            row += 1
            values = [figures[key + end] for key in (*rates, "MRE", "SD", "median")]
            values += [None, *figures["measures"].values()] if not end else []
            write_row(sheet, row, [None, part if not end else None, words, figures["n_landmarks"], *values])
    sheet.col(2).width = 256 * 34
    sheet.set_panes_frozen(True)
    sheet.set_horz_split_pos(1)


def landmark_parts(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parts of a summary that are figures of landmarks."""
    return {part: figures for part, figures in summary.items() if part != "measurements"}


def part_label(part: str, figures: Mapping[str, Any]) -> str:
    """Which landmarks a part of the summary is about."""
    if part == "occluded":
        return "occluded landmarks"
    return f"without {', '.join(figures['without'])}" if figures.get("without") else "all landmarks"


def write_image_sheet(book, names, errors, kept, thresholds, unit) -> None:
    """Sheet 2: a row per image, over the headline landmarks."""
    sheet = book.add_sheet("images")
    titles = ["image", "n", f"MRE ({unit})", f"SD ({unit})", f"median ({unit})"]
    write_row(sheet, 0, [*titles, *(f"SDR <= {t:g} {unit} (%)" for t in thresholds), f"max ({unit})"], BOLD)
    for row, name in enumerate(names, 1):
        own = errors[row - 1, kept][np.isfinite(errors[row - 1, kept])]
        write_row(
            sheet, row, [name, own.size, *error_figures(own, thresholds).values(), own.max() if own.size else None]
        )
    sheet.col(0).width = 256 * 30


def write_measurement_sheets(book, names, measured: Measured) -> None:
    """Where something is measured: predicted, true, error, classes per image; on another sheet a row per measure."""
    sheet = book.add_sheet("measurements")
    columns: dict[str, Sequence[Any]] = {"image": names}
    for name, predicted, true in zip(measured.names, measured.predicted.T, measured.true.T, strict=True):
        columns |= {f"{name}, predicted": predicted, f"{name}, true": true, f"{name}, error": np.abs(predicted - true)}
        if name in measured.classes:
            found, real = measured.classes[name]
            columns |= {f"{name}, predicted class": found, f"{name}, true class": real}
    write_row(sheet, 0, list(columns), BOLD)
    for row, values in enumerate(zip(*columns.values(), strict=True), 1):
        write_row(sheet, row, values)
    flat = [
        (f"{name}, {key}" if key else name, value)
        for name, figure in measured.figures.items()
        for key, value in (figure.items() if isinstance(figure, dict) else [("", figure)])
    ]
    for row, (name, value) in enumerate(flat, len(names) + 2):
        write_row(sheet, row, [name, value], PRECISE)
    sheet.col(0).width = 256 * 30

    if not measured.sources:
        return
    sheet = book.add_sheet("definitions")
    write_row(
        sheet, 0, ["measure", "definition", "n", "mean error", "SD", "max", "same class (%)", "true classes"], BOLD
    )
    errors = np.abs(measured.predicted - measured.true)
    for row, (name, source, own) in enumerate(zip(measured.names, measured.sources, errors.T, strict=True), 1):
        own = own[np.isfinite(own)]
        values = [name, source, own.size, *((own.mean(), own.std(), own.max()) if own.size else (None,) * 3)]
        if name in measured.classes:
            found, real = measured.classes[name]
            known = (found != "") & (real != "")
            counts = ", ".join(f"{label} {count}" for label, count in Counter(real[real != ""].tolist()).most_common())
            values += [100 * float(np.mean((found == real)[known])), counts]
        write_row(sheet, row, values)
    sheet.col(0).width, sheet.col(1).width, sheet.col(7).width = 256 * 26, 256 * 70, 256 * 60


def write_settings_sheet(book, provenance: Mapping[str, Any]) -> None:
    """The last sheet: where the figures come from, name and value."""
    sheet = book.add_sheet("settings")
    write_row(sheet, 0, ["name", "value"], BOLD)
    flat = {**{k: v for k, v in provenance.items() if k != "settings"}, **provenance.get("settings", {})}
    for row, (name, value) in enumerate(flat.items(), 1):
        write_row(sheet, row, [name, value if isinstance(value, str | int | float) else json.dumps(value)])
    sheet.col(0).width = sheet.col(1).width = 256 * 30


def summary_table(summary: Mapping[str, Any], thresholds: Sequence[float]) -> str:
    """The summary as lines for the terminal."""
    lines = []
    for part, figures in landmark_parts(summary).items():
        unit, rates = figures["unit"], [f"{figures[f'SDR_{t}']:.1f}" for t in map(float, thresholds)]
        lines.append(
            f"{part} ({part_label(part, figures)}): MRE {figures['MRE']:.2f} +- {figures['SD']:.2f} {unit} "
            f"(95 % interval {figures['MRE_low']:.2f} to {figures['MRE_high']:.2f}), median {figures['median']:.2f}; "
            f"SDR at {'/'.join(f'{t:g}' for t in thresholds)} {unit}: {' / '.join(rates)} %; "
            f"{figures['n_images']} images, {figures['n_landmarks']} points"
            + "".join(f"; {name} {value:.2f}" for name, value in figures["measures"].items())
        )
    measured = summary.get("measurements", {})
    many = sum(name.startswith(MEAN_ERROR) for name in measured) > 5  # then they stand in results.xls alone
    shown = [
        f"{name} "
        + (", ".join(f"{k} {v:.4g}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.4g}")
        for name, value in measured.items()
        if not (many and name.startswith(MEAN_ERROR))
    ]
    if shown:
        lines.append("measured: " + "; ".join(shown))
    return "\n".join(lines)
