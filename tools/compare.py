"""Runs held against each other on the same images: which is better, by how much, and how sure that is.

    python -m tools.compare RUN RUN... [--set test1] [--part all] [--names A B...] [--out DIR]

RUN is a run folder, the folder of one of its test sets, or a predictions.csv. Prints a row per run (MRE, SD, SDR; 95 %
bootstrap intervals over images), and per pair the difference with its interval, its p by a permutation test over
images, and p corrected by Holm for the number of pairs. Writes into --out (runs/comparison-<time>) comparison.csv,
pairs.csv, landmarks.csv and landmark_pairs.csv (p corrected for the number of landmarks), all of it as comparison.xls,
curves.png (the share of points within each distance) and differences.png (the first pairs, landmark by landmark).

Images, landmarks, truth and spacing must be the same. A p knows nothing of chance in training: another seed is another
run. Where data.json keeps two readers whose mean is the truth, two rows say how far one of them is off that mean, and
how far off the best of all methods would be, since the mean itself is noisy.
"""

import argparse
import csv
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
from reporting.pictures import draw_differences, draw_error_curves
from reporting.report import BOLD, PRECISE, part_label, write_row, write_settings_sheet
from run_folder import source_commit
from settings import UserError
from tools.formats.common import read_json
from tools.read_runs import Run, implied_spacing, read_runs
from tools.significance import holm, paired_difference, paired_permutation
from tools.two_readers import mean_is_truth, noise_floor, read_readers, reader_errors
from utils import finite_mean, summarise_errors

SURE, MOST = 0.05, 10  # a corrected p below it is sure; landmarks printed per pair
PANELS = 4  # pairs in differences.png
Table = list[dict[str, Any]]

# --- What is compared ----------------------------------------------------------------------------


def shared_errors(runs: Sequence[Run], part: str, exclude: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The errors (I, N) of each run by label in a part of the report, nan for what one of them has not; notes on that.

    Raises UserError where nothing is left.
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
        f"{run.label} has no error at {(inside & known.any(0) & ~own).sum()} points; they count in no run"
        for run, own in zip(runs, known, strict=True)
        if (inside & known.any(0) & ~own).any()
    ]
    return {run.label: np.where(shared, run.table.errors, math.nan) for run in runs}, notes


def reader_rows(first: Run, shared: np.ndarray, data: Path | None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Errors (I, N) of one reader against the mean of two, and its noise floor, at the shared points; notes.

    Nothing where the data.json of the first run, or `data`, keeps no two readers whose mean is the truth. Raises
    UserError for a `data` that cannot be read.
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
        return {}, [f"nothing is said of readers: {error}"]
    if found is None:
        return {}, [f"{path} keeps no two readers of these images"] if data else []
    readers = np.where(shared[:, None, :, None], found[0], math.nan)
    if not mean_is_truth(readers, first.table.truth):
        return {}, [f"nothing is said of the readers of {path}: their mean is not the truth of these runs"]
    # as the run itself took it: a record's own, else that of the settings, else what its errors tell
    spacing, setting = np.ones(len(first.table.names)), settings.get("spacing")
    if first.table.unit == "mm":
        general = setting if isinstance(setting, int | float) else implied_spacing(first.table)[0]
        spacing = np.where(np.isfinite(found[1]), found[1], general)
    return {
        "one reader against their mean": reader_errors(readers, spacing),
        "noise floor of their mean": noise_floor(readers, spacing),
    }, []


def compare_pairs(errors: Mapping[str, np.ndarray], threshold: float, resamples: int) -> Table:
    """A row for each pair of runs: MRE and SDR (percentage points) of the later less those of the earlier one."""
    rows: Table = [{"run": run, "against": against} for against, run in itertools.combinations(errors, 2)]
    shares = {label: np.where(np.isfinite(own), 100.0 * (own <= threshold), math.nan) for label, own in errors.items()}
    for figure, values in (("MRE", errors), (f"SDR_{threshold}", shares)):
        for row in rows:
            pair = values[row["run"]], values[row["against"]]
            row |= {f"{figure}_{name}": value for name, value in paired_difference(*pair, resamples=resamples).items()}
            row[f"{figure}_p"] = paired_permutation(*pair, resamples=resamples)
        for row, p in zip(rows, holm([row[f"{figure}_p"] for row in rows]), strict=True):
            row[f"{figure}_p_corrected"] = float(p)
    return rows


def compare_landmarks(errors: Mapping[str, np.ndarray], abbreviations: Sequence[str], resamples: int) -> Table:
    """A row for each pair of runs and landmark: MRE of the later less that of the earlier; p corrected over a pair."""
    table: Table = []
    kept = np.flatnonzero(np.isfinite(next(iter(errors.values()))).any(0))
    for against, run in itertools.combinations(errors, 2):
        rows: Table = []
        for n in kept:
            pair = errors[run][:, [n]], errors[against][:, [n]]
            p = paired_permutation(*pair, resamples=resamples)
            row = {"landmark": abbreviations[n], "run": run, "against": against}
            rows.append(row | paired_difference(*pair, resamples=resamples) | {"p": p})
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_corrected"] = float(p)
        table += rows
    return table


# --- On the terminal -----------------------------------------------------------------------------


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if n else '<'}{widths[n]}}" for n, cell in enumerate(row)).rstrip() for row in rows
    )


