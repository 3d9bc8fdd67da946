"""Networks that predict landmarks from every patch of an image, or of a crop around each landmark.

As in the paper of methods/noothout.py, for D spatial dimensions, 2 or 3.
"""

import math

import torch
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
WIDTHS, BLOCKS = (32, 64, 128, 256), (3, 4, 6, 3)  # of the global network's stages: half the widths of ResNet-34


class ResidualBlock(nn.Module):
    """Twice 3x3 convolution, norm, ReLU; added to the input, or to its projection where the width changes."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm_relu(dims, inputs, outputs, 3), *conv_norm_relu(dims, outputs, outputs, 3))
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(CONV[dims](inputs, outputs, 1), NORM[dims](outputs))

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features) + self.shortcut(features)


def conv_norm_relu(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list:
    """Return a convolution that keeps the size (divided by its stride), its norm and ReLU."""
    conv = CONV[dims](inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
    return [conv, NORM[dims](outputs), nn.ReLU(inplace=True)]


class Head(nn.Module):
    """Three 1x1 convolutions, the first two as wide as their input and followed by ReLU."""

    def __init__(self, dims: int, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        conv = CONV[dims]
        self.body = nn.Sequential(
            conv(inputs, inputs, 1, groups=groups), nn.ReLU(inplace=True),
            conv(inputs, inputs, 1, groups=groups), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.last = conv(inputs, outputs, 1, groups=groups)

    def forward(self, features: Tensor) -> Tensor:
        features = self.body(features)
        with torch.autocast(features.device.type, enabled=False):  # bf16 would move a vote from 100 px away by 2 px
            return self.last(features.float())


class PatchNetwork(nn.Module):
    """A trunk and two heads: images -> logits (B, N, *grid) and displacements (B, N, D, *grid) of every patch."""

    def __init__(self, layers: list[nn.Module], class_head: Head, displacement_head: Head) -> None:
        super().__init__()
        self.trunk, self.class_head, self.displacement_head = nn.Sequential(*layers), class_head, displacement_head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        logits, displacements = self.class_head(features), self.displacement_head(features)
        return logits, displacements.unflatten(1, (logits.shape[1], -1))


class GlobalNetwork(PatchNetwork):
    """PatchNetwork for images (B, 1, *size): a ResNet-34 of half the width.

    A 7x7 stem of stride 2, then stages of average pooling, norm, ReLU and residual blocks. There are as many stages as
    make one cell of the output one patch: four for 32 px.
    """

    def __init__(self, num_landmarks: int, patch: int, dims: int = 2) -> None:
        layers, width = conv_norm_relu(dims, 1, 16, 7, stride=2), 16
        for stage in range(int(math.log2(patch)) - 1):
            layers += [POOL[dims](2), NORM[dims](width), nn.ReLU(inplace=True)]
            for _ in range(BLOCKS[stage]):
                layers.append(ResidualBlock(dims, width, WIDTHS[stage]))
                width = WIDTHS[stage]
        super().__init__(layers, Head(dims, width, num_landmarks), Head(dims, width, num_landmarks * dims))


class LocalNetworks(PatchNetwork):
    """PatchNetwork for crops (B, N, *side), one per landmark, with patches of 2 px.

    One small network per landmark, computed as one network with groups; they share no weights.
    """

    patch = 2

    def __init__(self, num_landmarks: int, dims: int = 2) -> None:
        n, width = num_landmarks, 1
        layers: list[nn.Module] = []
        for wider in (32, 32, 32, 32, None, 64, 64):
            if wider is None:
                layers.append(POOL[dims](2))
            else:
                layers += conv_norm_relu(dims, n * width, n * wider, 3, groups=n)
                width = wider
        super().__init__(layers, Head(dims, n * width, n, groups=n), Head(dims, n * width, n * dims, groups=n))
