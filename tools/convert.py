"""Convert a foreign data set to imgs/ and json/data.json, as main.py reads them; or into an annotation program.

    python -m tools.convert --list
    python -m tools.convert FORMAT SOURCE DESTINATION [--<option> VALUE ...] [--to FORMAT]

Images are copied (--link: linked) unchanged, except DICOM and .mha, which become PNG. Coordinates are copied unchanged.
If your program puts (0, 0) at the corner of the first pixel rather than at its centre, add --corner. The options of a
format are printed by `python -m tools.convert FORMAT --help`. --join adds data sets that were converted already. With
--to, DESTINATION gets the annotation of that program instead.
"""

import argparse
import filecmp
import inspect
import json
import os
import re
import shutil
import sys
import typing
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from config import PRESETS
from machine import exit_status, training_command
from reading import dicom
from reading.annotation import read_points, read_record, shorten
from reading.paths import normal_name
from run_folder import write_bytes
from settings import Parser, UserError, parse_text
from tools.formats import FORMATS, native
from tools.formats.common import OPTIONS, Pixels, Reading, data_options, image_size, record_points, spacing_number
from tools.formats.files import check_folder, check_out, filling, write_json


def write_data_set(reading: Reading, destination: Path, link: bool = False) -> list[str]:
    """Write destination/imgs and destination/json/data.json, completely or not at all; return notes on DICOM files.

    Raises UserError if one of them exists, if two images share a name, or for a record that main.py would refuse.
    """
    target, folder = destination / "json" / "data.json", destination / "imgs"
    if target.exists() or folder.exists():
        raise UserError(f"{destination} holds a data set already; delete it, or give another folder")
    names = [Path(written_name(image, record)).name for image, record in reading.pairs]
    if doubled_name(names):  # such as lateral.png of each patient
        names = [written_name(image, record) for image, record in reading.pairs]
    if (doubled := doubled_name(names)) is not None:
        raise UserError(f"two images would be called {doubled}; rename one")
    partial_folder, notes, records = destination / "imgs.partial", [], []
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        bar = tqdm(zip(names, reading.pairs, strict=True), "writing", len(names), disable=None)
        for name, (image, record) in bar:
            (partial_folder / name).parent.mkdir(parents=True, exist_ok=True)
            spacing, more = write_image(image, partial_folder / name, link)
            record = ({"spacing": spacing} if spacing is not None else {}) | record | {"imagePath": name}
            check_record(record, partial_folder / name)
            records.append(record)
            notes += more
        write_json(target, records)
        os.replace(partial_folder, folder)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        target.unlink(missing_ok=True)
        raise
    return notes


def written_name(image: Path | Pixels, record: dict) -> str:
    """Return the path of an image in imgs, with its folders; .png for DICOM."""
    name = Path(record["imagePath"])
    if callable(image) or not dicom.is_dicom(image):
        return name.as_posix()
    return name.with_name((name.stem if name.suffix.lower() in dicom.ENDINGS else name.name) + ".png").as_posix()


def doubled_name(names: Sequence[str]) -> str | None:
    """Return the first name that two files cannot have in a folder, None if there is none."""
    counts = Counter(map(normal_name, names))
    return next((name for name in names if counts[normal_name(name)] > 1), None)


