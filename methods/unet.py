"""U-Net with dilation/erosion labels: Suh et al., "Dilation-Erosion Methods for Radiograph Annotation in Total Knee
Replacement", MIDL 2023 short paper (OpenReview bVC9bi_-t7Y). Letters and frames: data.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import segmentation_models_pytorch
import torch
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import Tensor
from torch.nn import functional as F

from config import Config
from data import Sample
from detector import LandmarkDetector
from networks.backbone import create_backbone, load_backbone_weights
from networks.efficientnet import LITE
from networks.normalisation import use_image_statistics
from settings import UserError, check_names
from utils import decode_heatmaps, is_exporting, require_finite


@dataclass(frozen=True)
class UNetConfig(Config):
    """The recipe of the authors' program."""

    method: str = "unet"  # U-Net with dilation/erosion labels
    height: int = 512  # of the network input, px, a multiple of 32 from 64
    width: int = 512  # of the network input, px, a multiple of 32 from 64
    keep_aspect: bool = True  # true: keep the aspect ratio, filling up with what surrounds the crop | false: stretch
    backbone: str = "resnet101"  # efficientnet_lite0 to 2, or an encoder of segmentation-models-pytorch
    norm: str = "batch"  # batch | instance: statistics of the batch or of each image
    decode: str = "subpixel"  # subpixel: centroid of the component around the peak | argmax: first maximum (authors)
    epochs: int = 350  # passes over the training images
    batch_size: int = 8  # images per step
    lr_milestones: tuple[int, ...] = ()  # epochs, for lr_schedule step; none: a constant learning rate
    label_radius: int = 65  # of the labels in the first epoch, px, at least 1
    erosion: int = 10  # px by which the radius of the labels shrinks every erosion_epochs, down to 1; 0: never
    erosion_epochs: int = 50  # epochs between two erosions, at least 1
    positive_weight_limit: float | None = None  # upper limit of the loss's weight inside a label; none: no limit
    absent: str = "ignore"  # a landmark that is not annotated: ignore: left out of the loss | empty: an empty label

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # a smaller encoder, smaller batches and six radii of ten epochs each
        "demo": dict(
            backbone="resnet34", batch_size=2, epochs=60, label_radius=24, erosion=4, erosion_epochs=10,
            lr_schedule="cosine",
        ),
        "cpu": dict(  # six radii
            backbone="resnet34", backbone_weights="none", height=384, width=320, refine=1, norm="batch",
            label_radius=48, erosion=8, erosion_epochs=5, epochs=30,
        ),
    }  # fmt: skip

    def check(self) -> None:
        super().check()
        for name in ("label_radius", "erosion_epochs"):
            self.require(getattr(self, name) >= 1, name, "it must be at least 1")
        self.require(self.erosion >= 0, "erosion", "it must be 0 or above")
        self.limit(label_radius=8192)
        limit = self.positive_weight_limit
        self.require(limit is None or limit > 0, "positive_weight_limit", "it must be none, or above 0")
        self.require(self.absent in ("ignore", "empty"), "absent", "choose one of ignore, empty")


# --- Labels --------------------------------------------------------------------------------------


