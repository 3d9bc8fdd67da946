"""CL-Detection 2023 and 2024 as csv: one row per image with its spacing, 38 or 53 landmarks.

    file,scale,p1x,p1y,...,p38x,p38y                 2023, as its baseline writes it
    image file,spacing(mm),p1x,p1y,...,p53x,p53y     2024 (some scripts write "image path")

SOURCE is the .csv file. Points are in px; the second column is mm per px of that image.
"""

from pathlib import Path

from settings import UserError
from tools.formats.common import Images, Reading, make_record, numbers, spacing_number
from tools.formats.files import read_csv


def read(source: Path, images: Path | None = None) -> Reading:
    """Read a .csv file."""
    (head, *rows), pictures = read_csv(source) or [[]], Images(images or source.parent)
    count = (len(head) - 2) // 2
    expected = [f"p{n}{axis}" for n in range(1, count + 1) for axis in "xy"]
    if count < 1 or head[0].lower() not in ("file", "image file", "image path") or head[2:] != expected:
        raise UserError(f"{source}: expected the header file,scale,p1x,p1y,... or image file,spacing(mm),p1x,p1y,...")
    if not (head[1].lower() == "scale" or head[1].lower().startswith("spacing")):
        raise UserError(f"{source}: expected scale or spacing(mm) as the second column, found {head[1]!r}")
    pairs, notes = [], []
    for place, (name, scale, *cells) in enumerate((row if len(row) > 1 else [*row, ""] for row in rows), 2):
        where = f"{source}: line {place} ({name})"
        values = numbers(cells, where, 2 * count)
        spacing = spacing_number(scale, f"{where}: {head[1]}")
        path = pictures.take_if_there(name, where, notes)
        if path is not None:
            points = {str(n + 1): (values[2 * n], values[2 * n + 1]) for n in range(count)}
            names = {label: f"Landmark {label}" for label in points}
            pairs.append((path, make_record(pictures.name(path), points, names, spacing=spacing)))
    return pictures.reading(source, pairs, notes)
