"""VIA (VGG Image Annotator): the JSON file of its annotations, or a whole project.

    {"a.jpg12345": {"filename": "a.jpg", "size": 12345, "file_attributes": {}, "regions": [
       {"shape_attributes": {"name": "point", "cx": 486, "cy": 700}, "region_attributes": {"name": "S"}}]}}

SOURCE is the JSON file. Points are in px. The annotator chooses which region attribute holds the label.
"""

from pathlib import Path
from typing import Any

from settings import UserError, expecting, read_json
from tools.formats.common import Images, Reading, add_point, is_unlabelled, numbers


def read(source: Path, images: Path | None = None, landmarks: tuple[str, ...] = (), attribute: str = "") -> Reading:
    """Read a .json file.

    attribute: the region attribute that holds the label; needed if the regions have several
    """
    content, pictures, notes = read_json(source), Images(images or source.parent), []
    tables: dict[Path, dict[str, Any]] = {}
    with expecting(source, "a VIA file, an object of images with filename and regions"):
        entries = [
            (entry["filename"], entry.get("size"), as_list(entry.get("regions") or []))
            for entry in content.get("_via_img_metadata", content).values()
        ]
        known = {name for *_, each in entries for region in each if is_point(region) for name in attributes(region)}
        if not attribute and len(known) != 1:
            choice = ", ".join(sorted(known)) or "there is none"
            raise UserError(f"{source}: choose with --attribute which attribute holds the label: {choice}")
    label_of = attribute or next(iter(known))
    for name, size, regions in entries:
        where, table = f"{source}: image {name}", {}
        with expecting(where, "regions of VIA, each with shape_attributes and region_attributes"):
            for place, region in enumerate(regions, 1):
                shape, label = region.get("shape_attributes") or {}, attributes(region).get(label_of)
                if not is_point(region):
                    kind = shape.get("name", "region without a shape")
                    notes.append(f"{name}: skipped {'' if label is None else f'{label!r}, '}a {kind}")
                elif is_unlabelled(label):
                    notes.append(f"{name}: skipped region {place}, a point without a label")
                else:
                    add_point(table, label, numbers([shape["cx"], shape["cy"]], f"{where}: {label!r}", 2), where)
        if not table:
            notes.append(f"{name}: skipped, it has no points")
            continue
        tables[pictures.take(name, source, size=size)] = table
    return pictures.labelled_reading(source, tables, landmarks, notes)


def is_point(region: dict) -> bool:
    """Return whether a region is a point."""
    return (region.get("shape_attributes") or {}).get("name") == "point"


def attributes(region: dict) -> dict:
    """Return the attributes that the annotator gave a region; none if it has none."""
    return region.get("region_attributes") or {}


def as_list(regions: Any) -> list[dict]:
    """Return regions as a list; in old files they are an object."""
    return list(regions.values()) if isinstance(regions, dict) else list(regions)
