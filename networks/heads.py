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

    A convolution is a sum over its input maps, so `full` is convolved alone. A convolution along the width commutes
    with upsampling along the height, so each row of the kernel is applied to the small maps at their own height
    (convolve_row). The three results are then upsampled in height and added: one row down, in place, one row up.
    """

    def __init__(self, half: int, full: int, num_landmarks: int) -> None:
        super().__init__(half + full + num_landmarks, num_landmarks)
        self.shares = (half, full, num_landmarks)

    def forward(self, half: Tensor, full: Tensor, coarse: Tensor) -> Tensor:  # type: ignore[override]
        if not self.compose:
            return super().forward(torch.cat([upsample(half), full, upsample(coarse)], 1))
        weight, bias = self.product()
        weight_half, weight_full, weight_coarse = weight.split(self.shares, dim=1)
        small, weight = torch.cat([half, coarse], 1), torch.cat([weight_half, weight_coarse], 1)
        above, here, below = (upsample(convolve_row(small, row), (2, 1)) for row in weight.split(1, dim=2))
        full = F.conv2d(full, weight_full, bias, padding=1)
        return add_rows(full, above, here, below, correct_borders(small, weight))


# Upsampling x to twice its width gives the pixels 2i: x[i-1] / 4 + 3 x[i] / 4, and 2i+1: 3 x[i] / 4 + x[i+1] / 4.
# A kernel of 3 over them is, for the even and for the odd pixels, a kernel of 3 over x.
# SPREAD[even or odd][place in the kernel over x][place in the given kernel] is the share of each weight.
SPREAD = (
    ((0.75, 0.25, 0.0), (0.25, 0.75, 0.75), (0.0, 0.0, 0.25)),
    ((0.25, 0.0, 0.0), (0.75, 0.75, 0.25), (0.0, 0.25, 0.75)),
)


def convolve_row(x: Tensor, weight: Tensor) -> Tensor:
    """Upsample x (B, C, h, w) to (h, 2w) and convolve it with one row of a kernel, (K, C, 1, 3): (B, K, h, 2w).

    x counts as 0 beyond both ends of a row; correct_borders makes up for it. Each row of x is passed to conv2d as an
    image of its own and the even and odd pixels as channels, which halves the time of the weights' gradient; both are
    views in channels_last.
    """
    with torch.autocast(weight.device.type, enabled=False):
        spread = torch.tensor(SPREAD, device=weight.device)
        weight = torch.einsum("pot,kcyt->pkcyo", spread, weight.float()).flatten(0, 1)
    rows = x.movedim(1, 3).flatten(0, 1).unsqueeze(1).movedim(3, 1)  # (B h, C, 1, w)
    rows = F.conv2d(rows, weight, padding=(0, 1)).movedim(1, 3)  # (B h, 1, w, 2 K)
    return rows.reshape(x.shape[0], x.shape[2], 2 * x.shape[3], -1).movedim(3, 1)


def correct_borders(x: Tensor, weight: Tensor) -> Tensor:
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


@torch.fx.wrap
def add_rows(full: Tensor, above: Tensor, here: Tensor, below: Tensor, borders: Tensor) -> Tensor:
    """Add to full (B, K, H, W): above, one row down; here; below, one row up; borders (B, K, H, 4), at the sides."""
    add = AddRows.forward if is_exporting() else AddRows.apply
    return add(full, above, here, below, borders)


def upsample(x: Tensor, factors: tuple[int, int] = (2, 2)) -> Tensor:
    """Upsample (B, C, h, w) to (B, C, 2h, 2w), or by other factors of (height, width); bilinear, half-pixel rule."""
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
