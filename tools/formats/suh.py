"""The annotator of Suh et al.: one csv file, a row per image.

    image_name,image_width,image_height,n_landmarks,landmark_1_x,landmark_1_y,landmark_2_x,landmark_2_y
    a.jpg,1198,1438,2,486,700,512,

SOURCE is the .csv file. Points are in whole px; a point is missing if one or both of its cells are blank.
"""

from pathlib import Path

from settings import UserError
from tools.formats.common import Images, Reading, check_size, make_record, note_missing, number, numbers
from tools.formats.files import read_csv

HEAD = ["image_name", "image_width", "image_height", "n_landmarks"]


def read(source: Path, images: Path | None = None) -> Reading:
    """Read a .csv file."""
    (head, *rows), pictures = read_csv(source) or [[]], Images(images or source.parent)
    count = (len(head) - len(HEAD)) // 2
    expected = [f"landmark_{n}_{axis}" for n in range(1, count + 1) for axis in "xy"]
    if count < 1 or head != HEAD + expected:
        raise UserError(f"{source}: expected the header {','.join(HEAD)},landmark_1_x,landmark_1_y,...")
    pairs, notes = [], []
    for place, row in enumerate(rows, 2):
        where = f"{source}: line {place} ({row[0]})"
        if len(row) != len(head):
            raise UserError(f"{where}: has {len(row)} cells, the header {len(head)}")
        if number(row[3], f"{where}: n_landmarks") != count:
            raise UserError(f"{where}: n_landmarks is {row[3]}, the header has {count}")
        path = pictures.take_if_there(row[0], where, notes)
        if path is None:
            continue
        check_size((row[1], row[2]), path, where)
        points: dict = {}
        for n in range(count):
            cells = row[len(HEAD) + 2 * n :][:2]
            points[str(n + 1)] = numbers(cells, f"{where}: landmark {n + 1}") if all(cells) else None
        notes += note_missing(row[0], points)
        pairs.append((path, make_record(pictures.name(path), points, {n: f"Landmark {n}" for n in points})))
    return pictures.reading(source, pairs, notes)
