"""LabelMe: one JSON file per image, a labelled point per landmark.

    {"version": "5.0.1", "flags": {}, "imagePath": "a.jpg", "imageData": null, "imageHeight": 1438, "imageWidth": 1198,
     "shapes": [{"label": "S", "points": [[486.4, 700.1]], "group_id": null, "shape_type": "point", "flags": {}}]}

SOURCE is the folder of the JSON files. Points are in px. Shapes other than points are skipped. A label that appears
twice in an image is refused; one that is absent is a missing landmark. Occluded points cannot be marked. imagePath is
relative to its JSON file. If no image is there, one that is called like the JSON file is taken, or the picture in
imageData, which becomes PNG.
"""

import base64
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reading.images import image_size, read_image
from reading.paths import find_file, path_parts, visible_files
from settings import UserError, expecting, read_json
from tools.formats.common import (
    Images,
    Pixels,
    Reading,
    add_point,
    check_same_size,
    is_unlabelled,
    numbers,
    record_points,
)  # fmt: skip
from tools.formats.files import check_folder, write_json


def read(source: Path, images: Path | None = None, landmarks: tuple[str, ...] = ()) -> Reading:
    """Read all .json files in a folder and its subfolders."""
    files = visible_files(check_folder(source, "the folder of the .json files"), "*.json")
    pictures, notes = Images(images or source), []
    tables: dict[Path, dict[str, Any]] = {}
    inside: dict[Path | Pixels, Pixels] = {}  # the pictures of imageData, by the file that they would be
    for file in files:
        content, own = read_json(file), file.relative_to(source)
        if not isinstance(content, dict) or "shapes" not in content:
            notes.append(f"{own}: skipped, it is not a LabelMe file (it has no shapes)")
            continue
        with expecting(file, "a LabelMe file"):
            table: dict[str, Any] = {}
            for place, shape in enumerate(content["shapes"] or [], 1):
                where = f"{file}: shape {place}"
                with expecting(where, "a shape of LabelMe"):
                    if (shape.get("shape_type") or "point") != "point":  # old files have no shape_type
                        notes.append(f"{own}: skipped {shape.get('label')!r}, a {shape['shape_type']}")
                        continue
                    if is_unlabelled(shape.get("label")):
                        notes.append(f"{own}: skipped shape {place}, a point without a label")
                        continue
                    (point,) = shape["points"]
                    add_point(table, shape["label"], numbers(point, where, 2), where)
            name = content["imagePath"]
            path, stale = find_image(own, name, pictures, source, beside=images is None)
            if path is not None:
                if stale:
                    notes.append(f"{own}: its image {name} is not there, {pictures.name(path)} is taken")
                pictures.claim(path, file)
                size = image_size(path)
            elif not table:
                notes.append(f"{own}: skipped, it has no points, and its image {name} is not there")
                continue
            elif content.get("imageData"):
                path = pictures.claim(file.with_suffix(".png"), file)
                pixels = decode_image(content["imageData"], file)
                inside[path], size = partial(np.asarray, pixels), (pixels.shape[1], pixels.shape[0])
                notes.append(f"{own}: its image {name} is not there, the picture in its imageData is taken")
            else:
                raise UserError(
                    f"{file}: its image {name} is not there; put it beside the file, or give the folder of the images "
                    "with --images"
                )
            stated = (content.get("imageWidth"), content.get("imageHeight"))
            if None in stated:
                notes.append(f"{own}: imageWidth or imageHeight is absent, so the size is not checked")
            else:
                check_same_size(stated, size, path, str(file))
            tables[path] = table
    reading = pictures.labelled_reading(source, tables, landmarks, notes)
    return reading._replace(pairs=[(inside.get(path, path), record) for path, record in reading.pairs])


def find_image(own: Path, name: Any, pictures: Images, source: Path, beside: bool) -> tuple[Path | None, bool]:
    """Return the image of the file source/own, and whether it is not the one at imagePath, but one beside the file.

    Such an image has the name in imagePath, or the stem of the file. Unless `beside`, images are looked for in the
    folder of the images instead, in the same subfolder.
    """
    if not isinstance(name, str) or not path_parts(name):
        raise UserError(f"{source / own}: imagePath is {name!r}; expected the path of an image")
    if beside and (path := find_file(source / own.parent, name)) is not None:
        return path, False
    folder = own.parent.as_posix()
    for place, each in enumerate(
        (f"{folder}/{name}", f"{folder}/{path_parts(name)[-1]}", own.with_suffix("").as_posix())
    ):
        if (path := pictures.find(each, exact=beside)) is not None:
            pictures.check_namesake(each, path, source / own)
            return path, place > 0
    return None, False


def decode_image(data: Any, file: Path) -> np.ndarray:
    """Return the picture that a file holds as base64, read as any image file: 8 bit, or 16 bit if it is deeper.

    Raises UserError.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imageData"
        try:
            path.write_bytes(base64.b64decode(data))
            image = read_image(path)
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: its imageData cannot be read as an image: {error}") from None
        except UserError as error:
            raise UserError(
                f"{file}: its imageData cannot be used: {str(error).replace(str(path), path.name)}"
            ) from None
    if image.dtype == np.uint8:
        return image
    if image.ndim == 3 and (image != image[..., :1]).any():
        return image.round().astype(np.uint8)  # PNG as Pillow writes it has no deep colours
    return (257 * (image if image.ndim == 2 else image[..., 0])).round().astype(np.uint16)


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """Write a .json file per image into a folder, and into subfolders like those of the images."""
    files = [destination / Path(record["imagePath"]).with_suffix(".json") for _, record in pairs]
    if doubled := [file for file in files if files.count(file) > 1]:
        raise UserError(f"two images are called {doubled[0].stem}, with other endings; rename one")
    for file, (path, record) in zip(files, pairs, strict=True):
        width, height = image_size(path)
        shapes = [
            {"label": label, "points": [list(point)], "group_id": None, "shape_type": "point", "flags": {}}
            for label, point in record_points(record).items()
            if point is not None
        ]
        content = {
            "version": "5.0.1", "flags": {}, "shapes": shapes,
            "imagePath": Path(os.path.relpath(path.absolute(), file.parent.resolve())).as_posix(), "imageData": None,
            "imageHeight": height, "imageWidth": width,
        }  # fmt: skip
        write_json(file, content)
