"""Pure functions on landmarks: frames, heatmaps, decoding, errors and their summary.

Nothing here reads a file or knows a method. Letters and frames: data.py.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from config import UserError

# --- Frames --------------------------------------------------------------------------------------
# An affine is a (..., 2, 3) array or tensor that maps points (x, y, 1) of one frame to (x, y) of another.


def resize_affine(size_from: tuple[int, int], size_to: tuple[int, int]) -> np.ndarray:
    """The affine (2, 3) of a resize between two (width, height) by the half-pixel rule.

    Pixel areas cover each other, so to = (from + 0.5) * scale - 0.5 with pixel centres at integers.
    """
    scale = np.divide(size_to, size_from)
    return np.column_stack([np.diag(scale), 0.5 * scale - 0.5])


def apply_affine(affine, points):
    """Points (..., N, 2) through affines (..., 2, 3); numpy or torch; nan stays nan."""
    return points @ affine[..., :2].swapaxes(-1, -2) + affine[..., None, :, 2]


def compose_affines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The affine (2, 3) that applies `first`, then `second`."""
    return second @ np.vstack([first, (0, 0, 1)])


def invert_affine(affine: np.ndarray) -> np.ndarray:
    """The affine (2, 3) that undoes another."""
    return np.linalg.inv(np.vstack([affine, (0, 0, 1)]))[:2]


def scale_landmarks(landmarks: Tensor, factor: float) -> Tensor:
    """Landmarks (..., 2) of a map in the frame of the same map `factor` times as large, by the half-pixel rule."""
    return (landmarks + 0.5) * factor - 0.5


# --- Heatmaps and decoding -----------------------------------------------------------------------


def gaussian_heatmaps(landmarks: Tensor, size: tuple[int, int], sigma: float, channels_last: bool = False) -> Tensor:
    """Gaussians of peak 1 at landmarks (B, N, 2) -> (B, N, height, width) on the landmarks' device.

    sigma in px of the map. Separable: the outer product of one profile per axis. Missing (nan): all zeros.
    channels_last: in that memory layout, to meet heatmaps that have it.
    """
    height, width = size

    def profile(centre: Tensor, length: int) -> Tensor:
        grid = torch.arange(length, device=landmarks.device, dtype=landmarks.dtype)
        return torch.exp(-((grid - centre[..., None]) ** 2) / (2 * sigma**2)).nan_to_num(0.0)

    columns, rows = profile(landmarks[..., 0], width), profile(landmarks[..., 1], height)
    if channels_last:
        return (rows.mT.contiguous()[:, :, None] * columns.mT.contiguous()[:, None]).permute(0, 3, 1, 2)
    return rows[..., :, None] * columns[..., None, :]


def dense_heatmaps(landmarks: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """gaussian_heatmaps as predecessors draw them: on the host, a float64 grid of distances for every landmark."""
    y, x = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in size), indexing="ij")
    centre = landmarks.cpu()[..., None, None].double()
    heatmaps = torch.exp(-((x - centre[:, :, 0]) ** 2 + (y - centre[:, :, 1]) ** 2) / (2 * sigma**2))
    return heatmaps.nan_to_num(0.0).float().to(landmarks.device)


def decode_heatmaps(heatmaps: Tensor, decode: str, sigma: float) -> tuple[Tensor, Tensor]:
    """Heatmaps (B, N, h, w) -> landmarks (B, N, 2) (x, y) in px of the map, score (B, N) = height of the peak.

    decode: "argmax", the first maximum; or "subpixel", refined by a Gaussian fitted around it.
    Raises ValueError for maps that are not finite: their maximum means nothing.
    """
    demand_finite(heatmaps, "heatmaps")
    # the first of the rows that hold a maximum, then the column: a maximum over the whole map has to carry its index
    # along; over maps in channels_last layout pooling takes a twelfth of the time of amax
    if heatmaps.is_contiguous():
        rows = heatmaps.amax(-1)
    else:
        rows = F.max_pool2d(heatmaps, (1, heatmaps.shape[-1]))[..., 0]
    row = rows.argmax(-1)
    batch, landmark = (torch.arange(length, device=heatmaps.device) for length in heatmaps.shape[:2])
    score, column = heatmaps[batch[:, None], landmark, row].max(-1)
    peak = torch.stack([column, row], -1)
    landmarks = fit_gaussian(heatmaps, peak, sigma) if decode == "subpixel" else peak.float()
    return landmarks, score.float()


