"""An exported method as one graph: radiographs of any size in, landmarks in px of these and scores out.

The graph repeats what data.py and reading/images.py do to an image with OpenCV 5, as products with two matrices, one
for each axis, which it computes from the size of the image. It takes the same steps and rounds after each to 8 bits,
because a difference of one grey level moves landmarks by a tenth of a px. tests/test_export_graph.py compares the two.
"""

import math

import torch
from torch import Tensor, nn

from config import Config
from data import CROP_STEP, LEAST_CROP, own_config
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
        config = own_config(self.detector.config)
        lengths = (image.shape[2], image.shape[1])  # x first
        pixels = [torch.arange(length, dtype=torch.float64, device=image.device) for length in lengths]
        size = torch.stack([own[-1] + 1 for own in pixels])  # (2,) width, height
        crop = torch.tensor([config.crop], dtype=torch.float64, device=image.device)  # (1, 4), or one for each image
        landmarks, scores = self.look(config, image, crop, size, pixels)
        if config.crop_follows:
            landmarks, scores = self.look(config, image, crop_to_landmarks(config, landmarks, size), size, pixels)
        return landmarks.float(), scores

    def look(
        self, config: Config, image: Tensor, crop: Tensor, size: Tensor, pixels: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return landmarks (B, N, 2) float64 px of images and scores (B, N) that are found in crops (B or 1, 4)."""
        scale, offset = network_frame(config, crop, size)
        seen = resample(config, image.float(), scale, offset, size, pixels) / 255
        landmarks, scores = self.detector.predict((seen[:, None] - self.mean) / self.sd)
        return landmarks.double() * scale[:, None] + offset[:, None], scores


def crop_to_landmarks(config: Config, landmarks: Tensor, size: Tensor) -> Tensor:
    """Return data.crop_to_landmarks (B, 4) for landmarks (B, N, 2) of images of size (2,) (width, height)."""
    low, high = landmarks.amin(1) - 0.5, landmarks.amax(1) + 0.5
    longer = (high - low).amax(-1, keepdim=True)
    margin = torch.maximum(config.crop_margin * longer, (LEAST_CROP * size.max() - longer) / 2)
    low, high = (low - margin + 0.5) / size, (high + margin + 0.5) / size
    return torch.cat([torch.floor(low / CROP_STEP) * CROP_STEP, torch.ceil(high / CROP_STEP) * CROP_STEP], -1)


def network_frame(config: Config, crop: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales and offsets (B, 2) of data.network_affine for crops (B, 4) of images of size (2,)."""
    network = torch.tensor([config.width, config.height], dtype=torch.float64, device=size.device)
    start, shown = crop[:, :2], (crop[:, 2:] - crop[:, :2]) * size
    seen = network * (shown / network).amax(-1, keepdim=True) if config.keep_aspect else shown
    scale, margin = seen / network, (shown - seen) / 2
    if config.keep_aspect:
        same = ((scale - 1).abs() <= 1e-5).all(-1, keepdim=True)
        margin = torch.where(same, torch.floor(margin + 1e-6), margin)
    return scale, 0.5 * scale - 0.5 + start * size + margin


def resample(
    config: Config, image: Tensor, scale: Tensor, offset: Tensor, size: Tensor, pixels: list[Tensor]
) -> Tensor:
    """Return images (B, h, w) in 0..255 as the network sees them (B, H, W): data.shrink_for_network, images.warp_image.

    Three steps cover all cases. First, area averaging shrinks a large image to twice the resolution of the input; a
    smaller one is warped directly to the size of the input or to twice that. Then the crop of a large image is warped
    to twice the size of the input. Finally, four pixels are averaged into one. A plain enlargement is a separate step.
    The first step makes only those rows and columns that the second one may need. scale, offset: (B or 1, 2).
    """
    network = torch.tensor([config.width, config.height], dtype=torch.float64, device=size.device)
    shrunk = 2 * torch.round(size / scale).clamp(min=1)
    large = (size > shrunk).all(-1)  # (B or 1,), as all that follow
    ratio = torch.where(large[:, None], shrunk / size, torch.ones_like(shrunk))  # by which the first step scales
    product = scale * ratio
    shrinks = (product > 1 - 1e-6).all(-1) & (product > 1 + 1e-6).any(-1)  # ONNX rounds 1 - 1e-9 to 1
    plain = (torch.isclose(scale, size / network) & torch.isclose(offset, 0.5 * scale - 0.5, atol=1e-9)).all(-1)
    stretched = not config.keep_aspect and tuple(config.crop) == (0, 0, 1, 1)  # no image is warped
    widest = max(1.0, config.crop[2] - config.crop[0], config.crop[3] - config.crop[1])
    first, second = [], []
    for axis, length in enumerate((config.width, config.height)):
        n, s, o, r = size[axis], scale[:, axis, None], offset[:, axis, None], ratio[:, axis, None]
        halves = torch.arange(2 * length, dtype=torch.float64, device=size.device)[None]
        # rounding to whole px makes what is shown up to a few px longer than 2 * length
        rows = torch.arange(2 * length + 4 * math.ceil(widest) + 4, dtype=torch.float64, device=size.device)[None]
        rows = rows + torch.where(large[:, None], torch.floor((o - 0.25 * s + 0.5) * r - 0.5) - 2, torch.zeros_like(o))
        same, pairs = ((cells[..., None] == rows[:, None]).float() for cells in (halves, torch.floor(halves / 2)))
        cells = torch.where(large[:, None], shrunk[:, axis, None], torch.full_like(s, length))
        resized = overlaps(rows, n / cells, pixels[axis]) * (rows < cells)[..., None]
        is_large, is_plain, does_shrink = (each[:, None, None] for each in (large, plain, shrinks))
        if stretched:
            first.append(resized.float())
            second.append(torch.where(is_large, same, pairs))
            continue
        step, start = torch.where(shrinks[:, None], 0.5 * s, s), torch.where(shrinks[:, None], o - 0.25 * s, o)
        warped = drawn(step, start, rows, pixels[axis], axis == 0)
        first.append(torch.where(is_large | is_plain, resized, warped).float())
        crops = drawn(0.5 * s * r, (o - 0.25 * s + 0.5) * r - 0.5, halves, rows, axis == 0).float()
        twice = is_large | (does_shrink & ~is_plain)  # the first step results in twice the input's size
        second.append(torch.where(is_large & ~is_plain, crops, torch.where(twice, same, pairs)))

    by_area = large | (plain & shrinks)
    target = torch.where(large[:, None], shrunk, network.expand_as(shrunk))
    quarters = by_area & (size == 2 * target).all(-1)  # OpenCV rounds halves up here
    result = rounded(first[1] @ image @ first[0].mT, ~quarters)
    result = rounded(second[1] @ result @ second[0].mT, torch.ones_like(large))
    result = rounded(nn.functional.avg_pool2d(result, 2), torch.zeros_like(large))
    enlarges = (plain & ~shrinks)[:, None, None]
    return torch.where(enlarges, enlarged(image, size, (config.width, config.height)), result)


def enlarged(image: Tensor, size: Tensor, target: tuple[int, int]) -> Tensor:
    """Return images (B, h, w) enlarged by a plain resize to (B, H, W), in the 11 and 7 bits of OpenCV."""
    taps = []
    for axis, length in enumerate(target):
        places = (torch.arange(length, dtype=torch.float64, device=image.device) + 0.5) * (size[axis] / length) - 0.5
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
    """Return whole grey levels of images (B, h, w); halves are rounded to even (B or 1,), or up."""
    return torch.where(to_even[:, None, None], torch.round(image), torch.floor(image + 0.5))


def overlaps(cells: Tensor, side: Tensor, pixels: Tensor) -> Tensor:
    """Return the share (B, n, m) of each pixel (m,) in the mean of each cell (B, n).

    Cells are numbered from 0 and `side` (B, 1) pixels long.
    """
    start, side = (cells * side)[..., None], side[..., None]
    return (torch.minimum(start + side, pixels + 1) - torch.maximum(start, pixels)).clamp(min=0) / side


def drawn(scale: Tensor, offset: Tensor, places: Tensor, pixels: Tensor, along_x: bool) -> Tensor:
    """Return the weights (B, n, m) of pixels (m,) or (B, m) in linear interpolation; 0 outside.

    They are drawn at scale (B, 1) * places (B or 1, n) + offset (B, 1). OpenCV 5 computes that in float32: it rounds
    both product and sum for y, but only the sum for x.
    """
    scale, offset, places = scale.float(), offset.float(), places.float()
    product = scale.double() * places.double() if along_x else scale * places
    places = (product + offset).float()
    return (1 - (places.double()[..., None] - pixels[..., None, :]).abs()).clamp(min=0)
