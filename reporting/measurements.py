"""What is measured on landmarks beside their places: angles of cephalograms; Cobb angles and scores of spines.

A kind of measurement, the setting `measurements`, takes landmarks in original px, the sizes of their images and mm per
px. The angles and distances of cephalograms are defined in cephalometry.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reporting.cephalometry import known_measures, measure_profiles
from settings import UserError


class Measured(NamedTuple):
    """Measures of I images, and figures of the whole set."""

    names: tuple[str, ...]  # M measures, with their unit
    predicted: np.ndarray  # (I, M), nan where a landmark is missing
    true: np.ndarray  # (I, M)
    figures: dict[str, Any]  # of the set, by name: numbers, or numbers by measure
    sources: tuple[str, ...] = ()  # definition and source of each measure
    classes: Mapping[str, tuple[np.ndarray, np.ndarray]] = {}  # names (I,) of predicted and true class, by measure


def measure(
    kind: str,
    abbreviations: Sequence[str],
    landmarks: np.ndarray,
    truth: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    spacing: Sequence[float],
) -> Measured | None:
    """A kind of measurement on landmarks and truth (I, N, 2) original px, mm per px (I,) or nan; none: nothing.

    auto: that of cephalograms, where its landmarks are there. Raises UserError for landmarks of another kind.
    """
    if kind == "none" or (kind == "auto" and not known_measures(abbreviations)):
        return None
    kind = "cephalogram" if kind == "auto" else kind
    arrays = (np.asarray(values, float) for values in (landmarks, truth, sizes, spacing))
    return KINDS[kind](tuple(abbreviations), *arrays)


# --- Cephalograms -----------------------------------------------------------------------------------


def measure_cephalograms(
    abbreviations: Sequence[str], landmarks: np.ndarray, truth: np.ndarray, sizes: np.ndarray, spacing: np.ndarray
) -> Measured:
    """The measures of cephalometry.py whose landmarks are there.

    figures: of each measure with classes how many images in 100 get the class of their truth; the same as the mean over
    the true classes, which is the mean diagonal of the confusion matrix; and the mean of each over the measures.
    """
    measures = known_measures(abbreviations)
    if not measures:
        raise UserError(f"setting measurements: no angle can be made of {', '.join(abbreviations)}; set it to none")
    predicted, true = (measure_profiles(measures, abbreviations, points, spacing) for points in (landmarks, truth))
    classes, rates, diagonals = {}, {}, {}
    for column, each in enumerate(measures):
        if each.limits:
            pair = tuple(each.class_names(values[:, column]) for values in (predicted, true))
            known = (pair[0] != "") & (pair[1] != "")
            if known.any():
                classes[each.title] = pair
                same = pair[0] == pair[1]
                rates[each.name] = 100 * float(np.mean(same[known]))
                shares = [np.mean(same[known & (pair[1] == name)]) for name in np.unique(pair[1][known])]
                diagonals[each.name] = 100 * float(np.mean(shares))
    figures = {
        name: {"mean": float(np.mean(list(values.values()))), **values}
        for name, values in (("same class (%)", rates), ("mean over classes (%)", diagonals))
        if values
    }
    sources = tuple(f"{each.definition} ({each.source})" for each in measures)
    return Measured(tuple(each.title for each in measures), predicted, true, figures, sources, classes)


# --- Spines -----------------------------------------------------------------------------------------


def measure_spines(
    abbreviations: Sequence[str], landmarks: np.ndarray, truth: np.ndarray, sizes: np.ndarray, spacing: np.ndarray
) -> Measured:
    """Cobb angles, and the scores of AASCE 2019: MSE and correlation of normalised points, and SMAPE of the angles.

    Points are normalised by width and height. MSE: mean over points and both axes. NMSE: mean squared distance, the sum
    over both axes, so twice that. correlation: Pearson's, over all coordinates. SMAPE: mean over images of the sum of
    |predicted - true| over the sum of predicted + true, over the three angles, per cent.
    """
    if landmarks.shape[1] != 68:
        raise UserError(f"setting measurements: spine needs the 68 corners of 17 vertebrae, not {landmarks.shape[1]}")
    predicted = np.array([cobb_angles(one, height) for one, (_, height) in zip(landmarks, sizes, strict=True)])
    true = np.array([cobb_angles(one, height) for one, (_, height) in zip(truth, sizes, strict=True)])
    found, aim = landmarks / sizes[:, None], truth / sizes[:, None]
    known = np.isfinite(found) & np.isfinite(aim)
    names = ("MT (degrees)", "PT (degrees)", "TL/L (degrees)")
    if not known.any():  # no truth
        return Measured(names, predicted, true, {})
    mse = float(np.mean((found[known] - aim[known]) ** 2))
    shares = 100 * np.abs(predicted - true).sum(1) / (predicted + true).sum(1)
    figures = {
        "MSE": mse,
        "NMSE": 2 * mse,
        "correlation": float(np.corrcoef(found[known], aim[known])[0, 1]),
        "SMAPE": float(np.mean(shares[np.isfinite(shares)])) if np.isfinite(shares).any() else float("nan"),
    }
    return Measured(names, predicted, true, figures)


def cobb_angles(points: np.ndarray, height: float) -> tuple[float, float, float]:
    """Main thoracic, proximal thoracic and thoracolumbar/lumbar Cobb angle of corners (68, 2) px, degrees; or nan.

    As AASCE 2019 computes them from the lines through the middles of each vertebra's sides: the main angle is the
    greatest between any two of them, the others those that the ends of the spine, or, where it is S-shaped, its most
    tilted vertebra beyond, make with these two. Of the 121 images at hand the published truth, as it stands, gives the
    published main angle in all, the proximal one in 117, the lumbar one in 114 (within 0.05 degrees): in the rest the
    published ones take a spine for S-shaped and these do not, or the other way round. With vertebrae put in order
    (tools/formats/spine.py) 114 and 112.
    """
    if not np.isfinite(points).all():
        return float("nan"), float("nan"), float("nan")
    corners = points.reshape(17, 4, 2)
    left, right = (corners[:, 0] + corners[:, 2]) / 2, (corners[:, 1] + corners[:, 3]) / 2
    lines = (right - left) / np.linalg.norm(right - left, axis=1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip(lines @ lines.T, -1, 1)))
    upper, lower = sorted(np.unravel_index(angles.argmax(), angles.shape))
    if not is_s_shaped((left + right) / 2):
        return angles[upper, lower], angles[0, upper], angles[16, lower]
    above = int(angles[upper, : upper + 1].argmax())
    if right[upper, 1] + right[lower, 1] < height:  # the curve lies in the upper half
        return angles[upper, lower], angles[upper, above], angles[lower, lower:].max()
    return angles[upper, lower], angles[upper, above], angles[above, : above + 1].max()


def is_s_shaped(centres: np.ndarray) -> bool:
    """Whether a spine's centres (17, 2), but for the last two, lie on both sides of the line from first to last."""
    with np.errstate(divide="ignore", invalid="ignore"):
        along = (centres - centres[-1]) / (centres[0] - centres[-1])
    sides = (along[:-2, 1] - along[:-2, 0])[1:]
    return bool((sides > 0).any() and (sides < 0).any())


KINDS = {"cephalogram": measure_cephalograms, "spine": measure_spines}
