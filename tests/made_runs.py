"""Made-up runs: folders with the predictions of a test set, as far off the truth as one says."""

import csv
import json
import math
from pathlib import Path

import numpy as np

from evaluate import Predictions
from reporting.predictions import write_predictions

ABBREVIATIONS, IMAGES = ("R1", "A", "B"), 8
TRUTH = np.random.default_rng(0).uniform(50, 400, (IMAGES, 3, 2)).round(2)  # original px
NAMES = [f"image {number} (ä).png" for number in range(IMAGES)]
ERRORS = np.random.default_rng(1).uniform(0.5, 3, (IMAGES, 3)).round(2)  # mm


def write_run(
    folder: Path,
    errors: np.ndarray,
    truth=TRUTH,
    names=NAMES,
    abbreviations=ABBREVIATIONS,
    mm_per_px=0.1,
    test_set="test",
    occluded=None,
    **settings,
) -> Path:
    """A run folder with the predictions of one test set, as far off as errors (I, N) say, in any direction."""
    angle = np.random.default_rng(2).uniform(0, 2 * math.pi, errors.shape)
    found = truth + (errors / np.nan_to_num(mm_per_px, nan=1.0))[..., None] * np.stack(
        [np.cos(angle), np.sin(angle)], -1
    )
    (folder / test_set).mkdir(parents=True)
    predictions = Predictions(
        names, found, truth, np.ones(errors.shape), np.full(len(names), mm_per_px), occluded=occluded
    )  # fmt: skip
    unit = "mm" if math.isfinite(mm_per_px) else "px"
    write_predictions(folder / test_set / "predictions.csv", predictions, abbreviations, unit)
    provenance = {"settings": settings, "argv": ["main.py", "--epochs", "3"], "commit": "abc123"}
    (folder / "config.json").write_text(json.dumps(provenance), encoding="utf-8")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str], *names: str) -> list[float]:
    """Some cells of a row."""
    return [float(row[name]) for name in names]
