"""U-Net with dilation/erosion labels: Suh et al., "Dilation-Erosion Methods for Radiograph Annotation in Total Knee
Replacement", MIDL 2023 short paper (OpenReview bVC9bi_-t7Y). Letters and frames: data.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import segmentation_models_pytorch
import torch
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import Tensor
from torch.nn import functional as F

from config import Config
from detector import LandmarkDetector
from networks.backbone import read_backbone_weights
from networks.normalisation import use_image_statistics
from settings import UserError, check_names
from utils import decode_heatmaps, is_exporting, require_finite


@dataclass(frozen=True)
class UNetConfig(Config):
    """The authors' recipe."""

    method: str = "unet"
    height: int = 512
    width: int = 512
    keep_aspect: bool = True
    backbone: str = "resnet101"  # any encoder of segmentation-models-pytorch; with weights a ResNet or VGG
    norm: str = "batch"
    decode: str = "subpixel"  # subpixel: centroid of the peak's component; argmax: the first maximum, as the authors do
    epochs: int = 350
    batch_size: int = 8
    lr_milestones: tuple[int, ...] = ()
    label_radius: int = 65  # of the labels at first, network px
    erosion: int = 10  # the labels' radius shrinks by this many network px ...
    erosion_epochs: int = 50  # ... after each this many epochs, down to 1
    positive_weight_limit: float | None = None  # the loss's weight inside a label is at most this; none: whatever it is
    absent: str = "ignore"  # a landmark not annotated: ignore (it counts nowhere), or empty (its label is empty)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # a smaller encoder, smaller batches and six radii of ten epochs
        "demo": dict(
            backbone="resnet34", batch_size=2, epochs=60, label_radius=24, erosion=4, erosion_epochs=10
        ),
        "cpu": dict(backbone="resnet34", norm="batch", label_radius=48, erosion=8, erosion_epochs=5),  # six radii
    }  # fmt: skip

    def check(self) -> None:
        super().check()
        for name in ("label_radius", "erosion_epochs"):
            self.require(getattr(self, name) >= 1, name, "it must be at least 1")
        self.require(self.erosion >= 0, "erosion", "it must be 0 or above")
        limit = self.positive_weight_limit
        self.require(limit is None or limit > 0, "positive_weight_limit", "it must be none, or above 0")
        self.require(self.absent in ("ignore", "empty"), "absent", "choose one of ignore, empty")


# --- Labels --------------------------------------------------------------------------------------