def label_radius(config: UNetConfig, epoch: int) -> int:
    """Return the radius of the labels in an epoch (from 0), network px: it starts large and shrinks to 1 at least."""
    return max(1, config.label_radius - config.erosion * (epoch // config.erosion_epochs))


def draw_diamonds(landmarks: Tensor, size: Sequence[int], radius: int) -> Tensor:
    """Draw masks (B, N, h, w) of the pixels at most `radius` steps from the rounded landmarks (B, N, 2) px.

    Equals `radius` binary dilations of one pixel with its four neighbours, cut off at the border. size: (h, w).
    The mask of a missing landmark (nan), or of one whose diamond lies outside the image, is empty.
    """
    rows, columns = (torch.arange(length, device=landmarks.device) for length in size)
    x_steps = (columns - landmarks[..., 0, None].round()).abs()
    y_steps = (rows - landmarks[..., 1, None].round()).abs()
    return x_steps[..., None, :] + y_steps[..., :, None] <= radius


# --- Decoding ------------------------------------------------------------------------------------


def peak_components(maps: Tensor, threshold: float) -> Tensor:
    """Return masks (B, N, h, w) of the pixels of maps that are connected with the peak above a fraction of its height.

    Pixels that touch at a corner are connected.
    """
    height, width = maps.shape[-2:]
    peak, index = maps.flatten(2).max(-1)
    above = maps >= threshold * peak[..., None, None]
    # one call for all maps, which are stacked into one picture with an empty row between them
    picture = F.pad(above.to(torch.uint8), (0, 0, 0, 1)).reshape(-1, width)
    _, labels = cv2.connectedComponents(picture.cpu().numpy(), connectivity=8)
    components = torch.as_tensor(labels, device=maps.device).view(*maps.shape[:2], height + 1, width)[..., :height, :]
    own = components.flatten(2).gather(-1, index[..., None])
    return components == own[..., None]


def decode_components(maps: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return landmarks (B, N, 2) px, the weighted centroids of peak_components, and peaks (B, N) of maps in 0..1.

    Raises ValueError for maps that are not finite.
    """
    require_finite(maps, "maps")
    weights = maps.float() * peak_components(maps, threshold)
    total = weights.sum((-2, -1)).clamp(min=torch.finfo(torch.float32).tiny)
    x, y = (torch.arange(length, device=maps.device, dtype=torch.float32) for length in maps.shape[:1:-1])
    landmarks = torch.stack([(weights.sum(-2) * x).sum(-1), (weights.sum(-1) * y).sum(-1)], -1) / total[..., None]
    return landmarks, maps.float().amax((-2, -1))


def decode_windows(maps: Tensor, radius: int, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Do the same as decode_components without cv2, for a graph that is exported.

    The component grows from the peak, pixel by pixel, within a window that reaches `radius` px to each side. Pixels
    outside the window, or more than 2 radius steps from the peak, are left out.
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
    """Return the overlap 2 |A and B| / (|A| + |B|) of boolean masks (..., h, w); 1 where both are empty."""
    both, one, other = (each.sum((-2, -1)) for each in (masks & labels, masks, labels))
    return (2 * both + 1e-8) / (one + other + 1e-8)


# --- Method --------------------------------------------------------------------------------------


class UNet(LandmarkDetector):
    """One mask per landmark: a diamond that is large at first and shrinks every few epochs; weighted cross-entropy.

    Differences from the authors' program: (1) the positive weight (S - n) / n uses the n pixels that a label really
    has among the S of the input, since the border cuts some labels, and a setting can limit it; (2) missing landmarks
    are those not annotated in data.json, not those with coordinates below 100 px; they are ignored, or have an empty
    label by setting; (3) a landmark is the centroid of the component around the peak, because the first maximum of a
    flat diamond lies at its upper edge; the authors' argmax is a setting; (4) the input size and the schedule are
    free; (5) errors are in mm in the original frame; (6) there is no validation loss, because the authors' unweighted
    one cannot be compared with that of training. A landmark that augmentation moves out of the image keeps the part of
    its diamond that is inside.
    """

    Config = UNetConfig
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.network = create_network(config, self.num_landmarks)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, N, H, W) of images (B, 3, H, W)."""
        with self.autocast(image.device):
            return self.network(image)

    def labels(self, batch: Sample, epoch: int) -> tuple[Tensor, Tensor]:
        """Return masks (B, N, H, W) and which of them count (B, N)."""
        masks = draw_diamonds(batch.landmarks, batch.image.shape[-2:], label_radius(self.config, epoch))
        annotated = batch.landmarks.isfinite().all(-1)
        return masks, annotated if self.config.absent == "ignore" else torch.ones_like(annotated)

    def loss(self, batch: Sample, epoch: int) -> dict[str, Tensor]:
        """Return the binary cross-entropy, weighted so that the inside of a label counts as much as its outside."""
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
        """Return landmarks by config.decode; the score is the highest probability of a pixel."""
        maps = outputs.float().sigmoid()
        if self.config.decode == "argmax":
            return decode_heatmaps(maps, "argmax", self.config.sigma)
        if is_exporting():
            first = self.config.label_radius  # a component is about as large, larger early in training
            return decode_windows(maps, max(first + 16, min(4 * first, 64)))
        return decode_components(maps)

    def explained_value(self, outputs: Tensor) -> Tensor:
        """Return the highest logit of a pixel (B, N)."""
        return outputs.float().amax((-2, -1))

    def predict_with_extras(self, batch: Sample, epoch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Predict; the extra is the Dice coefficient of the mask, probability above 0.5, with the label of an epoch."""
        logits = self(batch.image)
        masks, counted = self.labels(batch, max(0, epoch))  # -1: not trained here (start_from)
        dice = dice_coefficients(logits > 0, masks)
        return (*self.decode(logits), {"dice": torch.where(counted, dice, torch.nan)})


def create_network(config: UNetConfig, num_landmarks: int) -> segmentation_models_pytorch.Unet:
    """Return the U-Net with its initial weights. Raises UserError for an encoder or weights that do not exist."""
    check_names([config.backbone], [*LITE, *sorted(get_encoder_names())], "backbone")
    if config.backbone_weights != "none" and not config.backbone.startswith(("resnet", "vgg", "efficientnet_lite")):
        raise UserError(
            f"setting backbone_weights: it is read for ResNets, VGGs and EfficientNet-Lite, not for {config.backbone}; "
            "set it to none"
        )
    encoder = f"tu-tf_{config.backbone}" if config.backbone in LITE else config.backbone
    network = segmentation_models_pytorch.Unet(encoder, encoder_weights=None, classes=num_landmarks)
    if config.backbone in LITE:  # timm's network has the same tensors in the same order, under other names
        own = create_backbone(config.backbone, config.backbone_weights).state_dict()
        network.encoder.load_state_dict(dict(zip(network.encoder.state_dict(), own.values(), strict=True)))
    else:
        load_backbone_weights(network.encoder, config.backbone, config.backbone_weights)
    if config.norm == "instance":
        use_image_statistics(network)
    return network
