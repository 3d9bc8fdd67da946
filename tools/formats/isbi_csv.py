"""ISBI 2015 cephalograms as csv copies of the archive have them: one row per image, 19 landmarks.

    017.jpg,806,1028,1384,972,...

SOURCE is the .csv file. It has no header (one is skipped): each row is a file name, then 19 x,y pairs in px in the
order of the archive; 0.1 mm per px. The number of the image sets its official split.
"""

from pathlib import Path

from reading.images import image_size
from settings import UserError
from tools.formats.common import Images, Reading, make_record, numbers
from tools.formats.files import read_csv
from tools.formats.isbi2015 import LANDMARKS, PRESET, SPACING

__all__ = ["PRESET", "read"]
SIZE = (1935, 2400)  # px
LAST = {150: "train", 300: "test1", 400: "test2"}  # the last image of each set


def read(source: Path, images: Path | None = None) -> Reading:
    """Read a .csv file."""
    pictures, pairs, notes = Images(images or source.parent), [], []
    names = {abbreviation: name for name, abbreviation in LANDMARKS}
    for place, (name, *cells) in enumerate(read_csv(source), 1):
        if place == 1 and not any(cell.lstrip("-")[:1].isdigit() for cell in cells):
            continue
        where = f"{source}: line {place} ({name})"
        values = numbers(cells, where, 2 * len(LANDMARKS))
        path = pictures.take_if_there(name, where, notes)
        if path is None:
            continue
        if not path.stem.isdigit() or not 1 <= int(path.stem) <= max(LAST):
            raise UserError(f"{where}: expected an image named by its number in the archive, 001 to {max(LAST)}")
        split = next(split for last, split in LAST.items() if int(path.stem) <= last)
        width, height = image_size(path)
        if max(values[::2]) < width / 5 and max(values[1::2]) < height / 5:
            raise UserError(
                f"{where}: all points lie in a corner of {width} x {height} px; are they mm, ten times too small?"
            )
        if (width, height) != SIZE:
            notes.append(
                f"{path.name}: has {width} x {height} px, not {SIZE[0]} x {SIZE[1]}: is it {SPACING} mm per px?"
            )
        points = {label: (values[2 * n], values[2 * n + 1]) for n, label in enumerate(names)}
        pairs.append((path, make_record(pictures.name(path), points, names, spacing=SPACING, split=split)))
    return pictures.reading(source, pairs, notes)
