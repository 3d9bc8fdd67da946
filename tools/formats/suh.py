"""The annotator of Suh et al.: one csv, a row per image; blanks are missing points.

    image_name,image_width,image_height,n_landmarks,landmark_1_x,landmark_1_y,landmark_2_x,landmark_2_y
    a.jpg,1198,1438,2,486,700,512,

Points in whole px; a point of which one or both cells are blank is missing.
"""

from pathlib import Path

from settings import UserError
from tools.formats.common import Images, Reading, check_size, make_record, number, numbers, read_csv

HEAD = ["image_name", "image_width", "image_height", "n_landmarks"]


def read(source: Path, images: Path | None = None) -> Reading:
    """The records of a .csv file; images: the folder of the images, else the file's."""
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
        path = pictures.take(row[0], where, notes)
        if path is None:
            continue
        check_size((row[1], row[2]), path, where)
        points: dict = {}
        for n in range(count):
            cells = row[len(HEAD) + 2 * n :][:2]
            points[str(n + 1)] = numbers(cells, f"{where}: landmark {n + 1}") if all(cells) else None
        missing = [label for label, point in points.items() if point is None]
        notes += [f"{row[0]}: missing {', '.join(missing)}"] if missing else []
        pairs.append((path, make_record(path.name, points, {n: f"Landmark {n}" for n in points})))
    if not pairs:
        raise UserError(f"{source}: no row has an image in {pictures.folder}")
    return Reading(pairs, notes + pictures.unused())
