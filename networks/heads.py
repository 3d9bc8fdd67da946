"""Heads that turn feature maps into heatmaps: two convolutions without an activation between, computed as one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import is_exporting


class ComposedHead(nn.Module):
    """A 3x3 convolution followed directly by a 1x1 convolution, computed as one 3x3 convolution.

    The product of the two kernels gives the same function: outputs agree up to rounding, and gradients reach both
    factors. It skips the channels between, which are two thirds of the work of FARNet's most expensive layer.
    compose=False computes one convolution after the other.
    """

    weight: Tensor | None  # of the product, once it is folded
    bias: Tensor | None

    def __init__(self, channels: int, num_landmarks: int) -> None:
        super().__init__()
        self.compose = True
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1)
        self.pointwise = nn.Conv2d(channels, num_landmarks, 1)
        self.register_buffer("weight", None)
        self.register_buffer("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        if not self.compose:
            return self.pointwise(self.spatial(x))
        return F.conv2d(x, *self.product(), padding=1)

    def product(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the one convolution, in float32."""
        if self.weight is not None:
            return self.weight, self.bias
        with torch.autocast(self.spatial.weight.device.type, enabled=False):
            mix = self.pointwise.weight.flatten(1)
            weight = torch.einsum("km,mcij->kcij", mix, self.spatial.weight)
            return weight, mix @ self.spatial.bias + self.pointwise.bias  # type: ignore[operator]

    @torch.no_grad()
    def fold(self) -> None:
        """Compute the product once and drop its factors, for inference."""
        self.weight, self.bias = self.product()
        self.compose = True
        del self.spatial, self.pointwise


class RefinementHead(ComposedHead):
    """ComposedHead over torch.cat([upsample(half), full, upsample(coarse)], 1), without building those joined maps.

    A whole training step takes 28 % longer with the maps joined (640 x 800 px, 52 landmarks, batch 4, bf16, 2 cores).
    A convolution is a sum over its input maps, so `full` is convolved alone; the small maps are convolved before they
    are upsampled. A CPU does that row by row (refine_by_rows), a GPU in one convolution (refine_by_phases).
    """

    spread: Tensor

    def __init__(self, half: int, full: int, num_landmarks: int) -> None:
        super().__init__(half + full + num_landmarks, num_landmarks)
        self.shares = (half, full, num_landmarks)
        self.register_buffer("spread", torch.tensor(SPREAD), persistent=False)

    def forward(self, half: Tensor, full: Tensor, coarse: Tensor) -> Tensor:  # type: ignore[override]
        if not self.compose:
            return super().forward(torch.cat([upsample(half), full, upsample(coarse)], 1))
        weight, bias = self.product()
        weight_half, weight_full, weight_coarse = weight.split(self.shares, dim=1)
        weight = torch.cat([weight_half, weight_coarse], 1)
        full = F.conv2d(full, weight_full, bias, padding=1)
        return add_small_maps(full, half, coarse, weight, self.spread)


