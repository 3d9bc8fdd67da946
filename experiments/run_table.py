"""Runs as rows of a table, and as one JSON file that says how each was made.

    python -m experiments.run_table RUN... [--set test1] [--part all] [--against RUN] [--out results/NAME.json]

Prints a Markdown row per run: the headline figures of a test set with 95 % intervals; --part all or occluded: of all
landmarks, or of those that something hides. Of a cross-validation, --set pooled is all folds together. With --against,
also how much larger the MRE is than that run's, on the same images.
"""

import argparse
import csv
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from reporting.predictions import read_predictions
from settings import UserError, check_names
from tools.significance import paired_difference

PLACES = ("img_dir", "json_path", "run_dir", "global_checkpoint")  # where things lay on that machine: not kept
FILES = (*PLACES, "backbone_weights", "config", "resume", "test")  # arguments whose value may be a path


def read_run(run_dir: Path, test_set: str, part: str = "headline", against: Path | None = None) -> dict[str, Any]:
    """How a run was made and what it reached; against: another run, for the difference of their MRE in a part.

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
    trained = [run_dir / "metrics.csv", *run_dir.glob("fold*/metrics.csv")]
    seconds = [second for path in trained if path.exists() for second in epoch_seconds(path)]
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
        **summary,
    }


def compare(run_dir: Path, against: Path, test_set: str, part: str, excluded: tuple[str, ...]) -> dict[str, float]:
    """The paired difference of two runs' MRE in a part; nothing where images or landmarks are not the same."""
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
    """A command line with NAME for the value of --name where that is a path; published weights stay."""
    words, expected = [Path(argv[0]).name], ""  # the setting whose value comes next
    for word in argv[1:]:
        name, equals, value = word.removeprefix("--").partition("=")
        if expected in FILES and word not in ("imagenet", "none"):
            word = expected.upper()
        elif equals and name in FILES and value not in ("imagenet", "none"):
            word = f"--{name}={name.upper()}"
        expected = name if word.startswith("--") and not equals else ""
        words.append(word)
    return words


def epoch_seconds(metrics: Path) -> list[float]:
    """How long each epoch of a metrics.csv took."""
    with open(metrics, newline="", encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


def table_row(result: dict[str, Any], part: str = "headline") -> str:
    """The figures of a part of a run's report as a Markdown row."""
    figures = result[part]
    rates = [name for name in figures if name.startswith("SDR_") and not name.endswith(("_low", "_high"))]
    first, others = rates[0], " / ".join(f"{figures[name]:.1f}" for name in rates[1:])
    cells = [
        result["run"],
        f"{figures['MRE']:.2f} ({figures['MRE_low']:.2f} to {figures['MRE_high']:.2f})",
        f"{figures[first]:.1f} ({figures[first + '_low']:.1f} to {figures[first + '_high']:.1f})",
        others,
        "–" if result["training_minutes"] is None else f"{result['training_minutes']:.0f} min",
    ]
    if "against" in result:
        difference = result["against"]
        known = "difference" in difference
        cells.append("{difference:+.2f} ({low:+.2f} to {high:+.2f})".format(**difference) if known else "other images")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Exit status 2 for a folder that is no finished run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--set", default="test", help="the test set")
    parser.add_argument("--part", default="headline", choices=("headline", "all", "occluded"), help="which landmarks")
    parser.add_argument("--against", type=Path, metavar="RUN", help="the run to compare with")
    parser.add_argument("--out", type=Path, help="a JSON file of all of them")
    options = parser.parse_args()
    try:
        results = [read_run(run_dir, options.set, options.part, options.against) for run_dir in options.runs]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figures = [name for name in results[0][options.part] if name.startswith("SDR_") and name.count("_") == 1]
    rates = " / ".join(name.removeprefix("SDR_").removesuffix(".0") for name in figures[1:])
    unit = results[0][options.part]["unit"]
    first = figures[0].removeprefix("SDR_").removesuffix(".0")
    columns = ["run", f"MRE, {unit} (95 % interval)", f"SDR {first} {unit}, %", f"SDR {rates} {unit}, %", "training"]
    columns += [f"MRE against {options.against.name}, {unit}"] if options.against else []
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for result in results:
        print(table_row(result, options.part))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
