"""What the formats share: files read with errors in one line, numbers and names checked, records put together.

Points are taken as they stand in a file; our own frame has (0, 0) at the centre of the first pixel. Programs that draw
on a canvas may count from its corner, half a px away, and say so nowhere: `tools.convert --corner` takes that off.
"""

import contextlib
import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError

from reading import dicom
from reading.images import ENDINGS
from settings import UserError

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
Pixels = Callable[[], np.ndarray]  # draws an image that no file holds as it is


class Reading(NamedTuple):
    """What a format gives."""

    pairs: list[tuple[Path | Pixels, dict]]  # of each image its file, or its pixels, and its record of data.json
    notes: list[str]  # what was skipped, repaired or is odd, item by item


# --- Files ---------------------------------------------------------------------------------------


def read_text(file: Path) -> str:
    """A text file in UTF-8, with or without a mark at its beginning. Raises UserError."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as text in UTF-8: {error}") from None


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises UserError."""
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None


def read_csv(file: Path) -> list[list[str]]:
    """The rows of a csv file that are not blank, their cells without blanks around. Raises UserError."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(read_text(file)), strict=True)]
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as csv: {error}") from None
    return [row for row in rows if any(row)]


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file. Raises UserError; also for one that declares entities, which could be a bomb."""
    text = read_text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{file} declares a document type or entities, which annotations have no use for; remove them")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{file} cannot be read as XML: {error}") from None


@contextlib.contextmanager
def expecting(where: object, what: str) -> Iterator[None]:
    """Turn the errors of code that takes a structure for granted into a UserError: where it is not `what`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: expected {what}; {reason}") from None


def check_folder(folder: Path, what: str) -> Path:
    """The folder. Raises UserError if it is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give {what}")
    return folder


class Images:
    """The images of a folder by name, whatever their case, with or without an ending, in subfolders too."""

    def __init__(self, folder: Path) -> None:
        self.folder = check_folder(folder, "the folder of the images")
        self.files: dict[str, list[Path]] = {}
        self.taken: set[Path] = set()
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in ENDINGS and path.is_file():
                for name in (path.name, path.stem):
                    self.files.setdefault(normal_name(name), []).append(path)

    def find(self, name: Any) -> Path | None:
        """The file of a name or path; folders that both know must agree. Raises UserError if several files answer."""
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{self.folder}: the name of an image is {name!r}; expected text")
        *folders, last = [normal_name(part) for part in re.split(r"[\\/]+", name) if part not in ("", ".")] or [""]
        found = []
        for path in self.files.get(last, []):
            own = [normal_name(part) for part in path.relative_to(self.folder).parts[:-1]]
            both = min(len(own), len(folders))
            if own[len(own) - both :] == folders[len(folders) - both :]:
                found.append(path)
        if len(found) > 1:
            raise UserError(f"{self.folder}: {found[0]} and {found[1]} both answer to {name}; keep one")
        self.taken.update(found)
        return found[0] if found else None

    def unused(self) -> list[str]:
        """A note of the images that nothing asked for, if there are any."""
        unused = sorted({path.name for paths in self.files.values() for path in paths} - {p.name for p in self.taken})
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        return [f"{len(unused)} images without annotation: {', '.join(unused[:5])}{more}"] if unused else []

    def take(self, name: str, where: str, notes: list[str]) -> Path | None:
        """The file of a row's image; a note where there is none. Raises UserError where it was taken already."""
        before = set(self.taken)
        path = self.find(name)
        if path is None:
            notes.append(f"{name}: skipped, there is no image of it")
        elif path in before:
            raise UserError(f"{where}: {path.name} stands twice; keep one")
        return path


def normal_name(name: str) -> str:
    """A name for comparison: composed letters, no case."""
    return unicodedata.normalize("NFC", name).casefold()


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, px, as it is seen: turned if its EXIF says so. Raises UserError."""
    if path.suffix.lower() in dicom.ENDINGS:
        return dicom.read(path).image.shape[::-1]
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from None


# --- Values --------------------------------------------------------------------------------------


def number(value: Any, where: str) -> float:
    """A finite number, also one in plain decimal text. Raises UserError."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    result = math.nan
    if plain or (isinstance(value, str) and DECIMAL.fullmatch(value.strip())):
        with contextlib.suppress(OverflowError):
            result = float(value)
    if not math.isfinite(result):
        raise UserError(f"{where}: expected a finite number, found {value!r}")
    return result


