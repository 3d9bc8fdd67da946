"""What training remembers, to say later which predictions can be trusted, and how far off they may be.

A verdict says of an image whether its landmarks form the shape that the training images have, and whether the network
is as certain as it was on images that it had not seen. A radius holds a landmark's error in 90 or 95 % of cases: split
conformal prediction (Vovk et al. 2005; Lei et al., JASA 2018) from the errors of images that the network had not seen.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config import SPACINGS, Config
from data import make_loader
from evaluate import Predictions, Verdict, evaluate
from machine import prepare_device
from methods import load_detector
from reading.shapes import ShapeModel, doubts, fit_shapes, shape_deviation, shape_size, usual_distances
from reading.splits import LandmarkData
from reporting.predictions import PredictionTable
from run_folder import read_checkpoint, save_checkpoint
from settings import UserError

LEVELS = (90, 95)  # per cent of errors that a radius is to hold
PRIOR_IMAGES = 2  # of the mean error of all landmarks, added to a landmark's own: few images say little
SCORE_RANGE = (0.5, 4.0)  # factors by which a low or high score may change a radius
LOW_SCORE = 0.8  # of the usual mean score: below it an image is doubtful
DOUBTFUL, REJECTED = 1.2, 2.0  # times the largest deviation in training: an unusual shape; that of something else
UNUSUAL = 1.5  # times what 95 % of the training images stay below: a point is far from where the others put it
MOST_RECALLED = 40  # images that are predicted so that a checkpoint remembers what is usual
RULER_SCORE = 0.6  # of the usual score: below it the end of a ruler is not believed
TOLERANCE = 0.1  # of a spacing, and of the size of the anatomy
FEWEST = 5  # images for radii, and for shapes


class Memory(NamedTuple):
    """What is usual for N landmarks. Values that are not known are nan, and are not compared."""

    mean: np.ndarray  # (N, 2) and
    covariance: np.ndarray  # (2 N, 2 N): the shapes of the training images, reading.shapes.ShapeModel
    deviation: np.ndarray  # () largest shape_deviation of a training image that is not an outlier
    distance: np.ndarray  # (N,) from where the others put a landmark, relative to the size of the shape: unusual
    score: np.ndarray  # (N,) usual score of each landmark
    least_score: np.ndarray  # () of the mean over landmarks, below which an image is doubtful
    extent: np.ndarray  # (2,) smallest and largest shape_size of the anatomy, mm
    spacing: np.ndarray  # (S, 3) width, height, mm per px of the training images, each once
    error: np.ndarray  # (N,) usual error, mm or px, of images that were not trained on
    factor: np.ndarray  # (L,) radius at each of LEVELS, in usual errors

    def to_state(self) -> dict[str, torch.Tensor]:
        """Return tensors for a checkpoint."""
        return {name: torch.from_numpy(np.array(value, float)) for name, value in self._asdict().items()}


def read_memory(state: Mapping[str, Any]) -> Memory | None:
    """Return what a checkpoint remembers; None for one that was written before checkpoints remembered anything.

    Raises UserError for a damaged entry.
    """
    kept, n = state.get("shared_memory", state.get("memory")), len(state["abbreviations"])
    if kept is None:
        return None
    shapes = {"mean": (n, 2), "covariance": (2 * n, 2 * n), "deviation": (), "distance": (n,), "score": (n,),
              "least_score": (), "extent": (2,), "error": (n,), "factor": (len(LEVELS),)}  # fmt: skip
    fits = isinstance(kept, dict) and set(kept) == set(Memory._fields)
    fits = fits and all(isinstance(value, torch.Tensor) for value in kept.values())
    if not fits or any(tuple(kept[name].shape) != shape for name, shape in shapes.items()):
        raise UserError(f"checkpoint {state['path']}: its entry 'memory' is damaged; use another one")
    return Memory(**{name: value.double().numpy() for name, value in kept.items()})


def join_memories(memories: Sequence[Memory | None]) -> Memory | None:
    """Return what is usual for the mean of several networks: their mean score and errors; None if one does not know.

    The errors are those of one network, which are larger than those of the mean. Shapes are those of the first.
    """
    known = [memory for memory in memories if memory is not None]
    if not known or len(known) < len(memories):
        return None
    names = ("score", "least_score", "error", "factor")
    return known[0]._replace(**{name: np.mean([getattr(memory, name) for memory in known], 0) for name in names})


# --- Remembering ----------------------------------------------------------------------------------------


def remember(
    landmarks: np.ndarray,
    spacing: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    score: np.ndarray,
    errors: np.ndarray,
    ruler: Sequence[int] = (),
) -> Memory:
    """Return what is usual.

    landmarks: (I, N, 2) px, annotated, of the training images, with spacing (I,) mm per px or nan, and sizes (I,) width
    and height, px. score: (J, N) of predicted images, if possible of images that were not trained on. errors: (J, N) of
    these, mm or px, nan where unknown, and everywhere if they were trained on. ruler: its ends, which are no anatomy.
    """
    whole = np.isfinite(landmarks).all(-1).sum(1) > 2
    n, unknown = landmarks.shape[1], math.nan
    mean, covariance = np.full((n, 2), unknown), np.full((2 * n, 2 * n), unknown)
    deviation, distance = unknown, np.full(n, unknown)
    if n > 2 and whole.sum() >= FEWEST:
        (mean, covariance), places, mirrored = fit_shapes(landmarks[whole])
        sizes_px = np.array([shape_size(own) for own in landmarks[whole]])
        apart = (landmarks[whole] - places) / sizes_px[:, None, None]
        worst = np.nan_to_num(doubts(apart[~mirrored])).max(1)
        distance = UNUSUAL * np.quantile(worst, 0.95) * usual_distances(apart[~mirrored])
        deviations = np.array([shape_deviation(own, mean) for own in landmarks[whole][~mirrored]])
        deviation = deviations[deviations <= 3 * np.median(deviations)].max()  # a slip is no measure
    anatomy = np.delete(landmarks, list(ruler), 1)
    extents = np.array([shape_size(own) for own in anatomy]) * spacing
    known = extents[np.isfinite(extents)]
    pairs = sorted({(*size, round(float(own), 6)) for size, own in zip(sizes, spacing, strict=True) if own == own})
    means = score.mean(1)
    least = min(LOW_SCORE * np.median(means), 0.9 * np.quantile(means, 0.05)) if len(means) else unknown
    error, factor = calibrate(score, errors)
    return Memory(
        mean, covariance, np.array(deviation), distance, np.median(score, 0), np.array(least),
        np.array([known.min(), known.max()] if known.size else [unknown, unknown]),
        np.array(pairs, float).reshape(-1, 3), error, factor,
    )  # fmt: skip


def calibrate(score: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the usual error (N,) of landmarks, and the radius (L,) at each of LEVELS in usual errors.

    From images (J, N) that were not trained on. A landmark's usual error is its mean over images, drawn towards that
    of all landmarks by PRIOR_IMAGES; for the image itself, that of the other images. The conformal score is the error
    divided by it and by score_factor; its quantile is taken over all landmarks at once, so that a few images are
    enough. All are nan for fewer than FEWEST images.
    """
    known = np.isfinite(errors)
    if known.any(1).sum() < FEWEST:
        return np.full(errors.shape[1], math.nan), np.full(len(LEVELS), math.nan)
    counts, sums, mean = known.sum(0), np.where(known, errors, 0).sum(0), errors[known].mean()
    others = (sums - np.nan_to_num(errors) + PRIOR_IMAGES * mean) / (counts - known + PRIOR_IMAGES)
    ratios = np.sort((errors / (others * score_factor(score, np.median(score, 0))))[known])
    places = [min(len(ratios), math.ceil((len(ratios) + 1) * level / 100)) for level in LEVELS]
    factor = ratios[np.array(places) - 1]
    return (sums + PRIOR_IMAGES * mean) / (counts + PRIOR_IMAGES), factor


