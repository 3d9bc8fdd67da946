"""The report of a test: everything derived from its predictions, and its summary as text."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xlwt

from config import Config
from reading.annotation import Record, shorten
from reading.groups import group_records
from reading.splits import LandmarkData
from reporting import workbook
from reporting.agreement import agreements, paired_readings
from reporting.charts import draw_agreement, draw_rates
from reporting.measurements import CLASS_RATES, Measured, measure
from reporting.pictures import draw_overlays
from reporting.predictions import PredictionTable
from run_folder import write_bytes, write_text
from settings import read_json
from utils import finite_mean, summarise_errors

log = logging.getLogger("farnet")

FEWEST = 10  # images of a group; an interval over fewer says little
MEAN_ERROR = "mean error of "  # a measure, as summary.json names it


def report(
    config: Config,
    run_dir: Path,
    folder: Path,
    data: LandmarkData,
    records: Sequence[Record],
    table: PredictionTable,
    checkpoints: Sequence[object] = (),
) -> str:
    """Write everything derived from the predictions of these records into folder; return the summary as text.

    checkpoints: the files that were tested.
    """
    by_name = {record.name: record for record in records}
    own = [by_name[name] for name in table.names]
    measured, agreement, pairs = compare_readings(config.measurements, own, table)
    thresholds = config.sdr_thresholds
    judged = zip(table.names, table.verdicts, strict=True) if table.verdicts else ()
    parts: dict[str, Any] = {
        "agreement": agreement,
        "groups": group_figures(config, data.records, own, table),
        "coverage": coverage_figures(table),
        "flagged": [{"image": name, "verdict": one, "reason": why} for name, (one, why) in judged if one != "good"],
    }
    about = {"test set": folder.name, "run": run_dir.resolve().name, "checkpoint": ", ".join(map(str, checkpoints))}
    provenance = about | read_json(run_dir / "config.json", "restore the config.json of the run")
    parts = {name: part for name, part in parts.items() if part}
    summary = write_report(folder, table, data.names, config.report_exclude, thresholds, provenance, measured, parts)
    draw_overlays(folder, table, records, config.overlays, config.circles)
    draw_rates(folder, table, thresholds)
    draw_agreement(folder / "agreement.png", pairs, agreement)
    return summary_table(summary, thresholds)


def compare_readings(
    kind: str, records: Sequence[Record], table: PredictionTable
) -> tuple[Measured | None, dict[str, dict[str, dict[str, float]]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the angles and distances, the agreement by name, and pairs of predicted and true values (I,) to draw.

    kind: setting measurements. records: those of the table, in its order. The agreement is that of "predictions" with
    the truth and, if the records keep two readers, of these "readers" with each other. Nothing is computed from a
    rejected image. The pairs are those of angles and distances, or of the coordinates, the worst first.
    """
    rejected = np.array([verdict == "reject" for verdict, _ in table.verdicts] or [False] * len(table.names))
    kept = np.where(rejected, math.nan, 1.0)[:, None, None]
    points = {"predictions": (kept * table.landmarks, table.truth)}
    readers = [record.readers for record in records if record.readers is not None]
    if len(readers) == len(records):
        first, second = np.stack(readers, 1)
        points["readers"] = kept * first, kept * second
    sizes, spacing = [record.size for record in records], np.array([record.spacing for record in records])
    scale = spacing if table.unit == "mm" else np.ones(len(records))
    measured = measure(kind, table.abbreviations, *points["predictions"], sizes, spacing)
    agreement: dict[str, dict[str, dict[str, float]]] = {}
    for name, (found, true) in points.items():
        own = measured and measure(kind, table.abbreviations, found, true, sizes, spacing)
        readings = paired_readings(table.abbreviations, table.unit, scale, found, true, own)
        if name == "predictions":
            names, values, others = readings
        if (figures := agreements(*readings)) and (agreement or name == "predictions"):
            agreement[name] = figures
    pairs = dict(zip(names, zip(values.T, others.T, strict=True), strict=True))
    known = agreement.get("predictions", {})
    order = measured.names if measured else sorted(known, key=lambda name: -known[name]["dahlberg"])
    return measured, agreement, {name: pairs[name] for name in order}


