"""Aariz, the set of the CEPHA29 challenge: 29 landmarks of two readers, one json each per image.

    .../train/Cephalograms/ID.png
    .../train/Annotations/Cephalometric Landmarks/{Senior,Junior} Orthodontists/ID.json
    .../cephalogram_machine_mappings.csv      cephalogram_id,...,pixel_size      mm per px, by machine

    {"ceph_id": "ID", "dataset_name": "Aariz", "landmarks": [
       {"landmark_id": "lm-01", "title": "A-point", "symbol": "A", "value": {"x": 1315, "y": 1086}}]}

Points in px, matched by symbol. Files are found by these names at any depth; a folder train, valid or test above an
image tells its split. The published truth is the mean of both readers, rounded up.
"""

from pathlib import Path

import numpy as np

from settings import UserError
from tools.formats.common import (
    Images,
    Reading,
    add_point,
    check_folder,
    expecting,
    make_record,
    number,
    numbers,
    read_csv,
    read_json,
)

PRESET = "aariz"
READERS = ("mean", "ceiling", "senior", "junior")
SPLITS = {"train": "train", "valid": "val", "validation": "val", "val": "val", "test": "test"}


def read(source: Path, reader: str = "mean") -> Reading:
    """The records of the archive. reader: mean of both, ceiling (as published), senior or junior."""
    if reader not in READERS:
        raise UserError(f"reader is {reader!r}; choose one of {', '.join(READERS)}")
    pictures = Images(check_folder(source, "the folder of the archive"))
    points: dict[str, dict[str, dict]] = {}
    names: dict[str, str] = {}
    for file in sorted(source.rglob("*.json")):
        who = next(
            (
                w
                for w in ("senior", "junior")
                for part in file.relative_to(source).parts[:-1]
                if part.lower().startswith(w)
            ),
            None,
        )
        if who is None:
            continue
        with expecting(file, "an annotation of Aariz"):
            content, table = read_json(file), {}
            for landmark in content["landmarks"]:
                where = f"{file}: {landmark['symbol']!r}"
                xy = numbers([landmark["value"]["x"], landmark["value"]["y"]], where, 2)
                add_point(table, landmark["symbol"], xy, str(file))
                names.setdefault(landmark["symbol"], str(landmark["title"]))
            readers = points.setdefault(str(content["ceph_id"]), {})
            if who in readers:
                raise UserError(f"{file}: a second {who} annotation of {content['ceph_id']}; keep one")
            readers[who] = table
    if not points:
        raise UserError(f"{source}: there are no .json files below a folder Senior ... or Junior ...")
    spacings, notes = read_spacings(source)
    pairs, order = [], list(names)
    for id_, readers in sorted(points.items()):
        path = pictures.find(id_)
        if path is None:
            notes.append(f"{id_}: skipped, there is no image of it")
            continue
        absent = [who for who in needed(reader) if who not in readers]
        if absent:
            notes.append(f"{id_}: skipped, without the {absent[0]} reader")
            continue
        table = {label: combine([readers[who].get(label) for who in needed(reader)], reader) for label in order}
        missing = [label for label, point in table.items() if point is None]
        notes += [f"{id_}: missing {', '.join(missing)}"] if missing else []
        split = next(
            (SPLITS[part.lower()] for part in reversed(path.relative_to(source).parts) if part.lower() in SPLITS), None
        )
        if spacings and id_ not in spacings:
            notes.append(f"{id_}: no pixel size in the machine table")
        both = {who: [each.get(label) for label in order] for who, each in readers.items()}
        pairs.append((path, make_record(path.name, table, names, spacing=spacings.get(id_), split=split, readers=both)))
    if not pairs:
        raise UserError(f"{source}: no annotation has an image and the readers asked for")
    return Reading(pairs, notes + pictures.unused())


def needed(reader: str) -> tuple[str, ...]:
    """Whose points it takes."""
    return (reader,) if reader in ("senior", "junior") else ("senior", "junior")


def combine(points: list, reader: str) -> list[float] | None:
    """One point of one or two readers; none if one of them has none."""
    if any(point is None for point in points):
        return None
    mean = np.mean(points, axis=0)
    return (np.ceil(mean) if reader == "ceiling" else mean).tolist()


def read_spacings(source: Path) -> tuple[dict[str, float], list[str]]:
    """mm per px by image id, from the machine table; and a note where there is none."""
    files = sorted(source.rglob("cephalogram_machine_mappings.csv"))
    if not files:
        return {}, ["no cephalogram_machine_mappings.csv: errors will be in px"]
    head, *rows = read_csv(files[0]) or [[]]
    columns = [next((i for i, name in enumerate(head) if word in name.lower()), None) for word in ("ceph", "pixel")]
    if None in columns:
        raise UserError(f"{files[0]}: expected columns cephalogram_id and pixel_size, found {', '.join(head)}")
    with expecting(files[0], "a row per image with cephalogram_id and pixel_size"):
        spacings = {row[columns[0]]: number(row[columns[1]], f"{files[0]}: {row[columns[0]]}") for row in rows}
    wrong = [id_ for id_, spacing in spacings.items() if not spacing > 0]
    if wrong:
        raise UserError(f"{files[0]}: the pixel size of {wrong[0]} is not above 0")
    return spacings, []
