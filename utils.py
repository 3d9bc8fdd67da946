"""Pure functions on landmarks: frames, heatmaps, decoding, errors and their summary.

Nothing here reads a file or depends on a method. data.py defines the letters and frames.
"""

import math
import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from settings import UserError

# --- Frames --------------------------------------------------------------------------------------
# An affine is a (..., 2, 3) array or tensor that maps points (x, y, 1) of one frame to (x, y) of another.


def resize_affine(size_from: tuple[int, int], size_to: tuple[int, int]) -> np.ndarray:
    """Return the affine (2, 3) of a resize between two (width, height) by the half-pixel rule.

    The pixel areas of both images cover each other, so to = (from + 0.5) * scale - 0.5.
    """
    scale = np.divide(size_to, size_from)
    return np.column_stack([np.diag(scale), 0.5 * scale - 0.5])


def apply_affine(affine, points):
    """Map points (..., N, 2) by affines (..., 2, 3), numpy or torch; nan stays nan."""
    return points @ affine[..., :2].swapaxes(-1, -2) + affine[..., None, :, 2]


def clip_to_image(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Move points (N, 2) beside an image (width, height) to the border of its outermost pixels; nan stays nan."""
    return np.clip(points, -0.5, np.array(size) - 0.5)


def compose_affines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the affine (2, 3) that applies `first`, then `second`."""
    return second @ np.vstack([first, (0, 0, 1)])


def invert_affine(affine: np.ndarray) -> np.ndarray:
    """Return the inverse of an affine (2, 3)."""
    return np.linalg.inv(np.vstack([affine, (0, 0, 1)]))[:2]


def scale_landmarks(landmarks: Tensor, factor: float) -> Tensor:
    """Move landmarks (..., 2) from px of a map to px of the map resized by `factor`, by the half-pixel rule."""
    return (landmarks + 0.5) * factor - 0.5


# --- Heatmaps and decoding -----------------------------------------------------------------------


def gaussian_heatmaps(landmarks: Tensor, size: tuple[int, int], sigma: float, channels_last: bool = False) -> Tensor:
    """Return Gaussians (B, N, height, width) with peak 1 at landmarks (B, N, 2); all 0 for a missing landmark (nan).

    Landmarks and sigma are in px of the map. channels_last: memory layout, to match heatmaps in that layout.
    """
    height, width = size

    def profile(centre: Tensor, length: int) -> Tensor:
        grid = torch.arange(length, device=landmarks.device, dtype=landmarks.dtype)
        return torch.exp(-((grid - centre[..., None]) ** 2) / (2 * sigma**2)).nan_to_num(0.0)

    columns, rows = profile(landmarks[..., 0], width), profile(landmarks[..., 1], height)
    if channels_last:
        return (rows.mT.contiguous()[:, :, None] * columns.mT.contiguous()[:, None]).permute(0, 3, 1, 2)
    return rows[..., :, None] * columns[..., None, :]


def decode_heatmaps(
    heatmaps: Tensor, decode: str, sigma: float, twins: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return landmarks (B, N, 2) in px of the map and scores (B, N), the peak heights, from heatmaps (B, N, h, w).

    decode: "argmax", the first maximum; or "subpixel", a Gaussian fitted around it. twins: two landmarks that look the
    same, such as the ends of a ruler; they never lie within 2 sigma of each other (separate_twins).
    Raises NotFinite for heatmaps with nan or infinite values.
    """
    require_finite(heatmaps, "heatmaps")
    # first the row of the maximum, then its column, because a maximum over the whole map is slower: it carries an index
    # along; over maps in channels_last layout pooling takes a twelfth of the time of amax
    if heatmaps.is_contiguous():
        rows = heatmaps.amax(-1)
    else:
        rows = F.max_pool2d(heatmaps, (1, heatmaps.shape[-1]))[..., 0]
    row = rows.argmax(-1)
    batch, landmark = (torch.arange(length, device=heatmaps.device) for length in heatmaps.shape[:2])
    score, column = heatmaps[batch[:, None], landmark, row].max(-1)
    peak = torch.stack([column, row], -1)
    if twins is not None:
        peak, score = separate_twins(heatmaps, peak, score, twins, 2 * sigma)
    landmarks = fit_gaussian(heatmaps, peak, sigma) if decode == "subpixel" else peak.float()
    return landmarks, score.float()


def separate_twins(
    heatmaps: Tensor, peak: Tensor, score: Tensor, twins: tuple[int, int], radius: float
) -> tuple[Tensor, Tensor]:
    """Return peaks (B, N, 2) and scores (B, N) of heatmaps (B, N, h, w) where two landmarks are more than radius apart.

    If they are not, one of them goes to the highest local maximum of its map beyond the radius, or, if that is below
    half of its score, to the highest point beyond: the one for which the sum of both scores remains larger.
    """
    pair, width = list(twins), heatmaps.shape[-1]
    maps, here, own = heatmaps[:, pair].float(), peak[:, pair], score[:, pair].float()
    other = here.flip(1)[..., None, None, :]
    x, y = torch.arange(width, device=maps.device), torch.arange(maps.shape[-2], device=maps.device)
    near = (x - other[..., 0]) ** 2 + (y[:, None] - other[..., 1]) ** 2 <= radius**2
    slope = maps < F.max_pool2d(maps, 5, 1, 2)  # of the peak itself: not another one
    second_peak, at_peak = maps.masked_fill(near | slope, -1e30).flatten(2).max(-1)
    beyond, at_beyond = maps.masked_fill(near, -1e30).flatten(2).max(-1)
    high = second_peak >= own / 2
    best, index = torch.where(high, second_peak, beyond), torch.where(high, at_peak, at_beyond)
    away = torch.stack([index % width, index // width], -1)
    together = ((here[:, 0] - here[:, 1]) ** 2).sum(-1) <= radius**2
    second = own[:, 0] + best[:, 1] >= best[:, 0] + own[:, 1]  # the second one moves
    moved = torch.stack([together & ~second, together & second], 1)
    peak, score = peak.clone(), score.clone()
    peak[:, pair] = torch.where(moved[..., None], away, here)
    score[:, pair] = torch.where(moved, best, own).to(score.dtype)
    return peak, score


def fit_gaussian(heatmaps: Tensor, peak: Tensor, sigma: float) -> Tensor:
    """Return the centres (B, N, 2) of isotropic Gaussians fitted to heatmaps (B, N, h, w) around peaks (B, N, 2).

    Weighted least squares of log(map) = a + b x + c y + d (x^2 + y^2) over a window of +- sigma (at least 2 px),
    cut off at the border. The weights are squared values, so that noise near zero hardly counts. Exact for a
    Gaussian of any width. The peak is kept if the window is not a peak (d >= 0), or if the centre lies outside the
    window or outside the map.
    """
    radius = max(2, round(sigma))
    height, width = heatmaps.shape[-2:]
    steps = torch.arange(-radius, radius + 1, device=heatmaps.device)
    y, x = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    columns, rows = peak[..., :1] + x, peak[..., 1:] + y
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    values = heatmaps.flatten(-2).gather(-1, index).double().clamp(min=0) * inside
    # lengths in units of the radius keep the equations well conditioned
    u, v = x.double() / radius, y.double() / radius
    basis = torch.stack([torch.ones_like(u), u, v, u**2 + v**2], -1)
    weights = values**2
    # two factors at a time: with three, torch lets opt_einsum choose the order where that is installed, which rounds
    # differently and fixes the batch size of an exported graph
    normal = torch.einsum("bnpi,pj->bnij", weights[..., None] * basis, basis)
    right = torch.einsum("bnp,pi->bni", weights * values.clamp(min=1e-30).log(), basis)
    ridge = 1e-12 * normal.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + 1e-30
    a_b_c_d = solve_positive(normal + ridge * torch.eye(4, device=heatmaps.device, dtype=torch.double), right)
    offset = -a_b_c_d[..., 1:3] / (2 * a_b_c_d[..., 3:].clamp(max=-1e-12))
    centre = peak + radius * offset
    edge = torch.tensor([width, height], device=heatmaps.device) - 0.5
    near = (offset.abs() <= 1) & (centre >= -0.5) & (centre <= edge)
    trusted = (a_b_c_d[..., 3:] < 0) & near.all(-1, keepdim=True)
    return torch.where(trusted, centre, peak).float()


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve small systems with positive definite matrices (..., n, n) for right (..., n) by Gaussian elimination.

    ONNX has no counterpart of torch.linalg.solve. Positive definite matrices need no pivoting.
    """
    rows = torch.cat([matrix, right[..., None]], -1)
    for k in range(matrix.shape[-1]):
        pivot = rows[..., k : k + 1, :] / rows[..., k : k + 1, k : k + 1]
        rest = rows - rows[..., k : k + 1] * pivot
        rows = torch.cat([rest[..., :k, :], pivot, rest[..., k + 1 :, :]], -2)
    return rows[..., -1]


class NotFinite(UserError, ValueError):
    """The outputs of a network are nan or infinite and cannot be decoded."""


def is_exporting() -> bool:
    """Return whether a graph is being recorded, which can neither raise errors nor call other libraries."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def require_finite(values: Tensor, what: str) -> None:
    """Raise NotFinite for nan or infinite values, except while a graph is being recorded."""
    if is_exporting():
        return
    # the sum is fast, but finite values may overflow in it
    if not values.sum().isfinite() and not values.isfinite().all():
        raise NotFinite(f"{what} contain nan or infinite values: the weights are corrupt; use an earlier checkpoint")


# --- Errors --------------------------------------------------------------------------------------


def radial_errors(landmarks: np.ndarray, truth: np.ndarray, spacing: np.ndarray | float = 1.0) -> np.ndarray:
    """Return the distances (..., N) of landmarks and truth (..., N, 2), both original px, times spacing (...).

    In mm if spacing is mm per px, in px if it is 1; nan where a landmark is not annotated.
    """
    distance = np.linalg.norm(np.asarray(landmarks, float) - np.asarray(truth, float), axis=-1)
    return distance * np.asarray(spacing, float)[..., None]


def summarise_errors(errors: np.ndarray, thresholds: tuple[float, ...], seed: int = 0, resamples: int = 1000) -> dict:
    """Return MRE, SD, median and SDR of errors (images, N), nan where not annotated, each with a 95 % interval.

    Keys: "MRE", "SD" (divisor n), "median", "SDR_2.0" (per cent with error <= 2.0), ..., each also with "_low" and
    "_high"; "n_images"; "n_landmarks", the annotated ones of all images. The interval is the percentile bootstrap over
    images, because the errors within an image depend on each other; it is nan below three images. All figures are nan
    if nothing is annotated.
    """
    errors = np.atleast_2d(np.asarray(errors, float))
    annotated = np.isfinite(errors)
    summary: dict[str, float] = {}
    figures = error_figures(errors[annotated], thresholds)
    images = np.flatnonzero(annotated.any(1))
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples if len(images) >= 3 else 0):
        sample = errors[generator.choice(images, len(images))]
        samples.append(list(error_figures(sample[np.isfinite(sample)], thresholds).values()))
    low, high = np.percentile(samples, (2.5, 97.5), axis=0) if samples else np.full((2, len(figures)), np.nan)
    for index, (name, value) in enumerate(figures.items()):
        summary |= {name: value, f"{name}_low": float(low[index]), f"{name}_high": float(high[index])}
    return summary | {"n_images": len(images), "n_landmarks": int(annotated.sum())}


def network_errors(landmarks: Tensor, truth: Tensor, to_original: Tensor, spacing: Tensor) -> Tensor:
    """Return radial errors (B, N) of landmarks and truth (B, N, 2), both network px.

    In mm, or in original px where spacing is nan; nan where not annotated; float64 on the host. to_original (B, 2, 3)
    and spacing (B,) as in data.Sample.
    """
    found, true = (apply_affine(to_original, points.double().cpu()) for points in (landmarks, truth))
    return (found - true).norm(dim=-1) * spacing.nan_to_num(1.0)[:, None]


def error_figures(errors: np.ndarray, thresholds: tuple[float, ...]) -> dict[str, float]:
    """Return MRE, SD, median and SDR (per cent with error <= threshold) of a flat array of errors; nan if empty."""
    if errors.size == 0:
        return dict.fromkeys(["MRE", "SD", "median", *(f"SDR_{threshold}" for threshold in thresholds)], math.nan)
    figures = {"MRE": errors.mean(), "SD": errors.std(), "median": np.median(errors)}
    figures |= {f"SDR_{threshold}": 100 * (errors <= threshold).mean() for threshold in thresholds}
    return {name: float(value) for name, value in figures.items()}


def is_loss_term(name: str) -> bool:
    """Return whether a value of a training step is a loss term, not an accuracy or the norm of a gradient."""
    return not name.startswith(("accuracy_", "gradient_"))


def finite_mean(values: np.ndarray) -> float:
    """Return the mean of the finite values; nan if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


# --- Seeds ---------------------------------------------------------------------------------------


def seed_everything(*seeds: int) -> None:
    """Seed Python, NumPy and torch from whole numbers, e.g. (seed, epoch)."""
    state = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