def fit_gaussian(heatmaps: Tensor, peak: Tensor, sigma: float) -> Tensor:
    """Centre (B, N, 2) of an isotropic Gaussian fitted to heatmaps (B, N, h, w) around integer peaks (B, N, 2).

    Weighted least squares of log(map) = a + b x + c y + d (x^2 + y^2) over a window of +- sigma (2 px at
    least), cut off at the border; weights are squared values, so noise near zero counts for nothing. Exact
    for a Gaussian of any width. A window that is no peak (d >= 0), or whose centre lies outside it or
    outside the map, keeps the argmax.
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
    normal = torch.einsum("bnp,pi,pj->bnij", weights, basis, basis)
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
    """The solutions (..., n) of few equations with positive definite matrices (..., n, n), by plain elimination.

    torch.linalg.solve has no counterpart in ONNX; for positive definite matrices no rows need to be exchanged.
    """
    rows = torch.cat([matrix, right[..., None]], -1)
    for k in range(matrix.shape[-1]):
        pivot = rows[..., k : k + 1, :] / rows[..., k : k + 1, k : k + 1]
        rest = rows - rows[..., k : k + 1] * pivot
        rows = torch.cat([rest[..., :k, :], pivot, rest[..., k + 1 :, :]], -2)
    return rows[..., -1]


class NotFinite(UserError, ValueError):
    """What a network gives is nan or infinite, so nothing can be read off it."""


def is_exporting() -> bool:
    """Whether tensors only pass through to record a graph, which can neither raise nor call other libraries."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def demand_finite(values: Tensor, what: str) -> None:
    """Raise NotFinite for values that are nan or infinite; not in a graph that is exported."""
    if is_exporting():
        return
    # the sum is quick; of finite values it may overflow
    if not values.sum().isfinite() and not values.isfinite().all():
        raise NotFinite(f"{what} hold nan or infinite values: the weights are spoilt; use an earlier checkpoint")


# --- Errors --------------------------------------------------------------------------------------


def radial_errors(landmarks: np.ndarray, truth: np.ndarray, spacing: np.ndarray | float = 1.0) -> np.ndarray:
    """Distances (..., N) between landmarks and truth (..., N, 2), both original px, times spacing (...) mm per px.

    nan where a landmark is not annotated. With spacing 1 they are in px.
    """
    distance = np.linalg.norm(np.asarray(landmarks, float) - np.asarray(truth, float), axis=-1)
    return distance * np.asarray(spacing, float)[..., None]


def summarise_errors(errors: np.ndarray, thresholds: tuple[float, ...], seed: int = 0, resamples: int = 1000) -> dict:
    """MRE, SD, median and SDR of errors (images, N), nan where not annotated, each with a 95 % interval.

    Returns {"MRE": , "SD": , "median": , "SDR_2.0": per cent with error <= 2.0, ..., and each with "_low" and
    "_high"; "n_images", "n_landmarks" (annotated ones over all images)}. The interval is the percentile
    bootstrap over images, not points: the landmarks of one image err together.
    SD is the population one (divisor n). All values nan when nothing is annotated.
    """
    errors = np.atleast_2d(np.asarray(errors, float))
    annotated = np.isfinite(errors)
    summary: dict[str, float] = {}
    figures = error_figures(errors[annotated], thresholds)
    images = np.flatnonzero(annotated.any(1))
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples if len(images) else 0):
        sample = errors[generator.choice(images, len(images))]
        samples.append(list(error_figures(sample[np.isfinite(sample)], thresholds).values()))
    low, high = np.percentile(samples, (2.5, 97.5), axis=0) if samples else np.full((2, len(figures)), np.nan)
    for index, (name, value) in enumerate(figures.items()):
        summary |= {name: value, f"{name}_low": float(low[index]), f"{name}_high": float(high[index])}
    return summary | {"n_images": len(images), "n_landmarks": int(annotated.sum())}