def p_words(p: float) -> str:
    """A p-value in four decimals."""
    return "-" if math.isnan(p) else f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def run_lines(table: Table, thresholds: Sequence[float], unit: str) -> str:
    """The figures of each run, with the intervals of MRE and the first SDR."""
    first = f"SDR_{thresholds[0]}"
    head = ["run", f"MRE, {unit}", "SD", f"SDR {thresholds[0]:g} {unit}, %", *(f"{t:g} {unit}" for t in thresholds[1:])]
    rows = [[*head, "images", "points"]]
    for row in table:
        cells = [row["run"], "{MRE:.2f} ({MRE_low:.2f} to {MRE_high:.2f})".format(**row), f"{row['SD']:.2f}"]
        cells.append(f"{row[first]:.1f} ({row[first + '_low']:.1f} to {row[first + '_high']:.1f})")
        cells += [f"{row[f'SDR_{threshold}']:.1f}" for threshold in thresholds[1:]]
        rows.append([*cells, str(row["n_images"]), str(row["n_landmarks"])])
    return aligned(rows)


def pair_lines(table: Table, threshold: float, unit: str) -> str:
    """The differences of each pair."""
    rows = [["pair", f"MRE, {unit}", "p", "corrected", f"SDR {threshold:g} {unit}, %", "p", "corrected"]]
    for row in table:
        cells = [f"{row['run']} against {row['against']}"]
        for figure, digits in (("MRE", 2), (f"SDR_{threshold}", 1)):
            values = [f"{row[f'{figure}_{name}']:+.{digits}f}" for name in ("difference", "low", "high")]
            cells.append("{} ({} to {})".format(*values))
            cells += [p_words(row[f"{figure}_{name}"]) for name in ("p", "p_corrected")]
        rows.append(cells)
    return aligned(rows)


def landmark_lines(table: Table, pairs: Table, unit: str) -> list[str]:
    """Of each pair how many landmarks differ surely, and those that differ most."""
    lines = []
    for pair in pairs:
        own = [row for row in table if (row["run"], row["against"]) == (pair["run"], pair["against"])]
        sure = sorted((row for row in own if row["p_corrected"] < SURE), key=lambda row: -abs(row["difference"]))
        words = ", ".join(f"{row['landmark']} {row['difference']:+.2f}" for row in sure[:MOST])
        lines.append(
            f"{pair['run']} against {pair['against']}: {len(sure)} of {len(own)} landmarks differ surely"
            + (f": {words} {unit}" if sure else "")
            + (f" and {len(sure) - MOST} more" if len(sure) > MOST else "")
        )
    return lines


# --- Files ---------------------------------------------------------------------------------------


