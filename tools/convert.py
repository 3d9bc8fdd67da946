"""A foreign data set -> imgs/ and json/data.json, as main.py reads them; or back into an annotation program.

    python -m tools.convert --list
    python -m tools.convert FORMAT SOURCE DESTINATION [--<option> VALUE ...] [--to FORMAT]

Images are copied as they are (--link: linked), but for DICOM and .mha, which become PNG; points are taken as they
stand, but for --corner. `python -m tools.convert FORMAT --help` tells the options of a format. With --to, DESTINATION
gets that program's annotation instead.
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

from config import PRESETS
from reading import dicom
from reading.annotation import read_points, read_record
from settings import UserError
from tools.formats import FORMATS
from tools.formats.common import Pixels, Reading, image_size, normal_name, record_points


def write_data_set(reading: Reading, destination: Path, link: bool = False) -> list[str]:
    """destination/imgs and destination/json/data.json, neither of which may be there yet; returns notes of DICOM files.

    Whole or not at all. Raises UserError if something is there already, if two images share a name, or for a record
    that main.py would refuse.
    """
    target, folder = destination / "json" / "data.json", destination / "imgs"
    if target.exists() or folder.exists():
        raise UserError(f"{destination} holds a data set already; give another folder")
    names = [written_name(image, record) for image, record in reading.pairs]
    counts = Counter(normal_name(name) for name in names)
    doubled = [name for name in names if counts[normal_name(name)] > 1]
    if doubled:
        raise UserError(f"two images would be called {doubled[0]}; rename one")
    partial, notes, records = destination / "imgs.partial", [], []
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        bar = tqdm(zip(names, reading.pairs, strict=True), "writing", len(names), disable=None)
        for name, (image, record) in bar:
            spacing, more = write_image(image, partial / name, link)
            record = ({"spacing": spacing} if spacing is not None else {}) | record | {"imagePath": name}
            check_record(record, partial / name)
            records.append(record)
            notes += more
        text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        target.unlink(missing_ok=True)
        raise
    return notes


def written_name(image: Path | Pixels, record: dict) -> str:
    """The name of an image in imgs: its file's, or that of its record where it has none; PNG where it was DICOM."""
    name = Path(record["imagePath"]).name if callable(image) else image.name
    return f"{Path(name).stem}.png" if Path(name).suffix.lower() in dicom.ENDINGS else name


def write_image(image: Path | Pixels, path: Path, link: bool) -> tuple[float | None, list[str]]:
    """Write one image; the spacing that its file alone knows, mm per px, and notes."""
    if callable(image):
        Image.fromarray(image()).save(path)
    elif image.suffix.lower() in dicom.ENDINGS:
        read = dicom.read(image)
        Image.fromarray(read.image).save(path)
        return read.spacing, read.notes
    elif link:
        path.symlink_to(image.resolve())
    else:
        shutil.copyfile(image, path)
    return None, []


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
    """All points moved by so many px along both axes."""
    pairs = []
    for image, record in reading.pairs:
        points = [
            point | {axis: point[axis] + by for axis in "XY" if point.get(axis) is not None}
            for point in record["points"]
        ]
        pairs.append((image, record | {"points": points}))
    return reading._replace(pairs=pairs)


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
        return true_or_false
    if typing.get_origin(hint) is not None:  # a list, comma-separated
        (item,) = typing.get_args(hint)
        return lambda text: [item(each.strip()) for each in text.split(",")]
    return hint


def true_or_false(text: str) -> bool:
    """Raises ValueError for anything else, which argparse tells."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


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
        command.add_argument(
            "--corner", action="store_true", help="the program counts px from the corner of the first, not its centre"
        )
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
        for image, record in reading.pairs:
            check_record(record, image)
        shifted = shift_points(reading, 0.5) if options.corner else reading
        FORMATS[options.to].write(shifted.pairs, options.destination)
        print_findings(reading, [])
        print(f"written for {options.to}: {options.destination}")
        return
    if options.corner:
        reading = shift_points(reading, -0.5)
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
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
