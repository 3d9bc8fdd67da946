"""LabelMe: one JSON file per image, a labelled point per landmark.

    {"version": "5.0.1", "flags": {}, "imagePath": "a.jpg", "imageData": null, "imageHeight": 1438, "imageWidth": 1198,
     "shapes": [{"label": "S", "points": [[486.4, 700.1]], "group_id": null, "shape_type": "point", "flags": {}}]}

SOURCE is the folder of the JSON files. Points are in px. Shapes other than points are skipped. A label that appears
twice in an image is refused; one that is absent is a missing landmark. Occluded points cannot be marked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from settings import UserError
from tools.formats.common import Images, Reading, add_point, check_size, image_size, numbers, record_points
from tools.formats.files import check_folder, expecting, read_json, write_json


def read(source: Path, images: Path | None = None, landmarks: tuple[str, ...] = ()) -> Reading:
    """Read all .json files in a folder and its subfolders."""
    files = sorted(check_folder(source, "the folder of the .json files").rglob("*.json"))
    pictures, notes = Images(images or source), []
    tables: dict[Path, dict[str, Any]] = {}
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict) or "shapes" not in content:
            notes.append(f"{file.name}: skipped, it is not a LabelMe file (it has no shapes)")
            continue
        with expecting(file, "a LabelMe file"):
            table: dict[str, Any] = {}
            for place, shape in enumerate(content["shapes"], 1):
                where = f"{file}: shape {place}"
                if shape.get("shape_type", "point") != "point":  # old files have no shape_type
                    notes.append(f"{file.name}: skipped {shape['label']!r}, a {shape['shape_type']}")
                    continue
                (point,) = shape["points"]
                add_point(table, shape["label"], numbers(point, where, 2), where)
            name = content["imagePath"]
            if pictures.find(name) is None and (path := pictures.find(file.stem)) is not None:
                notes.append(f"{file.name}: its image {name} is not there, {path.name} is taken")
                name = file.stem
            path = pictures.take(name, file)
            if content.get("imageWidth") is None or content.get("imageHeight") is None:
                notes.append(f"{file.name}: imageWidth or imageHeight is absent, so the size is not checked")
            else:
                check_size((content["imageWidth"], content["imageHeight"]), path, str(file))
            tables[path] = table
    return pictures.labelled_reading(source, tables, landmarks, notes)


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """Write a .json file per image into a folder."""
    stems = [Path(record["imagePath"]).stem for _, record in pairs]
    if len(set(stems)) != len(stems):
        raise UserError(f"two images are called {next(s for s in stems if stems.count(s) > 1)}, with other endings")
    for path, record in pairs:
        width, height = image_size(path)
        shapes = [
            {"label": label, "points": [list(point)], "group_id": None, "shape_type": "point", "flags": {}}
            for label, point in record_points(record).items()
            if point is not None
        ]
        content = {
            "version": "5.0.1", "flags": {}, "shapes": shapes, "imagePath": record["imagePath"], "imageData": None,
            "imageHeight": height, "imageWidth": width,
        }  # fmt: skip
        write_json(destination / f"{Path(record['imagePath']).stem}.json", content)
