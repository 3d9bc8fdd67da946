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

from reading.images import ENDINGS, image_size
from settings import UserError, expecting, read_json
from tools.formats.common import Images, Reading, add_point, check_size, number, record_points
from tools.formats.files import write_json


def read(
    source: Path, images: Path | None = None, landmarks: tuple[str, ...] = (), annotation: int = 0, annotator: str = ""
) -> Reading:
    """Read a .json file.

    annotation: which annotation of an image to read if several people annotated it, from 1; default: its only one
    annotator: whose annotations to read if several people annotated: number, e-mail address or name; default: all
    """
    content, pictures, notes = read_json(source), Images(images or source.parent), []
    tables: dict[Path, dict[str, Any]] = {}
    with expecting(source, "a Label Studio export, a list of tasks"):
        people = [people_of(each) for task in content for each in task.get("annotations") or []]
    if annotator and not any(annotator.casefold() in each for each in people):
        known = ", ".join(sorted({name for each in people for name in each})) or "none is named"
        raise UserError(f"{source}: no annotation is by {annotator!r}; --annotator can be: {known}")
    for place, task in enumerate(content, 1):
        with expecting(f"{source}: task {place}", "a task of Label Studio"):
            everything = task.get("annotations") or []
            done = [each for each in everything if not each.get("was_cancelled")]
            cancelled = len(everything) - len(done)
            done = [each for each in done if not annotator or annotator.casefold() in people_of(each)]
            if not done:
                name = next((value for value in task["data"].values() if isinstance(value, str)), "no image")
                why = f"no annotation by {annotator}" if annotator else "no annotation"
                notes.append(
                    f"task {place} ({name}): skipped, it has {why}" + (", one was cancelled" * bool(cancelled))
                )
                continue
            name = find_name(task["data"], pictures, f"{source}: task {place}")
            where = f"{source}: task {place} ({name})"
            if len(done) > 1 and not annotation:
                raise UserError(
                    f"{where}: has {len(done)} annotations; choose one with --annotation, from 1, or --annotator"
                )
            if not 0 <= annotation <= len(done):
                raise UserError(f"{where}: has {len(done)} annotations, but --annotation is {annotation}")
            results = point_results(done[max(annotation, 1) - 1]["result"] or [], f"task {place} ({name})", notes)
            if not results:
                notes.append(f"task {place} ({name}): skipped, it has no points")
                continue
            if len({result.get("to_name") for result in results}) > 1:
                raise UserError(f"{where}: its points lie on several images")
            path, table = pictures.take(name, f"{source}: task {place}"), {}
            for result in results:
                if result.get("image_rotation", 0) != 0:
                    raise UserError(f"{where}: the image was rotated by {result['image_rotation']} in the program")
                (label,) = result["value"]["keypointlabels"]
                size = (result["original_width"], result["original_height"])
                check_size(size, path, where)
                x, y = (number(result["value"][axis], f"{where}: {axis} of {label!r}") for axis in "xy")
                add_point(table, label, (x * size[0] / 100, y * size[1] / 100), where)
            tables[path] = table
    return pictures.labelled_reading(source, tables, landmarks, notes)


def point_results(results: list[dict], where: str, notes: list[str]) -> list[dict]:
    """Return the labelled points of an annotation; add a note on each other result."""
    points = []
    for place, result in enumerate(results, 1):
        value = result.get("value", {})
        if result["type"] != "keypointlabels":
            notes.append(f"{where}: skipped a {result['type']}")
        elif not value.get("keypointlabels"):
            notes.append(f"{where}: skipped result {place}, a point without a label")
        elif "x" not in value and "y" not in value:  # a prompt of a segmenting model
            notes.append(f"{where}: skipped result {place}, {value['keypointlabels'][0]!r} without a place")
        else:
            points.append(result)
    return points


def people_of(annotation: dict) -> set[str]:
    """Return the names of an annotation's author, in lower case: number, e-mail address, full name."""
    author = annotation.get("completed_by")
    if not isinstance(author, dict):
        return set() if author is None else {str(author).casefold()}
    full = f"{author.get('first_name') or ''} {author.get('last_name') or ''}"
    names = [author.get("id"), author.get("email"), author.get("username"), full]
    return {str(name).strip().casefold() for name in names if str(name or "").strip()}


def find_name(data: dict, pictures: Images, where: str) -> str:
    """Return the path of a task's image: its address without server, query and the prefix of an upload."""
    images = {key: value for key, value in data.items() if isinstance(value, str)}
    images = {key: value for key, value in images.items() if urlsplit(value).path.lower().endswith(ENDINGS)} or images
    if "image" in images:
        images = {"image": images["image"]}
    if len(images) != 1:
        raise UserError(f"{where}: expected one image, found {', '.join(images) or 'none'} in its data")
    (address,) = images.values()
    parts = urlsplit(address.replace("\\", "/"))
    path = unquote(parse_qs(parts.query).get("d", [parts.path])[0]).replace("\\", "/")
    folders, _, last = path.rpartition("/")
    if re.fullmatch(r".*/upload(/\d+)?|upload(/\d+)?", folders):  # the program's own folder, not the data set's
        folders = ""
    plain = re.sub(r"^[0-9a-f]{8}-", "", last)
    names = [f"{folders}/{each}".lstrip("/") for each in (last, plain)]
    if pictures.find(address, exact=True) is not None:  # a plain path, in which % and # mean themselves
        return address
    return next((name for name in (names[0], names[1], address) if pictures.find(name) is not None), names[1])


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
