"""Images as arrays: read a file, warp, augment and normalise intensities.

Nothing here depends on records or landmarks. data.py defines the letters and frames.
"""

import contextlib
import io
import itertools
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from reading import dicom
from settings import UserError
from utils import compose_affines, resize_affine

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", *dicom.ENDINGS)
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")  # Pillow's, rasters only
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # RGB, intensities in 0..1
IMAGENET_SD = np.array((0.229, 0.224, 0.225), np.float32)
SIZE, BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = (256, 257), 258, 262, 274, 339  # tags of TIFF
SAMPLES, PLANAR, EXTRA_SAMPLES = 277, 284, 338
CHUNKS = {273, 279, 324, 325}  # offsets and lengths of strips and tiles
PIXEL_TAGS = {*SIZE, BITS, 259, PHOTOMETRIC, 266, ORIENTATION, SAMPLES, 278, PLANAR, 317, 320, 322, 323, *CHUNKS}
PIXEL_TAGS |= {EXTRA_SAMPLES, SAMPLE_FORMAT}
BIG_TIFF = b"MM\0+"  # the start of a big-endian BigTIFF, which Pillow takes for a small one
# Pillow knows no 16-bit grey with alpha: let it read the two bytes of each as four channels (see read_raster)
for key in itertools.product((b"II", b"MM"), (0, 1), ((1,),), (1,), ((16, 16),), ((), (0,), (1,), (2,))):
    TiffImagePlugin.OPEN_INFO[key] = ("RGBA", "RGBA")


# --- Reading --------------------------------------------------------------------------------------------


class Film(NamedTuple):
    """An image file as it is used."""

    image: np.ndarray  # (h, w) grey or (h, w, 3) RGB; uint8, or float32 in 0..255 for deeper images
    spacing: float | None  # mm per px, if its DICOM file states one
    notes: list[str]  # oddities of a DICOM file


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (h, w) grey or (h, w, 3) RGB; uint8, or float32 in 0..255 for deeper images.

    A deeper image (16 bit, float, or DICOM after its own windowing) is stretched from its minimum..maximum, because
    files do not state how many of the bits are used. Alpha, gamma and colour profiles are ignored. The image is turned
    as its EXIF or TIFF orientation says and WhiteIsZero is inverted, as annotation programs do.
    Raises UserError for a file that is absent, empty, truncated, too large or not an image.
    """
    return read_film(path).image


def read_film(path: Path) -> Film:
    """Read an image file as read_image does, with what a DICOM file states about it."""
    with naming(path):
        if dicom.is_dicom(path):
            pixels, spacing, notes = dicom.read(path)
            return Film(stretch_intensities(pixels), spacing, notes)
        return Film(read_raster(path), None, [])


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height, px, of an image file as read_image turns it, from its header. Raises UserError."""
    with naming(path), open(path, "rb") as opened:
        if dicom.is_dicom(path):
            return dicom.read_size(path)
        try:
            with Image.open(opened, formats=FORMATS) as file:
                turned = file.format != "TIFF" and file.getexif().get(ORIENTATION) in (5, 6, 7, 8)  # TIFF: already so
                return file.size[::-1] if turned else file.size
        except UnidentifiedImageError:
            tags = read_tiff_tags(opened)
            width, height = (tags[tag] for tag in SIZE)
            return (height, width) if tags.get(ORIENTATION) in (5, 6, 7, 8) else (width, height)


