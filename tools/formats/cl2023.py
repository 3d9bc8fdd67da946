"""CL-Detection 2023 as published: one JSON file for all images and one zero-padded .mha stack, 38 landmarks.

    {"name": "Orthodontic landmarks", "type": "Multiple points",
     "points": [{"name": "1", "point": [835.0, 996.0, 1], "scale": "0.1"}]}

SOURCE is the JSON file. The third number of a point is the number of its image in the stack, from 1; scale is mm per px
of that image. Reading the stack needs SimpleITK. Images are written as PNG without the columns and rows of zeros at
their right and bottom; no point moves.
"""

from functools import partial
from pathlib import Path

import numpy as np

from settings import UserError, expecting, read_json
from tools.formats.common import Reading, add_point, make_record, note_missing, numbers, spacing_number

PRESET = "cl2023"
NUM_LANDMARKS = 38
NAMES = {str(n): f"Landmark {n}" for n in range(1, NUM_LANDMARKS + 1)}


def read(source: Path, stack: Path | None = None) -> Reading:
    """Read the .json file and the stack.

    stack: the .mha file; default: the only one in the folder of the .json file
    """
    if stack is None:
        found = sorted(source.parent.glob("*.mha"))
        if len(found) != 1:
            raise UserError(f"{source.parent} holds {len(found)} .mha files; choose one with --stack")
        (stack,) = found
    tables: dict[int, dict] = {}
    scales: dict[int, float] = {}
    with expecting(source, "the JSON file of CL-Detection 2023"):
        for place, entry in enumerate(read_json(source)["points"], 1):
            where = f"{source}: point {place}"
            x, y, slice_ = numbers(entry["point"], where, 3)
            if slice_ != int(slice_) or slice_ < 1:
                raise UserError(f"{where}: the number of its image is {slice_:g}; expected 1, 2, ...")
            if entry["name"] not in NAMES:
                raise UserError(f"{where}: the landmark is {entry['name']!r}; expected 1 to {NUM_LANDMARKS}")
            scale = spacing_number(entry["scale"], f"{where}: scale")
            if scales.setdefault(int(slice_), scale) != scale:
                raise UserError(f"{where}: scale is {scale:g}; expected one number for all points of an image")
            add_point(tables.setdefault(int(slice_), {}), entry["name"], (x, y), f"{where}, image {slice_:g}")
    volume = read_stack(stack)
    if not tables or max(tables) > len(volume):
        raise UserError(f"{source} annotates {max(tables, default=0)} images, {stack} holds {len(volume)}")
    pairs, notes = [], []
    for slice_, table in sorted(tables.items()):
        points = {label: table.get(label) for label in NAMES}
        notes += note_missing(f"image {slice_}", points)
        record = make_record(f"{slice_:03d}.png", points, NAMES, spacing=scales[slice_])
        pairs.append((partial(without_padding, volume[slice_ - 1]), record))
    unused = [str(n + 1) for n in range(len(volume)) if n + 1 not in tables]
    return Reading(pairs, notes + ([f"images without points, skipped: {', '.join(unused)}"] if unused else []))


def read_stack(file: Path) -> np.ndarray:
    """Return the images (count, h, w) or (count, h, w, 3) of a .mha file. Raises UserError."""
    try:
        import SimpleITK
    except ImportError:
        raise UserError("reading .mha files needs SimpleITK: pip install SimpleITK") from None
    try:
        volume = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
    except RuntimeError as error:
        raise UserError(f"{file} cannot be read as .mha: {str(error).strip().splitlines()[-1]}") from None
    if volume.ndim not in (3, 4) or volume.dtype != np.uint8:
        raise UserError(f"{file}: expected a stack of 8-bit images, found {volume.shape} of {volume.dtype}")
    return volume


def without_padding(image: np.ndarray) -> np.ndarray:
    """Return an image (h, w) or (h, w, 3) without the columns at its right and rows at its bottom that are all 0."""
    used = image.any(-1) if image.ndim == 3 else image != 0
    if not used.any():
        return image
    height, width = (np.flatnonzero(used.any(1 - axis))[-1] + 1 for axis in (0, 1))
    return image[:height, :width]
