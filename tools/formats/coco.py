"""COCO keypoints: one JSON file of a data set. Read and written.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 1198, "height": 1438, "spacing": 0.1}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1198, 1438], "area": 1722724,
                      "iscrowd": 0, "keypoints": [486.4, 700.1, 2, 0, 0, 0], "num_keypoints": 1}],
     "categories": [{"id": 1, "name": "ceph", "keypoints": ["S", "N"], "skeleton": []}]}

Keypoints are x, y in px and v: 0 not labelled (missing, whatever x and y say), 1 hidden (occluded), 2 visible. spacing,
mm per px, is not COCO's own; it is kept where it is there.
"""

from collections.abc import Sequence
from pathlib import Path

from settings import UserError
from tools.formats.common import (
    Images,
    Reading,
    check_size,
    expecting,
    image_size,
    make_record,
    number,
    numbers,
    read_json,
    record_points,
    write_json,
)


def read(source: Path, images: Path | None = None, category: str = "") -> Reading:
    """The records of a .json file; images: the folder of the images, else the file's; category: which, if several."""
    content, pictures, notes, pairs = read_json(source), Images(images or source.parent), [], []
    with expecting(source, "a COCO file with images, annotations and categories"):
        categories = {each["id"]: each for each in content["categories"] if each.get("keypoints")}
        names = {each["name"]: id_ for id_, each in categories.items()}
        if category and category not in names:
            raise UserError(f"{source}: there is no category {category!r} with keypoints; known: {', '.join(names)}")
        if not names or (len(names) > 1 and not category):
            raise UserError(f"{source}: {len(names)} categories have keypoints ({', '.join(names)}); choose category")
        chosen = names[category or next(iter(names))]
        labels = list(categories[chosen]["keypoints"])
        if len(set(labels)) != len(labels) or not all(isinstance(label, str) and label for label in labels):
            raise UserError(f"{source}: the category's keypoints are no distinct names: {labels}")
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
            path = pictures.find(image["file_name"])
            if path is None:
                raise UserError(f"{where} is not in {pictures.folder}")
            check_size((image["width"], image["height"]), path, where)
            values = numbers(annotation["keypoints"], where, 3 * len(labels))
            points, hidden = {}, []
            for place, label in enumerate(labels):
                x, y, visibility = values[3 * place : 3 * place + 3]
                if visibility not in (0, 1, 2):
                    raise UserError(f"{where}: the visibility of {label!r} is {visibility:g}; expected 0, 1 or 2")
                points[label] = (x, y) if visibility else None
                hidden += [label] if visibility == 1 else []
            missing = [label for label, point in points.items() if point is None]
            notes += [f"{path.name}: missing {', '.join(missing)}"] if missing else []
            spacing = number(image["spacing"], f"{where}: spacing") if image.get("spacing") is not None else None
            if spacing is not None and not spacing > 0:
                raise UserError(f"{where}: spacing is {spacing:g}; expected mm per px, above 0")
            record = make_record(path.name, points, spacing=spacing)
            for point in record["points"]:
                if point["pointAbbreviation"] in hidden:
                    point["occluded"] = True
            pairs.append((path, record))
        if annotations:
            raise UserError(f"{source}: an annotation's image_id {next(iter(annotations))} is no image's id")
    if not pairs:
        raise UserError(f"{source}: no image has an annotation")
    return Reading(pairs, notes + pictures.unused())


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """destination/annotations.json."""
    labels = list(record_points(pairs[0][1]))
    images, annotations = [], []
    for number_, (path, record) in enumerate(pairs, 1):
        width, height = image_size(path)
        image = {"id": number_, "file_name": record["imagePath"], "width": width, "height": height}
        images.append(image | ({"spacing": record["spacing"]} if record.get("spacing") else {}))
        hidden = {point["pointAbbreviation"] for point in record["points"] if point.get("occluded")}
        points = record_points(record)
        values = [
            value
            for label in labels
            for value in ((0, 0, 0) if points[label] is None else (*points[label], 1 if label in hidden else 2))
        ]
        annotations.append(
            {
                "id": number_, "image_id": number_, "category_id": 1, "bbox": [0, 0, width, height],
                "area": width * height, "iscrowd": 0, "keypoints": values,
                "num_keypoints": sum(point is not None for point in points.values()),
            }
        )  # fmt: skip
    categories = [{"id": 1, "name": "landmarks", "keypoints": labels, "skeleton": []}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(destination / "annotations.json", content)
