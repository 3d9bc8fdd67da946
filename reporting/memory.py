"""What training remembers, so that later predictions can be judged: shapes, scores, sizes and errors of its images.

A radius holds a landmark's error in 90 or 95 % of cases: split conformal prediction (Vovk et al. 2005; Lei et al., JASA
2018) from the errors of images that the network had not seen.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config import Config
from data import make_loader
from evaluate import evaluate
from machine import prepare_device
from methods import load_detector
from reading.shapes import BOTH_WAYS, doubts, fit_shapes, shape_deviation, shape_size, similarity, usual_distances
from reading.splits import LandmarkData
from reporting.predictions import PredictionTable
from run_folder import read_checkpoint, save_checkpoint
from settings import UserError

LEVELS = (90, 95)  # per cent of errors that a radius is to hold
PRIOR_IMAGES = 2  # of the mean error of all landmarks, added to a landmark's own: few images say little
SCORE_RANGE = (0.5, 4.0)  # factors by which a low or high score may change a radius
LOW_SCORE = 0.8  # of the usual mean score: below it an image is doubtful
LEAST_DEVIATION = 0.03  # of a shape from the mean, even if all training images are equal
UNUSUAL = 1.5  # times what 95 % of the training images stay below: a point is far from where the others put it
MOST_RECALLED = 40  # images that are predicted so that a checkpoint remembers what is usual
FEWEST = 5  # images for radii, and for shapes
ENOUGH = 15  # images to say where the others put a landmark: with ten, half of all good films would be doubtful


class Memory(NamedTuple):
    """What is usual for N landmarks. Values that are not known are nan, and are not compared."""

    mean: np.ndarray  # (N, 2) and
    covariance: np.ndarray  # (2 N, 2 N): the shapes of the training images, reading.shapes.ShapeModel
    mirrored: np.ndarray  # () share of the training images that face the other way
    deviation: np.ndarray  # () largest shape_deviation of a training image that is not an outlier
    distance: np.ndarray  # (N,) from where the others put a landmark, relative to the size of the shape: unusual
    score: np.ndarray  # (N,) usual score of each landmark
    least_score: np.ndarray  # () of the mean over landmarks, below which an image is doubtful
    anatomy: np.ndarray  # (N,) 1 for a point of the patient, 0 for an end of the ruler
    extent: np.ndarray  # (2,) smallest and largest size of the anatomy, mm
    spacing: np.ndarray  # (S, 3) width, height, mm per px of the training images, each once
    relative_error: np.ndarray  # (N,) usual error of images that were not trained on, in sizes of the anatomy
    factor: np.ndarray  # (L,) radius at each of LEVELS, in usual errors

    def size(self, points: np.ndarray) -> float:
        """Return the size in px of the anatomy of points (N, 2), however many of them are missing.

        It is the size of the mean shape that fits them; without one that of the points themselves; 1 if they have none.
        """
        mean, points = self.mean[self.anatomy == 1], points[self.anatomy == 1]
        fitted = [similarity(mean, points * side) for side in ((1, 1), (-1, 1))]
        scale = max(float(np.hypot(*affine[0, :2])) for affine in fitted)  # of the side that it faces
        own = scale * shape_size(mean) if math.isfinite(scale) else shape_size(points)
        return own if own > 0 else 1.0  # nan and 0, too

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
    if isinstance(kept, dict) and "error" in kept:  # of the first version: errors in mm
        kept = {name: value for name, value in kept.items() if name != "error"}
        ruler = state.get("settings", {}).get("ruler", ())
        kept |= {"anatomy": torch.tensor([float(name not in ruler) for name in state["abbreviations"]])}
        kept |= {"relative_error": torch.full((n,), math.nan), "mirrored": torch.zeros(())}
    shapes = {"mean": (n, 2), "covariance": (2 * n, 2 * n), "mirrored": (), "deviation": (), "distance": (n,),
              "score": (n,), "least_score": (), "anatomy": (n,), "extent": (2,), "relative_error": (n,),
              "factor": (len(LEVELS),)}  # fmt: skip
    fits = isinstance(kept, dict) and set(kept) == set(Memory._fields)
    fits = fits and all(isinstance(value, torch.Tensor) for value in kept.values())
    fits = fits and all(tuple(kept[name].shape) == shape for name, shape in shapes.items())
    fits = fits and tuple(kept["spacing"].shape)[1:] == (3,) and bool(kept["spacing"].isfinite().all())
    if not fits or not (kept["covariance"].isfinite().all() or kept["covariance"].isnan().all()):
        raise UserError(f"checkpoint {state['path']}: its entry 'memory' is damaged; use another one")
    return Memory(**{name: value.double().numpy() for name, value in kept.items()})


def reorder(memory: Memory, rows: Sequence[int]) -> Memory:
    """Return a memory for the same landmarks in another order: rows (N,) of the present one."""
    n, rows = len(memory.mean), list(rows)
    covariance = memory.covariance.reshape(n, 2, n, 2)[rows][:, :, rows].reshape(2 * n, 2 * n)
    own = {name: getattr(memory, name)[rows] for name in ("mean", "distance", "score", "anatomy", "relative_error")}
    return memory._replace(covariance=covariance, **own)


def join_memories(memories: Sequence[Memory | None]) -> Memory | None:
    """Return what is usual for the mean of several networks: their mean score and errors; None if one does not know.

    The errors are those of one network, which are larger than those of the mean. Shapes are those of the first.
    """
    known = [memory for memory in memories if memory is not None]
    if not known or len(known) < len(memories):
        return None
    names = ("score", "least_score", "relative_error", "factor")
    return known[0]._replace(**{name: np.mean([getattr(memory, name) for memory in known], 0) for name in names})


# --- Remembering ----------------------------------------------------------------------------------------


def remember(
    landmarks: np.ndarray,
    spacing: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    score: np.ndarray,
    found: np.ndarray,
    truth: np.ndarray,
    ruler: Sequence[int] = (),
) -> Memory:
    """Return what is usual.

    landmarks: (I, N, 2) px, annotated, of the training images, with spacing (I,) mm per px or nan, and sizes (I,) width
    and height, px. score: (J, N) of predicted images, if possible of images that were not trained on. found, truth: (J,
    N, 2) px in these, truth nan where unknown, and everywhere if they were trained on. ruler: its ends, which are no
    anatomy: their place says nothing of the patient.
    """
    anatomy = np.ones(landmarks.shape[1])
    anatomy[list(ruler)] = 0
    landmarks = np.where(anatomy[:, None] == 1, landmarks, math.nan)
    known = np.isfinite(landmarks).all(-1)
    whole = known.sum(1) > 2
    n, unknown = landmarks.shape[1], math.nan
    mean, covariance, share = np.full((n, 2), unknown), np.full((2 * n, 2 * n), unknown), 0.0
    deviation, distance = unknown, np.full(n, unknown)
    if n > 2 and whole.sum() >= FEWEST:
        (mean, covariance), places, mirrored = fit_shapes(landmarks[whole])
        share = float(mirrored.mean())
        counted = ~mirrored | (share > BOTH_WAYS)
        sizes_px = np.array([shape_size(own) for own in landmarks[whole]])
        apart = ((landmarks[whole] - places) / sizes_px[:, None, None])[counted]
        worst = np.nan_to_num(doubts(apart)).max(1)
        if len(apart) >= ENOUGH:
            distance = UNUSUAL * np.quantile(worst, 0.95) * usual_distances(apart)
        upright = np.where(mirrored[:, None, None], landmarks[whole] * (-1, 1), landmarks[whole])[counted]
        deviations = np.array([shape_deviation(own, mean) for own in upright])
        deviations = deviations[np.isfinite(deviations)]  # an image may share too few landmarks with the others
        usual = deviations[deviations <= 3 * np.median(deviations)] if deviations.size else deviations
        deviation = max(usual.max(), LEAST_DEVIATION) if usual.size else unknown  # a slip is no measure
    means = score.mean(1)
    least = min(LOW_SCORE * np.median(means), 0.9 * np.quantile(means, 0.05)) if len(means) else unknown
    memory = Memory(
        mean, covariance, np.array(share), np.array(deviation), distance, np.median(score, 0), np.array(least), anatomy,
        np.full(2, unknown), np.zeros((0, 3)), np.full(n, unknown), np.full(len(LEVELS), unknown),
    )  # fmt: skip
    enough = known.sum(1) >= max(2, anatomy.sum() / 2)  # for the size of the patient
    extents = np.array([memory.size(own) for own in landmarks]) * np.where(enough, spacing, unknown)
    extents = extents[np.isfinite(extents)]
    pairs = sorted({(*size, round(float(own), 6)) for size, own in zip(sizes, spacing, strict=True) if own == own})
    memory = memory._replace(
        extent=np.array([extents.min(), extents.max()] if extents.size else [unknown, unknown]),
        spacing=np.array(pairs, float).reshape(-1, 3),
    )
    return with_errors(memory, score, found, truth)


def with_errors(memory: Memory, score: np.ndarray, found: np.ndarray, truth: np.ndarray) -> Memory:
    """Return a memory with the errors of images (J) that were not trained on: scores (J, N) and landmarks (J, N, 2)."""
    sizes = np.array([memory.size(own) for own in found])
    error, factor = calibrate(score, np.linalg.norm(found - truth, axis=-1) / sizes[:, None])
    return memory._replace(score=np.median(score, 0), relative_error=error, factor=factor)


def calibrate(score: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the usual error (N,) of landmarks, and the radius (L,) at each of LEVELS in usual errors.

    From images (J, N) that were not trained on. A landmark's usual error is its mean over images, drawn towards that
    of all landmarks by PRIOR_IMAGES; for the image itself, that of the other images. The conformal score is the error
    divided by it and by score_factor; its quantile is taken over all landmarks at once, so that a few images are
    enough. nan for fewer than FEWEST images, for a landmark without an error, and for a level that takes more errors.
    """
    known = np.isfinite(errors)
    if known.any(1).sum() < FEWEST:
        return np.full(errors.shape[1], math.nan), np.full(len(LEVELS), math.nan)
    counts, sums, mean = known.sum(0), np.where(known, errors, 0).sum(0), max(errors[known].mean(), 1e-9)
    others = (sums - np.nan_to_num(errors) + PRIOR_IMAGES * mean) / (counts - known + PRIOR_IMAGES)
    ratios = np.sort((errors / (others * score_factor(score, np.median(score, 0))))[known])
    places = [math.ceil((len(ratios) + 1) * level / 100) for level in LEVELS]
    factor = np.array([ratios[place - 1] if place <= len(ratios) else math.nan for place in places])
    usual = (sums + PRIOR_IMAGES * mean) / (counts + PRIOR_IMAGES)
    return np.where(counts > 0, usual, math.nan), factor


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
    truth = own.truth if held_out else np.full(own.truth.shape, math.nan)
    ruler = [n for n, name in enumerate(data.abbreviations) if name in config.ruler]
    return remember(landmarks, spacing, sizes, own.score, own.landmarks, truth, ruler)


def share_errors(checkpoints: Sequence[Path], table: PredictionTable) -> None:
    """Let the checkpoints of all folds remember the errors of all images, each by a network that had not seen it.

    It is an entry of its own, shared_memory, so that a fold that is resumed is tested as before.
    """
    for path in checkpoints:
        state = read_checkpoint(path)
        if memory := read_memory(state):
            pooled = with_errors(memory, table.columns["score"], table.landmarks, table.truth)
            save_checkpoint(path, state | {"shared_memory": pooled.to_state()})
