"""What the formats share: finding images, checking numbers and labels, putting records together.

Coordinates are copied unchanged; in data.json (0, 0) is the centre of the first pixel. Programs that draw on a canvas
may put (0, 0) at the corner of that pixel, half a px away, without saying so; `tools.convert --corner` corrects that.
"""

import contextlib
import difflib
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import Config
from reading import dicom
from reading.annotation import shorten
from reading.images import ENDINGS, image_size
from reading.paths import normal_name, path_parts, visible_files
from settings import UserError, check_names
from tools.formats.files import check_folder

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
Pixels = Callable[[], np.ndarray]  # returns an image that is not a file of its own
SPLITS = {"train": "train", "valid": "val", "validation": "val", "val": "val", "test": "test"}  # by a folder's name
OPTIONS = {  # what --help says of the parameters that several formats have; the others: the docstring of their read
    "images": "folder of the images; default: the folder of the annotation",
    "landmarks": "labels of the landmarks in the order you want, e.g. S,N,Me; any other label, such as a misspelt one, "
    "is then refused; default: all labels that occur",
}


class Reading(NamedTuple):
    """What a format's `read` returns."""

    pairs: list[tuple[Path | Pixels, dict]]  # for each image its file, or its pixels, and its record of data.json
    notes: list[str]  # what was skipped, repaired or looks odd, one line each


# --- Images --------------------------------------------------------------------------------------


class Images:
    """The images of a folder and its subfolders by path, in upper or lower case, with or without an ending."""

    def __init__(self, folder: Path) -> None:
        self.folder = check_folder(folder, "the folder of the images")
        self.files: dict[str, list[Path]] = {}  # by the last part of the path
        self.taken: set[str] = set()
        self.elsewhere: dict[str, tuple[list[str], str, str]] = {}  # see check_namesake, by the last part of the name
        for path in visible_files(folder):
            if path.suffix.lower() in ENDINGS or dicom.is_dicom(path):
                for name in {path.name, path.stem}:
                    self.files.setdefault(normal_name(name), []).append(path)

    def name(self, path: Path) -> str:
        """Return the path of an image relative to the folder, with slashes, by which it is called in data.json."""
        return "/".join(part for part in Path(os.path.relpath(path, self.folder)).parts if part != "..")

    def find(self, name: Any, exact: bool = False, size: Any = None) -> Path | None:
        """Return the file with this path relative to the folder.

        Unless `exact`, name or path may have further folders in front, if no file has the very path. Of several files
        the one of `size` bytes is taken. Raises UserError if several files match.
        """
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{self.folder}: the name of an image is {name!r}; expected text")
        *folders, last = [part for part in path_parts(name) if part != ".."] or [""]
        found: dict[int, list[Path]] = {}  # by the number of folders that agree
        for path in self.files.get(last, []):
            own = path_parts(self.name(path))[:-1]
            both = min(len(own), len(folders))
            if own == folders:
                found.setdefault(len(path_parts(name)) + 1, []).append(path)
            elif not exact and own[len(own) - both :] == folders[len(folders) - both :]:
                found.setdefault(both, []).append(path)
        best = found[max(found)] if found else []
        if len(best) > 1:
            best = [path for path in best if path.stat().st_size == size] or best
        if len(best) > 1:
            raise UserError(
                f"{self.folder}: {best[0]} and {best[1]} both answer to {name}; keep one, or name it with its folder"
            )
        return best[0] if best else None

    def take(self, name: Any, where: object, exact: bool = False, size: Any = None) -> Path:
        """Return the file of an annotated image.

        Raises UserError if there is none, if it may be another's namesake, or for a second annotation.
        """
        path = self.find(name, exact, size)
        if path is None:
            hint = "; give the folder of the images with --images" if exact else ""
            raise UserError(f"{where}: its image {name} is not in {self.folder}{hint}")
        if path.stat().st_size != size:
            self.check_namesake(name, path, where)
        return self.claim(path, where)

    def check_namesake(self, name: str, path: Path, where: object) -> None:
        """Raise UserError if a path found for a name has other folders in front than for another image of that name.

        Names may have folders in front that the images lack, and the other way round, but then the same ones.
        """
        *folders, last = [part for part in path_parts(name) if part != ".."]
        own = path_parts(self.name(path))[:-1]
        apart = (
            ["+", *own[: len(own) - len(folders)]] if len(own) > len(folders) else folders[: len(folders) - len(own)]
        )
        other, other_name, other_path = self.elsewhere.setdefault(last, (apart, name, self.name(path)))
        if other != apart and other_path != self.name(path):
            raise UserError(
                f"{where}: {other_name} and {name} would be {other_path} and {self.name(path)} in {self.folder}, so an "
                "image is missing: put each into its own folder"
            )

    def claim(self, path: Path, where: object) -> Path:
        """Return the file of an annotated image. Raises UserError for a second annotation."""
        if self.name(path) in self.taken:
            raise UserError(f"{where}: a second annotation of {self.name(path)}; keep one")
        self.taken.add(self.name(path))
        return path

    def take_if_there(self, name: Any, where: object, notes: list[str]) -> Path | None:
        """Return the file of an annotated image as `take` does; add a note and return None if there is none."""
        if self.find(name) is not None:
            return self.take(name, where)
        notes.append(f"{name}: skipped, its image is missing")
        return None

    def reading(self, source: Path, pairs: list, notes: list[str]) -> Reading:
        """Return what was read, with a note on the images that are not annotated. Raises UserError if nothing was."""
        if not pairs:
            raise UserError(f"{source} holds no annotation of an image in {self.folder}")
        unused = sorted({self.name(path) for paths in self.files.values() for path in paths} - self.taken)
        more = [f"{len(unused)} images without annotation: {shorten(unused)}"] if unused else []
        return Reading(pairs, notes + more)

    def labelled_reading(
        self, source: Path, tables: dict[Path, dict[str, Any]], landmarks: Sequence[str], notes: list[str],
        occluded: Mapping[Path, Collection[str]] | None = None, **keys: Any,
    ) -> Reading:  # fmt: skip
        """Return what was read as labelled points (x, y) px by image, every record with the same landmarks.

        The landmarks are `landmarks`, otherwise all labels that occur, in their order. occluded: the labels of
        occluded points by image; keys: other keys of all records. Raises UserError for a label that is not allowed.
        """
        order = list(landmarks) or list(dict.fromkeys(label for table in tables.values() for label in table))
        notes += likely_misspellings({self.name(path): table for path, table in tables.items()}, order)
        pairs: list[tuple[Path, dict]] = []
        for path, table in tables.items():
            name = self.name(path)
            check_names(table, order, "landmark", f"image {name}: ")
            points = {label: table.get(label) for label in order}
            notes += note_missing(name, points)
            pairs.append((path, make_record(name, points, occluded=(occluded or {}).get(path, ()), **keys)))
        return self.reading(source, pairs, notes)


