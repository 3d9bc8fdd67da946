"""Read DICOM images with pydicom: the pixels as a radiologist sees them, and mm per px. No text of a file is kept.

Modality and VOI LUT are applied, MONOCHROME1 is inverted so that bone is bright, padding is black, and the result has
16 bits. An attribute that cannot be used is ignored with a note.
"""

import contextlib
import math
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import SPACINGS
from settings import UserError

ENDINGS = (".dcm", ".dicom")
MOST_PIXELS = 178_956_970  # of an image, so that its memory is bounded; the limit of Pillow
MEASURED_AT = {"ImagerPixelSpacing": "at the detector", "NominalScannedPixelSpacing": "on the scanned film"}
CODECS = "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"  # of pip: they decompress JPEG, JPEG-LS and JPEG 2000


class Dicom(NamedTuple):
    """The contents of a DICOM file that are used."""

    image: np.ndarray  # (h, w) uint16, stretched to the whole range
    spacing: float | None  # mm per px
    notes: list[str]  # for the user: what is ignored, and where the spacing comes from


def check_file(file: Path) -> None:
    """Raise UserError for what is not a file with contents; opening a pipe would wait for ever."""
    status = file.stat()
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"image {file} is a folder; give an image file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"image {file} is a device, pipe or socket; give an image file")
    if status.st_size == 0:
        raise UserError(f"image {file} is empty (0 bytes); restore the file or remove its record")


def is_dicom(file: Path) -> bool:
    """Return whether a file is named, or starts, like a DICOM file: scanners often write them without an ending."""
    if file.suffix.lower() in ENDINGS:
        return True
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def read(file: Path) -> Dicom:
    """Read a file with a single grey image. Raises UserError for anything else, and if pydicom is missing."""
    notes: list[str] = []
    with explaining(file):
        data = read_data(file)
        complete(data, notes)
        pixels = data.pixel_array
        photometric = str(data.PhotometricInterpretation)
        if photometric.startswith("MONOCHROME") and pixels.ndim == 2:
            values, padding = apply_luts(pixels, data, notes), find_padding(pixels, data)
        else:
            values, padding = make_grey(pixels, photometric, data, file), np.zeros(pixels.shape[:2], bool)
        spacings = {key: numbers_of(data, key) for key in ("PixelSpacing", *MEASURED_AT) if key in data}
    low, high = values[~padding].min(), values[~padding].max()
    scaled = np.clip((values - low) / ((high - low) or 1), 0, 1)
    if photometric == "MONOCHROME1":
        scaled = 1 - scaled
    scaled[padding] = 0
    spacing, more = choose_spacing(spacings, file)
    image = (scaled * 65535).round().astype(np.uint16)
    return Dicom(image, spacing, [f"{file.name}: {note}" for note in notes] + more)


def read_size(file: Path) -> tuple[int, int]:
    """Return width and height, px, from the header. Raises UserError."""
    with explaining(file):
        data = read_data(file, stop_before_pixels=True)
        return int(data.Columns), int(data.Rows)


def read_data(file: Path, **options: Any):
    """Return pydicom's data set of an image file within the limit of size. Raises UserError, and pydicom's errors."""
    try:
        import pydicom
    except ImportError:
        raise UserError("reading DICOM files needs pydicom: pip install pydicom") from None
    check_file(file)
    # a file without preamble is read if its name says that it is DICOM; it holds no syntax, so it is the default one
    data = pydicom.dcmread(file, force=file.suffix.lower() in ENDINGS, **options)
    if "TransferSyntaxUID" not in data.file_meta and len(data):
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if "DirectoryRecordSequence" in data or data.file_meta.get("MediaStorageSOPClassUID") == "1.2.840.10008.1.3.10":
        raise UserError(f"{file} is a DICOMDIR, a list of other files; give the image files that it lists")
    if (frames := numbers_of(data, "NumberOfFrames")) and frames[0] > 1:
        raise UserError(f"{file}: expected one grey image, found {frames[0]:.0f} frames")
    if "Rows" not in data or "Columns" not in data:
        raise UserError(f"{file} holds no image, or is not DICOM (no Rows and Columns); remove it")
    if int(data.Rows) * int(data.Columns) > MOST_PIXELS:
        raise UserError(f"{file}: {data.Columns} x {data.Rows} px is too large; expected at most {MOST_PIXELS:,} px")
    return data