def write_image(image: Path | Pixels, path: Path, link: bool) -> tuple[float | None, list[str]]:
    """Write one image; return the spacing, mm per px, if its DICOM file states one, and notes."""
    if callable(image):
        write_png(image(), path)
    elif dicom.is_dicom(image):
        read = dicom.read(image)
        write_png(read.image, path)
        return read.spacing, [*read.notes, *([f"{image.name}: no PixelSpacing"] if read.spacing is None else [])]
    elif link:
        path.symlink_to(image.resolve())
    else:
        try:
            shutil.copyfile(image, path)
        except OSError as error:  # without a remedy, and with the name of the wrong file if the disk is full
            raise UserError(
                f"{image} cannot be copied to {path} ({error.strerror}); nothing is written: free space, or correct "
                "its permissions, and repeat the command"
            ) from None
    return None, []


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Write pixels as PNG. Raises UserError."""
    write_bytes(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))


def check_record(record: dict, path: Path) -> None:
    """Raise UserError for what main.py would refuse: a value in a record, or a point outside its image."""
    where = f"image {record['imagePath']}"
    read_record(where, record, list(read_points(where, record).values()), path.parent)
    width, height = image_size(path)
    for label, point in record_points(record).items():
        if point and not (-0.5 <= point[0] <= width - 0.5 and -0.5 <= point[1] <= height - 0.5):
            raise UserError(
                f"{where}: point {label!r} at ({point[0]:g}, {point[1]:g}) lies outside its {width} x {height} px"
            )


def shift_points(reading: Reading, by: float) -> Reading:
    """Return the same with all points moved by so many px along both axes."""
    pairs = []
    for image, record in reading.pairs:
        points = [
            point | {axis: point[axis] + by for axis in "XY" if point.get(axis) is not None}
            for point in record["points"]
        ]
        pairs.append((image, record | {"points": points}))
    return reading._replace(pairs=pairs)


def add_spacing(reading: Reading, spacing: float) -> Reading:
    """Return the same with a spacing, mm per px, for all images that state none, and a note on those that do."""
    own, pairs = [], []
    for image, record in reading.pairs:
        if record.get("spacing") or (isinstance(image, Path) and dicom.is_dicom(image) and dicom.read(image).spacing):
            own.append(record["imagePath"])
        else:
            record = record | {"spacing": spacing}
        pairs.append((image, record))
    notes = [f"--spacing is not used for {len(own)} images that state their own: {shorten(own)}"] if own else []
    return Reading(pairs, [*reading.notes, *notes])


def in_order(record: dict, order: Sequence[str]) -> dict:
    """Return a record with its points, and those of its readers, in an order of abbreviations."""
    places = [[point["pointAbbreviation"] for point in record["points"]].index(name) for name in order]
    readers = record.get("readers")
    more = {"readers": [[own[n] for n in places] for own in readers]} if readers else {}
    return record | more | {"points": [record["points"][n] for n in places]}


def join(reading: Reading, folder: Path) -> Reading:
    """Return what was read with the images of a data set that it lacks; its landmarks in the order of the data set.

    If only one of both names splits, the other's images get "train". Raises UserError for other landmarks, for an image
    of both with other content, points, split, spacing or patient, and for one that both call differently.
    """
    other = native.read(check_folder(folder, "a data set with imgs/ and json/"))
    both = {record["imagePath"]: number for number, (_, record) in enumerate(other.pairs)}
    order, labels = (list(record_points(each.pairs[0][1])) for each in (other, reading))
    if odd := sorted({*order} ^ {*labels}):
        raise UserError(f"{folder} cannot be joined: {', '.join(odd)} is a landmark of only one of both")
    sizes: dict[int, list[Path]] = {}
    for path in (image for image, _ in other.pairs if isinstance(image, Path)):
        sizes.setdefault(path.stat().st_size, []).append(path)
    pairs = []
    for image, record in reading.pairs:
        record, name = in_order(record, order), record["imagePath"]
        known = other.pairs[both[name]] if name in both else None
        equal = sizes.get(image.stat().st_size, []) if isinstance(image, Path) else []
        equal = [path for path in equal if filecmp.cmp(image, path, shallow=False)]
        if known is None and not equal:
            pairs.append((image, record))
            continue
        stated = known[1] if known else {}
        odd = [
            key
            for key in ("split", "spacing", "patient")
            if key in stated and record.get(key, stated[key]) != stated[key]
        ]
        if known is None:
            raise UserError(f"{folder} cannot be joined: {name} is {equal[0]} under another name; remove one")
        if known[0] not in equal:
            raise UserError(f"{folder} cannot be joined: its {name} is another image; rename or remove one")
        if odd or record_points(record) != record_points(stated):
            what = f"{odd[0]} {stated[odd[0]]} instead of {record[odd[0]]}" if odd else "another annotation"
            raise UserError(f"{folder} cannot be joined: its {name} has {what}; correct or remove one")
        other.pairs[both[name]] = known[0], record | stated
    parts, notes = [other.pairs, pairs], [*reading.notes, *other.notes]
    named = [any(record.get("split") for _, record in part) for part in parts]
    if pairs and any(named) and not all(named):
        unnamed = parts[named.index(False)]
        parts[named.index(False)] = [(image, record | {"split": "train"}) for image, record in unnamed]
        notes.append(
            f"{len(unnamed)} images name no split and get train: {shorten([r['imagePath'] for _, r in unnamed])}"
        )
    return Reading(parts[0] + parts[1], notes)


def print_findings(reading: Reading, notes: Sequence[str]) -> None:
    """Print what was found, skipped and repaired, one line each."""
    for note in (*reading.notes, *notes):
        print(f"note: {note}")
    records = [record for _, record in reading.pairs]
    points = [point for record in records for point in record_points(record).values()]
    splits = Counter(record.get("split", "no split") for record in records)
    counts = ", ".join(f"{split} {count}" for split, count in splits.items())
    missing = sum(point is None for point in points)
    print(f"{len(records)} images ({counts}) of {len(record_points(records[0]))} landmarks, {missing} points missing")


# --- Command line ----------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """Return a parser with a command per format, whose options are the parameters of its `read`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m tools.convert", description=__doc__, formatter_class=raw)
    parser.add_argument("--list", action="store_true", help="print the formats, one line each")
    commands = parser.add_subparsers(dest="format", metavar="FORMAT")
    for name, module in FORMATS.items():
        command = commands.add_parser(name, description=module.__doc__, formatter_class=raw, allow_abbrev=False)
        command.add_argument("source", metavar="SOURCE", type=Path, help="the file or folder described above")
        command.add_argument("destination", metavar="DESTINATION", type=Path, help="new folder for imgs/ and json/")
        command.add_argument("--link", action="store_true", help="link the images instead of copying them")
        command.add_argument(
            "--join", nargs="+", type=Path, default=[], metavar="FOLDER", help="data sets with imgs/ and json/ to add"
        )
        command.add_argument(
            "--corner", action="store_true", help="correct by half a px: the program puts (0, 0) at a pixel's corner"
        )
        writable = [name for name, module in FORMATS.items() if hasattr(module, "write")]
        command.add_argument("--to", choices=writable, help="write the annotation of this program instead")
        hints = typing.get_type_hints(module.read)
        command.add_argument(
            "--spacing",
            metavar="MM",
            type=partial(spacing_number, where="--spacing"),
            help="mm per px, written into the records that have no spacing",
        )
        for option, parameter in list(inspect.signature(module.read).parameters.items())[1:]:
            own = re.search(rf"^ *{option}: (.*)", module.read.__doc__, re.MULTILINE)
            meaning = own[1] if own else OPTIONS[option]
            command.add_argument(
                f"--{option}",
                type=Path if hints[option] == Path | None else partial(parse_text, option, hint=hints[option]),
                default=parameter.default,
                help=meaning if "default:" in meaning or not parameter.default else f"{meaning}; default: %(default)s",
            )
    return parser


