"""VIA (VGG Image Annotator): the JSON file of its annotations, or a whole project.

    {"a.jpg12345": {"filename": "a.jpg", "size": 12345, "file_attributes": {}, "regions": [
       {"shape_attributes": {"name": "point", "cx": 486, "cy": 700}, "region_attributes": {"name": "S"}}]}}

SOURCE is the JSON file. Points are in px. The annotator chooses which region attribute holds the label.
"""

from pathlib import Path
from typing import Any

from settings import UserError
from tools.formats.common import Images, Reading, add_point, numbers
from tools.formats.files import expecting, read_json


def read(source: Path, images: Path | None = None, landmarks: tuple[str, ...] = (), attribute: str = "") -> Reading:
    """Read a .json file.

    attribute: the region attribute that holds the label; needed if the regions have several
    """
    content, pictures, notes = read_json(source), Images(images or source.parent), []
    tables: dict[Path, dict[str, Any]] = {}
    with expecting(source, "a VIA file, an object of images with filename and regions"):
        entries = content.get("_via_img_metadata", content).values()
        regions = {entry["filename"]: as_list(entry["regions"]) for entry in entries}
        if len(regions) != len(entries):
            raise UserError(f"{source}: an image appears twice; keep one")
        known = {name for each in regions.values() for region in each for name in region["region_attributes"]}
        if not attribute and len(known) != 1:
            choice = ", ".join(sorted(known)) or "there is none"
            raise UserError(f"{source}: choose with --attribute which attribute holds the label: {choice}")
        label_of = attribute or next(iter(known))
        for name, each in regions.items():
            where = f"{source}: image {name}"
            if not each:
                notes.append(f"{name}: skipped, it has no regions")
                continue
            path, table = pictures.take(name, source), {}
            for region in each:
                shape = region["shape_attributes"]
                label = region["region_attributes"][label_of]
                if shape["name"] != "point":
                    notes.append(f"{path.name}: skipped {label!r}, a {shape['name']}")
                    continue
                add_point(table, label, numbers([shape["cx"], shape["cy"]], f"{where}: {label!r}", 2), where)
            tables[path] = table
    return pictures.labelled_reading(source, tables, landmarks, notes)


def as_list(regions: Any) -> list[dict]:
    """Return regions as a list; in old files they are an object."""
    return list(regions.values()) if isinstance(regions, dict) else list(regions)
