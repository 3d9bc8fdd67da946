"""Measure angles and distances on landmarks: those of cephalograms; Cobb angles and scores of spines.

The setting `measurements` chooses the kind. Landmarks are in original px, spacing in mm per px. cephalometry.py defines
the angles and distances of cephalograms.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reporting.cephalometry import MEASURES, known_measures, measure_profiles
from settings import UserError

log = logging.getLogger("farnet")

CLASS_RATES = {  # names in Measured.figures, and how to say them on the terminal
    "same class (%)": "angles and distances: {:.1f} % of images fall in the class of their truth",
    "mean over classes (%)": "the same, averaged over the true classes: {:.1f} %",
}


class Measured(NamedTuple):
    """M measures of I images, and figures of the whole set."""

    names: tuple[str, ...]  # (M) with the unit
    predicted: np.ndarray  # (I, M), nan where a landmark is missing
    true: np.ndarray  # (I, M)
    figures: dict[str, Any]  # of the set, by name: a number, or numbers by measure
    sources: tuple[str, ...] = ()  # (M) definition and source
    classes: Mapping[str, tuple[np.ndarray, np.ndarray]] = {}  # by measure: predicted and true class (I,), or ""

    @property
    def errors(self) -> np.ndarray:
        """(I, M) absolute differences of predicted and true, nan where either is unknown."""
        return np.abs(self.predicted - self.true)


def measure(
    kind: str,
    abbreviations: Sequence[str],
    landmarks: np.ndarray,
    truth: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    spacing: Sequence[float] | np.ndarray,
) -> Measured | None:
    """Return the measures of landmarks and truth (I, N, 2), sizes (I,) width and height, spacing (I,) or nan.

    kind: auto (those of cephalograms, if the landmarks allow any; otherwise None, and the log says why), cephalogram,
    spine or none (None). Raises UserError for landmarks that the kind cannot use.
    """
    if kind in ("auto", "cephalogram") and not known_measures(abbreviations):
        known = ", ".join(dict.fromkeys(name for each in MEASURES for name in each.landmarks))
        found = ", ".join(abbreviations[:9]) + (", ..." if len(abbreviations) > 9 else "")
        reason = f"no angle or distance can be computed from {found}; known abbreviations: {known}"
        if kind == "cephalogram":
            raise UserError(f"setting measurements: {reason}; set it to none")
        log.info(reason)
        return None
    if kind == "none":
        return None
    if kind == "spine":
        return measure_spines(landmarks, truth, np.asarray(sizes, float))
    return measure_cephalograms(abbreviations, landmarks, truth, np.asarray(spacing, float))


# --- Cephalograms -----------------------------------------------------------------------------------


def measure_cephalograms(
    abbreviations: Sequence[str], landmarks: np.ndarray, truth: np.ndarray, spacing: np.ndarray
) -> Measured:
    """Return the measures of cephalometry.py that the landmarks allow.

    Figures, for each measure with classes: the percentage of images in the class of their truth; the mean of these
    percentages over the true classes, that is the mean diagonal of the confusion matrix; both averaged over measures.
    """
    measures = known_measures(abbreviations)
    predicted, true = (measure_profiles(measures, abbreviations, points, spacing) for points in (landmarks, truth))
    classes, rates, diagonals = {}, {}, {}
    for column, each in enumerate(measures):
        if not each.limits:
            continue
        found, real = each.class_names(predicted[:, column]), each.class_names(true[:, column])
        known, same = (found != "") & (real != ""), found == real
        if known.any():
            classes[each.title] = found, real
            rates[each.name] = 100 * float(np.mean(same[known]))
            shares = [np.mean(same[known & (real == name)]) for name in np.unique(real[known])]
            diagonals[each.name] = 100 * float(np.mean(shares))
    figures = {
        name: {"mean": float(np.mean(list(values.values()))), **values}
        for name, values in zip(CLASS_RATES, (rates, diagonals), strict=True)
        if values
    }
    sources = tuple(f"{each.definition} ({each.source})" for each in measures)
    return Measured(tuple(each.title for each in measures), predicted, true, figures, sources, classes)


# --- Spines -----------------------------------------------------------------------------------------


def measure_spines(landmarks: np.ndarray, truth: np.ndarray, sizes: np.ndarray) -> Measured:
    """Return the Cobb angles, and the scores of AASCE 2019 as figures.

    With points divided by width and height: MSE, the mean over points and both axes; NMSE, the mean squared distance,
    which is twice that; correlation, Pearson's over all coordinates. SMAPE: the sum over the three angles of
    |predicted - true|, divided by that of predicted + true, as a mean over images in per cent.
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
    """Return the main thoracic, proximal thoracic and thoracolumbar/lumbar Cobb angle of corners (68, 2) px, degrees.

    nan if a corner is missing. As in AASCE 2019, a line joins the midpoints of the two sides of each vertebra. The main
    angle is the largest between any two lines. The others are between these two lines and the ends of the spine or, in
    an S-shaped spine, the most tilted vertebra beyond. On 121 images, within 0.05 degrees, the published truth gives
    the published main angle in all, the proximal one in 117, the lumbar one in 114 (once tools/formats/spine.py has
    sorted the vertebrae, 114 and 112). In the others, the two disagree on whether the spine is S-shaped.
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
    if right[upper, 1] + right[lower, 1] < height:  # the main curve is in the upper half of the image
        return angles[upper, lower], angles[upper, above], angles[lower, lower:].max()
    return angles[upper, lower], angles[upper, above], angles[above, : above + 1].max()


def is_s_shaped(centres: np.ndarray) -> bool:
    """Return whether centres (17, 2), except the last two, lie on both sides of the line from the first to the last."""
    with np.errstate(divide="ignore", invalid="ignore"):
        along = (centres - centres[-1]) / (centres[0] - centres[-1])
    sides = (along[:-2, 1] - along[:-2, 0])[1:]
    return bool((sides > 0).any() and (sides < 0).any())
