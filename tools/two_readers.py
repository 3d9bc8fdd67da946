"""Two readers of the same points, where data.json keeps them: how far one is off their mean, and the mean's own noise.

The usual truth of ISBI 2015 and Aariz is the mean of two readers; no method can be told from another below its noise.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from settings import UserError
from tools.formats.common import expecting

SAME = 0.01  # px: as far apart as two files may say that one point lies


def reader_points(entry: Mapping[str, Any], where: str) -> np.ndarray | None:
    """The two readers' points (2, N, 2) original px of a record, in the order of its points, nan where missing.

    None where a record keeps no two. Raises UserError for readers that are not lists of N points.
    """
    readers = entry.get("readers")
    if not isinstance(readers, dict) or len(readers) != 2:
        return None
    shape = (2, len(entry["points"]), 2)
    with expecting(where, f"readers of two lists of {shape[1]} points x, y"):
        points = [[xy or (math.nan, math.nan) for xy in reader] for reader in readers.values()]
        return np.array(points, float).reshape(shape)


def read_readers(
    entries: Sequence[Mapping[str, Any]], where: object, names: Sequence[str], abbreviations: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The readers' points (I, 2, N, 2) original px of images and landmarks in the records of a data.json; spacing (I,).

    Spacing in mm per px, nan where a record has none. None where one of these records keeps no two readers. Raises
    UserError, which names the file by `where`, for other content, or if one of the images or landmarks is absent.
    """
    with expecting(where, "a list of records with imagePath and points"):
        by_name = {entry["imagePath"]: entry for entry in entries}
        pairs, spacings = [], []
        for name in names:
            if name not in by_name:
                raise UserError(f"{where} has no record of image {name}; give the data.json of these runs")
            points = reader_points(by_name[name], f"{where}: image {name}")
            if points is None:
                return None
            places = {point["pointAbbreviation"]: place for place, point in enumerate(by_name[name]["points"])}
            absent = [abbreviation for abbreviation in abbreviations if abbreviation not in places]
            if absent:
                raise UserError(f"{where}: image {name} has no point {absent[0]}; give the data.json of these runs")
            pairs.append(points[:, [places[abbreviation] for abbreviation in abbreviations]])
            spacings.append(float(by_name[name].get("spacing") or math.nan))
    return np.stack(pairs), np.array(spacings)


def reader_errors(readers: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distances (I, N) of either of two readers (I, 2, N, 2) px from their mean, times spacing (I,) mm per px."""
    return np.linalg.norm(readers[:, 0] - readers[:, 1], axis=-1) / 2 * spacing[:, None]


def noise_floor(readers: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Errors (I, N) that the best of all predictors would have against the mean of readers (I, 2, N, 2) px.

    times spacing (I,) mm per px. The mean of two readers who err alike and by themselves is off by as much as half of
    their difference; what they differ by on average over the images, landmark by landmark, is a habit that can be
    learnt, and is taken off. Of n images that takes off a little more: the floor is too low by the factor
    sqrt(1 - 1 / n).
    """
    apart = (readers[:, 0] - readers[:, 1]) * spacing[:, None, None]
    known = np.isfinite(apart)
    mean = np.where(known, apart, 0).sum(0) / np.maximum(1, known.sum(0))
    return np.linalg.norm(apart - mean, axis=-1) / 2


def mean_is_truth(readers: np.ndarray, truth: np.ndarray) -> bool:
    """Whether a truth (I, N, 2) px is the mean of readers (I, 2, N, 2) px wherever both are known."""
    apart = np.abs(readers.mean(1) - truth)
    return bool(np.isfinite(apart).any() and np.nanmax(apart) <= SAME)