def folder_split(path: Path, source: Path) -> str | None:
    """Return the split that the innermost folder train, valid, val, validation or test above a file sets."""
    folders = [part.lower() for part in reversed(path.relative_to(source).parts[:-1])]
    return next((SPLITS[folder] for folder in folders if folder in SPLITS), None)


def check_size(stated: tuple[Any, Any], path: Path, where: str) -> None:
    """Raise UserError if an annotation was made on an image of another size (width, height)."""
    check_same_size(stated, image_size(path), path, where)


def check_same_size(stated: tuple[Any, Any], size: tuple[int, int], path: Path, where: str) -> None:
    """Raise UserError if an annotation was made on an image of another size than that of path."""
    if tuple(numbers(stated, f"{where}: size", 2)) != size:
        raise UserError(
            f"{where}: annotated on {stated[0]} x {stated[1]} px, but {path} has {size[0]} x {size[1]}; give the "
            "images that were annotated"
        )


# --- Values and labels ---------------------------------------------------------------------------


def number(value: Any, where: str) -> float:
    """Return a finite number, also from decimal text. Raises UserError."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    result = math.nan
    if plain or (isinstance(value, str) and DECIMAL.fullmatch(value.strip())):
        with contextlib.suppress(OverflowError):
            result = float(value)
    if not math.isfinite(result):
        raise UserError(f"{where}: expected a finite number, found {value!r}")
    return result


def numbers(values: Sequence[Any], where: str, count: int | None = None) -> list[float]:
    """Return a list of finite numbers, `count` of them if given. Raises UserError."""
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}: expected a list of numbers, found {values!r}")
    if count is not None and len(values) != count:
        raise UserError(f"{where}: expected {count} numbers, found {len(values)}")
    return [number(value, f"{where}, number {place}") for place, value in enumerate(values, 1)]


def spacing_number(value: Any, where: str) -> float:
    """Return a spacing, mm per px. Raises UserError unless it is a number above 0."""
    spacing = number(value, where)
    if not spacing > 0:
        raise UserError(f"{where} is {value}; expected mm per px, above 0")
    return spacing


def add_point(points: dict[str, Any], label: Any, point: Sequence[float] | None, where: str) -> None:
    """Add a labelled point of an image, its label stripped of white space.

    Raises UserError for a label that is empty, not text or already there, and for a point at (0, 0), which programs
    write for a missing one.
    """
    if not isinstance(label, str) or not label.strip() or not label.isprintable():
        raise UserError(f"{where}: a point has the label {label!r}; expected text")
    label = label.strip()
    check_not_origin(label, point, where)
    if label in points:
        raise UserError(f"{where}: the label {label!r} appears twice; keep one")
    points[label] = point


def check_not_origin(label: str, point: Sequence[float] | None, where: str) -> None:
    """Raise UserError for a point at (0, 0)."""
    if point is not None and tuple(point) == (0, 0):
        raise UserError(f"{where}: {label!r} lies at (0, 0); if it is missing, leave it out")


def note_missing(image: str, points: Mapping[str, Any]) -> list[str]:
    """Return a note that names the missing points of an image, if there are any."""
    missing = [label for label, point in points.items() if point is None]
    return [f"{image}: missing {', '.join(missing)}"] if missing else []


def likely_misspellings(tables: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> list[str]:
    """Return a note on each label that resembles a more frequent one and never occurs together with it."""
    images = {label: [name for name, table in tables.items() if label in table] for label in order}
    notes = []
    for label, own in images.items():
        earlier = order[: order.index(label)]  # of two labels that are equally frequent, the later one is noted
        commoner = [
            other
            for other in order
            if len(images[other]) >= len(own) + (other not in earlier) and not set(own) & set(images[other])
        ]
        words = {plain_label(other): other for other in commoner}
        for near in difflib.get_close_matches(plain_label(label), words if own else (), n=1, cutoff=0.7):
            notes.append(
                f"the label {label!r} occurs only in {shorten(own)}, where {words[near]!r} is missing: did you mean "
                f"{words[near]!r}? Correct it, or list your labels with --landmarks, which refuses all others"
            )
    return notes


def plain_label(label: str) -> str:
    """Return a label for comparison: lower case, without blanks and hyphens, every apostrophe the same."""
    return re.sub(r"[\s_-]", "", re.sub("[’‘´`′]", "'", label)).casefold()


def is_unlabelled(label: Any) -> bool:
    """Return whether an annotator gave a shape no label."""
    return label is None or (isinstance(label, str) and not label.strip())


# --- Records -------------------------------------------------------------------------------------


def make_record(
    image: str,
    points: Mapping[str, Sequence[float] | None],
    names: Mapping[str, str] | None = None,
    occluded: Collection[str] = (),
    **keys: Any,
) -> dict[str, Any]:
    """Return a record of data.json: points (x, y) px by abbreviation, None where missing; other keys unless None.

    Raises UserError for a point at (0, 0).
    """
    entries = []
    for abbreviation, point in points.items():
        check_not_origin(abbreviation, point, f"image {image}")
        entry = {
            "pointName": (names or {}).get(abbreviation, abbreviation),
            "pointAbbreviation": abbreviation,
            "X": None if point is None else float(point[0]),
            "Y": None if point is None else float(point[1]),
        }
        entries.append(entry | ({"occluded": True} if abbreviation in occluded else {}))
    return {"imagePath": image, **{key: value for key, value in keys.items() if value is not None}, "points": entries}


def record_points(record: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
    """Return the points (x, y) px of a record by abbreviation, None where missing."""
    return {
        point["pointAbbreviation"]: None
        if point.get("X") is None or point.get("Y") is None or point.get("visible", True) in (False, 0)
        else (point["X"], point["Y"])
        for point in record["points"]
    }


def occluded_in(record: Mapping[str, Any]) -> set[str]:
    """Return the abbreviations of the occluded points of a record."""
    return {point["pointAbbreviation"] for point in record["points"] if point.get("occluded")}


def data_options(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options of main.py that records without a ruler, or without a spacing, need."""
    if set(Config.ruler) <= record_points(records[0]).keys():
        return []
    return ["--report_exclude", "none", *([] if all(r.get("spacing") for r in records) else ["--spacing", "none"])]