def coverage_figures(table: PredictionTable) -> dict[str, dict[str, float]]:
    """Return how many of the errors each radius holds, in per cent with a 95 % interval, and its mean; by its name.

    "coverage", "coverage_low", "coverage_high", "mean", "n_images" and "n_landmarks", as in utils.summarise_errors.
    """
    found = {}
    for name in (name for name in table.extras if name.startswith("radius_")):
        radius = np.where(np.isfinite(table.errors), table.columns[name], math.nan)
        figures = summarise_errors(np.where(np.isfinite(radius), table.errors / radius, math.nan), (1.0,))
        own = {f"coverage{end}": figures[f"SDR_1.0{end}"] for end in ("", "_low", "_high")}
        found[name] = own | {"mean": finite_mean(radius), **{key: figures[key] for key in ("n_images", "n_landmarks")}}
    return {name: own for name, own in found.items() if own["n_landmarks"]}


def group_figures(
    config: Config, everything: Sequence[Record], records: Sequence[Record], table: PredictionTable
) -> dict[str, dict[str, Any]]:
    """Return the figures of utils.summarise_errors of the headline landmarks for each group of config.report_by.

    By key, then by group. everything: the records of all splits; records: those of the table, in its order. Logs groups
    of fewer than FEWEST images.
    """
    errors = np.where(table.part("headline", config.report_exclude), table.errors, math.nan)
    by_name = {record.name: place for place, record in enumerate(everything)}
    places = [by_name[record.name] for record in records]
    groups: dict[str, dict[str, Any]] = {}
    small = []
    for key, members in group_records(config.report_by, everything).items():
        groups[key] = {}
        for name, inside in members.items():
            if inside[places].any():
                figures = summarise_errors(errors[inside[places]], tuple(config.sdr_thresholds))
                groups[key][name] = figures | {"unit": table.unit}
                small += [f"{key} {name} ({figures['n_images']})"] if figures["n_images"] < FEWEST else []
    if small:
        log.warning("groups of fewer than %d images say little: %s", FEWEST, ", ".join(small))
    return groups


def write_report(
    folder: Path,
    table: PredictionTable,
    landmark_names: Sequence[str],
    exclude: Sequence[str],
    thresholds: Sequence[float],
    provenance: Mapping[str, Any],
    measured: Measured | None = None,
    parts: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Write folder/summary.json and folder/results.xls; return the summary.

    The summary holds the unit, the figures of utils.summarise_errors and the means of the method's extras, such as
    Dice, under "all"; under "headline" without the landmarks in `exclude`; and, if there are occluded landmarks, for
    these alone under "occluded". The figures of angles and distances (measured) are under "measurements". parts: what
    else the summary holds, "agreement" and "groups".
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

    summary |= parts

    def blank(figures: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures with None for nan, which JSON does not have."""
        return {k: blank(v) if isinstance(v, dict) else None if v != v else v for k, v in figures.items()}

    write_text(folder / "summary.json", json.dumps(blank(summary), indent=2, ensure_ascii=False))

    book = xlwt.Workbook(encoding="utf-8")
    workbook.write_summary_sheet(book, summary, thresholds, provenance)
    workbook.write_landmark_sheet(book, table, landmark_names, thresholds)
    workbook.write_image_sheet(book, table, thresholds, exclude)
    if measured is not None:
        workbook.write_measurement_sheets(book, table.names, measured)
    if "agreement" in summary:
        workbook.write_agreement_sheet(book, summary["agreement"])
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
            + "".join(
                f"; {name} {value:.2f}" for name, value in own["measures"].items() if not name.startswith("radius_")
            )
        )
    for name, own in summary.get("coverage", {}).items():
        unit, held = summary["all"]["unit"], figure_text(own, "coverage", 1)
        lines.append(f"{name}: holds {held} % of the errors; mean {own['mean']:.2f} {unit}")
    if flagged := summary.get("flagged"):
        names = shorten([f"{each['image']} ({each['verdict']})" for each in flagged])
        lines.append(f"not good, for reasons in results.xls: {names}")
    for key, groups in summary.get("groups", {}).items():
        first = f"SDR_{float(thresholds[0])}"
        lines += [
            f"{key} {name}: MRE {figure_text(own, 'MRE', 2)} {own['unit']}; SDR at {thresholds[0]:g} {own['unit']}: "
            f"{figure_text(own, first, 1)} %; images: {own['n_images']}"
            for name, own in groups.items()
        ]
    measured = summary.get("measurements", {})
    if measured and (rejected := sum(each["verdict"] == "reject" for each in summary.get("flagged", ()))):
        lines.append(f"angles and distances: not of the {rejected} that {'is' if rejected == 1 else 'are'} rejected")
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