def numbers(values: Sequence[Any], where: str, count: int | None = None) -> list[float]:
    """Finite numbers, a list of so many. Raises UserError."""
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}: expected a list of numbers, found {values!r}")
    if count is not None and len(values) != count:
        raise UserError(f"{where}: expected {count} numbers, found {len(values)}")
    return [number(value, f"{where}, number {place}") for place, value in enumerate(values, 1)]


def add_point(points: dict[str, Any], label: Any, point: Sequence[float] | None, where: str) -> None:
    """One more labelled point of an image, the label without blanks around.

    Raises UserError for a label that is no text, empty, or there already, and for a point at (0, 0), which is what
    programs write for a missing one.
    """
    if not isinstance(label, str) or not label.strip() or not label.isprintable():
        raise UserError(f"{where}: a point has no label, but {label!r}")
    label = label.strip()
    if point is not None and tuple(point) == (0, 0):
        raise UserError(f"{where}: {label!r} lies at (0, 0); if it is missing, leave it out")
    if label in points:
        raise UserError(f"{where}: the label {label!r} stands twice; keep one")
    points[label] = point


def check_size(stated: tuple[Any, Any], path: Path, where: str) -> None:
    """Raise UserError where an annotation was made on an image of another size (width, height)."""
    size = image_size(path)
    if tuple(numbers(stated, f"{where}: size", 2)) != size:
        raise UserError(
            f"{where}: annotated on {stated[0]} x {stated[1]} px, but {path} has {size[0]} x {size[1]}: it is a copy "
            "of another size"
        )


def make_record(
    image: str, points: Mapping[str, Sequence[float] | None], names: Mapping[str, str] | None = None, **keys: Any
) -> dict[str, Any]:
    """A record of data.json: points (x, y) px by abbreviation, none where missing; other keys where they are known.

    Raises UserError for a point at (0, 0).
    """
    for abbreviation, point in points.items():
        if point is not None and tuple(point) == (0, 0):
            raise UserError(f"image {image}: {abbreviation!r} lies at (0, 0); if it is missing, leave it out")
    entries = [
        {
            "pointName": (names or {}).get(abbreviation, abbreviation),
            "pointAbbreviation": abbreviation,
            "X": None if point is None else float(point[0]),
            "Y": None if point is None else float(point[1]),
        }
        for abbreviation, point in points.items()
    ]
    return {"imagePath": image, **{key: value for key, value in keys.items() if value is not None}, "points": entries}


def same_landmarks(
    tables: Mapping[str, Mapping[str, Any]], landmarks: Sequence[str] = ()
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Labelled points of images, by image name, all with the same labels in one order, none where an image lacks one.

    The labels are `landmarks`, else all that occur, in their order. Also notes of what is missing where. Raises
    UserError for a label that is not among `landmarks`, and where there is none at all.
    """
    order = list(landmarks) or list(dict.fromkeys(label for table in tables.values() for label in table))
    if not order:
        raise UserError("no image has a labelled point")
    notes = []
    for image, table in tables.items():
        unknown = [label for label in table if label not in order]
        if unknown:
            raise UserError(f"image {image}: the label {unknown[0]!r} is none of {', '.join(order)}")
        missing = [label for label in order if table.get(label) is None]
        if missing:
            notes.append(f"{image}: missing {', '.join(missing)}")
    return {image: {label: table.get(label) for label in order} for image, table in tables.items()}, notes


def record_points(record: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
    """The points (x, y) px of a record by abbreviation; none where missing."""
    return {
        point["pointAbbreviation"]: None
        if point.get("X") is None or point.get("Y") is None or point.get("visible", True) in (False, 0)
        else (point["X"], point["Y"])
        for point in record["points"]
    }


def write_json(file: Path, content: Any) -> None:
    """Indented, in UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
