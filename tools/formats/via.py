"""VIA (VGG Image Annotator): the JSON of its annotations, or a whole project.

    {"a.jpg12345": {"filename": "a.jpg", "size": 12345, "file_attributes": {}, "regions": [
       {"shape_attributes": {"name": "point", "cx": 486, "cy": 700}, "region_attributes": {"name": "S"}}]}}

Points in px; old files have regions as an object. The attribute that holds the label is the annotator's choice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from settings import UserError
from tools.formats.common import Images, Reading, add_point, expecting, make_record, numbers, read_json, same_landmarks


def read(source: Path, images: Path | None = None, landmarks: Sequence[str] = (), attribute: str = "") -> Reading:
    """The records of a .json file; images: the folder of the images, else the file's.

    attribute: the region attribute that holds the label; else the only one that the regions have.
    """
    content, pictures = read_json(source), Images(images or source.parent)
    tables, paths, notes = {}, {}, []
    with expecting(source, "a VIA file, an object of images with filename and regions"):
        entries = content.get("_via_img_metadata", content).values()
        regions = {entry["filename"]: as_list(entry["regions"]) for entry in entries}
        if len(regions) != len(entries):
            raise UserError(f"{source}: an image stands twice; keep one")
        known = {name for each in regions.values() for region in each for name in region["region_attributes"]}
        if not attribute and len(known) != 1:
            raise UserError(
                f"{source}: choose attribute, what holds the label: {', '.join(sorted(known)) or 'there is none'}"
            )
        label_of = attribute or next(iter(known))
        for name, each in regions.items():
            where = f"{source}: image {name}"
            if not each:
                notes.append(f"{name}: skipped, it has no regions")
                continue
            path = pictures.find(name)
            if path is None:
                raise UserError(f"{where} is not in {pictures.folder}")
            table: dict[str, Any] = {}
            for region in each:
                shape = region["shape_attributes"]
                label = region["region_attributes"][label_of]
                if shape["name"] != "point":
                    notes.append(f"{path.name}: skipped {label!r}, a {shape['name']}")
                    continue
                add_point(table, label, numbers([shape["cx"], shape["cy"]], f"{where}: {label!r}", 2), where)
            if path.name in tables:
                raise UserError(f"{where}: stands twice; keep one")
            tables[path.name], paths[path.name] = table, path
    tables, missing = same_landmarks(tables, landmarks)
    return Reading(
        [(paths[name], make_record(name, table)) for name, table in tables.items()], notes + missing + pictures.unused()
    )


def as_list(regions: Any) -> list[dict]:
    """Regions as a list, which old files have as an object."""
    return list(regions.values()) if isinstance(regions, dict) else list(regions)
