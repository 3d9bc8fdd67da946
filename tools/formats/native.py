"""Our own data.json, or the predictions.csv of a run, to bring them into an annotation program.

    [{"imagePath": "a.jpg", "spacing": 0.1, "points": [
        {"pointName": "Sella turcica", "pointAbbreviation": "S", "X": 475.9, "Y": 502.1, "occluded": true}]}]

    image,landmark,x,y,x_true,y_true,error_mm,score

SOURCE is a data.json, a folder that holds json/data.json and imgs/, or a predictions.csv (then give --images).
"""

from pathlib import Path

import numpy as np

from reading.annotation import read_points, read_record
from reading.images import image_size
from settings import UserError, read_json
from tools.formats.common import Images, Reading, add_point, check_not_origin, make_record, numbers, record_points
from tools.formats.files import read_csv
from utils import clip_to_image

HEAD = ["image", "landmark", "x", "y"]


def read(source: Path, images: Path | None = None) -> Reading:
    """Read a data.json, a folder that holds it, or a predictions.csv, whose points beside the image go to its border.

    images: folder of the images; default: imgs beside the folder of data.json
    """
    file = source / "json" / "data.json" if source.is_dir() else source
    pictures = Images(images or file.parent.parent / "imgs")
    predicted = file.suffix == ".csv"
    records = predicted_records(file) if predicted else read_json(file)
    if not isinstance(records, list) or not records:
        raise UserError(f"{file}: expected a list of records")
    pairs, notes, labels = [], list[str](), None
    for place, record in enumerate(records, 1):
        where = f"{file}: record {place}"
        read_record(where, record, list(read_points(where, record).values()), pictures.folder)  # checks the values
        for label, point in record_points(record).items():
            check_not_origin(label, point, where)
        path = pictures.take(record["imagePath"], where)
        if labels not in (None, set(record_points(record))):
            raise UserError(f"{where}: its landmarks are not those of the first record")
        labels = set(record_points(record))
        if predicted:
            points, size = record_points(record), image_size(path)
            inside = {label: tuple(clip_to_image(np.array(own), size).tolist()) for label, own in points.items() if own}
            if moved := [label for label, own in inside.items() if own != points[label]]:
                notes.append(f"{record['imagePath']}: beside the image, moved to its border: {', '.join(moved)}")
            record = make_record(record["imagePath"], inside)
        pairs.append((path, record | {"imagePath": pictures.name(path)}))
    return pictures.reading(source, pairs, notes)


def predicted_records(file: Path) -> list[dict]:
    """Return the predicted landmarks of a predictions.csv as records."""
    head, *rows = read_csv(file) or [[]]
    if head[:4] != HEAD:
        raise UserError(f"{file}: expected a predictions.csv, with the columns {','.join(HEAD)},...")
    tables: dict[str, dict] = {}
    for place, row in enumerate(rows, 2):
        where = f"{file}: line {place}"
        if len(row) != len(head):
            raise UserError(f"{where}: has {len(row)} cells, the header {len(head)}")
        add_point(tables.setdefault(row[0], {}), row[1], numbers(row[2:4], where), where)
    return [make_record(image, table) for image, table in tables.items()]
