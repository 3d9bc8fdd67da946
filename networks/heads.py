"""From maps of features to heatmaps: two convolutions with nothing between, computed as one with less work."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import is_exporting


class ComposedHead(nn.Module):
    """A 3x3 convolution followed by a 1x1 convolution with nothing between, computed as one 3x3.

    The product of the two is the same function (outputs agree to rounding, gradients reach both factors) and
    saves the channels between: two thirds of FARNet's most expensive layer. compose=False: one after the other.
    """

    def __init__(self, channels: int, num_landmarks: int) -> None:
        super().__init__()
        self.compose = True
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1)
        self.pointwise = nn.Conv2d(channels, num_landmarks, 1)
        self.register_buffer("weight", None)  # of the product, once it is folded
        self.register_buffer("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        if not self.compose:
            return self.pointwise(self.spatial(x))
        return F.conv2d(x, *self.product(), padding=1)

    def product(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution, in float32."""
        if self.weight is not None:
            return self.weight, self.bias
        with torch.autocast(self.spatial.weight.device.type, enabled=False):
            mix = self.pointwise.weight.flatten(1)
            weight = torch.einsum("km,mcij->kcij", mix, self.spatial.weight)
            return weight, mix @ self.spatial.bias + self.pointwise.bias

    @torch.no_grad()
    def fold(self) -> None:
        """Compute the product once and for all, for inference."""
        self.weight, self.bias = self.product()
        self.compose = True
        del self.spatial, self.pointwise


class RefinementHead(ComposedHead):
    """A ComposedHead over maps of half the size, upsampled, beside maps of full size, without joining them.

    As joined, in the order (half, full, coarse), but full is convolved on its own, and half and coarse before they
    grow: their convolution by each row of the kernel is computed at the height they have, for the even and the odd
    pixels of full width at once (grown_rows); the three results grow in height and are added, one row down, in place
    and one row up. Convolving along the width commutes with upsampling along the height, so it is the same function,
    with half of the work for these maps and nothing large to join, pad or slice.
    """

    def __init__(self, half: int, full: int, num_landmarks: int) -> None:
        super().__init__(half + full + num_landmarks, num_landmarks)
        self.shares = (half, full, num_landmarks)

    def forward(self, half: Tensor, full: Tensor, coarse: Tensor) -> Tensor:
        if not self.compose:
            return super().forward(torch.cat([upsample(half), full, upsample(coarse)], 1))
        weight, bias = self.product()
        weight_half, weight_full, weight_coarse = weight.split(self.shares, dim=1)
        maps, weight = torch.cat([half, coarse], 1), torch.cat([weight_half, weight_coarse], 1)
        rows = [upsample(grown_rows(maps, row), (2, 1)) for row in weight.split(1, dim=2)]
        return add_rows(F.conv2d(full, weight_full, bias, padding=1), *rows, border_columns(maps, weight))


# Upsampled to twice the width, pixels 2i and 2i+1 are 1/4 x[i-1] + 3/4 x[i] and 3/4 x[i] + 1/4 x[i+1]. A kernel of 3
# over them is one of 3 over x for each of the two: SPREAD[even or odd, position over x, position in the kernel].
SPREAD = (
    ((0.75, 0.25, 0.0), (0.25, 0.75, 0.75), (0.0, 0.0, 0.25)),
    ((0.25, 0.0, 0.0), (0.75, 0.75, 0.25), (0.0, 0.25, 0.75)),
)


def grown_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, C, h, w), upsampled to (h, 2w), by a kernel (K, C, 1, 3), zeros beside it -> (B, K, h, 2w).

    Beyond the ends of a row x counts as 0, not as its last pixel: what that leaves out is border_columns. Each row is
    handed over as an image of its own, and its even and odd pixels as channels; both are views in channels_last. The
    weights' gradient takes half of the time so.
    """
    with torch.autocast(weight.device.type, enabled=False):
        spread = torch.tensor(SPREAD, device=weight.device)
        weight = torch.einsum("pot,kcyt->pkcyo", spread, weight.float()).flatten(0, 1)
    rows = x.movedim(1, 3).flatten(0, 1).unsqueeze(1).movedim(3, 1)  # (B h, C, 1, w)
    rows = F.conv2d(rows, weight, padding=(0, 1)).movedim(1, 3)  # (B h, 1, w, 2 K)
    return rows.reshape(x.shape[0], x.shape[2], 2 * x.shape[3], -1).movedim(3, 1)


def border_columns(x: Tensor, weight: Tensor) -> Tensor:
    """What grown_rows leaves out of a 3x3 convolution of x, upsampled: the first and last two columns (B, K, 2h, 4).

    Upsampled, the outermost pixel is the map's own, not 3/4 of it, and the next one outside is 0, not 1/4 of it.
    """
    x = x.movedim(1, 3)  # a slice's gradient is laid out as the slice is
    first, last = x[:, :, :1].movedim(3, 1) / 4, x[:, :, -1:].movedim(3, 1) / 4
    none = torch.zeros_like(first)
    missing = torch.cat([-first, first, none, none, none, none, last, -last], -1)
    columns = F.conv2d(upsample(missing, (2, 1)), weight, padding=(1, 0))
    return torch.cat([columns[..., :2], columns[..., -2:]], -1)


class AddRows(torch.autograd.Function):
    """add_rows, in place; autograd's own way copies every map and gradient that is shifted."""

    @staticmethod
    def forward(ctx, full: Tensor, above: Tensor, here: Tensor, below: Tensor, borders: Tensor) -> Tensor:
        ctx.mark_dirty(full)
        return add_in_place(full, above, here, below, borders)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        above, below = F.pad(gradient, (0, 0, -1, 1)), F.pad(gradient, (0, 0, 1, -1))
        borders = torch.cat([gradient[..., :2], gradient[..., -2:]], -1)
        return gradient, above, gradient, below, borders


def add_in_place(full: Tensor, above: Tensor, here: Tensor, below: Tensor, borders: Tensor) -> Tensor:
    """add_rows, in full."""
    full += here
    full[:, :, 1:] += above[:, :, :-1]
    full[:, :, :-1] += below[:, :, 1:]
    full[..., :2] += borders[..., :2]
    full[..., -2:] += borders[..., 2:]
    return full


@torch.fx.wrap
def add_rows(full: Tensor, above: Tensor, here: Tensor, below: Tensor, borders: Tensor) -> Tensor:
    """full (B, K, H, W) + above, one row down, + here + below, one row up, + borders (B, K, H, 4), outermost."""
    add = add_in_place if is_exporting() else AddRows.apply
    return add(full, above, here, below, borders)


def upsample(x: Tensor, factors: tuple[int, int] = (2, 2)) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), or by other factors of (height, width); bilinear, half-pixel rule."""
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
