"""Images as arrays: reading a file, warping, varying and normalising intensities.

Nothing here knows a record or a landmark. Letters and frames: data.py.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from config import UserError
from utils import compose_affines, resize_affine

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # RGB, intensities in 0..1
IMAGENET_SD = np.array((0.229, 0.224, 0.225), np.float32)


def read_image(path: Path) -> np.ndarray:
    """An image file as (h, w) grey or (h, w, 3) RGB; uint8, or float32 in 0..255 for deeper images.

    A deeper image (16 bit) is stretched from its own minimum..maximum, since files do not state how many of
    the bits are in use. The EXIF orientation is obeyed, as annotation programs do.
    Raises UserError for a file that is absent, empty, cut off or no image.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"image {path} is empty (0 bytes); restore the file or remove its record")
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith(("I", "F")):
                return stretch_intensities(np.asarray(upright))
            return np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; correct imagePath or img_dir") from None
    except UnidentifiedImageError:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)  # 16-bit colour
        if image is None:
            raise UserError(f"image {path} is not an image that can be read (JPEG, PNG, BMP, TIFF)") from None
        image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return image if image.dtype == np.uint8 else stretch_intensities(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} is damaged ({error}); restore the file or remove its record") from None


def stretch_intensities(image: np.ndarray) -> np.ndarray:
    """Intensities of any range as float32 in 0..255."""
    image = image.astype(np.float32)
    low, high = float(image.min()), float(image.max())
    return (image - low) * (255 / max(high - low, 1e-6))


def warp_image(image: np.ndarray, to_original: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (h, w[, 3]) seen through an affine (network px -> original px), as (H, W[, 3]); size = (W, H).

    First resized with area averaging, so that shrinking does not alias; then, if the affine is more than
    that resize, one bilinear warp. Outside the image: 0.
    """
    original_size = (image.shape[1], image.shape[0])
    shrinks = size[0] <= original_size[0] and size[1] <= original_size[1]
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    rest = compose_affines(to_original, resize_affine(original_size, size))
    if np.allclose(rest, np.eye(2, 3), atol=1e-9):
        return resized
    return cv2.warpAffine(resized, rest, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def vary_intensities(image: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Random gamma, contrast, brightness and noise on intensities in 0..1; strength 0..1."""
    gamma = math.exp(generator.uniform(-strength, strength))
    contrast = 1 + generator.uniform(-strength, strength)
    brightness = 0.5 * generator.uniform(-strength, strength)
    varied = (np.clip(image, 0, 1) ** gamma - 0.5) * contrast + 0.5 + brightness
    noise = generator.normal(0, 1, image.shape[:2]).astype(np.float32) * (0.1 * strength * generator.uniform())
    return np.clip(varied + (noise if image.ndim == 2 else noise[..., None]), 0, 1).astype(np.float32)


def normalise_image(image: np.ndarray) -> Tensor:
    """Intensities in 0..1, (H, W) grey or (H, W, 3) RGB -> (3, H, W) float32 by the ImageNet statistics."""
    rgb = image if image.ndim == 3 else image[..., None]
    return torch.from_numpy(np.ascontiguousarray(((rgb - IMAGENET_MEAN) / IMAGENET_SD).transpose(2, 0, 1), np.float32))