def make_out(out: Path) -> None:
    """Make the folder of the files, before the work. Raises UserError for a place that is taken or forbidden."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already and is not empty; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}); choose another") from None


def write_tables(out: Path, tables: Mapping[str, Table], settings: Mapping[str, Any]) -> None:
    """Each table as out/<name>.csv and as a sheet of out/comparison.xls, and the settings as its last sheet."""
    book = xlwt.Workbook(encoding="utf-8")
    for name, table in tables.items():
        head = list(table[0]) if table else []
        with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            writer.writerows([["" if value != value else value for value in row.values()] for row in table])
        sheet = book.add_sheet(name)
        write_row(sheet, 0, head, BOLD)
        precise = [name.endswith("pairs") and title.endswith(("p", "p_corrected")) for title in head]
        for number, row in enumerate(table, 1):
            for style in (None, PRECISE):
                values = zip(row.values(), precise, strict=True)
                write_row(
                    sheet, number, [value if (style is PRECISE) == fine else None for value, fine in values], style
                )
        sheet.col(0).width = 256 * 30
        sheet.set_panes_frozen(True)
        sheet.set_horz_split_pos(1)
    write_settings_sheet(book, settings)
    book.save(str(out / "comparison.xls"))


def describe_settings(runs: Sequence[Run], options: argparse.Namespace, exclude: Sequence[str]) -> dict[str, Any]:
    """How the comparison was made, and each of its runs."""
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


def compare(options: argparse.Namespace) -> None:
    """The whole comparison: read, print, write. Raises UserError."""
    out = options.out or Path("runs") / f"comparison-{time.strftime('%Y%m%d-%H%M%S')}"
    runs = read_runs(options.runs, options.set, options.names or ())
    first, unit = runs[0], runs[0].table.unit
    settings = first.provenance.get("settings", {})
    exclude = [n for n in settings.get("report_exclude", Config.report_exclude) if n in first.table.abbreviations]
    thresholds = settings.get("sdr_thresholds", Config.sdr_thresholds)
    errors, notes = shared_errors(runs, options.part, exclude)
    shared = np.isfinite(errors[first.label])
    readers, more = reader_rows(first, shared, options.data)
    make_out(out)
    notes += more
    images = int(shared.any(1).sum())
    least = max(2.0 ** (1 - images), 1 / (options.resamples + 1))
    if len(runs) > 1 and least * shared.any(0).sum() >= SURE:
        notes.append(
            f"no landmark can differ surely: p is {least:.2g} at least ({images} images, {options.resamples} resamples)"
        )

    table: Table = []
    for label, own in (errors | readers).items():
        table.append({"run": label} | summarise_errors(own, thresholds, resamples=options.resamples) | {"unit": unit})
    pairs = compare_pairs(errors, thresholds[0], options.resamples)
    landmark_pairs = compare_landmarks(errors, first.table.abbreviations, options.resamples)
    landmarks = [
        {"landmark": first.table.abbreviations[n], "n": int(shared[:, n].sum())}
        | {f"MRE {label}": finite_mean(own[:, n]) for label, own in (errors | readers).items()}
        for n in np.flatnonzero(shared.any(0))
    ]
    described = describe_settings(runs, options, exclude)
    name = first.path.resolve().parent.name
    print(f"{name}, {options.part} ({described['part']}); in brackets the 95 % interval over images")
    print(run_lines(table, thresholds, unit))
    if pairs:
        count = f"{len(pairs)} pairs" if len(pairs) > 1 else "1 pair"
        print(f"\ndifferences, the first less the second; p over images, and corrected for {count} (Holm)")
        print(pair_lines(pairs, thresholds[0], unit))
        print(f"\nlandmarks, MRE; sure: p corrected for {len(landmarks)} landmarks (Holm) below {SURE:g}")
        print(*landmark_lines(landmark_pairs, pairs, unit), sep="\n")
    for note in notes:
        print(f"note: {note}")

    tables = {"comparison": table, "pairs": pairs, "landmarks": landmarks, "landmark_pairs": landmark_pairs}
    write_tables(out, tables, described)
    draw_error_curves(errors, readers, thresholds, unit, out / "curves.png")
    panels = {}
    for pair in pairs[:PANELS]:
        own = [row for row in landmark_pairs if (row["run"], row["against"]) == (pair["run"], pair["against"])]
        values = np.array([[row["difference"], row["low"], row["high"]] for row in own])
        panels[f"{pair['run']}\nagainst {pair['against']}"] = values, np.array([r["p_corrected"] < SURE for r in own])
    if panels:
        draw_differences([row["landmark"] for row in landmarks], panels, unit, out / "differences.png")
    pictures = ["curves.png", "differences.png"] if panels else ["curves.png"]
    print(f"look at {out}: {', '.join(['comparison.xls', *pictures])}")


def main() -> int:
    """Exit status 2 for runs that cannot be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--set", help="the test set; without it the only one of a run, else test")
    parser.add_argument("--part", default="headline", choices=("headline", "all", "occluded"), help="which landmarks")
    parser.add_argument("--names", nargs="+", help="what to call the runs, in their order")
    parser.add_argument("--data", type=Path, help="a data.json with readers; without it that of the first run")
    parser.add_argument("--resamples", type=int, default=10000, help="of the bootstrap and the permutation test")
    parser.add_argument("--out", type=Path, help="where the files go")
    options = parser.parse_args()
    try:
        if options.resamples < 1:
            raise UserError(f"--resamples is {options.resamples}; give a number above 0")
        compare(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