def convert(options: argparse.Namespace) -> None:
    """Read, write, and print what was found. Raises UserError."""
    module = FORMATS[options.format]
    names = list(inspect.signature(module.read).parameters)[1:]
    reading = module.read(options.source, **{name: getattr(options, name) for name in names})
    if options.corner and not options.to:
        reading = shift_points(reading, -0.5)
    for folder in options.join:
        reading = join(reading, folder)
    if options.spacing is not None:
        reading = add_spacing(reading, options.spacing)
    if options.to:
        check_out(options.destination)
        drawn = [record["imagePath"] for image, record in reading.pairs if callable(image)]
        if drawn:
            raise UserError(
                f"image {drawn[0]} is not a file of its own: convert to a folder first, and that one to {options.to}"
            )
        for image, record in reading.pairs:
            check_record(record, image)
        shifted = shift_points(reading, 0.5) if options.corner else reading
        with filling(options.destination):
            FORMATS[options.to].write(shifted.pairs, options.destination)
        print_findings(reading, [])
        print(f"written for {options.to}: {options.destination}")
        return
    notes = write_data_set(reading, options.destination, options.link)
    print_findings(reading, notes)
    json_path, preset = options.destination / "json" / "data.json", getattr(module, "PRESET", "")
    records = json.loads(json_path.read_text(encoding="utf-8"))
    more = [] if preset else data_options(records)
    if preset and PRESETS[preset]["num_landmarks"] != len(records[0]["points"]):  # a part of the data set
        more = ["--num_landmarks", "none"]
    print(f"train with: {training_command(options.destination / 'imgs', json_path, *more, data_preset=preset)}")


def run() -> None:
    """Do what the command line says. Raises UserError."""
    options = make_parser().parse_args()
    if not options.list and options.format:
        return convert(options)
    for name, module in FORMATS.items():
        both = "read, write" if hasattr(module, "write") else "read"
        print(f"{name:<12} {module.__doc__.splitlines()[0]} ({both})")


def main() -> int:
    """Return exit status 2 for a source that cannot be read or a destination that is taken."""
    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
