"""Read runs that are to be compared: their predictions.csv on the same images, landmarks and truth."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import Config
from reporting.predictions import PredictionTable, read_predictions
from reporting.readers import SAME
from settings import UserError, expecting, read_json


class Run(NamedTuple):
    """One test of a run, with images and landmarks in the order of the first run."""

    label: str
    path: Path  # its predictions.csv
    provenance: dict[str, Any]  # its config.json; empty if there is none
    table: PredictionTable


def read_runs(places: Sequence[Path], test_set: str | None, labels: Sequence[str] = ()) -> list[Run]:
    """Return the runs of run folders, folders of test sets or predictions.csv.

    Without labels each is named after its folder, or after its file if that is not predictions.csv. Raises UserError
    for a place without a run, and for a run that differs from the first in images, landmarks, truth, unit or spacing;
    it names the first difference.
    """
    paths = [find_predictions(place, test_set) for place in places]
    folders, provenances = zip(*map(read_provenance, paths), strict=True)
    # a member of an ensemble is named after its file
    folders = [own if path.stem == "predictions" else own / path.stem for own, path in zip(folders, paths, strict=True)]
    if labels and (len(labels) != len(paths) or len(set(labels)) != len(labels)):
        raise UserError(f"--names: expected {len(paths)} different names, one for each run, found {', '.join(labels)}")
    runs: list[Run] = []
    for label, path, provenance in zip(labels or unique_labels(folders), paths, provenances, strict=True):
        run = Run(label, path, provenance, read_predictions(path))
        runs.append(align(run, runs[0]) if runs else run)
    if not np.isfinite(runs[0].table.errors).any():
        raise UserError(f"{runs[0].path} holds no truth, so there are no errors to compare")
    return runs


def find_predictions(place: Path, test_set: str | None) -> Path:
    """Return the predictions.csv of a run folder, of the folder of a test set, or of itself.

    Among several test sets it is `test_set`, by default "test". Raises UserError that lists the test sets.
    """
    own = place if place.is_file() else place / "predictions.csv"
    if own.is_file():
        if test_set not in (None, own.resolve().parent.name):
            raise UserError(f"{place} is of the test set {own.resolve().parent.name}, not {test_set}; leave out --set")
        return own
    found = {path.parent.name: path for path in sorted(place.glob("*/predictions.csv"))}
    if not found:
        raise UserError(f"{place} holds no predictions.csv; give a run that was tested, or one of its test sets")
    chosen = test_set or (next(iter(found)) if len(found) == 1 else "test")
    if chosen not in found:
        raise UserError(f"{place} holds no test set {chosen}; choose with --set one of {', '.join(found)}")
    return found[chosen]


def read_provenance(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the run folder of a predictions.csv and its config.json; without one, the folder of the csv and nothing.

    Raises UserError if a setting in it is not what it should be.
    """
    for folder in path.resolve().parents[:2]:
        if (folder / "config.json").is_file():
            with expecting(folder / "config.json", "the config.json of a run"):
                provenance = read_json(folder / "config.json")
                settings = {"report_exclude": Config.report_exclude, "sdr_thresholds": Config.sdr_thresholds}
                settings |= provenance["settings"]
                settings["report_exclude"] = tuple(map(str, settings["report_exclude"]))
                settings["sdr_thresholds"] = tuple(map(float, settings["sdr_thresholds"]))
                if not settings["sdr_thresholds"]:
                    raise ValueError("sdr_thresholds is empty")
                return folder, provenance | {"settings": settings}
    return path.resolve().parent, {}


def unique_labels(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its last part, with parts above it or a number where that is ambiguous."""
    labels = [folder.name for folder in folders]
    for depth in itertools.count(2):
        counts, named = Counter(labels), list(zip(labels, folders, strict=True))
        labels = [label if counts[label] == 1 else "/".join(folder.parts[-depth:]) for label, folder in named]
        if len(set(labels)) == len(set(folders)):
            break
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} ({labels[:place].count(label)})"
        for place, label in enumerate(labels, 1)
    ]


# --- The same images, landmarks and truth --------------------------------------------------------


def align(run: Run, first: Run) -> Run:
    """Return a run in the order of the first. Raises UserError that names the first difference."""
    for what, own, others in (
        ("image", run.table.names, first.table.names), ("landmark", run.table.abbreviations, first.table.abbreviations),
    ):  # fmt: skip
        for name in (*others, *own):
            if (name in own) != (name in others):
                has, lacks = (run, first) if name in own else (first, run)
                where = f"{what} {name} is in {has.label}, but not in {lacks.label}"
                raise UserError(f"{where}; compare runs on the same test set")
    if run.table.unit != first.table.unit:
        units = f"errors are in {first.table.unit} in {first.label}, in {run.table.unit} in {run.label}"
        raise UserError(f"{units}; test both with one spacing")
    images = [run.table.names.index(name) for name in first.table.names]
    landmarks = [run.table.abbreviations.index(name) for name in first.table.abbreviations]
    columns = {name: values[np.ix_(images, landmarks)] for name, values in run.table.columns.items()}
    run = run._replace(table=first.table._replace(columns=columns))
    check_truth(run, first)
    check_spacing(run, first)
    return run


def check_truth(run: Run, first: Run) -> None:
    """Raise UserError if the truth differs from that of the first run, with the first point and both positions."""
    one, other = first.table.truth, run.table.truth
    apart = (np.abs(one - other) > SAME).any(-1) | (np.isfinite(one).all(-1) != np.isfinite(other).all(-1))
    for i, n in np.argwhere(apart)[:1]:
        points = one[i, n], other[i, n]
        places = [f"({x:.2f}, {y:.2f}) px" if math.isfinite(x + y) else "not known" for x, y in points]
        raise UserError(
            f"the truth of image {first.table.names[i]}, landmark {first.table.abbreviations[n]} is {places[0]} in "
            f"{first.label}, {places[1]} in {run.label}; compare runs that were tested on the same data.json"
        )


def check_spacing(run: Run, first: Run) -> None:
    """Raise UserError if the errors imply another spacing than those of the first run, with the first image."""
    (one, slack), (other, more) = implied_spacing(first.table), implied_spacing(run.table)
    for i in np.flatnonzero(np.abs(one - other) > 1e-3 * one + slack + more)[:1]:  # false for nan
        raise UserError(
            f"image {first.table.names[i]} has {one[i]:.4f} mm per px in {first.label}, {other[i]:.4f} in "
            f"{run.label}; test both with one spacing"
        )


def implied_spacing(table: PredictionTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the mm per px (I,) that turned distances into errors, nan without any; and its uncertainty (I,)."""
    distances = np.linalg.norm(table.landmarks - table.truth, axis=-1)
    known = np.isfinite(table.errors) & (distances > 0)  # false for nan
    length = np.where(known, distances, 0).sum(1)
    length[length == 0] = math.nan
    spacing = np.where(known, table.errors, 0).sum(1) / length
    return spacing, known.sum(1) * (1e-4 + 2e-4 * spacing) / length  # the file has four decimals
