"""Which predictions can be trusted, and how far off they may be, by what training remembers.

A verdict says of an image whether its landmarks form the shape that the training images have, and whether the network
is as certain as it was on images that it had not seen. A spacing is believed only if it can be true.
"""

import math
from collections.abc import Sequence

import numpy as np

from config import SPACINGS
from evaluate import Predictions, Verdict
from reading.shapes import BOTH_WAYS, ShapeModel, is_mirrored, shape_deviation, shape_size
from reporting.memory import LEVELS, Memory, score_factor

DOUBTFUL, REJECTED = 1.2, 2.0  # times the largest deviation in training: an unusual shape; that of something else
RULER_SCORE = 0.6  # of the usual score: below it the end of a ruler is not believed
TOLERANCE = 0.1  # of a spacing, and of the size of the anatomy
UNKNOWN_ERROR = 2.0  # mm, of the end of a ruler, where none is known
IMPOSSIBLE = 0.5  # of the size of the anatomy: beyond, even a spacing that is stated is not believed


def radii(memory: Memory, landmarks: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
    """Return "radius_90" and "radius_95" (N,) px of the landmarks (N, 2) of an image with scores (N,).

    nan if the network was never tested on images that it had not seen, or on too few.
    """
    usual = memory.size(landmarks) * memory.relative_error * score_factor(score, memory.score)
    return {f"radius_{level}": usual * factor for level, factor in zip(LEVELS, memory.factor, strict=True)}


def judge(memory: Memory, landmarks: np.ndarray, score: np.ndarray, abbreviations: Sequence[str]) -> Verdict:
    """Return the verdict on an image with landmarks (N, 2) in px and scores (N,).

    It is rejected if its shape is that of something else, even without the tenth of the landmarks that fit worst. The
    ends of the ruler are no part of the shape (doubt_ruler).
    """
    landmarks = np.where(memory.anatomy[:, None] == 1, landmarks, math.nan)
    if memory.mirrored > BOTH_WAYS and is_mirrored(landmarks, memory.mean):
        landmarks = landmarks * (-1, 1)
    reasons, kept, deviation = [], landmarks, shape_deviation(landmarks, memory.mean)
    if deviation > DOUBTFUL * memory.deviation:  # False for nan
        kept = without_worst(landmarks, memory.mean, len(landmarks) // 10)
        if shape_deviation(kept, memory.mean) > REJECTED * memory.deviation:
            known = f"{deviation:.2f}, in training at most {memory.deviation:.2f}"
            return Verdict("reject", f"not such an image? deviation of the shape {known}")
        reasons.append(f"unusual shape: deviation {deviation:.2f}, in training at most {memory.deviation:.2f}")
    if score.mean() < memory.least_score:
        reasons.append(f"low scores: {score.mean():.2f} on average, usual are {memory.score.mean():.2f}")
    if math.isfinite(memory.deviation):
        apart = np.linalg.norm(landmarks - ShapeModel(memory.mean, memory.covariance).places(kept), axis=-1)
        far = np.nan_to_num(apart / (shape_size(kept) * memory.distance))
        if far.max() > 1:
            n = int(far.argmax())
            reasons.append(f"{abbreviations[n]} is {apart[n]:.0f} px from where the others put it")
    return Verdict("check" if reasons else "good", "; ".join(reasons))


def without_worst(landmarks: np.ndarray, mean: np.ndarray, count: int) -> np.ndarray:
    """Return landmarks (N, 2) with `count` of them set to nan, each the one without which the shape fits best."""
    kept = landmarks.copy()
    for _ in range(count):
        deviations = np.full(len(kept), np.inf)
        for n in np.flatnonzero(np.isfinite(kept).all(1)):
            others = np.arange(len(kept)) != n
            deviations[n] = np.nan_to_num(shape_deviation(kept[others], mean[others]), nan=np.inf)
        kept[deviations.argmin()] = np.nan
    return kept


def assess(
    memory: Memory | None,
    predictions: Predictions,
    abbreviations: Sequence[str],
    unit: str,
    spacing: np.ndarray | None = None,
) -> Predictions:
    """Return predictions with the verdict on each image and radii in a unit, mm or px, as far as both are known.

    An image is doubtful, too, if its anatomy cannot have its size (doubt_spacing). Verdicts that predictions have
    already are kept. A rejected image has no radii. spacing: (I,) mm per px, nan where unknown; None: theirs.
    """
    if memory is None:
        return predictions
    images = list(zip(predictions.landmarks, predictions.score, strict=True))
    spacing = predictions.spacing if spacing is None else spacing
    verdicts, found = [], []
    for i, (landmarks, score) in enumerate(images):
        own = predictions.verdicts[i] if predictions.verdicts else judge(memory, landmarks, score, abbreviations)
        why = doubt_spacing(memory, landmarks, spacing[i])
        if why and own.name != "reject":
            own = Verdict("check", "; ".join(filter(None, [own.reason, why])))
        verdicts.append(own)
        factor = math.nan if own.name == "reject" else spacing[i] if unit == "mm" else 1.0
        found.append({name: factor * radius for name, radius in radii(memory, landmarks, score).items()})
    extras = {name: np.stack([one[name] for one in found]) for name in (found[0] if found else ())}
    known = {name: own for name, own in extras.items() if np.isfinite(own).any()}
    return predictions._replace(verdicts=verdicts, extras={**predictions.extras, **known})


# --- Spacing --------------------------------------------------------------------------------------------


def doubt_spacing(memory: Memory | None, landmarks: np.ndarray, spacing: float, tolerance: float = TOLERANCE) -> str:
    """Return why a mm per px cannot be true, by the size of the anatomy in training images, or "".

    landmarks: (N, 2) px; tolerance: beyond the sizes of the training images.
    """
    if memory is None:
        return ""
    extent = spacing * memory.size(landmarks)
    least, most = memory.extent / (1 + tolerance, 1 / (1 + tolerance))
    if extent < least or extent > most:  # False for nan
        return f"at {spacing:.3g} mm per px the anatomy is {extent / memory.extent.mean():.2f} times its usual size"
    return ""


def doubt_ruler(
    memory: Memory | None, landmarks: np.ndarray, score: np.ndarray, spacing: float, rows: Sequence[int]
) -> str:
    """Return why the mm per px cannot be true that the ruler found in an image gives, or "".

    landmarks: (N, 2) px, with scores (N,); rows: of the ruler's ends.
    """
    low, high = SPACINGS
    if not low <= spacing <= high:
        return f"its ends lie at one place, or {1 / spacing:.3g} px per mm apart"
    if memory is None:
        return ""
    if (score[rows] < RULER_SCORE * memory.score[rows]).any():
        return f"its ends have scores of {score[rows].min():.2f} and above, usual are {memory.score[rows].min():.2f}"
    return doubt_spacing(memory, landmarks, spacing)


def differs_from_training(memory: Memory | None, size: tuple[int, int], spacing: float) -> str:
    """Return why the mm per px of a ruler is not that of training images of one size (width, height), or ""."""
    if memory is None:
        return ""
    known = memory.spacing[(memory.spacing[:, :2] == size).all(1), 2]
    if len(known) and np.abs(spacing / known - 1).min() > TOLERANCE:
        return f"it gives {spacing:.3g} mm per px, images of this size had {known.min():.3g} in training"
    return ""


def ruler_error(memory: Memory, rows: Sequence[int], length: float) -> float:
    """Return the usual error of a ruler of a length in mm, relative to it, by the errors of its ends (rows)."""
    apart = float(np.hypot(*memory.relative_error[list(rows)])) * memory.extent.mean()
    return (math.sqrt(2) * UNKNOWN_ERROR if math.isnan(apart) else apart) / length


def rulers_needed(memory: Memory | None, size: tuple[int, int], rows: Sequence[int], length: float) -> int:
    """Return how many images of one size must show a ruler of a length in mm for their median to be within TOLERANCE.

    Two standard errors, by the usual errors of the ruler's ends. One is enough if images of this size were trained on,
    because differs_from_training compares with these.
    """
    if memory is None or (memory.spacing[:, :2] == size).all(1).any():
        return 1
    return max(1, math.ceil((2 * ruler_error(memory, rows, length) / TOLERANCE) ** 2))


# --- Mirrored, inverted and turned images ---------------------------------------------------------------


def variants(pixels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return an image (h, w[, 3]) of 0..255 as it may have been meant, by what would be wrong with it.

    Each is an image, and the affine (2, 3) from its px to those of the given one.
    """
    height, width = pixels.shape[:2]
    mirror = np.array([[-1.0, 0, width - 1], [0, 1, 0]])
    quarter, back = np.array([[0.0, -1, width - 1], [1, 0, 0]]), np.array([[0.0, 1, 0], [-1, 0, height - 1]])
    half = np.array([[-1.0, 0, width - 1], [0, -1, height - 1]])
    return {
        "mirrored": (pixels[:, ::-1], mirror),
        "inverted": (255 - pixels, np.eye(2, 3)),
        "mirrored and inverted": (255 - pixels[:, ::-1], mirror),
        "turned upside down": (np.rot90(pixels, 2), half),
        "turned clockwise": (np.rot90(pixels), quarter),
        "turned anticlockwise": (np.rot90(pixels, 3), back),
    }
