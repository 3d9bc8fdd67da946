"""Images as arrays: read a file, warp, augment and normalise intensities.

Nothing here depends on records or landmarks. data.py defines the letters and frames.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from reading import dicom
from settings import UserError
from utils import compose_affines, resize_affine

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", *dicom.ENDINGS)
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # RGB, intensities in 0..1
IMAGENET_SD = np.array((0.229, 0.224, 0.225), np.float32)


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (h, w) grey or (h, w, 3) RGB; uint8, or float32 in 0..255 for deeper images.

    A deeper image (16 bit, or DICOM after its own windowing) is stretched from its minimum..maximum, because files do
    not state how many of the bits are used. The EXIF orientation is applied, as annotation programs do.
    Raises UserError for a file that is absent, empty, truncated or not an image.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"image {path} is empty (0 bytes); restore the file or remove its record")
        if dicom.is_dicom(path):
            return stretch_intensities(dicom.read(path).image)
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith(("I", "F")):
                deep = np.asarray(upright)
                if not np.isfinite(deep).all():
                    raise UserError(
                        f"image {path} contains nan or infinite values; restore the file or remove its record"
                    )
                return stretch_intensities(deep)
            return np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; correct imagePath or img_dir") from None
    except UnidentifiedImageError:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)  # 16-bit colour
        if image is None:
            raise UserError(f"image {path} is not an image that can be read (JPEG, PNG, BMP, TIFF, DICOM)") from None
        image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return image if image.dtype == np.uint8 else stretch_intensities(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} is damaged ({error}); restore the file or remove its record") from None


def stretch_intensities(image: np.ndarray) -> np.ndarray:
    """Stretch intensities of any range to 0..255, float32."""
    image = image.astype(np.float32)
    low, high = float(image.min()), float(image.max())
    return (image - low) * (255 / max(high - low, 1e-6))


def shrink_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink an image to twice size = (W, H) by averaging areas, so that warping it does not alias.

    It keeps its size if one side is smaller than that. Three equal channels become one.
    """
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., 0])
    large = (2 * size[0], 2 * size[1])
    if image.shape[1] <= large[0] or image.shape[0] <= large[1]:
        return image
    return cv2.resize(image, large, interpolation=cv2.INTER_AREA)


def warp_image(
    image: np.ndarray, to_source: np.ndarray, size: tuple[int, int], displacement: np.ndarray | None = None
) -> np.ndarray:
    """Warp an image (h, w[, 3]) by an affine (network px -> its px) to (H, W[, 3]); size = (W, H). Outside it is 0.

    A plain resize averages areas. Everything else is one bilinear warp; if it shrinks the image, it is drawn at twice
    the size and its areas are averaged, so that an augmented image is as smooth as a plain one.
    displacement: (H, W, 2) network px, added to a network pixel before the affine.
    """
    image_size = (image.shape[1], image.shape[0])
    scales = np.linalg.norm(to_source[:, :2], axis=0)
    shrinks = bool((scales > 1 - 1e-9).all() and (scales > 1 + 1e-9).any())
    if displacement is None and np.allclose(to_source, resize_affine(size, image_size), atol=1e-9):
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    drawn_size = (2 * size[0], 2 * size[1]) if shrinks else size
    if displacement is None:
        affine = compose_affines(resize_affine(drawn_size, size), to_source)
        drawn = cv2.warpAffine(image, affine, drawn_size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    else:
        affine = compose_affines(resize_affine(drawn_size, size), to_source).astype(np.float32)
        moved = cv2.transform(displacement, to_source[:, :2])  # in px of the image
        columns, rows = (np.arange(length, dtype=np.float32) for length in drawn_size)
        x, y = (cv2.resize(moved[..., axis], drawn_size, interpolation=cv2.INTER_LINEAR) for axis in (0, 1))
        for places, (by_column, by_row, start) in zip((x, y), affine, strict=True):
            places += by_column * columns
            places += (by_row * rows + start)[:, None]
        drawn = cv2.remap(image, x, y, cv2.INTER_LINEAR)
    return cv2.resize(drawn, size, interpolation=cv2.INTER_AREA) if shrinks else drawn


def vary_intensities(image: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Vary gamma, contrast, brightness and noise of intensities in 0..1 at random; strength 0..1."""
    gamma = math.exp(generator.uniform(-strength, strength))
    contrast = 1 + generator.uniform(-strength, strength)
    brightness = 0.5 * generator.uniform(-strength, strength)
    varied = np.clip(image, 0, 1)
    np.power(varied, gamma, out=varied)
    varied -= 0.5
    varied *= contrast
    varied += 0.5
    varied += brightness
    noise = generator.normal(0, 1, image.shape[:2]).astype(np.float32)
    noise *= 0.1 * strength * generator.uniform()
    varied += noise if image.ndim == 2 else noise[..., None]
    return np.clip(varied, 0, 1, out=varied)


def blur_image(image: np.ndarray, most: float, generator: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian with a random standard deviation of up to `most` px."""
    sigma = most * generator.uniform()
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0.1 else image


def cut_out(image: np.ndarray, most: float, generator: np.random.Generator) -> np.ndarray:
    """Fill a random rectangle, up to `most` of each side, with a random grey in half of the images."""
    image = image.copy()
    height, width = image.shape[:2]
    if generator.uniform() < 0.5:
        h, w = (max(1, round(most * generator.uniform() * side)) for side in (height, width))
        y, x = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
        image[y : y + h, x : x + w] = generator.uniform()
    return image


def normalise_image(image: np.ndarray) -> Tensor:
    """Normalise intensities in 0..1, (H, W) grey or (H, W, 3) RGB, to (3, H, W) float32 by the ImageNet statistics."""
    normalised = np.empty((3, *image.shape[:2]), np.float32)
    for channel in range(3):  # each at once in its own memory: a fifth of the time of all three side by side
        np.subtract(image if image.ndim == 2 else image[..., channel], IMAGENET_MEAN[channel], out=normalised[channel])
        normalised[channel] /= IMAGENET_SD[channel]
    return torch.from_numpy(normalised)