@torch.fx.wrap  # fx cannot trace a branch
def add_small_maps(full: Tensor, half: Tensor, coarse: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Add to full (B, K, 2h, 2w) a 3x3 convolution (K, C, 3, 3) of half and coarse, (B, C, h, w) in all, upsampled."""
    if is_gpu(full):
        return refine_by_phases(full, half, coarse, weight, spread)
    return refine_by_rows(full, torch.cat([half, coarse], 1), weight, spread)


# Upsampling x to twice its width gives the pixels 2i: x[i-1] / 4 + 3 x[i] / 4, and 2i+1: 3 x[i] / 4 + x[i+1] / 4.
# A kernel of 3 over them is, for the even and for the odd pixels, a kernel of 3 over x.
# SPREAD[even or odd][place in the kernel over x][place in the given kernel] is the share of each weight.
SPREAD = (
    ((0.75, 0.25, 0.0), (0.25, 0.75, 0.75), (0.0, 0.0, 0.25)),
    ((0.25, 0.0, 0.0), (0.75, 0.75, 0.25), (0.0, 0.25, 0.75)),
)


# --- By rows, on a CPU ---------------------------------------------------------------------------


def refine_by_rows(full: Tensor, small: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Do the work of add_small_maps with a third of the products.

    A convolution along the width commutes with upsampling along the height, so each row of the kernel is applied to the
    small maps at their own height (convolve_row). The three results are then upsampled in height and added: one row
    down, in place, one row up.
    """
    above, here, below = (upsample(convolve_row(small, row, spread), (2, 1)) for row in weight.split(1, dim=2))
    return add_rows(full, above, here, below, correct_columns(small, weight))


def convolve_row(x: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Upsample x (B, C, h, w) to (h, 2w) and convolve it with one row of a kernel, (K, C, 1, 3): (B, K, h, 2w).

    x counts as 0 beyond both ends of a row; correct_columns makes up for it. Each row of x is passed to conv2d as an
    image of its own and the even and odd pixels as channels, which halves the time of the weights' gradient; both are
    views in channels_last.
    """
    with torch.autocast(weight.device.type, enabled=False):
        weight = torch.einsum("pot,kcyt->pkcyo", spread, weight.float()).flatten(0, 1)
    rows = x.movedim(1, 3).flatten(0, 1).unsqueeze(1).movedim(3, 1)  # (B h, C, 1, w)
    rows = F.conv2d(rows, weight, padding=(0, 1)).movedim(1, 3)  # (B h, 1, w, 2 K)
    return rows.reshape(x.shape[0], x.shape[2], 2 * x.shape[3], -1).movedim(3, 1)


def correct_columns(x: Tensor, weight: Tensor) -> Tensor:
    """Return what convolve_row lacks in the first and last two columns of a 3x3 convolution, (B, K, 2h, 4).

    In upsampled maps, the outermost pixel is x's own, not 3/4 of it, and the next one outside is 0, not 1/4 of it.
    """
    x = x.movedim(1, 3)  # the gradient of a slice takes the memory layout of the slice
    first, last = x[:, :, :1].movedim(3, 1) / 4, x[:, :, -1:].movedim(3, 1) / 4
    none = torch.zeros_like(first)
    missing = torch.cat([-first, first, none, none, none, none, last, -last], -1)
    columns = F.conv2d(upsample(missing, (2, 1)), weight, padding=(1, 0))
    return torch.cat([columns[..., :2], columns[..., -2:]], -1)


class AddRows(torch.autograd.Function):
    """add_rows, in place; torch's own derivative would copy every shifted map and gradient."""

    @staticmethod
    def forward(full: Tensor, above: Tensor, here: Tensor, below: Tensor, borders: Tensor) -> Tensor:
        full += here
        full[:, :, 1:] += above[:, :, :-1]
        full[:, :, :-1] += below[:, :, 1:]
        full[..., :2] += borders[..., :2]
        full[..., -2:] += borders[..., 2:]
        return full

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.mark_dirty(output)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        above, below = F.pad(gradient, (0, 0, -1, 1)), F.pad(gradient, (0, 0, 1, -1))
        borders = torch.cat([gradient[..., :2], gradient[..., -2:]], -1)
        return gradient, above, gradient, below, borders


def add_rows(full: Tensor, above: Tensor, here: Tensor, below: Tensor, borders: Tensor) -> Tensor:
    """Add to full (B, K, H, W): above, one row down; here; below, one row up; borders (B, K, H, 4), at the sides."""
    add = AddRows.forward if is_exporting() else AddRows.apply
    return add(full, above, here, below, borders)


# --- By phases, on a GPU -------------------------------------------------------------------------


def refine_by_phases(full: Tensor, half: Tensor, coarse: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Do the work of add_small_maps in one convolution of the small maps, with 4 K output channels.

    They are the pixels of the result at even and odd places of a row and of a column. Channels are filled up to a
    multiple of 8, as tensor cores need them; cuDNN would copy all maps to do so.
    """
    filling = torch.zeros_like(half[:, : -(half.shape[1] + coarse.shape[1]) % 8])
    small = torch.cat([half, coarse], 1)
    with torch.autocast(weight.device.type, enabled=False):
        kernels = torch.einsum("pot,kctx->pkcox", spread, weight.float())
        kernels = torch.einsum("qux,pkcox->pqkcou", spread, kernels).flatten(0, 2)
        kernels = F.pad(kernels, (0, 0, 0, 0, 0, filling.shape[1]))
    phases = F.conv2d(torch.cat([small, filling], 1), kernels, padding=1)
    rows, columns = correct_rows(small, weight, spread), correct_columns(small, weight)
    add = AddPhases.forward if is_exporting() else AddPhases.apply
    return add(full, phases, rows, columns)


def correct_rows(x: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Return what the phases lack in the first and last two rows, (B, K, 4, 2w): correct_columns does the rest.

    The columns beyond both ends of a row count as in convolve_row, since correct_columns takes them into account.
    """
    ends = torch.cat([x[:, :, :1], x[:, :, -1:]], 2)
    above, here, below = (convolve_row(ends, row, spread) / 4 for row in weight.split(1, dim=2))
    first, last = slice(0, 1), slice(1, 2)
    rows = [(here - above)[:, :, first], above[:, :, first], below[:, :, last], (here - below)[:, :, last]]
    return torch.cat(rows, 2)


class AddPhases(torch.autograd.Function):
    """Add to full (B, K, 2h, 2w), in place: phases (B, 4 K, h, w); corrections of its first and last rows and columns.

    Channels of phases: row even or odd, column even or odd, landmark. In channels_last the landmarks of a pixel stay
    together, so the sum is one pass.
    """

    @staticmethod
    def forward(full: Tensor, phases: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        cells = full.permute(0, 2, 3, 1).unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # (B, h, 2, w, 2, K)
        cells += phases.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).transpose(2, 3)
        full[:, :, :2] += rows[:, :, :2]
        full[:, :, -2:] += rows[:, :, 2:]
        full[..., :2] += columns[..., :2]
        full[..., -2:] += columns[..., 2:]
        return full

    setup_context = AddRows.setup_context

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        cells = gradient.permute(0, 2, 3, 1).unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        phases = cells.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)
        rows = torch.cat([gradient[:, :, :2], gradient[:, :, -2:]], 2)
        columns = torch.cat([gradient[..., :2], gradient[..., -2:]], -1)
        return gradient, phases, rows, columns


# --- Upsampling ----------------------------------------------------------------------------------


@torch.fx.wrap  # fx cannot trace a branch
def upsample(x: Tensor, factors: tuple[int, int] = (2, 2)) -> Tensor:
    """Upsample (B, C, h, w) to (B, C, 2h, 2w), or by factors of (height, width); bilinear, half-pixel rule.

    On a GPU as products with matrices: autocast would upsample in float32, and add up the gradient atomically, both
    slowly and in any order.
    """
    if not is_gpu(x):
        return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
    x = x.permute(0, 2, 3, 1)  # (B, h, w, C), contiguous in channels_last
    if factors[0] == 2:
        x = (interpolation_matrix(x.shape[1], x) @ x.flatten(2)).unflatten(2, x.shape[2:])
    if factors[1] == 2:
        x = interpolation_matrix(x.shape[2], x) @ x
    return x.permute(0, 3, 1, 2)


def interpolation_matrix(length: int, like: Tensor) -> Tensor:
    """Return the matrix (2 length, length) that upsamples a line; its entries 1/4, 3/4 and 1 are exact in bf16."""
    identity = torch.eye(length, device=like.device)[None]
    return F.interpolate(identity, scale_factor=2, mode="linear", align_corners=False)[0].T.to(like.dtype)


def is_gpu(x: Tensor) -> bool:
    """Return whether a tensor is on a GPU; the tests replace it to run that code on a CPU."""
    return x.is_cuda
