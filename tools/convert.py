"""A foreign data set -> imgs/ and json/data.json, as main.py reads them; or back into an annotation program.

    python -m tools.convert --list
    python -m tools.convert FORMAT SOURCE DESTINATION [--<option> VALUE ...] [--to FORMAT]

Images are copied as they are (--link: linked), but for DICOM and .mha, which become PNG. What a format's options are
says `python -m tools.convert FORMAT --help`. With --to, DESTINATION gets that program's annotation instead.
"""

import argparse
import inspect
import json
import os
import shlex
import shutil
import sys
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any

from PIL import Image
from tqdm import tqdm

from config import PRESETS, UserError
from formats import FORMATS, dicom
from formats.common import Pixels, Reading, image_size, record_points, write_json


def write_data_set(reading: Reading, destination: Path, link: bool = False) -> list[str]:
    """destination/imgs and destination/json/data.json, neither of which may be there yet; returns notes of DICOM files.

    Whole or not at all. Raises UserError if something is there already, if two images share a name, or if a point lies
    outside its image.
    """
    target, folder = destination / "json" / "data.json", destination / "imgs"
    if target.exists() or folder.exists():
        raise UserError(f"{destination} holds a data set already; give another folder")
    names = [record["imagePath"] for _, record in reading.pairs]
    if len(set(names)) != len(names):
        raise UserError(f"two images are called {next(n for n in names if names.count(n) > 1)}; rename one")
    partial, notes, records = destination / "imgs.partial", [], []
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for image, record in tqdm(reading.pairs, "linking" if link else "copying", disable=None):
            record, more = write_image(image, record, partial, link)
            records.append(record)
            notes += more
            check_inside(record, partial / record["imagePath"])
    except BaseException:
        shutil.rmtree(partial)
        raise
    os.replace(partial, folder)
    write_json(target, records)
    return notes


def write_image(image: Path | Pixels, record: dict, folder: Path, link: bool) -> tuple[dict, list[str]]:
    """One image in a folder; its record, with what its file alone knows, and notes."""
    if callable(image):
        Image.fromarray(image()).save(folder / record["imagePath"])
    elif image.suffix.lower() == ".dcm":
        read = dicom.read(image)
        record = record | {"imagePath": f"{Path(record['imagePath']).stem}.png"}
        if read.spacing is not None:
            record = {"spacing": read.spacing} | record
        Image.fromarray(read.image).save(folder / record["imagePath"])
        return record, read.notes
    elif link:
        (folder / record["imagePath"]).symlink_to(image.resolve())
    else:
        shutil.copyfile(image, folder / record["imagePath"])
    return record, []


def check_inside(record: dict, path: Path) -> None:
    """Raise UserError for a point outside its image."""
    width, height = image_size(path)
    for label, point in record_points(record).items():
        if point and not (-0.5 <= point[0] <= width - 0.5 and -0.5 <= point[1] <= height - 0.5):
            raise UserError(
                f"image {record['imagePath']}: point {label!r} at ({point[0]:g}, {point[1]:g}) lies outside its "
                f"{width} x {height} px"
            )


def print_findings(reading: Reading, notes: Sequence[str]) -> None:
    """What was found, skipped and repaired, item by item."""
    for note in (*reading.notes, *notes):
        print(f"note: {note}")
    records = [record for _, record in reading.pairs]
    points = [point for record in records for point in record_points(record).values()]
    splits = Counter(record.get("split", "no split") for record in records)
    counts = ", ".join(f"{split} {count}" for split, count in splits.items())
    missing = sum(point is None for point in points)
    print(f"{len(records)} images ({counts}) of {len(record_points(records[0]))} landmarks, {missing} points missing")


def training_command(module: ModuleType, records: Sequence[dict], destination: Path) -> str:
    """The command that starts training on what was converted."""
    words = ["python main.py"]
    preset = PRESETS.get(getattr(module, "PRESET", ""), {})
    if preset:
        words.append(f"--preset {module.PRESET}")
    labels = list(record_points(records[0]))
    if preset.get("num_landmarks") != len(labels):
        words.append(f"--num_landmarks {len(labels)}")
    ruler = {"R1", "R2"} <= set(labels)
    if not preset and not ruler:
        words.append(f"--report_exclude none{'' if all(r.get('spacing') for r in records) else ' --spacing none'}")
    places = ["--img_dir", str(destination / "imgs"), "--json_path", str(destination / "json" / "data.json")]
    return " ".join([*words, shlex.join(places)])


# --- Command line ----------------------------------------------------------------------------------


def option_type(hint: Any) -> Callable[[str], Any]:
    """How an option's value is read from its text, by the type of read's parameter."""
    if isinstance(hint, UnionType):
        (hint,) = [each for each in typing.get_args(hint) if each is not NoneType]
    if hint is bool:
        return lambda text: {"true": True, "false": False}[text.lower()]
    if typing.get_origin(hint) is not None:  # a list, comma-separated
        (item,) = typing.get_args(hint)
        return lambda text: [item(each.strip()) for each in text.split(",")]
    return hint


def make_parser() -> argparse.ArgumentParser:
    """A command per format, whose options are the parameters of its read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the formats, a line each")
    commands = parser.add_subparsers(dest="format", metavar="FORMAT")
    for name, module in FORMATS.items():
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        command.add_argument("source", type=Path)
        command.add_argument("destination", type=Path)
        command.add_argument("--link", action="store_true", help="link the images instead of copying them")
        command.add_argument("--to", choices=[n for n, m in FORMATS.items() if hasattr(m, "write")])
        hints = typing.get_type_hints(module.read)
        for option, parameter in list(inspect.signature(module.read).parameters.items())[1:]:
            kind = option_type(hints[option])
            command.add_argument(
                f"--{option}", type=kind, default=parameter.default, help=f"default: {parameter.default}"
            )
    return parser


def convert(options: argparse.Namespace) -> None:
    """Read, write, and say what came of it. Raises UserError."""
    module = FORMATS[options.format]
    names = list(inspect.signature(module.read).parameters)[1:]
    reading = module.read(options.source, **{name: getattr(options, name) for name in names})
    if options.to:
        if options.destination.exists() and any(options.destination.iterdir()):
            raise UserError(f"{options.destination} is not empty; give another folder")
        drawn = [record["imagePath"] for image, record in reading.pairs if callable(image)]
        if drawn:
            raise UserError(
                f"image {drawn[0]} is no file of its own: convert to a folder first, and that one to {options.to}"
            )
        FORMATS[options.to].write(reading.pairs, options.destination)
        print_findings(reading, [])
        print(f"written for {options.to}: {options.destination}")
        return
    notes = write_data_set(reading, options.destination, options.link)
    print_findings(reading, notes)
    records = json.loads((options.destination / "json" / "data.json").read_text(encoding="utf-8"))
    print(f"train with: {training_command(module, records, options.destination)}")


def main() -> int:
    """Exit status 2 for a source that cannot be read or a destination that is taken."""
    parser = make_parser()
    options = parser.parse_args()
    if options.list or options.format is None:
        for name, module in FORMATS.items():
            both = "read, write" if hasattr(module, "write") else "read"
            print(f"{name:<12} {module.__doc__.splitlines()[0]} ({both})")
        return 0
    try:
        convert(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