def is_image_file(path: Path) -> bool:
    """Return whether a file of a folder is an image: by its ending, or a DICOM file with another one, or none."""
    if path.suffix.lower() in ENDINGS:
        return not path.is_dir()
    return path.is_file() and path.name.upper() != "DICOMDIR" and dicom.is_dicom(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise UserError, which names the image file, for what is wrong with it."""
    try:
        dicom.check_file(path)
        yield
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; correct imagePath or img_dir") from None
    except NotATiff:
        raise UserError(f"image {path} is not an image that can be read (JPEG, PNG, BMP, TIFF, DICOM)") from None
    except Image.DecompressionBombError:
        raise UserError(f"image {path} is too large; expected at most {dicom.MOST_PIXELS:,} px") from None
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error, cv2.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, such as a lack of permission
            raise UserError(f"image {path} cannot be read ({error.strerror})") from None
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"image {path} is damaged, or of an unusual kind ({reason}); restore or convert it") from None


class NotATiff(Exception):
    """Raised for a file that is neither a TIFF nor an image of another kind."""


def read_raster(path: Path) -> np.ndarray:
    """Read an image file that is not DICOM. Raises all kinds of errors."""
    white_is_zero = False
    with open(path, "rb") as opened:  # a path would let Pillow map the file into memory, where it misreads turned TIFFs
        start = opened.read(4)
        big_endian, source = start[:2] == b"MM", cast(BinaryIO, opened)
        if start == BIG_TIFF:
            source = write_small_tiff(path.read_bytes(), read_tiff_tags(opened))
        try:
            with Image.open(source, formats=FORMATS) as file:
                tiff = isinstance(file, TiffImagePlugin.TiffImageFile)
                tags = dict(file.tag_v2) if isinstance(file, TiffImagePlugin.TiffImageFile) else {}
                raw = str(file.tile)  # the codec and the order of bits, such as RGB;16B
                white_is_zero = tags.get(PHOTOMETRIC) == 0
                planes = in_planes(tags)
                upright = file if planes else ImageOps.exif_transpose(file)
                if planes:
                    pixels = read_planes(path, tags)
                elif tags.get(BITS) == (16, 16):
                    pixels = np.asarray(upright).view(">u2" if big_endian and "'raw'" in raw else "<u2")[..., 0]
                elif upright.mode.startswith(("I", "F")):
                    pixels = np.asarray(upright)
                    if upright.mode == "F" and big_endian and "'libtiff'" in raw:
                        pixels = pixels.byteswap()  # libtiff has swapped the bytes, and so has Pillow
                    if tiff and upright.mode == "I" and tags.get(SAMPLE_FORMAT, (1,))[0] == 1:
                        pixels = pixels.view(np.uint32)  # Pillow takes its upper half as negative
                else:
                    pixels = np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))
                    if ";16" in raw or (upright.mode == "RGB" and file.format in ("JPEG2000", "PPM")):
                        # Pillow drops the lower 8 bits of deep colour; OpenCV turns a TIFF by itself
                        deep = turn_upright(decode(path), 1 if tiff else file.getexif().get(ORIENTATION, 1))
                        if deep.dtype == np.uint8 and ";16" in raw:
                            raise ValueError(f"16-bit {upright.mode} of this kind is not supported")
                        pixels = pixels if deep.dtype == np.uint8 else deep
        except UnidentifiedImageError:
            tags = read_tiff_tags(opened)
            white_is_zero = tags.get(PHOTOMETRIC) == 0
            pixels = read_planes(path, tags) if in_planes(tags) else decode(path)
    if pixels.dtype == np.uint8:  # already inverted
        return pixels
    if not np.isfinite(pixels).all():
        raise UserError(f"image {path} contains nan or infinite values; restore the file or remove its record")
    stretched = stretch_intensities(pixels)
    return 255 - stretched if white_is_zero else stretched


def read_tiff_tags(opened: BinaryIO) -> dict[int, Any]:
    """Return the tags of a TIFF that Pillow cannot read, whose size is within the limit. Raises NotATiff."""
    opened.seek(0)
    header = opened.read(8)
    if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise NotATiff
    header += opened.read(8) if b"+" in header[:4] else b""
    if header[:4] == BIG_TIFF:
        tags = TiffImagePlugin.ImageFileDirectory_v2(b"II+\0" + header[4:], prefix=b"MM")
    else:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    opened.seek(tags.next)
    tags.load(opened)
    if math.prod(tags[tag] for tag in SIZE) > dicom.MOST_PIXELS:
        raise Image.DecompressionBombError
    return dict(tags)


def in_planes(tags: dict[int, Any]) -> bool:
    """Return whether a TIFF has its channels in planes that Pillow and OpenCV misread or refuse."""
    deep = max(tags.get(BITS, (1,))) > 8 or tags.get(PHOTOMETRIC) in (0, 1)
    return tags.get(PLANAR) == 2 and tags.get(SAMPLES, 1) > 1 and deep


def read_planes(path: Path, tags: dict[int, Any]) -> np.ndarray:
    """Read the planes of a TIFF, each as a TIFF of its own, as (h, w) grey or (h, w, 3) RGB, without alpha."""
    content, kept = path.read_bytes(), {0: 1, 1: 1, 2: 3}.get(tags[PHOTOMETRIC])
    if kept is None or tags[SAMPLES] < kept:
        raise ValueError(f"{max(tags[BITS])}-bit planes of photometric {tags[PHOTOMETRIC]} are not supported")
    planes = []
    for plane in range(kept):
        with Image.open(write_small_tiff(content, tags, plane), formats=("TIFF",)) as file:
            planes.append(np.asarray(ImageOps.exif_transpose(file)))
    return planes[0] if kept == 1 else np.stack(planes, -1)


def write_small_tiff(content: bytes, tags: dict[int, Any], plane: int | None = None) -> io.BytesIO:
    """Return a TIFF with a directory of 32-bit numbers behind its pixels; plane: of one of its planes, as grey."""
    kept = {tag: value if isinstance(value, tuple) else (value,) for tag, value in tags.items() if tag in PIXEL_TAGS}
    if plane is not None:
        for tag in CHUNKS & kept.keys():
            count = len(kept[tag]) // tags[SAMPLES]
            kept[tag] = kept[tag][plane * count : (plane + 1) * count]
        kept |= {tag: kept[tag][:1] for tag in (BITS, SAMPLE_FORMAT) if tag in kept}
        kept |= {SAMPLES: (1,), PLANAR: (1,), PHOTOMETRIC: (int(tags[PHOTOMETRIC] > 0 or max(tags[BITS]) > 8),)}
        kept.pop(EXTRA_SAMPLES, None)
    order, start = ("<" if content[:2] == b"II" else ">"), len(content) + len(content) % 2
    directory, beyond, place = struct.pack(f"{order}H", len(kept)), b"", start + 2 + 12 * len(kept) + 4
    for tag, values in sorted(kept.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        directory += struct.pack(f"{order}HHI", tag, 4, len(values))
        directory += packed if len(values) == 1 else struct.pack(f"{order}I", place + len(beyond))
        beyond += b"" if len(values) == 1 else packed
    head = content[:2] + struct.pack(f"{order}HI", 42, start)
    return io.BytesIO(head + content[8:].ljust(start - 8, b"\0") + directory + bytes(4) + beyond)


def decode(path: Path) -> np.ndarray:
    """Decode a file by OpenCV to (h, w) grey or (h, w, 3) RGB of its own depth, without alpha. Raises ValueError."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        raise ValueError("pixels of an unsupported kind, or cut off")
    return image if image.ndim == 2 else image[..., ::-1]


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (h, w[, 3]) by its EXIF orientation, 1 to 8."""
    image = image.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else image
    image = image[:, ::-1] if orientation in (2, 3, 6, 7) else image
    return image[::-1] if orientation in (3, 4, 7, 8) else image


def stretch_intensities(image: np.ndarray) -> np.ndarray:
    """Stretch finite intensities of any range to 0..255, float32."""
    exact = image.dtype.itemsize <= 2 or image.dtype == np.float32
    image = np.ascontiguousarray(image, np.float32 if exact else np.float64)
    low, high = float(image.min()), float(image.max())
    return (image - low).astype(np.float32) * (255 / ((high - low) or 1))


# --- Warping and augmenting -----------------------------------------------------------------------------


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