def paired_difference(errors: np.ndarray, others: np.ndarray, seed: int = 0, resamples: int = 1000) -> dict[str, float]:
    """How much larger the mean of errors (images, N) is than that of others on the same images, with a 95 % interval.

    Returns {"difference", "low", "high"}, in the errors' unit. The percentile bootstrap over images draws both at once,
    so what makes an image hard for both cancels. Landmarks that are nan in either count nowhere; all values nan where
    that leaves none.
    """
    differences = np.asarray(errors, float) - np.asarray(others, float)
    differences = differences[np.isfinite(differences).any(axis=1)]
    if not len(differences):
        return dict.fromkeys(("difference", "low", "high"), math.nan)
    sums, counts = np.nansum(differences, axis=1), np.isfinite(differences).sum(axis=1)
    generator, means = np.random.default_rng(seed), []
    step = max(1, 2_000_000 // len(sums))  # resamples at a time: 50 MB
    for start in range(0, resamples, step):
        samples = generator.choice(len(sums), (min(step, resamples - start), len(sums)))
        means.append(sums[samples].sum(1) / counts[samples].sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return {"difference": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


def paired_permutation(errors: np.ndarray, others: np.ndarray, seed: int = 0, resamples: int = 10000) -> float:
    """The two-sided p-value of the difference of two means, errors and others (images, N), if both were exchangeable.

    The statistic is that of paired_difference. The two labels are exchanged for a whole image at once, since the points
    of one image are not independent: all of its differences change their sign together. Exact over all patterns of
    signs where there are at most `resamples` of them; else over that many drawn ones, the observed one counted too:
    (count + 1) / (resamples + 1). Landmarks that are nan in either count nowhere; nan where that leaves none.
    """
    differences = np.asarray(errors, float) - np.asarray(others, float)
    if not np.isfinite(differences).any():
        return math.nan
    sums = np.nansum(np.atleast_2d(differences), axis=1)
    sums = sums[sums != 0]  # what has no sign changes nothing, whichever it is given
    # as large as observed, but for the rounding of sums in another order
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    exact = len(sums) < 63 and 2 ** len(sums) <= resamples
    patterns = 2 ** len(sums) if exact else resamples
    generator, count = np.random.default_rng(seed), 0
    step = max(1, 4_000_000 // max(1, len(sums)))  # patterns at a time: 32 MB of numbers
    for start in range(0, patterns, step):
        rows = np.arange(start, min(start + step, patterns))
        if exact:
            kept = rows[:, None] >> np.arange(len(sums)) & 1
        else:
            kept = generator.random((len(rows), len(sums))) < 0.5
        count += int((np.abs((2.0 * kept - 1.0) @ sums) >= least).sum())
    return count / patterns if exact else (count + 1) / (patterns + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values (n,) corrected for their number by Holm's step-down method; nan stays nan and is not counted.

    Each is the smallest level at which its hypothesis falls while the chance of a single false one stays below it.
    """
    corrected = np.array(p_values, float)
    known = np.flatnonzero(np.isfinite(corrected))
    order = known[np.argsort(corrected[known], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps * corrected[order]))
    return corrected


def network_errors(landmarks: Tensor, truth: Tensor, to_original: Tensor, spacing: Tensor) -> Tensor:
    """Radial errors (B, N) of landmarks (B, N, 2), both network px: in mm, or px of the file where spacing is nan.

    to_original (B, 2, 3) and spacing (B,) as in data.Sample; on the host, float64; nan where not annotated.
    """
    found, true = (apply_affine(to_original, points.double().cpu()) for points in (landmarks, truth))
    return (found - true).norm(dim=-1) * spacing.nan_to_num(1.0)[:, None]


def error_figures(errors: np.ndarray, thresholds: tuple[float, ...]) -> dict[str, float]:
    """MRE, SD, median and SDR (per cent with error <= threshold) of a flat array of errors; nan if empty."""
    if errors.size == 0:
        return dict.fromkeys(["MRE", "SD", "median", *(f"SDR_{threshold}" for threshold in thresholds)], math.nan)
    figures = {"MRE": errors.mean(), "SD": errors.std(), "median": np.median(errors)}
    figures |= {f"SDR_{threshold}": 100 * (errors <= threshold).mean() for threshold in thresholds}
    return {name: float(value) for name, value in figures.items()}


def is_loss_term(name: str) -> bool:
    """Whether a value of a training step is a loss term, and not an accuracy or the norm of a gradient."""
    return not name.startswith(("accuracy_", "gradient_"))


def finite_mean(values: np.ndarray) -> float:
    """The mean of the values that are known; nan where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


# --- Seeds ---------------------------------------------------------------------------------------


def seed_everything(*seeds: int) -> None:
    """Seed python, numpy and torch from whole numbers, e.g. (seed, epoch)."""
    state = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
