"""LabelMe: one JSON file per image, a labelled point per landmark. Read and written.

    {"version": "5.0.1", "flags": {}, "imagePath": "a.jpg", "imageData": null, "imageHeight": 1438, "imageWidth": 1198,
     "shapes": [{"label": "S", "points": [[486.4, 700.1]], "group_id": null, "shape_type": "point", "flags": {}}]}

Points in px. Shapes that are no points are skipped; a label that stands twice is refused, an absent one is missing. It
has no place for what is occluded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from settings import UserError
from tools.formats.common import (
    Images,
    Reading,
    add_point,
    check_folder,
    check_size,
    expecting,
    image_size,
    make_record,
    numbers,
    read_json,
    record_points,
    same_landmarks,
    write_json,
)


def read(source: Path, images: Path | None = None, landmarks: Sequence[str] = ()) -> Reading:
    """The records of all .json files in a folder; images: the folder of the images, else the same."""
    files = sorted(check_folder(source, "the folder of the .json files").rglob("*.json"))
    pictures, tables, paths, notes = Images(images or source), {}, {}, []
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict) or "shapes" not in content:
            notes.append(f"{file.name}: skipped, no LabelMe file (it has no shapes)")
            continue
        with expecting(file, "a LabelMe file"):
            table: dict[str, Any] = {}
            for place, shape in enumerate(content["shapes"], 1):
                where = f"{file}: shape {place}"
                if shape.get("shape_type", "point") != "point":  # which old files do not tell
                    notes.append(f"{file.name}: skipped {shape['label']!r}, a {shape['shape_type']}")
                    continue
                (point,) = shape["points"]
                add_point(table, shape["label"], numbers(point, where, 2), where)
            path = pictures.find(content["imagePath"])
            if path is None and (path := pictures.find(file.stem)) is not None:
                notes.append(f"{file.name}: its image {content['imagePath']} is not there, {path.name} is taken")
            if path is None:
                raise UserError(f"{file}: its image {content['imagePath']} is not in {pictures.folder}")
            if path.name in tables:
                raise UserError(f"{file}: a second annotation of {path.name}; keep one")
            if content.get("imageWidth") is None or content.get("imageHeight") is None:
                notes.append(f"{file.name}: does not tell the image's size, which cannot be checked")
            else:
                check_size((content["imageWidth"], content["imageHeight"]), path, str(file))
            tables[path.name], paths[path.name] = table, path
    if not tables:
        raise UserError(f"{source} holds no LabelMe files (.json with shapes)")
    tables, missing = same_landmarks(tables, landmarks)
    return Reading(
        [(paths[name], make_record(name, table)) for name, table in tables.items()], notes + missing + pictures.unused()
    )


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """A .json file per image in a folder."""
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
