"""Compare runs on the same images: which is better, by how much, and is the difference significant?

    python -m tools.compare RUN RUN... [--set test1] [--part all] [--names A B...] [--out DIR]

RUN is a run folder, the folder of one of its test sets, or a predictions.csv. Images, landmarks, truth and spacing must
be the same. Prints MRE, SD and SDR of each run with 95 % bootstrap intervals over images and, for each pair, the
difference with its interval, p by a permutation test over images, and p corrected for the number of pairs (Holm).
Writes into --out (runs/comparison-<time>) comparison.csv, pairs.csv, landmarks.csv and landmark_pairs.csv (p corrected
for the number of landmarks), all of them as comparison.xls, curves.png (the share of points within each distance) and
differences.png (the first pairs, landmark by landmark).

p does not account for the randomness of training: train with several seeds. If data.json has two readers and the truth
is their mean, two rows show the error of one reader against that mean, and the noise floor: the error that even a
perfect method would show, because the mean is noisy. MRE_centred is the MRE without the mean error of each landmark in
these images: if it is much smaller, they may be annotated differently from the training images.
"""

import argparse
import itertools
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xlwt

from config import Config
from machine import exit_status
from reporting.charts import draw_differences, draw_error_curves
from reporting.readers import lengths_about_mean, mean_is_truth, noise_floor, read_readers, reader_errors
from reporting.report import figure_text
from reporting.workbook import PRECISE, add_sheet, part_label, write_row, write_settings_sheet
from run_folder import source_commit, write_bytes, write_csv
from settings import Parser, UserError, read_json
from tools.formats.files import check_out, filling
from tools.read_runs import Run, implied_spacing, read_runs
from tools.significance import paired_tests
from utils import finite_mean, summarise_errors

SIGNIFICANT = 0.05  # a corrected p below it
MOST_LANDMARKS, MOST_PANELS = 10, 4  # printed for each pair; pairs in differences.png
Table = list[dict[str, Any]]

# --- The comparison ------------------------------------------------------------------------------


def shared_errors(runs: Sequence[Run], part: str, exclude: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the errors (I, N) of each run by label, and notes; nan outside `part` and where any run has no error.

    Raises UserError if nothing is left.
    """
    first = runs[0]
    if part == "occluded" and "occluded" not in first.table.columns:
        raise UserError(f"{first.path} marks no occluded landmarks; choose --part headline or all")
    inside = first.table.part(part, exclude)
    known = np.stack([np.isfinite(run.table.errors) for run in runs])
    shared = inside & known.all(0)
    if not shared.any():
        raise UserError(f"{first.path}: no landmark of the part {part} has a known error in all runs; try --part all")
    notes = [
        f"points without an error in {run.label}, ignored in all runs: {missing}"
        for run, own in zip(runs, known, strict=True)
        if (missing := (inside & known.any(0) & ~own).sum())
    ]
    return {run.label: np.where(shared, run.table.errors, math.nan) for run in runs}, notes


def reader_rows(first: Run, shared: np.ndarray, data: Path | None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the errors (I, N) of one reader against the mean of two and the noise floor, by label, and notes.

    shared: the points (I, N) that count. There are no errors unless the data.json of the first run, or `data`, has two
    readers and the truth is their mean. Raises UserError for a `data` that cannot be read.
    """
    settings = first.provenance.get("settings", {})
    path = data or Path(str(settings.get("json_path", "")))
    if data is None and not path.is_file():
        return {}, []
    try:
        found = read_readers(read_json(path), path, first.table.names, first.table.abbreviations)
    except UserError as error:
        if data:
            raise
        return {}, [f"the readers are left out: {error}"]
    if found is None:
        return {}, [f"{path} does not have two readers of these images"] if data else []
    readers = np.where(shared[:, None, :, None], found[0], math.nan)
    if not mean_is_truth(readers, first.table.truth):
        return {}, [f"the readers of {path} are left out: their mean is not the truth of these runs"]
    # as in the run itself: the record's own, else that of the settings, else the one that its errors imply
    spacing, setting = np.ones(len(first.table.names)), settings.get("spacing")
    if first.table.unit == "mm":
        general = setting if isinstance(setting, int | float) else implied_spacing(first.table)[0]
        spacing = np.where(np.isfinite(found[1]), found[1], general)
    return {
        "one reader against their mean": reader_errors(readers, spacing),
        "noise floor of their mean": noise_floor(readers, spacing),
    }, []


def centred_errors(run: Run, shared: np.ndarray) -> np.ndarray:
    """Return the errors (I, N) of a run without the mean error of each landmark; shared: the points that count.

    With n images they are too small by a factor of about sqrt(1 - 1 / n).
    """
    apart = (run.table.landmarks - run.table.truth) * implied_spacing(run.table)[0][:, None, None]
    return lengths_about_mean(np.where(shared[..., None], apart, math.nan))


def compare_pairs(errors: Mapping[str, np.ndarray], threshold: float, resamples: int) -> Table:
    """Return a row for each pair of runs: MRE and SDR (percentage points) of the later minus the earlier one."""
    pairs = list(itertools.combinations(errors, 2))
    rows: Table = [{"run": run, "against": against} for against, run in pairs]
    shares = {label: np.where(np.isfinite(own), 100.0 * (own <= threshold), math.nan) for label, own in errors.items()}
    for figure, values in (("MRE", errors), (f"SDR_{threshold}", shares)):
        tests = paired_tests([(values[run], values[against]) for against, run in pairs], resamples)
        for row, test in zip(rows, tests, strict=True):
            row |= {f"{figure}_{name}": value for name, value in test.items()}
    return rows


def compare_landmarks(
    errors: Mapping[str, np.ndarray], abbreviations: Sequence[str], resamples: int
) -> dict[tuple[str, str], Table]:
    """Return a row for each landmark by pair (run, against): MRE of the first minus that of the second.

    p is corrected for the number of landmarks.
    """
    kept = np.flatnonzero(np.isfinite(next(iter(errors.values()))).any(0))
    tables = {}
    for against, run in itertools.combinations(errors, 2):
        tests = paired_tests([(errors[run][:, [n]], errors[against][:, [n]]) for n in kept], resamples)
        tables[run, against] = [
            {"landmark": abbreviations[n], "run": run, "against": against} | test
            for n, test in zip(kept, tests, strict=True)
        ]
    return tables


# --- On the terminal -----------------------------------------------------------------------------


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return cells as a table with the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if n else '<'}{widths[n]}}" for n, cell in enumerate(row)).rstrip() for row in rows
    )


