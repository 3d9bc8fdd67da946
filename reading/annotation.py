"""Read a data.json and a folder of images into checked records: points, images, spacing.

All coordinates are original px (data.py defines the frames). Every error is one line that names file, record and point.
"""

import hashlib
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from config import SPACINGS, Config
from reading.images import is_image_file, read_film
from reading.paths import find_file, visible_files
from settings import UNPRINTABLE, UserError, expecting, read_json

log = logging.getLogger("farnet")

SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val"}  # what others call our splits
# what main.py writes beside the folders of the test sets
RUN_FILES = "best.pt last.pt config.json split.json metrics.csv curves.png log.txt progress pooled".split()


@dataclass(frozen=True)
class Record:
    """One record of data.json; `file_spacing`, `size` and `fingerprint` come from its image."""

    name: str  # imagePath
    path: Path  # the image file
    landmarks: np.ndarray  # (N, 2) float64 (x, y) original px, nan where not annotated
    occluded: np.ndarray  # (N,) bool: annotated although it is occluded
    spacing: float = math.nan  # mm per original px
    file_spacing: float = math.nan  # what its DICOM file states
    split: str | None = None
    patient: str | None = None
    size: tuple[int, int] = (0, 0)  # width, height in original px
    fingerprint: str = ""  # equal for images with equal pixels
    readers: np.ndarray | None = None  # (2, N, 2) the points of two readers, original px, nan where not annotated
    keys: Mapping[str, Any] = field(default_factory=dict)  # all keys of the record that hold a single value


# --- Annotation ----------------------------------------------------------------------------------


def read_annotation(
    json_path: str | Path,
    img_dir: str | Path,
    num_landmarks: int | None = None,
    abbreviations: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...], list[Record]]:
    """Return the abbreviations (N), the names (N) and the records of a data.json, with points matched by abbreviation.

    The landmarks are those of most records, in the order of the first such record, unless `abbreviations` fixes
    them. num_landmarks: the required number; None: any. Raises UserError.
    Format: a list of {"imagePath", "points": [{"pointName", "pointAbbreviation", "X", "Y"}, ...]} with optional
    "spacing" (mm per px), "split" and "patient". A missing landmark has X and Y null, or "visible" false; one that is
    occluded but was annotated has "occluded" true.
    """
    file = Path(json_path)
    content = read_json(file, "set json_path to the data.json of your images")
    if not isinstance(content, list):
        raise UserError(f"{file}: expected a list of records at the top level, found {json_type(content)}")
    if not content:
        raise UserError(f"{file}: the list of records is empty; there is nothing to train or test on")

    tables = [read_points(f"{file}: record {number}", entry) for number, entry in enumerate(content, 1)]
    commonest = Counter(frozenset(table) for table in tables).most_common(1)[0][0]
    order = next(tuple(table) for table in tables if frozenset(table) == commonest)
    expected = tuple(abbreviations) if abbreviations else order
    records: list[Record] = []
    for number, (entry, table) in enumerate(zip(content, tables, strict=True), 1):
        where = f"{file}: record {number} ({entry['imagePath']})"
        check_points(where, table, expected, num_landmarks, bool(abbreviations))
        records.append(read_record(where, entry, [table[name] for name in expected], Path(img_dir)))
    doubled = [name for name, count in Counter(record.name for record in records).items() if count > 1]
    if doubled:
        raise UserError(f"{file}: image {doubled[0]} has more than one record; keep one")
    splits: dict[str, str] = {}
    for number, split in enumerate((str(record.split) for record in records), 1):
        if (other := splits.setdefault(split.casefold(), split)) != split:  # one folder on Windows and macOS
            raise UserError(f"{file}: record {number}: split is {split!r}, elsewhere {other!r}; write it in one way")
    refuse_zeros(file, expected, records)
    point_names = {p["pointAbbreviation"]: str(p.get("pointName", "")).strip() for p in content[0]["points"]}
    return expected, tuple(point_names[name] or name for name in expected), records


