"""Aariz, the set of the CEPHA29 challenge: 29 landmarks of two readers, one JSON file each per image.

    SOURCE/train/Cephalograms/ID.png
    SOURCE/train/Annotations/Cephalometric Landmarks/{Senior,Junior} Orthodontists/ID.json
    SOURCE/cephalogram_machine_mappings.csv      cephalogram_id,...,machine,pixel_size      mm per px, by machine

    {"ceph_id": "ID", "dataset_name": "Aariz", "landmarks": [
       {"landmark_id": "lm-01", "title": "A-point", "symbol": "A", "value": {"x": 1315, "y": 1086}}]}

SOURCE is the folder of the archive; the files may lie at any depth below it. Points are in px and matched by symbol. A
folder train, valid or test above an image sets its split; the machine is kept as "device". The published truth is the
mean of both readers, rounded up.
"""

from pathlib import Path

import numpy as np

from reading.paths import visible_files
from settings import UserError, expecting, read_json
from tools.formats.common import (
    Images,
    Reading,
    add_point,
    folder_split,
    make_record,
    note_missing,
    numbers,
    spacing_number,
)  # fmt: skip
from tools.formats.files import check_folder, read_csv

PRESET = "aariz"
READERS = {"mean": ("senior", "junior"), "ceiling": ("senior", "junior"), "senior": ("senior",), "junior": ("junior",)}


def read(source: Path, reader: str = "mean") -> Reading:
    """Read the archive.

    reader: which reader's points: mean of both, ceiling (the mean rounded up, as published), senior or junior
    """
    if reader not in READERS:
        raise UserError(f"reader is {reader!r}; choose one of {', '.join(READERS)}")
    pictures = Images(check_folder(source, "the folder of the archive"))
    points: dict[str, dict[str, dict]] = {}
    names: dict[str, str] = {}
    for file in visible_files(source, "*.json"):
        folders = [part.lower() for part in file.relative_to(source).parts[:-1]]
        who = next((who for who in ("senior", "junior") if any(part.startswith(who) for part in folders)), None)
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
        raise UserError(f"{source} holds no .json files below a folder Senior ... or Junior ...")
    machines, notes = read_machines(source)
    pairs, order = [], list(names)
    for id_, readers in sorted(points.items()):
        path = pictures.take_if_there(id_, source, notes)
        if path is None:
            continue
        absent = [who for who in READERS[reader] if who not in readers]
        if absent:
            notes.append(f"{id_}: skipped, it has no annotation of the {absent[0]} reader")
            continue
        table = {label: combine([readers[who].get(label) for who in READERS[reader]], reader) for label in order}
        notes += note_missing(id_, table)
        split = folder_split(path, source)
        if machines and id_ not in machines:
            notes.append(f"{id_}: no pixel size in the machine table")
        both = {who: [each.get(label) for label in order] for who, each in readers.items()}
        spacing, device = machines.get(id_, (None, None))
        record = make_record(path.name, table, names, spacing=spacing, split=split, device=device, readers=both)
        pairs.append((path, record))
    return pictures.reading(source, pairs, notes)


def combine(points: list, reader: str) -> list[float] | None:
    """Return one point from those of one or two readers, None if one of them has none."""
    if any(point is None for point in points):
        return None
    mean = np.mean(points, axis=0)
    return (np.ceil(mean) if reader == "ceiling" else mean).tolist()


def read_machines(source: Path) -> tuple[dict[str, tuple[float, str | None]], list[str]]:
    """Return mm per px and, if the table names it, the machine by image id, and a note if there is no such table."""
    files = visible_files(source, "cephalogram_machine_mappings.csv")
    if not files:
        return {}, ["no cephalogram_machine_mappings.csv: errors will be in px"]
    head, *rows = read_csv(files[0]) or [[]]
    words = ("ceph", "pixel", "machine")
    id_, size, machine = (next((i for i, name in enumerate(head) if word in name.lower()), None) for word in words)
    if id_ is None or size is None:
        raise UserError(f"{files[0]}: expected columns cephalogram_id and pixel_size, found {', '.join(head)}")
    with expecting(files[0], "a row per image with cephalogram_id and pixel_size"):
        return {
            row[id_]: (
                spacing_number(row[size], f"{files[0]}: {row[id_]}: pixel_size"),
                None if machine is None else row[machine],
            )
            for row in rows
        }, []
