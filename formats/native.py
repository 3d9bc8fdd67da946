"""Our own data.json, and the predictions.csv of a run: to bring them into an annotation program.

[{"imagePath": "a.jpg", "spacing": 0.1, "points": [
    {"pointName": "Sella turcica", "pointAbbreviation": "S", "X": 475.9, "Y": 502.1, "occluded": true}]}]

image,landmark,x,y,x_true,y_true,error_mm,score
"""

from pathlib import Path

from config import UserError
from formats.common import Images, Reading, add_point, expecting, make_record, numbers, read_csv, read_json

HEAD = ["image", "landmark", "x", "y"]


def read(source: Path, images: Path | None = None) -> Reading:
    """The records of a data.json, of a folder that holds json/data.json and imgs, or of a predictions.csv.

    images: the folder of the images; else imgs beside the data.json's folder.
    """
    file = source / "json" / "data.json" if source.is_dir() else source
    pictures = Images(images or file.parent.parent / "imgs")
    records = read_predictions(file) if file.suffix == ".csv" else read_json(file)
    pairs, done = [], set()
    with expecting(file, "a data.json, a list of records with imagePath and points"):
        for record in records:
            name = record["imagePath"]
            path = pictures.find(name)
            if path is None:
                raise UserError(f"{file}: image {name} is not in {pictures.folder}")
            if name in done:
                raise UserError(f"{file}: image {name} stands twice; keep one")
            done.add(name)
            table: dict = {}
            for point in record["points"]:
                label, xy = point["pointAbbreviation"], (point["X"], point["Y"])
                where = f"{file}: image {name}"
                add_point(table, label, None if xy == (None, None) else numbers(xy, f"{where}: {label!r}", 2), where)
            pairs.append((path, record))
    if not pairs:
        raise UserError(f"{file}: there is no record")
    return Reading(pairs, [])


def read_predictions(file: Path) -> list[dict]:
    """The detected landmarks of a predictions.csv as records."""
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