def refuse_zeros(file: Path, abbreviations: Sequence[str], records: Sequence[Record]) -> None:
    """Refuse points at exactly (0, 0), which many programs write for a missing one. Raises UserError."""
    zeros = [(n, row) for n, r in enumerate(records) for row in np.flatnonzero(~r.landmarks.any(1)).tolist()]
    if zeros:
        number, row = zeros[0]
        others = f", and so do {len(zeros) - 1} others" if zeros[1:] else ""
        raise UserError(
            f"{file}: record {number + 1} ({records[number].name}): point {abbreviations[row]!r} lies at exactly (0, 0)"
            f"{others}: write X and Y null for a missing landmark, and 0.01 for one that does lie in the corner"
        )


def check_name(where: str, key: str, name: str) -> None:
    """Refuse a name that no file system, csv or xls can hold. Raises UserError."""
    if UNPRINTABLE.search(name):
        raise UserError(f"{where}: {key} is {name!r}; expected no control character, line break or half a character")


def read_points(where: str, entry) -> dict[str, dict]:
    """Return the points of a record by abbreviation. Raises UserError if it has none, or one of them twice."""
    if not isinstance(entry, dict) or not isinstance(entry.get("imagePath"), str):
        raise UserError(f"{where}: expected an object with imagePath (a file name) and points")
    check_name(where, "imagePath", entry["imagePath"])
    where = f"{where} ({entry['imagePath']})"
    points = entry.get("points")
    if not isinstance(points, list) or not points:
        raise UserError(f"{where}: expected points, a list of {{pointName, pointAbbreviation, X, Y}}")
    table: dict[str, dict] = {}
    for place, point in enumerate(points, 1):
        if not isinstance(point, dict) or not isinstance(point.get("pointAbbreviation"), str):
            raise UserError(f"{where}: point {place} has no pointAbbreviation")
        check_name(f"{where}: point {place}", "pointAbbreviation", point["pointAbbreviation"])
        check_name(f"{where}: point {place}", "pointName", str(point.get("pointName", "")).strip())
        if point["pointAbbreviation"] in table:
            raise UserError(f"{where}: point {point['pointAbbreviation']!r} appears twice; keep one")
        table[point["pointAbbreviation"]] = point
    return table


def check_points(
    where: str, table: dict[str, dict], expected: Sequence[str], num_landmarks: int | None, from_checkpoint: bool
) -> None:
    """Refuse a record with other landmarks than the expected ones. Raises UserError that names those that differ."""
    unknown = [name for name in table if name not in expected]
    absent = [name for name in expected if name not in table]
    differences = [f"unknown: {', '.join(unknown)}"] if unknown else []
    if absent:
        differences.append(f"absent: {', '.join(absent)} (a missing landmark is written with X and Y null)")
    if from_checkpoint and differences:
        raise UserError(f"{where}: its points are not those of the checkpoint; {'; '.join(differences)}")
    if num_landmarks is not None and len(table) != num_landmarks:
        if not differences:  # all records agree with each other
            differences = [f"set num_landmarks to {len(table)}, or to none"]
        raise UserError(f"{where}: has {len(table)} points, num_landmarks is {num_landmarks}; {'; '.join(differences)}")
    if differences:
        raise UserError(f"{where}: its points are not those of the other records; {'; '.join(differences)}")


