"""Write runs as rows of a table, and as one JSON file with the command and provenance of each.

    python -m experiments.run_table RUN... [--set test1] [--part all] [--against RUN] [--out results/NAME.json]
        [--picture FILE.png] [--line NAME=MRE...]

Prints a Markdown row per run: the headline figures of a test set with 95 % intervals. --part chooses all landmarks or
the occluded ones instead. For a cross-validation, --set pooled is all folds together. With --against, a column states
how much larger the MRE is than that of another run on the same images. The picture shows the MRE against the training
time; for the mean of several checkpoints that is the sum of theirs, while their runs are where the test found them.
"""

import argparse
import contextlib
import csv
import itertools
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from machine import exit_status
from reporting.charts import pyplot, save_figure
from reporting.predictions import read_predictions
from reporting.report import figure_text
from run_folder import write_text
from settings import UserError, check_names
from tools.significance import paired_difference

PLACES = (
    "img_dir",
    "json_path",
    "run_dir",
    "start_from",
    "global_checkpoint",
)  # settings that are paths on one machine: not kept
LONG = ("agreement", "flagged")  # parts of a summary with hundreds of numbers, or with names of images
FILES = (*PLACES, "backbone_weights", "config", "resume", "test")  # arguments that may be a path


def read_run(run_dir: Path, test_set: str, part: str = "headline", against: Path | None = None) -> dict[str, Any]:
    """Return a run's provenance and report; against: another run, for the difference of their MRE in a part.

    Raises UserError for a folder without that report.
    """
    try:
        provenance = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        summary = json.loads((run_dir / test_set / "summary.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{error.filename} does not exist: give a finished run, and with --set one of its test sets"
        ) from None
    check_names([part], summary, "part of the report")
    trained = [run_dir / "metrics.csv", *run_dir.glob("fold*/metrics.csv"), *metrics_of_members(provenance["argv"])]
    seconds = [second for path in trained if path.exists() for second in epoch_seconds(path)]
    provenance.pop("checkpoint", None)
    for name in PLACES:
        provenance["settings"].pop(name, None)
    if provenance["settings"]["backbone_weights"] not in ("imagenet", "none"):
        provenance["settings"]["backbone_weights"] = "FILE"
    if against is not None:
        summary["against"] = {"run": against.name} | compare(
            run_dir, against, test_set, part, provenance["settings"]["report_exclude"]
        )
    processes = provenance.get("processes", 1)
    start = ["torchrun", f"--nproc_per_node={processes}"] if processes > 1 else ["python"]
    return {
        "run": run_dir.name,
        "command": shlex.join([*start, *without_paths(provenance.pop("argv"))]),
        "training_minutes": round(sum(seconds) / 60, 1) if seconds else None,
        "test_set": test_set,
        **provenance,
        **{name: own for name, own in summary.items() if name not in LONG},
    }


def compare(run_dir: Path, against: Path, test_set: str, part: str, excluded: tuple[str, ...]) -> dict[str, float]:
    """Return the paired difference of two runs' MRE in a part; empty if their images or landmarks differ."""
    table = read_predictions(run_dir / test_set / "predictions.csv")
    try:
        other = read_predictions(against / test_set / "predictions.csv")
    except OSError as error:
        raise UserError(f"{error.filename} does not exist: give a finished run with that test set") from None
    if table[:2] != other[:2]:
        return {}
    inside = table.part(part, excluded)
    return paired_difference(*(np.where(inside, each.errors, np.nan) for each in (table, other)))


def without_paths(argv: list[str]) -> list[str]:
    """Return a command line in which the value of --name is NAME if it is a path; published weights stay."""
    words, expected = [Path(argv[0]).name], ""  # expected: the setting of the next value
    for word in argv[1:]:
        name, equals, value = word.removeprefix("--").partition("=")
        if expected in FILES and not word.startswith("--") and word not in ("imagenet", "none"):
            word = expected.upper()
        elif equals and name in FILES and value not in ("imagenet", "none"):
            word = f"--{name}={name.upper()}"
        if word.startswith("--"):
            expected = "" if equals else name
        elif expected != "test":  # which takes several
            expected = ""
        words.append(word)
    return words


def metrics_of_members(argv: list[str]) -> list[Path]:
    """Return the metrics.csv beside each of several checkpoints that a command tested as their mean."""
    tested = argv[argv.index("--test") + 1 :] if "--test" in argv else []
    paths = list(itertools.takewhile(lambda word: not word.startswith("--"), tested))
    return [Path(path).parent / "metrics.csv" for path in paths] if len(paths) > 1 else []


def epoch_seconds(metrics: Path) -> list[float]:
    """Return the duration of each epoch in a metrics.csv."""
    with open(metrics, newline="", encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


def rate_names(figures: dict[str, Any]) -> list[str]:
    """Return the names of the detection rates among the figures of a report, without their intervals."""
    return [name for name in figures if name.startswith("SDR_") and not name.endswith(("_low", "_high"))]


def table_row(result: dict[str, Any], part: str = "headline") -> str:
    """Return the figures of a part of a run's report as a Markdown row."""
    figures = result[part]
    first, *others = rate_names(figures)
    cells = [
        result["run"],
        figure_text(figures, "MRE", 2),
        figure_text(figures, first, 1),
        " / ".join(f"{figures[name]:.1f}" for name in others),
        "–" if result["training_minutes"] is None else f"{result['training_minutes']:.0f} min",
    ]
    if "against" in result:
        difference = result["against"]
        known = "difference" in difference
        cells.append("{difference:+.2f} ({low:+.2f} to {high:+.2f})".format(**difference) if known else "other images")
    return f"| {' | '.join(cells)} |"


def draw_accuracy(results: list[dict[str, Any]], part: str, lines: Mapping[str, float], path: Path) -> None:
    """Draw the MRE of each trained run, with its interval, against its time; lines: figures to compare with, by name.

    Runs whose names agree up to the first comma have one colour.
    """
    figure, axis = pyplot.subplots(figsize=(7, 4.2))
    colours: dict[str, str] = {}
    for result in results:
        if result["training_minutes"] is None:
            continue
        figures, name = result[part], result["run"].partition(",")[0]
        bounds = [figures["MRE_low"], figures["MRE_high"]]
        interval = None if None in bounds else np.abs(np.subtract(bounds, figures["MRE"]))[:, None]
        label = None if name in colours else name
        colour = colours.setdefault(name, f"C{len(colours)}")
        axis.errorbar(
            result["training_minutes"], figures["MRE"], interval, fmt="o", capsize=3, color=colour, label=label
        )
    for name, value in lines.items():
        axis.axhline(value, linestyle="--", color="0.5")
        axis.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", color="0.3")
    unit = results[0][part]["unit"]
    axis.set(xscale="log", xlabel="training, minutes", ylabel=f"MRE, {unit} (95 % interval)")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def named_line(text: str) -> tuple[str, float]:
    """Return name and figure of NAME=MRE. Raises ArgumentTypeError."""
    name, _, value = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if name:
            return name, float(value)
    raise argparse.ArgumentTypeError(f"expected NAME=MRE, such as 'one reader=1.18', found {text!r}")


def print_table(options: argparse.Namespace) -> None:
    """Print the table and write the JSON file. Raises UserError for a folder that is not a finished run."""
    results = [read_run(run_dir, options.set, options.part, options.against) for run_dir in options.runs]
    figures = results[0][options.part]
    first, *others = (name.removeprefix("SDR_").removesuffix(".0") for name in rate_names(figures))
    unit = figures["unit"]
    columns = ["run", f"MRE, {unit} (95 % interval)", f"SDR {first} {unit}, %", f"SDR {' / '.join(others)} {unit}, %"]
    columns += ["training"] if options.against is None else ["training", f"MRE against {options.against.name}, {unit}"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for result in results:
        print(table_row(result, options.part))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if options.picture:
        draw_accuracy(results, options.part, dict(options.line), options.picture)


def main() -> int:
    """Return exit status 2 for a folder that is not a finished run, or for an --out that cannot be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--set", default="test", help="name of the test set (default: test)")
    parser.add_argument("--part", default="headline", choices=("headline", "all", "occluded"), help="which landmarks")
    parser.add_argument("--against", type=Path, metavar="RUN", help="the run to compare with")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="PNG file of the MRE against the training time")
    parser.add_argument("--line", nargs="+", default=[], type=named_line, metavar="NAME=MRE", help="lines in it")
    options = parser.parse_args()
    return exit_status(lambda: print_table(options))


if __name__ == "__main__":
    sys.exit(main())
