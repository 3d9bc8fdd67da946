"""COCO keypoints: one JSON file for all images.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 1198, "height": 1438, "spacing": 0.1}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1198, 1438], "area": 1722724,
                      "iscrowd": 0, "keypoints": [486.4, 700.1, 2, 0, 0, 0], "num_keypoints": 1}],
     "categories": [{"id": 1, "name": "ceph", "keypoints": ["S", "N"], "skeleton": []}]}

SOURCE is the JSON file, or a folder that holds several, as Roboflow writes them: its folders train, valid and test
set the splits. A keypoint is x and y in px and v: 0 not labelled (missing, whatever x and y are), 1 labelled
but not visible (occluded), 2 visible. spacing, mm per px, is not part of COCO; it is read if it is there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reading.images import image_size
from reading.paths import visible_files
from settings import UserError, expecting, read_json
from tools.formats.common import (
    Images,
    Reading,
    check_size,
    folder_split,
    make_record,
    note_missing,
    numbers,
    occluded_in,
    record_points,
    spacing_number,
)  # fmt: skip
from tools.formats.files import write_json


def read(source: Path, images: Path | None = None, category: str = "") -> Reading:
    """Read a .json file, or all in a folder and its subfolders.

    category: name of the category to read; needed if several have keypoints
    """
    folder = source if source.is_dir() else source.parent
    files = visible_files(source, "*.json") if source.is_dir() else [source]
    pictures, notes, pairs = Images(images or folder), [], []
    known: tuple[Path, list[str]] | None = None
    for file in files:
        content = read_json(file)
        if source.is_dir() and (not isinstance(content, dict) or not {"images", "annotations"} <= content.keys()):
            notes.append(
                f"{file.relative_to(folder)}: skipped, it is not a COCO file (it has no annotations of images)"
            )
            continue
        with expecting(file, "a COCO file with images, annotations and categories"):
            chosen, labels = choose_category(content, category, file)
            known = known or (file, labels)
            if set(labels) != set(known[1]):
                raise UserError(f"{file}: its keypoints are {', '.join(labels)}; {known[0]} has {', '.join(known[1])}")
            annotations, described = find_annotations(content, chosen, file), list(content["images"])
        split = folder_split(file, source) if source.is_dir() else None
        for place, image in enumerate(described, 1):
            with expecting(f"{file}: image {place}", "an image of COCO with id and file_name"):
                inside = "" if file.parent == folder else f"{file.parent.relative_to(folder).as_posix()}/"
                name = f"{inside}{image['file_name']}"
                where = f"{file}: image {image['file_name']}"
                annotation = annotations.pop(image["id"], None)
                if annotation is None:
                    notes.append(f"{image['file_name']}: skipped, it has no annotation with keypoints")
                    continue
                path = pictures.take(name, file)
                if image.get("width") is None or image.get("height") is None:
                    notes.append(f"{pictures.name(path)}: width or height is absent, so the size is not checked")
                else:
                    check_size((image["width"], image["height"]), path, where)
                points, occluded = read_keypoints(annotation["keypoints"], labels, where)
                notes += note_missing(pictures.name(path), points)
                spacing = image.get("spacing")
                spacing = None if spacing is None else spacing_number(spacing, f"{where}: spacing")
                points = {label: points[label] for label in known[1]}
                record = make_record(pictures.name(path), points, occluded=occluded, spacing=spacing, split=split)
                pairs.append((path, record))
        if annotations:
            raise UserError(f"{file}: the image_id {next(iter(annotations))} of an annotation is not an image's id")
    return pictures.reading(source, pairs, notes)


def choose_category(content: dict, category: str, file: Path) -> tuple[Any, list[str]]:
    """Return the id and the keypoints' names of the category to read. Raises UserError."""
    categories = {each["id"]: each for each in content["categories"] if each.get("keypoints")}
    names = {each["name"]: id_ for id_, each in categories.items()}
    if category and category not in names:
        raise UserError(f"{file}: there is no category {category!r} with keypoints; known: {', '.join(names)}")
    if not names or (len(names) > 1 and not category):
        raise UserError(
            f"{file}: {len(names)} categories have keypoints ({', '.join(names)}); choose one with --category"
        )
    chosen = names[category or next(iter(names))]
    labels = list(categories[chosen]["keypoints"])
    if len(set(labels)) != len(labels) or not all(isinstance(label, str) and label for label in labels):
        raise UserError(f"{file}: expected different names as keypoints of the category, found {labels}")
    return chosen, labels


def find_annotations(content: dict, chosen: Any, file: Path) -> dict[Any, dict]:
    """Return the annotations with keypoints of a category by the id of their image. Raises UserError for a second."""
    annotations: dict = {}
    for annotation in content["annotations"]:
        if annotation["category_id"] != chosen or not annotation.get("keypoints"):  # only a box or an outline
            continue
        other = annotations.get(annotation["image_id"])
        if other is not None and not any(annotation["keypoints"][2::3]):  # another box, in which nothing was labelled
            continue
        if other is not None and any(other["keypoints"][2::3]):
            names = [image["file_name"] for image in content["images"] if image["id"] == annotation["image_id"]]
            raise UserError(
                f"{file}: image {(names or [annotation['image_id']])[0]} has more than one annotation; keep one"
            )
        annotations[annotation["image_id"]] = annotation
    return annotations


def read_keypoints(keypoints: Any, labels: Sequence[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the points (x, y) px by label, None where missing, and the occluded labels. Raises UserError."""
    values = numbers(keypoints, where, 3 * len(labels))
    points, occluded = {}, []
    for place, label in enumerate(labels):
        x, y, visibility = values[3 * place : 3 * place + 3]
        if visibility not in (0, 1, 2):
            raise UserError(f"{where}: the visibility of {label!r} is {visibility:g}; expected 0, 1 or 2")
        points[label] = (x, y) if visibility else None
        occluded += [label] if visibility == 1 else []
    return points, occluded


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """Write destination/annotations.json."""
    labels = list(record_points(pairs[0][1]))
    images, annotations = [], []
    for id_, (path, record) in enumerate(pairs, 1):
        width, height = image_size(path)
        image = {"id": id_, "file_name": record["imagePath"], "width": width, "height": height}
        images.append(image | ({"spacing": record["spacing"]} if record.get("spacing") else {}))
        points, occluded = record_points(record), occluded_in(record)
        values = [
            value
            for label in labels
            for value in ((0, 0, 0) if points[label] is None else (*points[label], 1 if label in occluded else 2))
        ]
        annotations.append(
            {
                "id": id_, "image_id": id_, "category_id": 1, "bbox": [0, 0, width, height],
                "area": width * height, "iscrowd": 0, "keypoints": values,
                "num_keypoints": sum(point is not None for point in points.values()),
            }
        )  # fmt: skip
    categories = [{"id": 1, "name": "landmarks", "keypoints": labels, "skeleton": []}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(destination / "annotations.json", content)