def p_text(p: float) -> str:
    """Return a p-value in four decimals."""
    return "-" if math.isnan(p) else f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def run_lines(table: Table, thresholds: Sequence[float], unit: str) -> str:
    """Return the figures of each run, with the intervals of MRE and the first SDR."""
    first = f"SDR_{thresholds[0]}"
    head = ["run", f"MRE, {unit}", "SD", f"SDR {thresholds[0]:g} {unit}, %", *(f"{t:g} {unit}" for t in thresholds[1:])]
    rows = [[*head, "images", "points"]]
    for row in table:
        cells = [row["run"], figure_text(row, "MRE", 2), f"{row['SD']:.2f}", figure_text(row, first, 1)]
        cells += [f"{row[f'SDR_{threshold}']:.1f}" for threshold in thresholds[1:]]
        rows.append([*cells, str(row["n_images"]), str(row["n_landmarks"])])
    return aligned(rows)


def pair_lines(table: Table, threshold: float, unit: str) -> str:
    """Return the differences of each pair."""
    rows = [["pair", f"MRE, {unit}", "p", "corrected", f"SDR {threshold:g} {unit}, %", "p", "corrected"]]
    for row in table:
        cells = [f"{row['run']} against {row['against']}"]
        for figure, digits in (("MRE", 2), (f"SDR_{threshold}", 1)):
            values = [f"{row[f'{figure}_{name}']:+.{digits}f}" for name in ("difference", "low", "high")]
            cells.append("{} ({} to {})".format(*values))
            cells += [p_text(row[f"{figure}_{name}"]) for name in ("p", "p_corrected")]
        rows.append(cells)
    return aligned(rows)


def landmark_line(run: str, against: str, table: Table, unit: str) -> str:
    """Return how many landmarks of a pair differ significantly, and those that differ most."""
    found = sorted((r for r in table if r["p_corrected"] < SIGNIFICANT), key=lambda row: -abs(row["difference"]))
    line = f"{run} against {against}: {len(found)} of {len(table)} landmarks differ significantly"
    if found:
        named = (f"{row['landmark']} {row['difference']:+.2f}" for row in found[:MOST_LANDMARKS])
        line += f": {', '.join(named)} {unit}"
    return line + (f" and {len(found) - MOST_LANDMARKS} more" if len(found) > MOST_LANDMARKS else "")


# --- Files ---------------------------------------------------------------------------------------


def write_tables(out: Path, tables: Mapping[str, Table], settings: Mapping[str, Any]) -> None:
    """Write each table as out/<name>.csv and as a sheet of out/comparison.xls, with the settings as its last sheet."""
    book = xlwt.Workbook(encoding="utf-8")
    for name, table in tables.items():
        head = list(table[0]) if table else []
        rows = [["" if value != value else value for value in row.values()] for row in table]
        write_csv(out / f"{name}.csv", [head, *rows])
        sheet = add_sheet(book, name, head, {0: 30})
        precise = [name.endswith("pairs") and title.endswith(("p", "p_corrected")) for title in head]
        for number, row in enumerate(table, 1):
            for style in (None, PRECISE):  # each writes its own columns
                cells = zip(row.values(), precise, strict=True)
                write_row(sheet, number, [v if (style is PRECISE) == fine else None for v, fine in cells], style)
        sheet.set_panes_frozen(True)
        sheet.set_horz_split_pos(1)
    write_settings_sheet(book, settings)
    write_bytes(out / "comparison.xls", book.save)


