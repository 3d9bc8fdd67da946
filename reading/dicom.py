"""Read DICOM images with pydicom: the pixels as a radiologist sees them, and mm per px. No text of a file is kept.

Modality and VOI LUT are applied, MONOCHROME1 is inverted so that bone is bright, and the result has 16 bits.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from settings import UserError

ENDINGS = (".dcm", ".dicom")


class Dicom(NamedTuple):
    """The contents of a DICOM file that are used."""

    image: np.ndarray  # (h, w) uint16, stretched to the whole range
    spacing: float | None  # mm per px
    notes: list[str]  # for the user: where the spacing comes from


def is_dicom(file: Path) -> bool:
    """Return whether a file is named, or starts, like a DICOM file: scanners often write them without an ending."""
    if file.suffix.lower() in ENDINGS:
        return True
    with open(file, "rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def read(file: Path) -> Dicom:
    """Read a file with a single grey image. Raises UserError for anything else, and if pydicom is missing."""
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise UserError("reading DICOM files needs pydicom: pip install pydicom") from None
    try:
        data = pydicom.dcmread(file)
        pixels = data.pixel_array
        photometric = str(data.PhotometricInterpretation)
        if pixels.ndim == 2 and photometric.startswith("MONOCHROME"):
            values = np.asarray(apply_voi_lut(apply_modality_lut(pixels, data), data), np.float64)
        spacings = {key: numbers_of(data.get(key)) for key in ("PixelSpacing", "ImagerPixelSpacing")}
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except Exception as error:  # pydicom and its decoders raise all kinds of errors
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"{file} cannot be read as a DICOM image: {reason}") from None
    if pixels.ndim != 2 or not photometric.startswith("MONOCHROME"):
        raise UserError(f"{file}: expected one grey image, found {pixels.shape} in {photometric}")
    low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, 1e-9)
    if photometric == "MONOCHROME1":
        scaled = 1 - scaled
    spacing, notes = choose_spacing(spacings, file)
    return Dicom((scaled * 65535).round().astype(np.uint16), spacing, notes)


def numbers_of(value) -> list[float]:
    """Return the numbers of a DICOM value: none, one or several."""
    if value is None:
        return []
    return [float(each) for each in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])]


def choose_spacing(spacings: dict[str, list[float]], file: Path) -> tuple[float | None, list[str]]:
    """Return mm per px and notes: PixelSpacing, else ImagerPixelSpacing, which is measured at the detector."""
    for key, values in spacings.items():
        if not values:
            continue
        if len(values) != 2 or not all(math.isfinite(value) and value > 0 for value in values):
            raise UserError(f"{file}: {key} is {values}; expected two numbers above 0")
        if abs(values[0] - values[1]) > 0.01 * values[0]:
            raise UserError(f"{file}: {key} is {values}; pixels that are not square are not supported")
        if key == "PixelSpacing" and values != spacings["ImagerPixelSpacing"]:
            return values[1], []
        return values[1], [
            f"{file.name}: {values[1]:g} mm per px is its ImagerPixelSpacing, measured at the detector; the projection "
            "magnifies the patient (by about 1.1 in cephalograms), so true lengths are smaller"
        ]
    return None, [f"{file.name}: no PixelSpacing"]
