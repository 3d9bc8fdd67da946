"""An exported method as one graph: radiographs of any size in, landmarks in px of these and scores out.

The graph repeats what data.py and reading/images.py do to an image with OpenCV 5, as products with two matrices, one
for each axis, which it computes from the size of the image. It takes the same steps and rounds after each to 8 bits,
because a difference of one grey level moves landmarks by a tenth of a px. tests/test_export_graph.py compares the two.
"""

import torch
from torch import Tensor, nn

from config import Config
from detector import LandmarkDetector
from reading.images import IMAGENET_MEAN, IMAGENET_SD


class ImageToLandmarks(nn.Module):
    """Images (B, h, w) uint8 grey -> landmarks (B, N, 2) (x, y) in px of the images, scores (B, N); one plain view."""

    def __init__(self, detector: LandmarkDetector) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("sd", torch.tensor(IMAGENET_SD)[:, None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        lengths = (image.shape[2], image.shape[1])  # x first
        pixels = [torch.arange(length, dtype=torch.float64, device=image.device) for length in lengths]
        size = torch.stack([own[-1] + 1 for own in pixels])  # (2,) width, height
        scale, offset = network_frame(self.detector.config, size)
        seen = resample(self.detector.config, image.float(), scale, offset, size, pixels) / 255
        landmarks, scores = self.detector.predict((seen[:, None] - self.mean) / self.sd)
        return (landmarks.double() * scale + offset).float(), scores


def network_frame(config: Config, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and offset (2,) of data.network_affine for an image of size (2,) (width, height)."""
    network = torch.tensor([config.width, config.height], dtype=torch.float64, device=size.device)
    left, top, right, bottom = config.crop
    start = torch.tensor([left, top], dtype=torch.float64, device=size.device)
    crop = torch.tensor([right - left, bottom - top], dtype=torch.float64, device=size.device) * size
    seen = network * (crop / network).max() if config.keep_aspect else crop
    scale, margin = seen / network, (crop - seen) / 2
    if config.keep_aspect:
        margin = torch.where(((scale - 1).abs() <= 1e-5).all(), torch.floor(margin + 1e-6), margin)
    return scale, 0.5 * scale - 0.5 + start * size + margin


def resample(
    config: Config, image: Tensor, scale: Tensor, offset: Tensor, size: Tensor, pixels: list[Tensor]
) -> Tensor:
    """Return an image (B, h, w) in 0..255 as the network sees it (B, H, W): data.shrink_for_network, images.warp_image.

    Three steps cover all cases. First, area averaging shrinks a large image to twice the resolution of the input; a
    smaller one is warped directly to the size of the input or to twice that. Then the crop of a large image is warped
    to twice the size of the input. Finally, four pixels are averaged into one. A plain enlargement is a separate step.
    """
    network = torch.tensor([config.width, config.height], dtype=torch.float64, device=size.device)
    shrunk = 2 * torch.round(size / scale).clamp(min=1)
    large = (size > shrunk).all()
    ratio = torch.where(large, shrunk / size, torch.ones_like(size))  # by which the first step scales
    shrinks = (scale * ratio > 1 - 1e-6).all() & (scale * ratio > 1 + 1e-6).any()  # ONNX rounds 1 - 1e-9 to 1
    plain = (torch.isclose(scale, size / network) & torch.isclose(offset, 0.5 * scale - 0.5, atol=1e-9)).all()
    stretched = not config.keep_aspect and tuple(config.crop) == (0, 0, 1, 1)  # no image is warped
    first, second = [], []
    for axis, length in enumerate((config.width, config.height)):
        n, s, o, r = size[axis], scale[axis], offset[axis], ratio[axis]
        share = config.crop[axis + 2] - config.crop[axis]
        most = 2 * max(length, round(length / share))  # rows after the first step, for any image
        rows, halves = (torch.arange(count, dtype=torch.float64, device=size.device) for count in (most, 2 * length))
        same, pairs = (halves[:, None] == rows).float(), (torch.floor(halves / 2)[:, None] == rows).float()
        cells = torch.where(large, shrunk[axis], torch.full_like(n, length))
        resized = overlaps(rows, n / cells, pixels[axis]) * (rows < cells)[:, None]
        if stretched:
            first.append(resized.float())
            second.append(torch.where(large, same, pairs))
            continue
        step, start = torch.where(shrinks, 0.5 * s, s), torch.where(shrinks, o - 0.25 * s, o)
        warped = drawn(step, start, rows, pixels[axis], axis == 0)
        first.append(torch.where(large | plain, resized, warped).float())
        crops = drawn(0.5 * s * r, (o - 0.25 * s + 0.5) * r - 0.5, halves, rows, axis == 0).float()
        twice = large | (shrinks & ~plain)  # the first step results in twice the input's size
        second.append(torch.where(large & ~plain, crops, torch.where(twice, same, pairs)))

    by_area = large | (plain & shrinks)
    quarters = by_area & (size == 2 * torch.where(large, shrunk, network)).all()  # OpenCV rounds halves up here
    result = rounded(first[1] @ image @ first[0].mT, ~quarters)
    result = rounded(second[1] @ result @ second[0].mT, torch.ones_like(large))
    result = rounded(nn.functional.avg_pool2d(result, 2), torch.zeros_like(large))
    return torch.where(plain & ~shrinks, enlarged(image, size, scale, (config.width, config.height)), result)


def enlarged(image: Tensor, size: Tensor, scale: Tensor, target: tuple[int, int]) -> Tensor:
    """Return an image (B, h, w) enlarged by a plain resize to (B, H, W), in the 11 and 7 bits of OpenCV."""
    taps = []
    for axis, length in enumerate(target):
        places = (torch.arange(length, dtype=torch.float64, device=image.device) + 0.5) * scale[axis] - 0.5
        places = torch.minimum(places.clamp(min=0), size[axis] - 1)
        low = torch.floor(places)
        high = torch.minimum(low + 1, size[axis] - 1)
        taps.append(
            (low.long(), high.long(), torch.round(2048 * (1 - places + low)), torch.round(2048 * (places - low)))
        )
    low, high, weight, other = taps[0]
    rows = torch.floor((weight * image[:, :, low] + other * image[:, :, high]) / 16)
    low, high, weight, other = taps[1]
    upper, lower = weight[:, None] * rows[:, low], other[:, None] * rows[:, high]
    return torch.floor((torch.floor(upper / 65536) + torch.floor(lower / 65536) + 2) / 4).float()


def rounded(image: Tensor, to_even: Tensor) -> Tensor:
    """Return whole grey levels; halves are rounded to even, or up."""
    return torch.where(to_even, torch.round(image), torch.floor(image + 0.5))


def overlaps(cells: Tensor, side: Tensor, pixels: Tensor) -> Tensor:
    """Return the share (n, m) of each pixel (m,) in the mean of each cell (n,), numbered from 0, `side` pixels long."""
    start = (cells * side)[:, None]
    return (torch.minimum(start + side, pixels + 1) - torch.maximum(start, pixels)).clamp(min=0) / side


def drawn(scale: Tensor, offset: Tensor, places: Tensor, pixels: Tensor, along_x: bool) -> Tensor:
    """Return the weights (n, m) of pixels (m,) in linear interpolation at scale * places (n,) + offset; 0 outside.

    OpenCV 5 computes places in float32: it rounds both product and sum for y, but only the sum for x.
    """
    scale, offset, places = scale.float(), offset.float(), places.float()
    product = scale.double() * places.double() if along_x else scale * places
    places = (product + offset).float()
    return (1 - (places.double()[:, None] - pixels).abs()).clamp(min=0)
