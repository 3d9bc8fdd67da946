"""The networks of Adversarial PoseNet (methods/posenet.py): a generator of stacked hourglasses, and discriminators.

Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016, as used by Chen et al., ICCV 2017.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4  # network px per px of a map
GRID = 16  # cells along each axis to which a discriminator averages its maps


class Residual(nn.Module):
    """Three convolutions and a skip; norm and ReLU before each. No biases: the next norm would remove them."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = channels_out // 2
        self.convolutions = nn.Sequential(
            *norm_relu_conv(channels_in, middle, 1),
            *norm_relu_conv(middle, middle, 3),
            *norm_relu_conv(middle, channels_out, 1),
        )
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.convolutions(x)


def norm_relu_conv(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    """Return batch norm, ReLU and a convolution that keeps the size."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(channels_in), nn.ReLU(), conv]  # not in place: the skip also reads x


class Hourglass(nn.Module):
    """Encoder-decoder with skips that halves its maps `depth` times and doubles them again; channels stay the same."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.skip = Residual(channels, channels)
        self.down = Residual(channels, channels)
        self.inner = Hourglass(depth - 1, channels) if depth > 1 else Residual(channels, channels)
        self.up = Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        small = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        return self.skip(x) + F.interpolate(small, size=x.shape[-2:], mode="nearest")


class MapHead(nn.Module):
    """An hourglass, and two 1x1 convolutions that turn its features into maps: returns both."""

    def __init__(self, depth: int, channels: int, num_landmarks: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Hourglass(depth, channels),
            Residual(channels, channels),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        first, second = nn.Conv2d(channels, num_landmarks, 1), nn.Conv2d(num_landmarks, num_landmarks, 1)
        self.maps = nn.Sequential(first, second)
        nn.init.normal_(first.weight, std=1e-3)  # starts with nearly empty maps, like most of a true map
        nn.init.dirac_(second.weight)
        for conv in (first, second):
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return features, self.maps(features)


class Generator(nn.Module):
    """Image (B, 3, H, W) -> maps (B, N or 2N, H/4, W/4) of each stack: pose maps, then occlusion maps.

    The input of a stack is the sum of the stem's features and those of the previous stack. The input of its occlusion
    hourglass is that sum plus the features of its own pose hourglass.
    """

    def __init__(self, num_landmarks: int, stacks: int, depth: int, channels: int, occlusion: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 4, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels // 4),
            nn.ReLU(),
            Residual(channels // 4, channels // 2),
            nn.MaxPool2d(2),
            Residual(channels // 2, channels // 2),
            Residual(channels // 2, channels),
        )
        self.poses = nn.ModuleList(MapHead(depth, channels, num_landmarks) for _ in range(stacks))
        occlusions = stacks if occlusion else 0
        self.occlusions = nn.ModuleList(MapHead(depth, channels, num_landmarks) for _ in range(occlusions))

    def forward(self, image: Tensor) -> list[Tensor]:
        stem = x = self.stem(image)
        outputs = []
        for number, pose in enumerate(self.poses):
            features, maps = pose(x)
            if self.occlusions:
                more, occluded = self.occlusions[number](x + features)
                features, maps = features + more, torch.cat([maps, occluded], 1)
            outputs.append(maps)
            x = stem + features
        return outputs


class Discriminator(nn.Module):
    """Maps (B, C, h, w), with or without the image -> logits (B, N), above 0 for landmarks taken for real ones."""

    def __init__(self, channels_in: int, num_landmarks: int, depth: int, channels: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            Hourglass(depth, channels),
            *norm_relu_conv(channels, num_landmarks, 1),
        )
        self.readout = nn.Linear(num_landmarks * GRID**2, num_landmarks)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.adaptive_avg_pool2d(self.maps(x), GRID).flatten(1))
