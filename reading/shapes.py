"""Shapes: landmarks of an image regardless of where it lies, how it is turned and how large it is.

They show which images are of something else, and which points do not fit the others. Missing landmarks are nan.
"""

from typing import NamedTuple

import numpy as np

from utils import apply_affine, invert_affine

RIDGE = 0.1  # of the mean variance of a coordinate, added to the covariance: the noise of annotations
FREEDOM = 10.0  # variance of place, turn and size, relative to that of shapes: nothing is known about them
MIRRORED = 0.2  # the least deviation of a shape from its mirror image by which the two can be told apart
BOTH_WAYS = 0.05  # share of mirrored images above which they are no slips: the images of a set face both ways
ROUNDS = 3  # of weighting down what does not fit


def similarity(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the affine (2, 3) that moves, turns and scales points (N, 2) onto a reference (N, 2), without mirroring.

    By least squares over what is known in both; nan for fewer than two landmarks.
    """
    own, aim = points @ (1, 1j), reference @ (1, 1j)  # complex numbers: a factor turns and scales
    known = np.isfinite(own) & np.isfinite(aim)
    if known.sum() < 2:
        return np.full((2, 3), np.nan)
    start, end = own[known].mean(), aim[known].mean()
    spread = (np.abs(own[known] - start) ** 2).sum()
    factor = np.vdot(own[known] - start, aim[known] - end) / max(spread, 1e-30)
    shift = end - factor * start
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def align_shape(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return points (N, 2) moved, turned and scaled onto a reference (N, 2); nan for fewer than two landmarks."""
    return apply_affine(similarity(points, reference), points)


def shape_size(points: np.ndarray) -> float:
    """Return the root mean square distance of points (N, 2) from their centre; nan if all are missing."""
    known = points[np.isfinite(points).all(-1)]
    return float(np.sqrt(((known - known.mean(0)) ** 2).sum(-1).mean())) if len(known) else np.nan


def standard_shape(points: np.ndarray) -> np.ndarray:
    """Return points (N, 2) about 0 with a root mean square radius of 1."""
    return (points - np.nanmean(points, 0)) / max(shape_size(points), 1e-30)


def mean_shape(points: np.ndarray) -> np.ndarray:
    """Return the mean shape (N, 2) of points (I, N, 2), about 0 and with a root mean square radius of 1.

    It begins with the most complete image, and is mirrored if most images are its mirror image. A landmark that is
    missing in all images is nan.
    """
    mean = standard_shape(points[np.isfinite(points[..., 0]).sum(1).argmax()])
    for _ in range(ROUNDS):
        mirrored = np.array([is_mirrored(own, mean) for own in points])
        if mirrored.mean() > 0.5:
            mean, mirrored = mean * (-1, 1), ~mirrored
        upright = np.where(mirrored[:, None, None], points * (-1, 1), points)
        aligned = np.stack([align_shape(own, mean) for own in upright])
        counts, sums = np.isfinite(aligned).sum(0), np.nan_to_num(aligned).sum(0)
        mean = standard_shape(np.where(counts > 0, sums / np.maximum(1, counts), np.nan))
    return mean


def shape_deviation(points: np.ndarray, mean: np.ndarray) -> float:
    """Return how far the shape of points (N, 2) is from a mean shape (N, 2): 0 for the same, at most 1.

    The root of the sum of squares that is left after align_shape, relative to that of the mean shape. nan if fewer than
    three landmarks are known: any two fit.
    """
    known = np.isfinite(points).all(-1) & np.isfinite(mean).all(-1)
    if known.sum() < 3:
        return np.nan
    aim = mean[known] - mean[known].mean(0)
    apart = align_shape(points[known], aim) - aim
    return float(np.sqrt((apart**2).sum() / (aim**2).sum()))


class ShapeModel(NamedTuple):
    """The normal distribution of the shapes of N landmarks."""

    mean: np.ndarray  # (N, 2), about 0, with a root mean square radius of 1
    covariance: np.ndarray  # (2 N, 2 N) of aligned shapes, x and y of each landmark

    def places(self, points: np.ndarray) -> np.ndarray:
        """Return where the other known landmarks put each landmark (N, 2) of an image, in the frame of its points."""
        affine = similarity(points, self.mean)
        if not np.isfinite(affine).all():
            return np.full(points.shape, np.nan)
        apart = apply_affine(affine, points) - self.mean
        left = apart_from_others(apart.ravel(), self.covariance, self.mean).reshape(points.shape)
        return apply_affine(invert_affine(affine), self.mean + np.nan_to_num(apart) - left)


def apart_from_others(apart: np.ndarray, covariance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return how far each landmark of an aligned shape (2 N,) is from where the others put it.

    apart: the shape minus the mean shape (N, 2), nan where missing. That place is the mean of a normal distribution
    given the other known landmarks. Its covariance is the given one, plus RIDGE, plus FREEDOM for place, turn and size:
    alignment has taken these from all landmarks together, so that one would otherwise follow from the rest.
    For a missing landmark 0 minus the place relative to the mean shape is returned.
    """
    free = np.stack([np.full(mean.shape, (1, 0)), np.full(mean.shape, (0, 1)), mean, mean[:, ::-1] * (-1, 1)])
    free = np.nan_to_num(free.reshape(4, -1))
    free = free / np.linalg.norm(free, axis=1, keepdims=True)
    size = max(covariance.trace(), 1e-12)  # 0 if all images are equal
    whole = covariance + RIDGE * size / len(covariance) * np.eye(len(covariance)) + FREEDOM * size * free.T @ free
    here = np.isfinite(apart)
    n = int(here.sum()) // 2
    precision = np.linalg.inv(whole[np.ix_(here, here)])
    blocks = precision.reshape(n, 2, n, 2)[np.arange(n), :, np.arange(n)]
    left = np.zeros(len(apart))
    left[here] = np.linalg.solve(blocks, (precision @ apart[here]).reshape(n, 2, 1)).ravel()
    left[~here] = -whole[np.ix_(~here, here)] @ precision @ apart[here]
    return left


def is_mirrored(points: np.ndarray, mean: np.ndarray) -> bool:
    """Return whether points (N, 2) are the mirror image of a mean shape (N, 2), clearly: symmetric shapes are not."""
    deviation = shape_deviation(points, mean)
    return deviation > MIRRORED and shape_deviation(points * (-1, 1), mean) < deviation / 2


def fit_shapes(points: np.ndarray) -> tuple[ShapeModel, np.ndarray, np.ndarray]:
    """Return the distribution of the shapes of points (I, N, 2), where others put each point, and what is mirrored.

    places: (I, N, 2) in the frame of the points, where the other landmarks of the image put it by the distribution of
    all other images; nan for an image with fewer than two points. mirrored: (I,) bool, of an image whose mirror image
    fits the others better; it is used as such, but does not count for the others unless the set faces BOTH_WAYS. Images
    that do not fit count less.
    """
    mean, mirror = mean_shape(points), np.array([-1, 1])
    mirrored = np.array([is_mirrored(own, mean) for own in points])
    upright = np.where(mirrored[:, None, None], points * mirror, points)
    affines = np.stack([similarity(own, mean) for own in upright])
    apart = (apply_affine(affines, upright) - mean).reshape(len(points), -1)
    counted = ~mirrored | (mirrored.mean() > BOTH_WAYS)
    known, weights = np.isfinite(apart), counted.astype(float)
    filled, left = np.nan_to_num(apart), np.full(apart.shape, np.nan)
    for _ in range(ROUNDS):
        total = max(weights.sum(), 1e-9)
        centre = weights @ filled / total
        own = filled - centre
        products = (own * weights[:, None]).T @ own
        for i in np.flatnonzero(known.sum(1) >= 4):
            others = (products - weights[i] * np.outer(own[i], own[i])) / max(total - weights[i], 1e-9)
            left[i] = apart_from_others(apart[i] - centre, others, mean)
        doubt = doubts(np.where(known, left, np.nan).reshape(points.shape))
        worst = np.nan_to_num(doubt).max(1)
        weights = np.where(counted, np.minimum(1, np.quantile(worst, 0.75) / np.maximum(worst, 1e-9)) ** 2, 0)
        filled = np.where(known, apart, np.nan_to_num(centre - left))
    places = (filled - np.where(known, left, 0)).reshape(points.shape) + mean
    back = np.stack([invert_affine(affine) if np.isfinite(affine).all() else affine for affine in affines])
    places = apply_affine(back, places)
    model = ShapeModel(mean + centre.reshape(mean.shape), products / total)
    return model, np.where(mirrored[:, None, None], places * mirror, places), mirrored


def doubts(apart: np.ndarray) -> np.ndarray:
    """Return how doubtful points are (I, N) that lie apart (I, N, 2) from where the others put them; nan where missing.

    The distance, relative to usual_distances.
    """
    return np.linalg.norm(apart, axis=-1) / usual_distances(apart)


def usual_distances(apart: np.ndarray) -> np.ndarray:
    """Return the median length of apart (I, N, 2) of each landmark (N,) plus that of all; nan where unknown."""
    distance = np.linalg.norm(apart, axis=-1)
    usual = [np.median(own[np.isfinite(own)]) if np.isfinite(own).any() else np.nan for own in (*distance.T, distance)]
    return np.maximum(np.array(usual[:-1]) + usual[-1], 1e-12)
