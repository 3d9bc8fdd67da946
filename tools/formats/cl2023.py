"""CL-Detection 2023 as published: one json for all images and one zero-padded .mha stack, 38 landmarks.

    {"name": "Orthodontic landmarks", "type": "Multiple points",
     "points": [{"name": "1", "point": [835.0, 996.0, 1], "scale": "0.1"}]}

The third number of a point is the number of its image in the stack, from 1; scale is mm per px of that image, as text.
The stack is read by SimpleITK; images are written as PNG without the zeros beside and below them, which moves no point.
"""

from functools import partial
from pathlib import Path

import numpy as np

from settings import UserError
from tools.formats.common import Reading, add_point, expecting, make_record, number, numbers, read_json

PRESET = "cl2023"
NUM_LANDMARKS = 38
NAMES = {str(n): f"Landmark {n}" for n in range(1, NUM_LANDMARKS + 1)}


def read(source: Path, stack: Path | None = None) -> Reading:
    """The records of the .json file; stack: the .mha file, else the only one in the json's folder."""
    if stack is None:
        found = sorted(source.parent.glob("*.mha"))
        if len(found) != 1:
            raise UserError(f"{source.parent} holds {len(found)} .mha files; give the option stack")
        (stack,) = found
    tables: dict[int, dict] = {}
    scales: dict[int, float] = {}
    with expecting(source, "the json of CL-Detection 2023"):
        for place, entry in enumerate(read_json(source)["points"], 1):
            where = f"{source}: point {place}"
            x, y, slice_ = numbers(entry["point"], where, 3)
            if slice_ != int(slice_) or slice_ < 1:
                raise UserError(f"{where}: the image's number is {slice_:g}; expected 1, 2, ...")
            if entry["name"] not in NAMES:
                raise UserError(f"{where}: the landmark is {entry['name']!r}; expected 1 to {NUM_LANDMARKS}")
            scale = number(entry["scale"], f"{where}: scale")
            if not scale > 0 or scales.setdefault(int(slice_), scale) != scale:
                raise UserError(f"{where}: scale is {scale:g}; expected one number above 0 for all points of an image")
            add_point(tables.setdefault(int(slice_), {}), entry["name"], (x, y), f"{where}, image {slice_:g}")
    volume = read_stack(stack)
    if not tables or max(tables) > len(volume):
        raise UserError(f"{source} speaks of {max(tables, default=0)} images, {stack} holds {len(volume)}")
    pairs, notes = [], []
    for slice_, table in sorted(tables.items()):
        missing = [label for label in NAMES if label not in table]
        notes += [f"image {slice_}: missing {', '.join(missing)}"] if missing else []
        record = make_record(
            f"{slice_:03d}.png", {label: table.get(label) for label in NAMES}, NAMES, spacing=scales[slice_]
        )
        pairs.append((partial(without_padding, volume[slice_ - 1]), record))
    unused = [str(n + 1) for n in range(len(volume)) if n + 1 not in tables]
    return Reading(pairs, notes + ([f"images without points, skipped: {', '.join(unused)}"] if unused else []))


def read_stack(file: Path) -> np.ndarray:
    """The images (count, h, w) or (count, h, w, 3) of a .mha file. Raises UserError."""
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
    """An image (h, w) or (h, w, 3) without the columns at its right and the rows at its bottom that are all 0."""
    used = image.any(-1) if image.ndim == 3 else image != 0
    if not used.any():
        return image
    height, width = (np.flatnonzero(used.any(1 - axis))[-1] + 1 for axis in (0, 1))
    return image[:height, :width]
