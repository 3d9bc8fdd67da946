"""The report of a test: everything derived from its predictions, and its summary as text."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xlwt

from config import Config
from reading.annotation import Record
from reading.splits import LandmarkData
from reporting import workbook
from reporting.measurements import CLASS_RATES, Measured, measure
from reporting.pictures import draw_overlays, draw_rates
from reporting.predictions import PredictionTable
from run_folder import write_bytes, write_text
from settings import read_json
from utils import finite_mean, summarise_errors

MEAN_ERROR = "mean error of "  # a measure, as summary.json names it


def report(
    config: Config, run_dir: Path, folder: Path, data: LandmarkData, records: Sequence[Record], table: PredictionTable
) -> str:
    """Write everything derived from the predictions of these records into folder; return the summary as text."""
    by_name = {record.name: record for record in records}
    own = [by_name[name] for name in table.names]
    sizes, spacing = [record.size for record in own], [record.spacing for record in own]
    measured = measure(config.measurements, table.abbreviations, table.landmarks, table.truth, sizes, spacing)
    provenance = read_json(run_dir / "config.json", "restore the config.json of the run")
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
    """Write folder/summary.json and folder/results.xls; return the summary.

    The summary holds the unit, the figures of utils.summarise_errors and the means of the method's extras, such as
    Dice, under "all"; under "headline" without the landmarks in `exclude`; and, if there are occluded landmarks, for
    these alone under "occluded". The figures of angles and distances (measured) are under "measurements".
    """
    summary: dict[str, Any] = {}
    for part in ("headline", "all", "occluded") if "occluded" in table.columns else ("headline", "all"):
        inside = table.part(part, exclude)
        figures = summarise_errors(np.where(inside, table.errors, math.nan), tuple(thresholds))
        summary[part] = figures | {"unit": table.unit} | ({"without": list(exclude)} if part == "headline" else {})
        # programs read the key "measures", so it stays, although the word means angles and distances everywhere else
        summary[part]["measures"] = {name: finite_mean(values[inside]) for name, values in table.extras.items()}
    if measured is not None:
        means = zip(measured.names, map(finite_mean, measured.errors.T), strict=True)
        summary["measurements"] = measured.figures | {f"{MEAN_ERROR}{name}": mean for name, mean in means}

    def blank(figures: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures with None for nan, which JSON does not have."""
        return {k: blank(v) if isinstance(v, dict) else None if v != v else v for k, v in figures.items()}

    write_text(folder / "summary.json", json.dumps(blank(summary), indent=2, ensure_ascii=False))

    book = xlwt.Workbook(encoding="utf-8")
    workbook.write_landmark_sheet(book, table, landmark_names, thresholds, summary)
    workbook.write_image_sheet(book, table, thresholds, exclude)
    if measured is not None:
        workbook.write_measurement_sheets(book, table.names, measured)
    workbook.write_settings_sheet(book, provenance)
    write_bytes(folder / "results.xls", book.save)
    return summary


def figure_text(figures: Mapping[str, Any], name: str, digits: int) -> str:
    """Return a figure and its 95 % interval, "1.22 (1.18 to 1.26)"; without the interval if it is unknown."""
    value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
    known = low is not None and math.isfinite(low)
    return f"{value:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if known else "")


def summary_table(summary: Mapping[str, Any], thresholds: Sequence[float]) -> str:
    """Return the summary as lines for the terminal."""
    lines = []
    for part, own in workbook.landmark_parts(summary).items():
        unit, rates = own["unit"], [f"{own[f'SDR_{threshold}']:.1f}" for threshold in map(float, thresholds)]
        images, points, known = own["n_images"], own["n_landmarks"], math.isfinite(own["MRE_low"])
        interval = (
            f"95 % interval {own['MRE_low']:.2f} to {own['MRE_high']:.2f}" if known else "no interval below 3 images"
        )
        lines.append(
            f"{part} ({workbook.part_label(part, own)}): MRE {own['MRE']:.2f} +- {own['SD']:.2f} {unit} "
            f"({interval}), median {own['median']:.2f}; "
            f"SDR at {'/'.join(f'{t:g}' for t in thresholds)} {unit}: {' / '.join(rates)} %; "
            f"{images} image{'' if images == 1 else 's'}, {points} point{'' if points == 1 else 's'}"
            + "".join(f"; {name} {value:.2f}" for name, value in own["measures"].items())
        )
    measured = summary.get("measurements", {})
    for name, words in CLASS_RATES.items():
        if name in measured:
            rates = [f"{each} {rate:.3g}" for each, rate in measured[name].items() if each != "mean"]
            lines.append(f"{words.format(measured[name]['mean'])} ({', '.join(rates)})")
    others = {name: value for name, value in measured.items() if name not in CLASS_RATES}
    if sum(name.startswith(MEAN_ERROR) for name in others) > 5:  # too many for a line; results.xls has them
        others = {name: value for name, value in others.items() if not name.startswith(MEAN_ERROR)}
    if others:
        lines.append("measurements: " + "; ".join(f"{name} {value:.4g}" for name, value in others.items()))
    return "\n".join(lines)