def describe_settings(runs: Sequence[Run], options: argparse.Namespace, exclude: Sequence[str]) -> dict[str, Any]:
    """Return how the comparison and each of its runs was made."""
    settings = {
        "command": shlex.join(["python", "-m", "tools.compare", *sys.argv[1:]]), "commit": source_commit(),
        "part": part_label(options.part, {"without": exclude if options.part == "headline" else ()}),
        "resamples": options.resamples, "seed": 0,
    }  # fmt: skip
    for run in runs:
        settings[f"{run.label}: predictions"] = str(run.path)
        if isinstance(run.provenance.get("argv"), list):
            settings[f"{run.label}: command"] = shlex.join(["python", *map(str, run.provenance["argv"])])
            settings[f"{run.label}: commit"] = str(run.provenance.get("commit", "unknown"))
    return settings


def compare_runs(options: argparse.Namespace) -> None:
    """Read, compare, print and write. Raises UserError."""
    if options.resamples < 1:
        raise UserError(f"--resamples is {options.resamples}; give a number above 0")
    out = check_out(options.out or Path("runs") / f"comparison-{time.strftime('%Y%m%d-%H%M%S')}")
    runs = read_runs(options.runs, options.set, options.names or ())
    first, unit = runs[0], runs[0].table.unit
    settings = first.provenance.get("settings", {})
    exclude = [n for n in settings.get("report_exclude", Config.report_exclude) if n in first.table.abbreviations]
    thresholds = settings.get("sdr_thresholds", Config.sdr_thresholds)
    errors, notes = shared_errors(runs, options.part, exclude)
    shared = np.isfinite(errors[first.label])
    readers, more = reader_rows(first, shared, options.data)
    out.mkdir(parents=True, exist_ok=True)  # before the work
    notes += more
    images, count = int(shared.any(1).sum()), int(shared.any(0).sum())
    least = max(2.0 ** (1 - images), 1 / (options.resamples + 1))
    if len(runs) > 1 and least * count >= SIGNIFICANT:
        notes.append(
            f"no landmark can differ significantly: p is at least {least:.2g} ({images} images, {options.resamples} "
            "resamples)"
        )

    rows = errors | readers
    centred = {run.label: finite_mean(centred_errors(run, shared)) for run in runs}
    table: Table = [
        {"run": label}
        | summarise_errors(own, thresholds, resamples=options.resamples)
        | {"unit": unit, "MRE_centred": centred.get(label, math.nan)}
        for label, own in rows.items()
    ]
    pairs = compare_pairs(errors, thresholds[0], options.resamples)
    by_pair = compare_landmarks(errors, first.table.abbreviations, options.resamples)
    landmarks = [
        {"landmark": first.table.abbreviations[n], "n": int(shared[:, n].sum())}
        | {f"MRE {label}": finite_mean(own[:, n]) for label, own in rows.items()}
        for n in np.flatnonzero(shared.any(0))
    ]
    described = describe_settings(runs, options, exclude)
    name = first.path.resolve().parent.name
    print(f"{name}, {options.part} ({described['part']}); in brackets the 95 % interval over images")
    print(run_lines(table, thresholds, unit))
    listed = ", ".join(f"{label} {value:.2f}" for label, value in centred.items())
    print(f"MRE without each landmark's mean error: {listed} {unit}")
    if pairs:
        pair_count = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
        print(f"\ndifference, first minus second; p over images, and corrected for {pair_count} (Holm)")
        print(pair_lines(pairs, thresholds[0], unit))
        print(f"\nMRE by landmark; significant: p below {SIGNIFICANT:g}, corrected for {count} landmarks (Holm)")
        print(*(landmark_line(*pair, own, unit) for pair, own in by_pair.items()), sep="\n")
    for note in notes:
        print(f"note: {note}")

    landmark_pairs = [row for own in by_pair.values() for row in own]
    tables = {"comparison": table, "pairs": pairs, "landmarks": landmarks, "landmark_pairs": landmark_pairs}
    panels = {}
    for (run, against), own in itertools.islice(by_pair.items(), MOST_PANELS):
        values = np.array([[row["difference"], row["low"], row["high"]] for row in own])
        panels[f"{run}\nagainst {against}"] = values, np.array([row["p_corrected"] < SIGNIFICANT for row in own])
    with filling(out):
        write_tables(out, tables, described)
        draw_error_curves(errors, readers, thresholds, unit, out / "curves.png")
        if panels:
            draw_differences([row["landmark"] for row in landmarks], panels, unit, out / "differences.png")
    print(f"look at {out}: comparison.xls, curves.png{', differences.png' if panels else ''}")


def main() -> int:
    """Return the exit status: 2 for runs that cannot be compared."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--set", help="the test set (the only one of a run, else test)")
    parser.add_argument("--part", default="headline", choices=("headline", "all", "occluded"), help="which landmarks")
    parser.add_argument("--names", nargs="+", help="names of the runs, in their order")
    parser.add_argument("--data", type=Path, help="a data.json with two readers (that of the first run)")
    parser.add_argument(
        "--resamples", type=int, default=10000, help="of the bootstrap and the permutation test (10000)"
    )
    parser.add_argument("--out", type=Path, help="the folder for the files (runs/comparison-<time>)")
    return exit_status(lambda: compare_runs(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
