"""Label Studio: the JSON export of a project with KeyPointLabels.

    [{"data": {"image": "upload/a.jpg"},
      "annotations": [{"result": [{"original_width": 1198, "original_height": 1438, "image_rotation": 0,
                                   "type": "keypointlabels", "from_name": "kp", "to_name": "image",
                                   "value": {"x": 40.6, "y": 48.7, "width": 0.3, "keypointlabels": ["S"]}}]}]}]

SOURCE is the JSON file. x and y are per cent of the image's width and height. An image that was rotated in the program
is refused. Occluded points cannot be marked.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from reading.images import ENDINGS
from settings import UserError
from tools.formats.common import Images, Reading, add_point, check_size, image_size, number, record_points
from tools.formats.files import expecting, read_json, write_json


def read(source: Path, images: Path | None = None, landmarks: tuple[str, ...] = (), annotation: int = 0) -> Reading:
    """Read a .json file.

    annotation: which annotation of an image to read if several people annotated it, from 1; default: its only one
    """
    content, pictures, notes = read_json(source), Images(images or source.parent), []
    tables: dict[Path, dict[str, Any]] = {}
    with expecting(source, "a Label Studio export, a list of tasks"):
        for place, task in enumerate(content, 1):
            name = find_name(task["data"], pictures, f"{source}: task {place}")
            where = f"{source}: task {place} ({name})"
            done = [each for each in task["annotations"] if not each.get("was_cancelled")]
            if not done:
                notes.append(f"{name}: skipped, it has no annotation")
                continue
            if len(done) > 1 and not annotation:
                raise UserError(f"{where}: has {len(done)} annotations; choose one with --annotation, from 1")
            if not 0 <= annotation <= len(done):
                raise UserError(f"{where}: has {len(done)} annotations, but --annotation is {annotation}")
            path, table = pictures.take(name, f"{source}: task {place}"), {}
            results = done[max(annotation, 1) - 1]["result"]
            if len({result.get("to_name") for result in results}) > 1:
                raise UserError(f"{where}: its points lie on several images")
            for result in results:
                if result["type"] != "keypointlabels":
                    notes.append(f"{path.name}: skipped a {result['type']}")
                    continue
                if result.get("image_rotation", 0) != 0:
                    raise UserError(f"{where}: the image was rotated by {result['image_rotation']} in the program")
                (label,) = result["value"]["keypointlabels"]
                size = (result["original_width"], result["original_height"])
                check_size(size, path, where)
                x, y = (number(result["value"][axis], f"{where}: {axis} of {label!r}") for axis in "xy")
                add_point(table, label, (x * size[0] / 100, y * size[1] / 100), where)
            tables[path] = table
    return pictures.labelled_reading(source, tables, landmarks, notes)


def find_name(data: dict, pictures: Images, where: str) -> str:
    """Return the name of a task's image: its address without server, query and the prefix of an upload."""
    images = {key: value for key, value in data.items() if isinstance(value, str)}
    images = {key: value for key, value in images.items() if urlsplit(value).path.lower().endswith(ENDINGS)} or images
    if "image" in images:
        images = {"image": images["image"]}
    if len(images) != 1:
        raise UserError(f"{where}: expected one image, found {', '.join(images) or 'none'} in its data")
    (address,) = images.values()
    parts = urlsplit(address)
    name = unquote(parse_qs(parts.query).get("d", [parts.path])[0]).replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"^[0-9a-f]{8}-", "", name) if pictures.find(name) is None else name


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """Write destination/tasks.json, to be imported with its points as annotations."""
    tasks = []
    for path, record in pairs:
        width, height = image_size(path)
        results = [
            {
                "original_width": width, "original_height": height, "image_rotation": 0, "type": "keypointlabels",
                "from_name": "kp", "to_name": "image",
                "value": {
                    "x": 100 * point[0] / width, "y": 100 * point[1] / height, "width": 0.3, "keypointlabels": [label],
                },
            }
            for label, point in record_points(record).items()
            if point is not None
        ]  # fmt: skip
        tasks.append({"data": {"image": record["imagePath"]}, "annotations": [{"result": results}]})
    write_json(destination / "tasks.json", tasks)
