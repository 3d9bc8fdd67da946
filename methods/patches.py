"""Targets and votes of the patches of an image, and windows of an image, for noothout.py.

D is the number of spatial dimensions: points are (x, y) or (x, y, z), grids and images (h, w) or (d, h, w).
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import require_finite

FARTHEST = 1e5  # px: limit of the distance between a patch and its vote, for untrained networks

# --- Targets and votes ---------------------------------------------------------------------------


def on_grid(values: Tensor, axis: int, dims: int) -> Tensor:
    """Reshape values (..., length) along a point's axis (0 is x) to (..., 1 or length per axis of a grid)."""
    return values.reshape(*values.shape[:-1], *(values.shape[-1] if k == dims - 1 - axis else 1 for k in range(dims)))


def patch_centres(length: int, patch: int, device: torch.device | None = None) -> Tensor:
    """Return the centres, px along one axis, of patches that lie side by side from the border of the image."""
    return patch * torch.arange(length, device=device) + (patch - 1) / 2


def class_targets(landmarks: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """Return (B, N, *grid) bool, true at the patch that contains the landmark (B, N, D) px; all false if missing."""
    cells = ((landmarks + 0.5) / patch).floor()  # a pixel extends half a px to each side of its centre
    held = [
        on_grid(cells[..., axis, None] == torch.arange(length, device=landmarks.device), axis, len(grid))
        for axis, length in enumerate(reversed(grid))
    ]
    return reduce(torch.logical_and, held)


def displacement_targets(landmarks: Tensor, grid: Sequence[int], patch: int, base: float) -> Tensor:
    """Return to_log of the px from each patch's centre to the landmarks (B, N, D) px: (B, N, D, *grid); missing: 0."""
    dims, maps = landmarks.shape[-1], []
    for axis, length in enumerate(reversed(grid)):
        logs = to_log(landmarks[..., axis, None] - patch_centres(length, patch, landmarks.device), base)
        maps.append(on_grid(logs.nan_to_num(0.0), axis, dims).expand(*landmarks.shape[:2], *grid))
    return torch.stack(maps, 2)


def to_log(distance: Tensor, base: float) -> Tensor:
    """Return sign(d) log(|d| + 1), which resolves small distances finely and large ones coarsely."""
    return distance.sign() * distance.abs().log1p() / math.log(base)


def from_log(value: Tensor, base: float) -> Tensor:
    """Return the inverse of to_log, limited to FARTHEST."""
    return value.sign() * (value.abs() * math.log(base)).clamp(max=math.log1p(FARTHEST)).expm1()


def count_votes(logits: Tensor, displacements: Tensor, patch: int, base: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean vote of all patches, weighted by their probability of containing the landmark.

    logits (B, N, *grid), displacements (B, N, D, *grid) -> landmarks (B, N, D) px, score (B, N), the highest
    probability, and spread (B, N, D) px, the weighted standard deviation of the votes along each axis.
    Raises ValueError for votes that are not finite.
    """
    for votes in (logits, displacements):
        require_finite(votes, "votes")
    grid = logits.shape[2:]
    votes = from_log(displacements.float(), base)
    centres = [
        on_grid(patch_centres(length, patch, logits.device), axis, len(grid)).expand(grid)
        for axis, length in enumerate(reversed(grid))
    ]
    votes = (votes + torch.stack(centres)).flatten(3)
    weights = F.logsigmoid(logits.float().flatten(2)).softmax(-1)[:, :, None]  # sigmoid / sum, safe for tiny sums
    landmarks = (weights * votes).sum(-1)
    spread = (weights * (votes - landmarks[..., None]) ** 2).sum(-1).sqrt()
    return landmarks, logits.float().flatten(2).amax(-1).sigmoid(), spread


def patch_loss(outputs: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], annotated: Tensor) -> tuple:
    """Return the mean absolute error of displacements and the mean cross-entropy, over annotated landmarks (B, N)."""
    (logits, displacements), (classes, aims) = outputs, labels
    count = annotated.sum().clamp(min=1)
    distance = (displacements.float() - aims).abs().flatten(2).mean(-1)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), classes.float(), reduction="none").flatten(2).mean(-1)
    return (distance * annotated).sum() / count, (entropy * annotated).sum() / count


# --- Windows -------------------------------------------------------------------------------------


def take_windows(image: Tensor, start: Tensor, side: int, source: Tensor | None = None) -> Tensor:
    """Cut windows (B, N, side, ...) out of images (B, *size), from whole px (B, N, D) on; the border is repeated.

    source (B, N): which image of the batch to cut from; none: each its own.
    """
    dims = start.shape[-1]
    index = []
    for k, length in enumerate(image.shape[1:]):  # array axes, which are the axes of a point reversed
        axis = dims - 1 - k
        pixels = start[..., axis, None] + torch.arange(side, device=start.device)
        index.append(on_grid(pixels.clamp(0, length - 1), axis, dims))
    if source is None:
        source = torch.arange(image.shape[0], device=image.device)[:, None]
    return image[(source.view(*source.shape, *[1] * dims), *index)]


def random_chunk(image: Tensor, landmarks: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cut a random square out of each image (B, C, H, W); landmarks (B, N, 2) move with it and may lie outside."""
    room = torch.tensor(image.shape[:1:-1]) - side + 1
    start = (torch.rand(len(image), 1, len(room)) * room).long().to(image.device)
    chunks = torch.stack([take_windows(channel, start, side)[:, 0] for channel in image.unbind(1)], 1)
    return chunks, landmarks - start