def read_record(where: str, entry: dict, points: list[dict], img_dir: Path) -> Record:
    """Return a record with its points in the order given. Raises UserError for a value that is not allowed."""
    landmarks = np.full((len(points), 2), math.nan)
    occluded = np.zeros(len(points), bool)
    for row, point in enumerate(points):
        name, values = point["pointAbbreviation"], [point.get("X"), point.get("Y")]
        for key in ("visible", "occluded"):
            if point.get(key) not in (True, False, None):  # 1 and 0 pass
                raise UserError(f"{where}: point {name!r}: {key} is {point[key]!r}; expected true or false")
        if values == [None, None] or point.get("visible") in (False, 0):
            continue
        for axis, value in zip("XY", values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                expected = "a finite number in px (X and Y null for a missing landmark)"
                raise UserError(f"{where}: point {name!r}: {axis} is {value!r}; expected {expected}")
        landmarks[row], occluded[row] = values, bool(point.get("occluded"))
    spacing, low, high = entry.get("spacing"), *SPACINGS
    number = isinstance(spacing, int | float) and not isinstance(spacing, bool)
    if spacing is not None and not (number and low <= spacing <= high):
        raise UserError(f"{where}: spacing is {spacing!r}; expected mm per px, a number from {low:g} to {high:g}")
    patient = entry.get("patient")
    check_name(where, "patient", str(patient))
    return Record(
        name=entry["imagePath"],
        path=img_dir / entry["imagePath"],
        landmarks=landmarks,
        occluded=occluded,
        spacing=math.nan if spacing is None else float(spacing),
        split=read_split(where, entry.get("split")),
        patient=None if patient is None else str(patient),
        readers=read_readers(where, entry, [point["pointAbbreviation"] for point in points]),
        keys={key: value for key, value in entry.items() if not isinstance(value, dict | list)},
    )


def read_readers(where: str, entry: Mapping[str, Any], abbreviations: Sequence[str]) -> np.ndarray | None:
    """Return the points (2, N, 2) of the two readers of a record in original px, nan where missing, else None.

    abbreviations: the landmarks and their order. Raises UserError for readers that are not lists of points.
    """
    readers = entry.get("readers")
    if not isinstance(readers, dict) or len(readers) != 2:
        return None
    places = {point["pointAbbreviation"]: place for place, point in enumerate(entry["points"])}
    shape = (2, len(places), 2)
    with expecting(where, f"readers of two lists of {len(places)} points x, y"):
        points = [[xy or (math.nan, math.nan) for xy in reader] for reader in readers.values()]
        found = np.array(points, float).reshape(shape)
    return found[:, [places[abbreviation] for abbreviation in abbreviations]]


def read_split(where: str, split) -> str | None:
    """Return the split of a record: train, val, the name of a test set, or None.

    Raises UserError for a name that cannot be a folder in the folder of a run.
    """
    if split is None:
        return None
    if not isinstance(split, str) or not split.strip(" .") or "/" in split or "\\" in split or len(split) > 60:
        raise UserError(f"{where}: split is {split!r}; expected train, val or the name of a test set, a short one")
    split = split.strip()
    check_name(where, "split", split)
    if re.search(r'[<>:"|?*]', split) or re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", split.lower()):
        raise UserError(f"{where}: split is {split!r}, which cannot be a folder on Windows; give it another name")
    if split.lower().removesuffix(".partial") in RUN_FILES:
        raise UserError(f"{where}: split is {split!r}, which main.py writes itself; give the test set another name")
    known = SPLIT_NAMES.get(split.lower(), split.lower())
    return known if known in ("train", "val") else split


def json_type(value) -> str:
    """Return the type of a JSON value in the words of JSON."""
    return {dict: "an object", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


# --- Images --------------------------------------------------------------------------------------


def read_images(
    json_path: str | Path, img_dir: str | Path, abbreviations: Sequence[str], records: list[Record]
) -> list[Record]:
    """Decode every image once; return the records with what comes from it. Logs images without a record.

    Raises UserError for an image that cannot be read or has two records, and for a point outside its image.
    """
    folder = Path(img_dir)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; set img_dir to the folder of your images")

    def inspect(record: Record) -> tuple[Record, list[str]]:
        path = find_file(folder, record.name) or record.path
        image, spacing, notes = read_film(path)
        digest = hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).hexdigest()
        stated, size = math.nan if spacing is None else spacing, (image.shape[1], image.shape[0])
        return replace(record, path=path, file_spacing=stated, size=size, fingerprint=digest), notes

    with ThreadPoolExecutor(max_workers=4) as pool:  # decoding releases Python's lock
        bar = tqdm(pool.map(inspect, records), "checking images", len(records), leave=False, disable=None)
        inspected = list(bar)
    records = [record for record, _ in inspected]
    if notes := [note for _, own in inspected for note in own]:
        log.warning("image %s%s", notes[0], f" ({len(notes) - 1} more notes like it)" if notes[1:] else "")
    for number, record in enumerate(records, 1):
        outside = (record.landmarks < -0.5) | (record.landmarks > np.array(record.size) - 0.5)
        if outside.any():
            row = int(np.flatnonzero(outside.any(1))[0])
            x, y = record.landmarks[row]
            raise UserError(
                f"{json_path}: record {number} ({record.name}): point {abbreviations[row]!r} at "
                f"({x:g}, {y:g}) lies outside its image of {record.size[0]} x {record.size[1]} px"
            )
    files: dict[str, Record] = {}
    for record in records:
        other = files.setdefault(os.path.abspath(record.path), record)
        if other is not record:
            raise UserError(f"{json_path}: {other.name} and {record.name} are the same file, {record.path}; keep one")
    used = {record.path.resolve() for record in records}
    unused = [
        path.relative_to(folder).as_posix()
        for path in visible_files(folder)
        if is_image_file(path) and path.resolve() not in used
    ]
    if unused:
        log.warning("%d images in %s have no record and are not used: %s", len(unused), folder, shorten(unused))
    return records


def shorten(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names of a list, and the number of the others, as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- Spacing -------------------------------------------------------------------------------------


def read_spacing(config: Config, abbreviations: Sequence[str], records: list[Record]) -> list[Record]:
    """Return the records with their spacing, mm per original px: their own, or by config.spacing, or nan.

    "ruler": ruler_mm divided by the distance of the two ruler points, the median over all images of one size, because
    a click error of 1 px on a 10-mm ruler changes every error in mm by 2 %.
    Logs where a DICOM file states another one. Raises UserError if a ruler is missing, or if only some records get a
    spacing.
    """
    if isinstance(config.spacing, float):
        records = [replace(r, spacing=config.spacing) if math.isnan(r.spacing) else r for r in records]
    elif config.spacing == "ruler" and any(math.isnan(record.spacing) for record in records):
        absent = [name for name in config.ruler if name not in abbreviations]
        if absent:
            raise UserError(
                f"{config.json_path} has no ruler point {absent[0]!r}: set spacing to mm per px (or to none, for "
                "errors in px), and report_exclude to the points to leave out of the headline figures (or to none)"
            )
        rows = [abbreviations.index(name) for name in config.ruler]
        rulers: dict[tuple[int, int], list[float]] = {}
        for record in records:
            start, end = record.landmarks[rows]
            length = float(np.hypot(*(end - start)))
            if length > 0:  # false for nan
                rulers.setdefault(record.size, []).append(config.ruler_mm / length)
        for size, values in rulers.items():
            log.info(
                "spacing by the ruler: %.4f mm/px for %d images of %d x %d px (from %.4f to %.4f)",
                np.median(values), len(values), *size, min(values), max(values),
            )  # fmt: skip
        without = [r for r in records if math.isnan(r.spacing) and r.size not in rulers]
        if without:
            raise UserError(
                f"{config.json_path}: image {without[0].name} and all other images of {without[0].size[0]} x "
                f"{without[0].size[1]} px have no ruler; give its record a spacing in mm per px"
            )
        medians = {size: float(np.median(values)) for size, values in rulers.items()}
        absurd = [spacing for spacing in medians.values() if not SPACINGS[0] <= spacing <= SPACINGS[1]]
        if absurd:
            raise UserError(
                f"{config.json_path}: the ruler gives {absurd[0]:g} mm per px; expected {SPACINGS[0]:g} to "
                f"{SPACINGS[1]:g}: check the points {' and '.join(config.ruler)}, and ruler_mm"
            )
        records = [replace(r, spacing=medians[r.size]) if math.isnan(r.spacing) else r for r in records]
    unknown = [record.name for record in records if math.isnan(record.spacing)]
    if 0 < len(unknown) < len(records):
        raise UserError(
            f"{config.json_path}: {len(unknown)} of {len(records)} records have no spacing "
            f"({shorten(unknown)}); give it in all records, or set spacing"
        )
    other = [r for r in records if abs(r.file_spacing - (0 if unknown else r.spacing)) > 0.01 * r.file_spacing]
    if other:  # False for nan
        used = "errors are in px" if unknown else f"{other[0].spacing:.4g} is used"
        log.warning(
            "the DICOM files of %d images state another spacing, %s %.4g mm per px, but %s: check the setting spacing",
            len(other), other[0].name, other[0].file_spacing, used,
        )  # fmt: skip
    return records