def score_factor(score: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return by how much larger a radius is at scores (..., N) than at the usual ones (N,)."""
    return np.clip(usual / np.maximum(score, 1e-9), *SCORE_RANGE)


def recall(config: Config, data: LandmarkData, state: Mapping[str, Any]) -> Memory:
    """Return what a checkpoint is to remember: the shapes of its training images, scores and errors on the val split.

    Without a val split, the scores are those of some training images, and no errors are known: they would be too small.
    """
    held_out, trained = data.select("val"), data.select("train")
    chosen = held_out or trained
    chosen = [chosen[n] for n in sorted(set(np.linspace(0, len(chosen) - 1, MOST_RECALLED).round().astype(int)))]
    device = prepare_device(config)
    detector = load_detector(state, config).to(device).for_inference()
    own = evaluate(detector, make_loader(config, chosen, train=False), device, state["epoch"] - 1, config.views)
    landmarks = np.stack([record.landmarks for record in trained])
    spacing, sizes = np.array([record.spacing for record in trained]), [record.size for record in trained]
    errors = own.errors() if held_out else np.full(own.score.shape, math.nan)
    ruler = [n for n, name in enumerate(data.abbreviations) if name in config.ruler]
    return remember(landmarks, spacing, sizes, own.score, errors, ruler)


def share_errors(checkpoints: Sequence[Path], table: PredictionTable) -> None:
    """Let the checkpoints of all folds remember the errors of all images, each by a network that had not seen it.

    It is an entry of its own, shared_memory, so that a fold that is resumed is tested as before.
    """
    score = table.columns["score"]
    error, factor = calibrate(score, table.errors)
    for path in checkpoints:
        state = read_checkpoint(path)
        if memory := read_memory(state):
            pooled = memory._replace(score=np.median(score, 0), error=error, factor=factor)
            save_checkpoint(path, state | {"shared_memory": pooled.to_state()})


# --- Judging --------------------------------------------------------------------------------------------


def radii(memory: Memory, score: np.ndarray) -> dict[str, np.ndarray]:
    """Return "radius_90" and "radius_95" (..., N) of landmarks with these scores, in the unit of memory.error.

    nan if the network was never tested on images that it had not seen.
    """
    usual = memory.error * score_factor(score, memory.score)
    return {f"radius_{level}": usual * factor for level, factor in zip(LEVELS, memory.factor, strict=True)}


def judge(memory: Memory, landmarks: np.ndarray, score: np.ndarray, abbreviations: Sequence[str]) -> Verdict:
    """Return the verdict on an image with landmarks (N, 2) in px and scores (N,).

    It is rejected if its shape is that of something else, even without the tenth of the landmarks that fit worst.
    """
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


def assess(memory: Memory | None, predictions: Predictions, abbreviations: Sequence[str], unit: str) -> Predictions:
    """Return predictions with the verdict on each image and radii in a unit (with_radii), as far as both are known."""
    if memory is None:
        return predictions
    images = zip(predictions.landmarks, predictions.score, strict=True)
    verdicts = [judge(memory, landmarks, score, abbreviations) for landmarks, score in images]
    return with_radii(memory, predictions, unit, predictions.spacing)._replace(verdicts=verdicts)


def with_radii(memory: Memory | None, predictions: Predictions, unit: str, spacing: np.ndarray) -> Predictions:
    """Return predictions with the radii as extras, where they are known.

    unit: mm or px, that of the radii; spacing: (I,) mm per px, nan where unknown.
    """
    if memory is None:
        return predictions
    given = "mm" if np.isfinite(memory.extent[0]) else "px"
    factor = {("mm", "px"): 1 / spacing, ("px", "mm"): spacing}.get((given, unit), np.ones(len(spacing)))
    found = {name: own * factor[:, None] for name, own in radii(memory, predictions.score).items()}
    known = {name: own for name, own in found.items() if np.isfinite(own).any()}
    return predictions._replace(extras={**predictions.extras, **known})


def doubt_ruler(
    memory: Memory | None,
    landmarks: np.ndarray,
    score: np.ndarray,
    size: tuple[int, int],
    spacing: float,
    rows: Sequence[int],
) -> str:
    """Return why the mm per px cannot be true that the ruler found in an image gives, or "".

    landmarks: (N, 2) px, with scores (N,); size: width and height of the image, px; rows: of the ruler's ends.
    """
    low, high = SPACINGS
    if not low <= spacing <= high:
        return f"its ends lie at one place, or {1 / spacing:.3g} px per mm apart"
    if memory is None:
        return ""
    if (score[rows] < RULER_SCORE * memory.score[rows]).any():
        return f"its ends have scores of {score[rows].min():.2f} and above, usual are {memory.score[rows].min():.2f}"
    extent = spacing * shape_size(np.delete(landmarks, rows, 0))
    least, most = memory.extent * (1 - TOLERANCE, 1 + TOLERANCE)
    if extent < least or extent > most:  # False for nan
        return f"at {spacing:.3g} mm per px the anatomy is {extent / memory.extent.mean():.2f} times its usual size"
    known = memory.spacing[(memory.spacing[:, :2] == size).all(1), 2]
    if len(known) and np.abs(spacing / known - 1).min() > TOLERANCE:
        return f"it gives {spacing:.3g} mm per px, images of this size had {known.min():.3g} in training"
    return ""


def rulers_needed(memory: Memory | None, size: tuple[int, int], rows: Sequence[int], length: float) -> int:
    """Return how many images of one size must show a ruler of a length in mm for their median to be within TOLERANCE.

    Two standard errors, by the usual errors of the ruler's ends. One is enough if images of this size were trained on,
    because doubt_ruler compares with these, or if the errors are unknown.
    """
    if memory is None or (memory.spacing[:, :2] == size).all(1).any():
        return 1
    apart = float(np.hypot(*memory.error[list(rows)])) / length
    return 1 if math.isnan(apart) else max(1, math.ceil((2 * apart / TOLERANCE) ** 2))


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
