"""COCO keypoints: one JSON file for all images.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 1198, "height": 1438, "spacing": 0.1}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1198, 1438], "area": 1722724,
                      "iscrowd": 0, "keypoints": [486.4, 700.1, 2, 0, 0, 0], "num_keypoints": 1}],
     "categories": [{"id": 1, "name": "ceph", "keypoints": ["S", "N"], "skeleton": []}]}

SOURCE is the JSON file. A keypoint is x and y in px and v: 0 not labelled (missing, whatever x and y are), 1 labelled
but not visible (occluded), 2 visible. spacing, mm per px, is not part of COCO; it is read if it is there.
"""

from collections.abc import Sequence
from pathlib import Path

from settings import UserError
from tools.formats.common import (
    Images,
    Reading,
    check_size,
    image_size,
    make_record,
    note_missing,
    numbers,
    occluded_in,
    record_points,
    spacing_number,
)  # fmt: skip
from tools.formats.files import expecting, read_json, write_json


def read(source: Path, images: Path | None = None, category: str = "") -> Reading:
    """Read a .json file.

    category: name of the category to read; needed if several have keypoints
    """
    content, pictures, notes, pairs = read_json(source), Images(images or source.parent), [], []
    with expecting(source, "a COCO file with images, annotations and categories"):
        categories = {each["id"]: each for each in content["categories"] if each.get("keypoints")}
        names = {each["name"]: id_ for id_, each in categories.items()}
        if category and category not in names:
            raise UserError(f"{source}: there is no category {category!r} with keypoints; known: {', '.join(names)}")
        if not names or (len(names) > 1 and not category):
            raise UserError(
                f"{source}: {len(names)} categories have keypoints ({', '.join(names)}); choose one with --category"
            )
        chosen = names[category or next(iter(names))]
        labels = list(categories[chosen]["keypoints"])
        if len(set(labels)) != len(labels) or not all(isinstance(label, str) and label for label in labels):
            raise UserError(f"{source}: expected different names as keypoints of the category, found {labels}")
        annotations: dict = {}
        for annotation in content["annotations"]:
            if annotation["category_id"] != chosen:
                continue
            if annotation["image_id"] in annotations:
                raise UserError(f"{source}: image {annotation['image_id']} has more than one annotation; keep one")
            annotations[annotation["image_id"]] = annotation
        for image in content["images"]:
            where = f"{source}: image {image['file_name']}"
            annotation = annotations.pop(image["id"], None)
            if annotation is None:
                notes.append(f"{image['file_name']}: skipped, it has no annotation")
                continue
            path = pictures.take(image["file_name"], source)
            check_size((image["width"], image["height"]), path, where)
            values = numbers(annotation["keypoints"], where, 3 * len(labels))
            points, occluded = {}, []
            for place, label in enumerate(labels):
                x, y, visibility = values[3 * place : 3 * place + 3]
                if visibility not in (0, 1, 2):
                    raise UserError(f"{where}: the visibility of {label!r} is {visibility:g}; expected 0, 1 or 2")
                points[label] = (x, y) if visibility else None
                occluded += [label] if visibility == 1 else []
            notes += note_missing(path.name, points)
            spacing = image.get("spacing")
            spacing = None if spacing is None else spacing_number(spacing, f"{where}: spacing")
            pairs.append((path, make_record(path.name, points, occluded=occluded, spacing=spacing)))
        if annotations:
            raise UserError(f"{source}: the image_id {next(iter(annotations))} of an annotation is not an image's id")
    return pictures.reading(source, pairs, notes)


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
