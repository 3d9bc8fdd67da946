"""CVAT XML 1.1 (for images): one file for all images.

    <annotations><version>1.1</version><image id="0" name="a.jpg" width="1198" height="1438">
      <points label="S" occluded="0" source="manual" points="486.45,700.10" z_order="0"/></image></annotations>

SOURCE is the .xml file. Points are in px; points of a skeleton are read too, and are missing if outside="1". Other
shapes are skipped. A points element with several points, or the same label twice in an image, is refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from reading.images import image_size
from run_folder import write_bytes
from settings import UserError, expecting
from tools.formats.common import (
    Images,
    Reading,
    add_point,
    check_size,
    is_unlabelled,
    numbers,
    occluded_in,
    record_points,
)  # fmt: skip
from tools.formats.files import read_xml


def read(source: Path, images: Path | None = None, landmarks: tuple[str, ...] = ()) -> Reading:
    """Read an .xml file."""
    root, pictures = read_xml(source), Images(images or source.parent)
    if root.tag != "annotations":
        raise UserError(f"{source}: expected annotations of CVAT XML 1.1, found {root.tag}")
    tables: dict[Path, dict[str, Any]] = {}
    occluded: dict[Path, set[str]] = {}
    notes = []
    for image in root.iter("image"):
        where = f"{source}: image {image.get('name')}"
        with expecting(where, "an image of CVAT XML 1.1"):
            name, table = image.attrib["name"], {}
            others = [shape for shape in image if shape.tag not in ("points", "skeleton")]
            notes += [f"{name}: skipped {shape.get('label')!r}, a {shape.tag}" for shape in others]
            hidden: set[str] = set()
            for shape in image.iter("points"):
                for flag in ("outside", "occluded"):
                    if shape.get(flag, "0") not in ("0", "1"):
                        raise UserError(
                            f"{where}: {flag} of {shape.get('label')!r} is {shape.get(flag)!r}; expected 0 or 1"
                        )
                if shape.get("outside") == "1":
                    continue
                label, text = shape.get("label"), shape.attrib["points"]
                if is_unlabelled(label):
                    notes.append(f"{name}: skipped a point without a label at {text}")
                    continue
                if ";" in text:
                    raise UserError(f"{where}: {label!r} has several points; annotate each with a label of its own")
                add_point(table, label, numbers(text.split(","), f"{where}: {label!r}", 2), where)
                if shape.get("occluded") == "1":
                    hidden.add(str(label).strip())
            if not table:
                notes.append(f"{name}: skipped, it has no points")
                continue
            path = pictures.take(name, source)
            check_size((image.attrib["width"], image.attrib["height"]), path, where)
            tables[path], occluded[path] = table, hidden
    return pictures.labelled_reading(source, tables, landmarks, notes, occluded)


def write(pairs: Sequence[tuple[Path, dict]], destination: Path) -> None:
    """Write destination/annotations.xml."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for place, (path, record) in enumerate(pairs):
        width, height = image_size(path)
        size = {"id": str(place), "name": record["imagePath"], "width": str(width), "height": str(height)}
        image = ElementTree.SubElement(root, "image", size)
        occluded = occluded_in(record)
        for label, point in record_points(record).items():
            if point is not None:
                known = {"label": label, "occluded": str(int(label in occluded)), "source": "manual"}
                text = f"{point[0]!r},{point[1]!r}"
                ElementTree.SubElement(image, "points", known | {"points": text, "z_order": "0"})
    destination.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(root)
    tree = ElementTree.ElementTree(root)
    write_bytes(destination / "annotations.xml", lambda file: tree.write(file, "utf-8", xml_declaration=True))
