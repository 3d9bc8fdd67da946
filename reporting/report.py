"""What people read, made from a file: predictions.csv -> summary.json, results.xls.

predictions.csv is the record: one row per image and landmark, original px. Everything else is derived from it.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xlwt

from config import UserError
from reporting.measurements import Measured
from utils import error_figures, finite_mean, summarise_errors

MEAN_ERROR = "mean error of "  # a measure
OWN_COLUMNS = ("x", "y", "x_true", "y_true", "error", "score", "occluded")  # the others are a method's measures

# --- The record ----------------------------------------------------------------------------------


def write_predictions(path: Path, predictions, abbreviations: Sequence[str], unit: str) -> None:
    """predictions.csv of evaluate.Predictions: image, landmark, x, y, x_true, y_true, error_<unit>, score, measures.

    Coordinates in original px; truth, error and a measure are blank where they are not known. Where data.json marks
    occluded landmarks, also which they are (1).
    """
    errors, further = predictions.errors(), dict(predictions.measures)
    if predictions.occluded is not None and predictions.occluded.any():
        further = {"occluded": predictions.occluded} | further

    def text(value: float) -> str:
        return f"{value:.4f}" if math.isfinite(value) else ""

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["image", "landmark", "x", "y", "x_true", "y_true", f"error_{unit}", "score", *further]
        writer.writerow(head)
        for i, name in enumerate(predictions.names):
            for n, abbreviation in enumerate(abbreviations):
                values = [*predictions.landmarks[i, n], *predictions.truth[i, n], errors[i, n], predictions.score[i, n]]
                values += [measure[i, n] for measure in further.values()]
                writer.writerow([name, abbreviation, *map(text, values)])


def read_predictions(path: Path) -> tuple[list[str], list[str], dict[str, np.ndarray], str]:
    """predictions.csv as image names (I), abbreviations (N), {column: (I, N) array, nan where blank}, and the unit.

    The order of the rows is free. Raises UserError for a file that is cut off or no predictions.csv.
    """
    rows = read_rows(path)
    unit = "mm" if "error_mm" in rows[0] else "px"
    absent = [name for name in ("image", "landmark", *OWN_COLUMNS[:4], f"error_{unit}") if name not in rows[0]]
    if absent:
        raise UserError(f"{path} has no column {absent[0]}; give the predictions.csv of a run")
    images = {name: i for i, name in enumerate(dict.fromkeys(row["image"] for row in rows))}
    landmarks = {name: n for n, name in enumerate(dict.fromkeys(row["landmark"] for row in rows))}
    grid = np.zeros((len(images), len(landmarks)), int)
    columns = {name: np.full(grid.shape, math.nan) for name in rows[0] if name not in ("image", "landmark")}
    for row in rows:
        place = images[row["image"]], landmarks[row["landmark"]]
        grid[place] += 1
        for name, values in columns.items():
            try:
                values[place] = float(row[name] or "nan")
            except ValueError:
                values[place] = math.inf
            if math.isinf(values[place]):
                where = f"{path}: image {row['image']}, landmark {row['landmark']}: {name}"
                raise UserError(f"{where} is {row[name]!r}; expected a number or a blank; copy the file anew")
    for i, n in np.argwhere(grid != 1)[:1]:
        what = "no row" if grid[i, n] == 0 else f"{grid[i, n]} rows"
        where = f"{path}: image {list(images)[i]}, landmark {list(landmarks)[n]}"
        raise UserError(f"{where} has {what}; expected one of each image and landmark; copy the file anew")
    columns["error"] = columns.pop(f"error_{unit}")
    return list(images), list(landmarks), columns, unit


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, at least one, each with a cell per column. Raises UserError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins a file with a mark
            head, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read as csv in UTF-8 ({error}); give the predictions.csv of a run") from None
    if not rows:
        raise UserError(f"{path} holds no rows; give the predictions.csv of a run that was tested")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise UserError(f"{path}: row {number} has {len(row)} cells, expected {len(head)}; copy the file anew")
    return [dict(zip(head, row, strict=True)) for row in rows]


def pool_predictions(sources: Sequence[Path], path: Path) -> None:
    """The rows of several predictions.csv, one after another, as one; blank where one has no such column."""
    rows: list[dict[str, str]] = []
    for source in sources:
        with open(source, newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def part_points(
    columns: Mapping[str, np.ndarray], abbreviations: Sequence[str], part: str, exclude: Sequence[str]
) -> np.ndarray:
    """Which points (I, N) of predictions.csv a part of the report is about: bool.

    part: "all"; "headline", without the landmarks in `exclude`; or "occluded", what something hides.
    """
    if part == "occluded":
        return columns["occluded"] == 1
    kept = np.array([part == "all" or name not in exclude for name in abbreviations])
    return np.broadcast_to(kept, columns["error"].shape)


# --- Figures and tables --------------------------------------------------------------------------


def write_report(
    folder: Path,
    landmark_names: Sequence[str],
    exclude: Sequence[str],
    thresholds: Sequence[float],
    provenance: Mapping[str, Any],
    measured: Measured | None = None,
) -> dict[str, Any]:
    """summary.json and results.xls beside folder/predictions.csv; returns the summary.

    The summary holds the figures of utils.summarise_errors and the unit under "all" and, without the landmarks
    in `exclude`, under "headline", each with "measures": the mean of what else the method measures, such as Dice;
    where there are occluded landmarks, also under "occluded", for these alone. measured: what was measured on the
    landmarks; its figures stand under "measurements".
    """
    names, abbreviations, columns, unit = read_predictions(folder / "predictions.csv")
    errors, thresholds = columns["error"], tuple(thresholds)
    kept = [index for index, abbreviation in enumerate(abbreviations) if abbreviation not in exclude]
    summary: dict[str, Any] = {
        "headline": summarise_errors(errors[:, kept], thresholds) | {"unit": unit, "without": list(exclude)},
        "all": summarise_errors(errors, thresholds) | {"unit": unit},
    }
    measures = {name: values for name, values in columns.items() if name not in OWN_COLUMNS}
    parts: dict[str, Any] = {"headline": (slice(None), kept), "all": slice(None)}
    if "occluded" in columns:
        hidden = parts["occluded"] = columns["occluded"] == 1
        summary["occluded"] = summarise_errors(np.where(hidden, errors, math.nan), thresholds) | {"unit": unit}
    for part, members in parts.items():
        summary[part]["measures"] = {name: finite_mean(values[members]) for name, values in measures.items()}

    if measured is not None:
        deviations = np.abs(measured.predicted - measured.true).T
        means = {f"{MEAN_ERROR}{name}": finite_mean(own) for name, own in zip(measured.names, deviations, strict=True)}
        summary["measurements"] = {**measured.figures, **means}

    def blank(figures: Mapping[str, Any]) -> dict[str, Any]:
        """JSON has no nan."""
        return {k: blank(v) if isinstance(v, dict) else None if v != v else v for k, v in figures.items()}

    (folder / "summary.json").write_text(json.dumps(blank(summary), indent=2, ensure_ascii=False), encoding="utf-8")

    book = xlwt.Workbook(encoding="utf-8")
    write_landmark_sheet(book, abbreviations, landmark_names, errors, thresholds, summary, unit, measures)
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


def write_landmark_sheet(book, abbreviations, landmark_names, errors, thresholds, summary, unit, measures) -> None:
    """Sheet 1: a row per landmark, then the overall rows with the ends of their 95 % intervals."""
    sheet = book.add_sheet("landmarks")
    rates = [f"SDR_{threshold}" for threshold in thresholds]
    titles = ["NO", "abbreviation", "name", "n", *(f"SDR <= {t:g} {unit} (%)" for t in thresholds)]
    titles += [*(f"{figure} ({unit})" for figure in ("MRE", "SD", "median", "max")), *measures]
    write_row(sheet, 0, titles, BOLD)
    row = 0
    for row, (abbreviation, name) in enumerate(zip(abbreviations, landmark_names, strict=True), 1):
        own = errors[:, row - 1][np.isfinite(errors[:, row - 1])]
        figures = error_figures(own, thresholds)
        values = [figures[key] for key in (*rates, "MRE", "SD", "median")]
        values += [own.max() if own.size else None, *(finite_mean(each[:, row - 1]) for each in measures.values())]
        write_row(sheet, row, [row, abbreviation, name, own.size, *values])
    for part, figures in parts_of(summary).items():
        row, label = row + 1, part_words(part, figures)
        for end, words in (("", label), ("_low", "95 % interval, low"), ("_high", "95 % interval, high")):
            row += 1
            values = [figures[key + end] for key in (*rates, "MRE", "SD", "median")]
            values += [None, *figures["measures"].values()] if not end else []
            write_row(sheet, row, [None, part if not end else None, words, figures["n_landmarks"], *values])
    sheet.col(2).width = 256 * 34
    sheet.set_panes_frozen(True)
    sheet.set_horz_split_pos(1)


def parts_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parts of a summary that are figures of landmarks."""
    return {part: figures for part, figures in summary.items() if part != "measurements"}


def part_words(part: str, figures: Mapping[str, Any]) -> str:
    """Which landmarks a part of the summary is about."""
    if part == "occluded":
        return "what something hides"
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
    sheet = book.add_sheet("measures")
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
    for part, figures in parts_of(summary).items():
        unit, rates = figures["unit"], [f"{figures[f'SDR_{t}']:.1f}" for t in map(float, thresholds)]
        lines.append(
            f"{part} ({part_words(part, figures)}): MRE {figures['MRE']:.2f} +- {figures['SD']:.2f} {unit} "
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
