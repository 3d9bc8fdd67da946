"""Label Studio: the JSON export of a project with KeyPointLabels. Read and written.

    [{"data": {"image": "upload/a.jpg"},
      "annotations": [{"result": [{"original_width": 1198, "original_height": 1438, "image_rotation": 0,
                                   "type": "keypointlabels", "from_name": "kp", "to_name": "image",
                                   "value": {"x": 40.6, "y": 48.7, "width": 0.3, "keypointlabels": ["S"]}}]}]}]

x and y are per cent of width and height. A rotated image is refused; where several people annotated one, choose one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import UserError
from formats.common import (
    Images,
    Reading,
    add_point,
    check_size,
    expecting,
    image_size,
    make_record,
    number,
    read_json,
    record_points,
    same_landmarks,
    write_json,
)


def read(source: Path, images: Path | None = None, landmarks: Sequence[str] = (), annotation: int = 0) -> Reading:
    """The records of a .json file; images: the folder of the images, else the file's.

    annotation: which of an image's annotations, from 1; 0: its only one.
    """
    content, pictures = read_json(source), Images(images or source.parent)
    tables, paths, notes = {}, {}, []
    with expecting(source, "a Label Studio export, a list of tasks"):
        for place, task in enumerate(content, 1):
            (address,) = [value for value in task["data"].values() if isinstance(value, str)][:1]
            name = find_name(address, pictures)
            where = f"{source}: task {place} ({name})"
            done = [each for each in task["annotations"] if not each.get("was_cancelled")]
            if not done:
                notes.append(f"{name}: skipped, it has no annotation")
                continue
            if len(done) > 1 and not annotation:
                raise UserError(f"{where}: has {len(done)} annotations; choose one with annotation, from 1")
            path = pictures.find(name)
            if path is None:
                raise UserError(f"{where}: the image is not in {pictures.folder}")
            if path.name in tables:
                raise UserError(f"{where}: a second task of {path.name}; keep one")
            table: dict[str, Any] = {}
            for result in done[max(annotation, 1) - 1]["result"]:
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
            tables[path.name], paths[path.name] = table, path
    tables, missing = same_landmarks(tables, landmarks)
    return Reading([(paths[name], make_record(name, table)) for name, table in tables.items()], notes + missing)


def find_name(address: str, pictures: Images) -> str:
    """The file name in a task's address; without the random prefix of an upload, if only so it is a file's."""
    name = address.split("?d=")[-1].replace("\\", "/").rsplit("/", 1)[-1]
    _, dash, rest = name.partition("-")
    return rest if dash and pictures.find(name) is None and pictures.find(rest) is not None else name


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """destination/tasks.json, for import with predictions as annotations."""
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
