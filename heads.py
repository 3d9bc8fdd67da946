"""From maps of features to heatmaps: two convolutions with nothing between, computed as one with less work."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ComposedHead(nn.Module):
    """A 3x3 convolution followed by a 1x1 convolution with nothing between, computed as one 3x3.

    The product of the two is the same function (outputs agree to rounding, gradients reach both factors) and
    saves the channels between: two thirds of FARNet's most expensive layer. compose=False: one after the other.
    """

    def __init__(self, channels: int, num_landmarks: int, compose: bool = True) -> None:
        super().__init__()
        self.compose = compose
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

    As joined, in the order (half, full, coarse), but half and coarse are upsampled and convolved together, full on its
    own, and the sum is taken: no gradient then lies in slices of a larger one, which are slow to copy. Zeros fill the
    channels of half and coarse up to a multiple of 32, the block that CPU convolutions work in. At 640 x 800 px and 52
    landmarks the backward pass takes half of the time (channels_last, bf16, CPU).
    """

    def __init__(self, half: int, full: int, num_landmarks: int, compose: bool = True) -> None:
        super().__init__(half + full + num_landmarks, num_landmarks, compose)
        self.shares = (half, full, num_landmarks)
        self.zeros = (0, 0, 0, 0, 0, -(half + num_landmarks) % 32)

    def forward(self, half: Tensor, full: Tensor, coarse: Tensor) -> Tensor:
        if not self.compose:
            return super().forward(torch.cat([upsample(half), full, upsample(coarse)], 1))
        weight, bias = self.product()
        weight_half, weight_full, weight_coarse = weight.split(self.shares, dim=1)
        below = upsample(F.pad(torch.cat([half, coarse], 1), self.zeros))
        weight_below = F.pad(torch.cat([weight_half, weight_coarse], 1), self.zeros)
        return F.conv2d(below, weight_below, padding=1) + F.conv2d(full, weight_full, bias, padding=1)


def upsample(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), bilinear, half-pixel rule."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
