"""A network that finds landmarks in crops around guesses of them, one network for all landmarks. Letters: data.py."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.backbone import create_backbone

TRUNK = "efficientnet_lite0"
LEVELS = 4  # maps of stride 2 to 16
CHANNELS = 64  # of the merged maps


class CropNetwork(nn.Module):
    """Crops (n, 2, 3, s, s) around guesses of landmarks (n,), by number -> logits (n, s/2, s/2) of their places.

    One trunk sees a crop and one of twice its side around the same place; their maps are joined, and merged from stride
    16 up to 2. Each landmark has its own scale and shift of every merged map, and its own last layer.
    weights: of the trunk, "imagenet" or "none".
    """

    fixed_norms: Tensor  # (): 1 if batch norms keep the statistics that the trunk's weights come with

    def __init__(self, num_landmarks: int, weights: str) -> None:
        super().__init__()
        self.trunk = create_backbone(TRUNK, weights)
        self.trunk.keep_levels(LEVELS)  # type: ignore[operator, union-attr]
        self.beside = nn.ModuleList(nn.Conv2d(2 * channels, CHANNELS, 1) for channels in self.trunk.channels)
        self.merge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GroupNorm(8, CHANNELS), nn.ReLU())
            for _ in range(LEVELS)
        )
        self.scale = nn.Parameter(torch.ones(LEVELS, num_landmarks, CHANNELS))
        self.shift = nn.Parameter(torch.zeros(LEVELS, num_landmarks, CHANNELS))
        self.last = nn.Parameter(torch.randn(num_landmarks, CHANNELS) / 10)
        self.register_buffer("fixed_norms", torch.tensor(weights != "none"))

    def train(self, mode: bool = True) -> "CropNetwork":
        super().train(mode)
        if self.fixed_norms:
            self.trunk.eval()
        return self

    def forward(self, crops: Tensor, landmarks: Tensor) -> Tensor:
        near, far = self.trunk(crops[:, 0]), self.trunk(crops[:, 1])
        merged = None
        for level in reversed(range(LEVELS)):
            maps = self.beside[level](torch.cat([near[level], far[level]], 1))
            if merged is not None:
                maps = maps + F.interpolate(merged, scale_factor=2, mode="bilinear", align_corners=False)
            scale, shift = (own[level, landmarks][..., None, None].to(maps.dtype) for own in (self.scale, self.shift))
            merged = self.merge[level](maps * scale + shift)
        return torch.einsum("nchw,nc->nhw", merged, self.last[landmarks])


def take_crops(image: Tensor, centres: Tensor, side: int) -> Tensor:
    """Take crops (B N, 2, 3, side, side) of images (B, 3, H, W) around points (B, N, 2) px, and of twice that side.

    Bilinear; beyond the border the outermost pixels go on.
    """
    near = sample_squares(image, centres, side)
    far = sample_squares(F.avg_pool2d(image, 2), (centres - 0.5) / 2, side)
    return torch.stack([near, far], 1)


def sample_squares(image: Tensor, centres: Tensor, side: int) -> Tensor:
    """Sample squares (B N, 3, side, side) of images (B, 3, H, W), a pixel apart, around points (B, N, 2) px."""
    steps = torch.arange(side, device=image.device) - (side - 1) / 2
    columns, rows = (centres[..., axis, None] + steps for axis in (0, 1))  # (B, N, side)
    x, y = (2 * columns + 1) / image.shape[3] - 1, (2 * rows + 1) / image.shape[2] - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None], y[..., None]), -1)  # (B, N, side, side, 2)
    found = F.grid_sample(image, grid.flatten(1, 2), "bilinear", "border", align_corners=False)
    return found.unflatten(2, (-1, side)).transpose(1, 2).flatten(0, 1)


def decode_shifts(logits: Tensor) -> Tensor:
    """Return the mean places (n, 2) px, from the centre of their crops, of the soft-max of logits (n, s/2, s/2)."""
    shares, places = logits.float().flatten(1).softmax(1).view_as(logits), places_from_centre(logits)
    return torch.stack([(shares.sum(1) * places).sum(1), (shares.sum(2) * places).sum(1)], -1)


def places_from_centre(logits: Tensor) -> Tensor:
    """Return where the columns, or rows, of logits (n, s/2, s/2) lie: (s/2,) px from the centre of their crops."""
    count = logits.shape[-1]
    return 2 * torch.arange(count, device=logits.device) - (count - 1.0)