@contextlib.contextmanager
def explaining(file: Path) -> Iterator[None]:
    """Raise UserError, which names the file, for what pydicom raises."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except Exception as error:  # pydicom and its decoders raise all kinds of errors
        lines = (str(error) or repr(error)).splitlines()
        reason, hint = lines[0].rstrip(":"), ""
        if "missing dependencies" in reason:
            hint = f"; pip install {CODECS}"
        elif "all available plugins" in reason:  # by Pillow alone, for one, which decodes 8-bit JPEG only
            hint = f" ({' '.join(' '.join(lines[1:]).split())}); if the file is not damaged, pip install {CODECS}"
        raise UserError(f"{file} cannot be read as a DICOM image: {reason}{hint}") from None


def complete(data, notes: list[str]) -> None:
    """Give the attributes that decoding needs their usual values if they are absent or empty."""
    usual = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
    for key, value in (usual | {"BitsStored": data.get("BitsAllocated")}).items():
        if data.get(key) in (None, ""):
            setattr(data, key, value)
            notes.append(f"{key} is missing; took {value}")
    data.PhotometricInterpretation = str(data.PhotometricInterpretation).strip().upper()
    allocated, stored = (numbers_of(data, key)[:1] for key in ("BitsAllocated", "BitsStored"))
    if allocated and not (stored and 1 <= stored[0] <= allocated[0]):
        notes.append(f"BitsStored cannot be used; took {allocated[0]:g}")
        data.BitsStored = int(allocated[0])
    if any(math.isnan(frames) for frames in numbers_of(data, "NumberOfFrames")):
        notes.append("NumberOfFrames cannot be used; took 1")
        del data.NumberOfFrames


def apply_luts(pixels: np.ndarray, data, notes: list[str]) -> np.ndarray:
    """Return pixels (h, w), float64, after the modality LUT and the VOI LUT or window, as far as they can be used."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    rescale = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
    if any(key in data for key in rescale):
        for key, usual in rescale.items():
            stated = numbers_of(data, key)[:1]
            if not stated or not math.isfinite(stated[0]) or (key == "RescaleSlope" and stated[0] == 0):
                notes.extend([f"its {key} cannot be used; took {usual:g}"] if key in data else [])
                stated = [usual]
            setattr(data, key, stated[0])
    if not data.get("ModalityLUTSequence"):
        data.pop("ModalityLUTSequence", None)
    try:
        values = apply_modality_lut(pixels, data)
    except Exception as error:  # a table of the wrong length or type
        notes.append(f"its modality LUT cannot be used ({error!r})")
        del data.ModalityLUTSequence
        values = apply_modality_lut(pixels, data)
    choose_window(data, notes)
    for key, apply in (("VOILUTSequence", apply_voi), ("WindowWidth", apply_windowing)):
        if not data.get(key):
            continue
        try:
            shown = np.asarray(apply(values, data), np.float64)
            if shown.min() < shown.max() or values.min() == values.max():
                return shown
            notes.append(f"its {key} shows nothing of the image; it is ignored")
        except Exception as error:  # as above
            notes.append(f"its {key} cannot be used ({error!r})")
    return np.asarray(values, np.float64)


