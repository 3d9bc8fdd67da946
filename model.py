"""FARNet: Ao and Wu, "Feature Aggregation and Refinement Network for 2D Anatomical Landmark Detection",
J. Digit. Imaging 2022, doi 10.1007/s10278-022-00718-4. Letters and frames: data.py.
"""

import copy
import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import Config
from detector import LandmarkDetector
from machine import uses_bfloat16
from networks.backbone import Backbone
from networks.heads import ComposedHead, RefinementHead, upsample
from networks.normalisation import use_image_statistics
from utils import decode_heatmaps, gaussian_heatmaps, scale_landmarks

# --- Network -------------------------------------------------------------------------------------


class ConvNormReLU(nn.Sequential):
    """Convolution with bias, batch norm, ReLU; the size stays, or halves with stride 2."""

    def __init__(self, kernel: int, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class UpConvNormReLU(ConvNormReLU):
    """1x1 ConvNormReLU of the maps of the level below, upsampled, beside those of its own level.

    A 1x1 convolution commutes with upsampling (whose weights sum to 1), so the maps below are convolved before they
    grow: the same function with a quarter of that work, and without copying both into one tensor. compose=False: after.
    """

    def __init__(self, channels_below: int, channels_beside: int, channels_out: int) -> None:
        super().__init__(1, channels_below + channels_beside, channels_out)
        self.shares, self.compose = (channels_below, channels_beside), True

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        if not self.compose:
            return super().forward(torch.cat([upsample(below), beside], 1))
        conv, norm, relu = self
        weight_below, weight_beside = conv.weight.split(self.shares, dim=1)
        return relu(norm(upsample(F.conv2d(below, weight_below)) + F.conv2d(beside, weight_beside, conv.bias)))


class FARNetNetwork(nn.Module):
    """Image (B, 3, H, W) -> coarse (B, N, H/2, W/2) and fine (B, N, H, W) heatmaps, unbounded.

    Multi-scale feature aggregation (MSFA): up from stride 32 to 4 (a), down again (b), up to stride 2 (c);
    a digit is the level, i.e. stride 2**level. Then the coarse head, and feature refinement (FR) at full size.
    width: channels of the a maps, 256 in the paper; all others are multiples of it.
    """

    def __init__(
        self, num_landmarks: int, backbone: str, backbone_weights: str, norm: str = "batch", width: int = 256
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, backbone_weights)
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
    """The network in eval mode, composed once and for all, and batch norms folded into the convolutions before them.

    Only a norm that directly follows a convolution folds: not those of each image, nor most of DenseNet's.
    """
    network = copy.deepcopy(network).eval()
    for block in network.modules():
        if isinstance(block, ConvNormReLU) and isinstance(block[1], nn.BatchNorm2d):
            block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
        if isinstance(block, UpConvNormReLU):
            block.compose = True
    network.coarse_head.fold()
    network.fine_head.fold()
    return fuse(network, inplace=True)


# --- Loss and method -----------------------------------------------------------------------------

CPU_BLOCK = 2**19  # values of the maps that the loss takes at a time on a CPU


def ewc_loss(heatmaps: Tensor, target: Tensor, annotated: Tensor, alpha: float) -> Tensor:
    """Exponential weighted centre loss: mean of alpha**target * (target - heatmaps)**2, in float32.

    heatmaps, target: (B, N, h, w), target in 0..1. annotated: (B, N) bool; the mean runs over the pixels of
    these landmarks alone, and is 0 when there are none. The weight is alpha at a peak, 1 far from it.
    """
    return EWCLoss.apply(heatmaps, target, annotated, alpha)


class EWCLoss(torch.autograd.Function):
    """ewc_loss with its gradient written out, 2 alpha**target * (heatmaps - target) per pixel and landmark.

    Torch's own derivative reads and writes the full-size maps twenty times, which was a quarter of a training step.
    The gradient is kept in the layout and the precision of the heatmaps. A CPU computes both some rows at a time, so
    few that they stay in its cache: 0.6 of the time.
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

    Different from the authors' release, each with its reason in the README: (1) pixel centres at integers
    instead of a grid that starts at 1; (2) RGB scaled to 0..1 before the ImageNet statistics; (3) evaluation in
    eval mode and without gradients, with the norm of each image's own statistics, which is what the release
    computes at batch size 1; (4) only parameters that are used; (5) each head's two convolutions computed as one;
    (6) missing landmarks are masked; (7) any number of landmarks.
    """

    def __init__(self, config: Config, network: nn.Module | None = None) -> None:
        super().__init__(config)
        self.network = network or FARNetNetwork(
            config.num_landmarks, config.backbone, config.backbone_weights, config.norm
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> coarse (B, N, H/2, W/2) and fine (B, N, H, W) heatmaps."""
        with self.autocast(image.device):
            return self.network(image)

    def labels(self, batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Coarse and fine target. Sigma is the same number of px in both, so the coarse one is twice as wide."""
        draw = partial(gaussian_heatmaps, channels_last=self.config.channels_last)
        height, width = batch.image.shape[-2:]
        coarse = draw(scale_landmarks(batch.landmarks, 0.5), (height // 2, width // 2), self.config.sigma)
        return coarse, draw(batch.landmarks, (height, width), self.config.sigma)

    def loss(self, batch, epoch: int) -> dict[str, Tensor]:
        """EWC on both heads."""
        annotated = batch.landmarks.isfinite().all(-1)
        return {
            name: ewc_loss(heatmaps, target, annotated, self.config.ewc_alpha)
            for name, heatmaps, target in zip(
                ("coarse", "fine"), self(batch.image), self.labels(batch, epoch), strict=True
            )
        }

    def decode(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The peaks of the fine heatmaps; the score is the peak's height, about 1 for a sure landmark."""
        return decode_heatmaps(outputs[1], self.config.decode, self.config.sigma)

    def last_layer(self) -> nn.Module:
        """The head of the fine heatmaps, which reads the aggregated features of half size first."""
        return self.network.fine_head

    def for_inference(self) -> "FARNet":
        """The same detector with its network folded (fold_network).

        In bf16 its convolutions' weights are rounded once, not in every pass.
        """
        folded = fold_network(self.network)
        if self.config.channels_last:
            folded.to(memory_format=torch.channels_last)
        if uses_bfloat16(self.config.test_precision, next(folded.parameters()).device):
            for module in folded.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(torch.bfloat16)
        return FARNet(self.config, folded).eval()
