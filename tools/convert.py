"""A foreign data set -> imgs/ and json/data.json, as main.py reads them.

python -m tools.convert isbi2015 SOURCE DESTINATION [--reader mean|senior|junior]
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from config import UserError
from formats import isbi2015


def write_data_set(pairs: list[tuple[Path, dict]], destination: Path) -> None:
    """Copy the images to destination/imgs and write destination/json/data.json; neither may be there yet.

    Raises UserError if something is, or if two images share a name.
    """
    target = destination / "json" / "data.json"
    if target.exists() or (destination / "imgs").exists():
        raise UserError(f"{destination} holds a data set already; give another folder")
    names = [record["imagePath"] for _, record in pairs]
    if len(set(names)) != len(names):
        raise UserError(f"two images are called {next(n for n in names if names.count(n) > 1)}; rename one")
    (destination / "imgs").mkdir(parents=True)
    target.parent.mkdir(exist_ok=True)
    for image, record in tqdm(pairs, "copying", disable=None):
        shutil.copyfile(image, destination / "imgs" / record["imagePath"])
    text = json.dumps([record for _, record in pairs], indent=1, ensure_ascii=False)
    target.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Exit status 2 for a source that cannot be read or a destination that is taken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="format", required=True)
    isbi = formats.add_parser("isbi2015", help="ISBI 2014/2015 cephalograms, the official archive's folders")
    isbi.add_argument("--reader", choices=isbi2015.READERS, default="mean", help="whose points are the truth")
    isbi.add_argument("source", type=Path)
    isbi.add_argument("destination", type=Path)
    options = parser.parse_args()
    try:
        pairs = isbi2015.read(options.source, options.reader)
        write_data_set(pairs, options.destination)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    splits = [record["split"] for _, record in pairs]
    counts = ", ".join(f"{split} {splits.count(split)}" for split in dict.fromkeys(splits))
    landmarks = len(pairs[0][1]["points"])
    print(f"{len(pairs)} images ({counts}) of {landmarks} landmarks in {options.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
