"""Two readers of the same points in a data.json: the distance of one from their mean, and the noise of that mean.

The truth of ISBI 2015 and Aariz is the mean of two readers. Methods cannot be ranked by less than its noise.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reading.annotation import read_readers as read_record_readers
from settings import UserError, expecting

SAME = 0.01  # px, largest difference between the coordinates of one point in two files


def read_readers(
    entries: Sequence[Mapping[str, Any]], where: object, names: Sequence[str], abbreviations: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the points (I, 2, N, 2) of two readers in original px, nan where missing, and mm per px (I,), else nan.

    entries: the records of a data.json; names, abbreviations: its images and landmarks to take. Returns None if a
    record does not have two readers. Raises UserError, naming the file by `where`, for anything else that is amiss.
    """
    with expecting(where, "a list of records with imagePath and points"):
        by_name = {entry["imagePath"]: entry for entry in entries}
        pairs, spacings = [], []
        for name in names:
            if name not in by_name:
                raise UserError(f"{where} has no record of image {name}; give the data.json of these runs")
            entry = by_name[name]
            known = {point["pointAbbreviation"] for point in entry["points"]}
            absent = [abbreviation for abbreviation in abbreviations if abbreviation not in known]
            if absent:
                raise UserError(f"{where}: image {name} has no point {absent[0]}; give the data.json of these runs")
            pair = read_record_readers(f"{where}: image {name}", entry, abbreviations)
            if pair is None:
                return None
            pairs.append(pair)
            spacings.append(float(entry.get("spacing") or math.nan))
    return np.stack(pairs), np.array(spacings)


def reader_errors(readers: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the distances (I, N) in mm of two readers (I, 2, N, 2) px from their mean; spacing: (I,) mm per px."""
    return np.linalg.norm(readers[:, 0] - readers[:, 1], axis=-1) / 2 * spacing[:, None]


def noise_floor(readers: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the errors (I, N) in mm that a perfect method would show against the mean of readers (I, 2, N, 2) px.

    spacing: (I,) mm per px. If two readers err independently and equally, their mean is as far off as half of their
    difference. Their mean difference at a landmark is a habit, which a method can learn, so it is subtracted. With n
    images that subtracts a little too much: the floor is too low by the factor sqrt(1 - 1 / n).
    """
    return lengths_about_mean((readers[:, 0] - readers[:, 1]) * spacing[:, None, None]) / 2


def lengths_about_mean(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths (I, N) of vectors (I, N, 2), nan where unknown, minus the mean over I of each landmark."""
    known = np.isfinite(vectors)
    mean = np.where(known, vectors, 0).sum(0) / np.maximum(1, known.sum(0))
    return np.linalg.norm(vectors - mean, axis=-1)


def mean_is_truth(readers: np.ndarray, truth: np.ndarray) -> bool:
    """Return whether a truth (I, N, 2) px is the mean of readers (I, 2, N, 2) px wherever both are known."""
    apart = np.abs(readers.mean(1) - truth)
    return bool(np.isfinite(apart).any() and np.nanmax(apart) <= SAME)