def label_radius(config: UNetConfig, epoch: int) -> int:
    """The labels' radius in an epoch (from 0), network px: it starts large and erodes, never below 1."""
    return max(1, config.label_radius - config.erosion * (epoch // config.erosion_epochs))


def draw_diamonds(landmarks: Tensor, size: tuple[int, int], radius: int) -> Tensor:
    """Landmarks (B, N, 2) px -> masks (B, N, h, w): pixels at most `radius` steps from the rounded landmark.

    What `radius` binary dilations of one pixel by a cross of four neighbours give, cut off at the border. size: (h, w).
    Nothing is set for a missing landmark (nan), nor for one so far outside that its diamond is.
    """
    steps = [
        (torch.arange(length, device=landmarks.device) - landmarks[..., axis, None].round()).abs()
        for axis, length in ((0, size[1]), (1, size[0]))
    ]
    return steps[0][..., None, :] + steps[1][..., :, None] <= radius


# --- Decoding ------------------------------------------------------------------------------------


def peak_components(maps: Tensor, threshold: float) -> Tensor:
    """Maps (B, N, h, w) -> masks (B, N, h, w) of the connected pixels above a share of a map's peak, around the peak.

    Pixels that touch at a corner are connected.
    """
    height, width = maps.shape[-2:]
    peak, index = maps.flatten(2).max(-1)
    above = maps >= threshold * peak[..., None, None]
    # all maps below each other in one picture, an empty row between them: one call for all
    picture = F.pad(above.to(torch.uint8), (0, 0, 0, 1)).reshape(-1, width)
    _, components = cv2.connectedComponents(picture.cpu().numpy(), connectivity=8)
    components = torch.from_numpy(components).to(maps.device).view(*maps.shape[:2], height + 1, width)[..., :height, :]
    own = components.flatten(2).gather(-1, index[..., None])
    return components == own[..., None]


def decode_components(maps: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Maps (B, N, h, w) in 0..1 -> landmarks (B, N, 2) px, the weighted centroids of peak_components, and their peaks.

    Raises ValueError for maps that are not finite.
    """
    require_finite(maps, "maps")
    weights = maps.float() * peak_components(maps, threshold)
    total = weights.sum((-2, -1)).clamp(min=torch.finfo(torch.float32).tiny)
    x, y = (torch.arange(length, device=maps.device, dtype=torch.float32) for length in maps.shape[:1:-1])
    landmarks = torch.stack([(weights.sum(-2) * x).sum(-1), (weights.sum(-1) * y).sum(-1)], -1) / total[..., None]
    return landmarks, maps.float().amax((-2, -1))


def decode_windows(maps: Tensor, radius: int, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """decode_components without a call that labels components, for a graph that is exported.

    The component grows from the peak, a pixel at a time, within windows that reach `radius` px to each side of it; what
    of it lies beyond them, or is reached by a way of more than 2 radius px, does not count.
    """
    score, index = maps.float().flatten(2).max(-1)
    peak = torch.stack([index % maps.shape[-1], index // maps.shape[-1]], -1)
    steps = torch.arange(-radius, radius + 1, device=maps.device)
    columns, rows = (peak[..., axis, None] + radius + steps for axis in (0, 1))
    batch, landmark = (torch.arange(length, device=maps.device) for length in maps.shape[:2])
    padded = F.pad(maps.float(), (radius,) * 4)
    window = padded[batch[:, None, None, None], landmark[:, None, None], rows[..., :, None], columns[..., None, :]]
    above = (window >= threshold * score[..., None, None]).float()
    component = ((steps == 0)[:, None] & (steps == 0)).float().expand_as(above)
    for _ in range(2 * radius):
        component = F.max_pool2d(component, 3, 1, 1) * above
    weights = window * component
    total = weights.sum((-2, -1)).clamp(min=torch.finfo(torch.float32).tiny)
    offset = torch.stack([(weights.sum(-2) * steps).sum(-1), (weights.sum(-1) * steps).sum(-1)], -1)
    return peak + offset / total[..., None], score


def dice_coefficients(masks: Tensor, labels: Tensor) -> Tensor:
    """Overlap 2 |A and B| / (|A| + |B|) of boolean masks (..., h, w), 1 where both are empty."""
    both, one, other = (each.sum((-2, -1)) for each in (masks & labels, masks, labels))
    return (2 * both + 1e-8) / (one + other + 1e-8)


# --- Method --------------------------------------------------------------------------------------


class UNet(LandmarkDetector):
    """One mask per landmark: a diamond around it, large at first, smaller every few epochs; weighted cross-entropy.

    Different from the authors' program: (1) the positive weight (S - n) / n from the pixels n that a label really has
    among the S of the input, and a limit to it by setting; (2) missing landmarks count nowhere, or have an empty label
    by setting; what is missing says data.json, where the authors take coordinates below 100 px for it; (3) the centroid
    of the peak's component, since a first maximum lies at the upper rim of a flat diamond, by setting; (4) any size and
    any schedule; (5) errors in mm in the original frame; (6) no validation loss, which by their own count is of another
    kind than that of training. A landmark that augmentation moves out of the image keeps what its diamond leaves there.
    """

    Config = UNetConfig
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.network = create_network(config)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, N, H, W)."""
        with self.autocast(image.device):
            return self.network(image)

    def labels(self, batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Masks (B, N, H, W), and which of them count (B, N)."""
        masks = draw_diamonds(batch.landmarks, batch.image.shape[-2:], label_radius(self.config, epoch))
        annotated = batch.landmarks.isfinite().all(-1)
        return masks, annotated if self.config.absent == "ignore" else torch.ones_like(annotated)

    def loss(self, batch, epoch: int) -> dict[str, Tensor]:
        """Binary cross-entropy, the pixels inside a label weighing as much as those outside it."""
        masks, counted = self.labels(batch, epoch)
        inside = masks.sum((-2, -1))
        weight = (masks[0, 0].numel() - inside) / inside.clamp(min=1)
        if self.config.positive_weight_limit is not None:
            weight = weight.clamp(max=self.config.positive_weight_limit)
        logits = self(batch.image).float()
        entropy = F.binary_cross_entropy_with_logits(
            logits, masks.float(), pos_weight=weight[..., None, None], reduction="none"
        )
        return {"entropy": (entropy.mean((-2, -1)) * counted).sum() / counted.sum().clamp(min=1)}

    def decode(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks by config.decode; the score is the greatest probability of a pixel."""
        maps = outputs.float().sigmoid()
        if self.config.decode == "subpixel" and is_exporting():
            first = self.config.label_radius  # a component may be as large, and larger where it has yet to be learnt
            return decode_windows(maps, max(first + 16, min(4 * first, 64)))
        if self.config.decode == "subpixel":
            return decode_components(maps)
        return decode_heatmaps(maps, "argmax", self.config.sigma)

    def explained_value(self, outputs: Tensor) -> Tensor:
        """The greatest logit of a pixel."""
        return outputs.float().amax((-2, -1))

    def predict_with_extras(self, batch, epoch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """predict, and the Dice coefficients of the masks of probability above a half with the labels of an epoch."""
        logits = self(batch.image)
        masks, counted = self.labels(batch, epoch)
        dice = dice_coefficients(logits > 0, masks)
        return (*self.decode(logits), {"dice": torch.where(counted, dice, torch.nan)})


def create_network(config: UNetConfig) -> segmentation_models_pytorch.Unet:
    """The U-Net with its encoder's first weights. Raises UserError for an encoder or weights that cannot be had."""
    check_names([config.backbone], sorted(get_encoder_names()), "backbone")
    if config.backbone_weights != "none" and not config.backbone.startswith(("resnet", "vgg")):
        raise UserError(
            f"setting backbone_weights: torchvision's are read for ResNets and VGGs, not for {config.backbone}; "
            "set it to none"
        )
    network = segmentation_models_pytorch.Unet(config.backbone, encoder_weights=None, classes=config.num_landmarks)
    if config.backbone_weights != "none":
        try:
            network.encoder.load_state_dict(read_backbone_weights(config.backbone, config.backbone_weights))
        except (RuntimeError, KeyError):
            raise UserError(
                f"setting backbone_weights: the weights in {config.backbone_weights} do not fit {config.backbone}; "
                "give a torchvision state dict of that network"
            ) from None
    if config.norm == "instance":
        use_image_statistics(network)
    return network
