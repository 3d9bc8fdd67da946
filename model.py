"""FARNet: Ao and Wu, "Feature Aggregation and Refinement Network for 2D Anatomical Landmark Detection",
J. Digit. Imaging 2022, doi 10.1007/s10278-022-00718-4. Letters and frames: data.py.
"""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import Config
from data import Sample
from detector import LandmarkDetector
from machine import uses_bfloat16
from networks.backbone import create_backbone
from networks.efficientnet import DepthwiseConv2d
from networks.heads import ComposedHead, RefinementHead, upsample
from networks.normalisation import use_image_statistics
from utils import decode_heatmaps, gaussian_heatmaps, scale_landmarks

torch.fx.wrap("upsample")  # it has a branch on the device, which fx cannot trace

# --- Network -------------------------------------------------------------------------------------


class ConvNormReLU(nn.Sequential):
    """Convolution with bias, batch norm, ReLU. Keeps the size, or halves it with stride 2."""

    def __init__(self, kernel: int, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class UpConvNormReLU(ConvNormReLU):
    """1x1 ConvNormReLU over the maps of the level below, upsampled, joined with the maps of this level.

    A 1x1 convolution commutes with upsampling, because the weights of an interpolation sum to 1. The maps below are
    convolved before they are upsampled: the same function with a quarter of that work, and without building the joined
    maps. compose=False joins them first.
    """

    def __init__(self, channels_below: int, channels_beside: int, channels_out: int) -> None:
        super().__init__(1, channels_below + channels_beside, channels_out)
        self.shares, self.compose = (channels_below, channels_beside), True

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:  # type: ignore[override]
        if not self.compose:
            return super().forward(torch.cat([upsample(below), beside], 1))
        conv: Any
        conv, norm, relu = self
        weight_below, weight_beside = conv.weight.split(self.shares, dim=1)
        return relu(norm(upsample(F.conv2d(below, weight_below)) + F.conv2d(beside, weight_beside, conv.bias)))


class FARNetNetwork(nn.Module):
    """Image (B, 3, H, W) -> coarse (B, N, H/2, W/2) and fine (B, N, H, W) heatmaps, unbounded.

    Multi-scale feature aggregation (MSFA) goes up from stride 32 to 4 (maps a), down again (b) and up to stride 2 (c);
    the digit is the level, which has stride 2**level. The coarse head and feature refinement (FR) at full size follow.
    width: channels of the a maps, 256 in the paper; all other widths are in proportion.
    """

    def __init__(
        self, num_landmarks: int, backbone: str, backbone_weights: str, norm: str = "batch", width: int = 256
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone, backbone_weights)
        f1, f2, f3, f4, f5 = self.backbone.channels
        eighth, quarter, half, w2, w4, w8 = width // 8, width // 4, width // 2, 2 * width, 4 * width, 8 * width
        self.stem = ConvNormReLU(1, 3, eighth)
        self.a5 = nn.Sequential(ConvNormReLU(3, f5, w2), ConvNormReLU(1, w2, width))
        self.a4 = UpConvNormReLU(width, f4, width)
        self.a3 = UpConvNormReLU(width, f3, width)
        self.a2 = UpConvNormReLU(width, f2, width)
        self.down3, self.b3 = ConvNormReLU(3, width, w2, stride=2), ConvNormReLU(1, w2 + width, w2)
        self.down4, self.b4 = ConvNormReLU(3, w2, w4, stride=2), ConvNormReLU(1, w4 + width, w4)
        self.down5, self.b5 = ConvNormReLU(3, w4, w8, stride=2), ConvNormReLU(3, w8 + width, w4)
        self.c5 = ConvNormReLU(1, w4, width)
        self.c4 = UpConvNormReLU(width, w4, width)
        self.c3 = UpConvNormReLU(width, w2, width)
        self.c2 = UpConvNormReLU(width, width, half)
        self.c1 = UpConvNormReLU(half, f1, quarter)
        self.coarse_head = ComposedHead(quarter, num_landmarks)
        self.fine_head = RefinementHead(quarter, eighth, num_landmarks)
        if norm == "instance":
            use_image_statistics(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        f0 = self.stem(image)
        f1, f2, f3, f4, f5 = self.backbone(image)
        a5 = self.a5(f5)
        a4 = self.a4(a5, f4)
        a3 = self.a3(a4, f3)
        a2 = self.a2(a3, f2)
        b3 = self.b3(torch.cat([self.down3(a2), a3], 1))
        b4 = self.b4(torch.cat([self.down4(b3), a4], 1))
        b5 = self.b5(torch.cat([self.down5(b4), a5], 1))
        c4 = self.c4(self.c5(b5), b4)
        c3 = self.c3(c4, b3)
        c2 = self.c2(c3, a2)
        c1 = self.c1(c2, f1)
        coarse = self.coarse_head(c1)
        return coarse, self.fine_head(c1, f0, coarse)


def fold_network(network: FARNetNetwork) -> nn.Module:
    """Return a copy in eval mode with composed kernels computed once and batch norms folded into convolutions.

    Only a batch norm that directly follows a convolution can be folded: no norm over each image's own statistics, and
    few of DenseNet's.
    """
    network = copy.deepcopy(network).eval()
    for block in network.modules():
        if isinstance(block, ConvNormReLU) and isinstance(block[0], nn.Conv2d) and isinstance(block[1], nn.BatchNorm2d):
            block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
        if isinstance(block, UpConvNormReLU):
            block.compose = True
        if isinstance(block, DepthwiseConv2d):
            block.__class__ = nn.Conv2d  # type: ignore[assignment]  # fuse knows only torch's own classes
    network.coarse_head.fold()
    network.fine_head.fold()
    return fuse(network, inplace=True)


# --- Loss and method -----------------------------------------------------------------------------

CPU_BLOCK = 2**19  # heatmap values that the loss processes at a time on a CPU


def ewc_loss(heatmaps: Tensor, target: Tensor, annotated: Tensor, alpha: float) -> Tensor:
    """Return the exponential weighted centre loss: mean of alpha**target * (target - heatmaps)**2, in float32.

    heatmaps, target: (B, N, h, w), target in 0..1. annotated: (B, N) bool; the mean is over the pixels of these
    landmarks only, and 0 if there are none. The weight is alpha at a peak and 1 far from it.
    """
    return EWCLoss.apply(heatmaps, target, annotated, alpha)


class EWCLoss(torch.autograd.Function):
    """ewc_loss with its gradient written out, 2 alpha**target * (heatmaps - target) per pixel and landmark.

    Torch's own derivative reads and writes the full-size maps twenty times, which took a quarter of a training step.
    The gradient has the memory layout and the precision of the heatmaps. A CPU processes a few rows at a time, so that
    they stay in its cache; this takes 0.6 of the time.
    """

    @staticmethod
    def forward(ctx, heatmaps: Tensor, target: Tensor, annotated: Tensor, alpha: float) -> Tensor:
        share = (annotated / (annotated.sum().clamp(min=1) * heatmaps[0, 0].numel()))[..., None, None]
        gradient, loss = torch.empty_like(heatmaps), torch.zeros((), device=heatmaps.device)
        rows = max(1, CPU_BLOCK // heatmaps[:, :, 0].numel()) if heatmaps.device.type == "cpu" else heatmaps.shape[2]
        for block, aim, slope in zip(*(maps.split(rows, 2) for maps in (heatmaps, target, gradient)), strict=True):
            error = block.float() - aim
            weighted = (math.log(alpha) * aim).exp_().mul_(error).mul_(2 * share)
            slope.copy_(weighted)
            loss += error.mul_(weighted).sum() / 2
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * scale, None, None, None


class FARNet(LandmarkDetector):
    """FARNet for any number of landmarks: DenseNet-121, MSFA, FR, EWC loss on both heads, summed.

    Differences from the authors' release (docs/differences.md has their measured effect): (1) pixel centres are at
    integers; a grid that starts at 1 puts every label one network pixel off; (2) RGB is scaled to 0..1 before the
    ImageNet statistics, which are meant for that range; (3) evaluation is in eval mode and without gradients, with the
    norm over each image's own statistics, which is what the release computes at batch size 1; (4) there are only the
    parameters that are used; (5) each head's two convolutions are computed as one, which is faster; (6) missing
    landmarks are masked, since data sets have them; (7) the number of landmarks is free instead of 19.
    """

    def __init__(self, config: Config, network: nn.Module | None = None) -> None:
        super().__init__(config)
        self.network: Any = network or FARNetNetwork(  # or its folded form
            self.num_landmarks, config.backbone, config.backbone_weights, config.norm, config.decoder_channels
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return coarse (B, N, H/2, W/2) and fine (B, N, H, W) heatmaps of images (B, 3, H, W)."""
        with self.autocast(image.device):
            return self.network(image)

    def labels(self, batch: Sample, epoch: int) -> tuple[Tensor, Tensor]:
        """Return coarse and fine targets; sigma is the same in px of each, so the coarse one is twice as wide."""
        draw = partial(gaussian_heatmaps, channels_last=self.config.channels_last)
        height, width = batch.image.shape[-2:]
        coarse = draw(scale_landmarks(batch.landmarks, 0.5), (height // 2, width // 2), self.config.sigma)
        return coarse, draw(batch.landmarks, (height, width), self.config.sigma)

    def loss(self, batch: Sample, epoch: int) -> dict[str, Tensor]:
        """Return the EWC loss of both heads."""
        annotated = batch.landmarks.isfinite().all(-1)
        pairs = zip(("coarse", "fine"), self(batch.image), self.labels(batch, epoch), strict=True)
        return {name: ewc_loss(maps, target, annotated, self.config.ewc_alpha) for name, maps, target in pairs}

    def decode(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the peaks of the fine heatmaps; the score is the peak's height, about 1 if confident."""
        return decode_heatmaps(outputs[1], self.config.decode, self.config.sigma, self.twins)

    def last_layer(self) -> nn.Module:
        """Return the head of the fine heatmaps; its first input is the aggregated features of half size."""
        return self.network.fine_head

    def for_inference(self) -> "FARNet":
        """Return the same detector with its network folded; in bf16 with weights rounded once, not in every pass."""
        folded = fold_network(self.network)
        if self.config.channels_last:
            folded.to(memory_format=torch.channels_last)
        if uses_bfloat16(self.config.test_precision, next(folded.parameters()).device):
            for module in folded.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(torch.bfloat16)
        detector = FARNet(self.config, folded).eval()
        detector.twins = self.twins
        return detector