def choose_window(data, notes: list[str]) -> None:
    """Keep the first window of a data set that can be used, or none."""
    if "WindowCenter" not in data and "WindowWidth" not in data:
        return
    pairs = zip(numbers_of(data, "WindowCenter"), numbers_of(data, "WindowWidth"), strict=False)
    usable = [(center, width) for center, width in pairs if math.isfinite(center) and 0 < width < math.inf]
    for key in ("WindowCenter", "WindowWidth"):
        data.pop(key, None)
    if not usable:
        notes.append("its WindowCenter and WindowWidth cannot be used; the whole range is taken")
        return
    data.WindowCenter, data.WindowWidth = usable[0]
    function = str(data.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        function = "LINEAR"
    exact = function == "LINEAR" and usable[0][1] <= 1  # LINEAR is defined for whole numbers, from two of them on
    data.VOILUTFunction = "LINEAR_EXACT" if exact else function


def find_padding(pixels: np.ndarray, data) -> np.ndarray:
    """Return a mask of the pixels (h, w) that only fill the frame around the film: those of a value, or of a range."""
    ends = [end for key in ("PixelPaddingValue", "PixelPaddingRangeLimit") for end in numbers_of(data, key)[:1]]
    ends = [end for end in ends if math.isfinite(end)]
    if "PixelPaddingValue" not in data or not ends or pixels.dtype.kind not in "iu":
        return np.zeros(pixels.shape, bool)
    codes = 2 ** int(data.BitsStored)  # pydicom cuts pixels to these: -32768 in unsigned 16 bits is 32768
    own = [int(end) % codes for end in ends]
    if pixels.dtype.kind == "i":
        own = [code - codes if code >= codes // 2 else code for code in own]
    padding = (pixels >= min(own)) & (pixels <= max(own))
    return padding if not padding.all() else np.zeros(pixels.shape, bool)


def make_grey(pixels: np.ndarray, photometric: str, data, file: Path) -> np.ndarray:
    """Return the grey values (h, w) of a colour image with equal channels, or the luminance of a palette."""
    from pydicom.pixels import apply_color_lut

    palette = photometric == "PALETTE COLOR" and pixels.ndim == 2
    colours = np.asarray(apply_color_lut(pixels, data) if palette else pixels, np.float64)
    if colours.ndim != 3 or colours.shape[2] < 3:
        raise UserError(f"{file}: expected one grey image, found {pixels.shape} in {photometric}")
    spread = np.ptp(colours[..., :3], axis=2).max()  # a lossy JPEG leaves a little
    if not palette and spread > 0.06 * 2 ** (8 * pixels.dtype.itemsize):
        raise UserError(f"{file}: expected one grey image, found {pixels.shape} in {photometric}, in colour")
    return colours[..., :3] @ (0.299, 0.587, 0.114) if spread else colours[..., 0]


def numbers_of(data, key: str) -> list[float]:
    """Return the numbers of an attribute: none if it is absent, else one or several, nan for what is not a number."""
    if key not in data:
        return []
    try:
        value = data.get(key)
        values = (
            [] if value is None else value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        )
        return [math.nan if each in (None, "") else float(each) for each in values]
    except (TypeError, ValueError):  # text in a number's place
        return [math.nan]


def choose_spacing(spacings: dict[str, list[float]], file: Path) -> tuple[float | None, list[str]]:
    """Return mm per px and notes: PixelSpacing, else a spacing that is not measured in the patient (MEASURED_AT)."""
    notes = []
    for key, values in spacings.items():
        if not values:  # may be empty by the standard
            continue
        if len(values) != 2 or not all(SPACINGS[0] <= value <= SPACINGS[1] for value in values):  # false for nan
            expected = f"two numbers from {SPACINGS[0]:g} to {SPACINGS[1]:g}"
            notes.append(f"{file.name}: its {key} is {values}, expected {expected}; it is ignored")
            continue
        if abs(values[0] - values[1]) > 0.01 * values[0]:
            raise UserError(f"{file}: {key} is {values}; pixels that are not square are not supported")
        measured = next((other for other in MEASURED_AT if spacings.get(other) == values), None)
        if measured is None:
            return values[1], notes
        return values[1], [
            *notes,
            f"{file.name}: {values[1]:g} mm per px is its {measured}, measured {MEASURED_AT[measured]}; the projection "
            "magnifies the patient (by about 1.1 in cephalograms), so true lengths are smaller",
        ]
    return None, notes
