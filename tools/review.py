"""Look at predictions or annotations in a browser, correct them, and save a data.json that main.py reads.

    python -m tools.review SOURCE [--images IMGS] [--split NAME] [--out FILE.html] [--pixels 1200] [--link]
    python -m tools.review IMGS --landmarks FILE [--out FILE.html] [--pixels 1200] [--link]

SOURCE is a run, one of its test folders or a predictions.csv: predicted points (red) can be moved, true points (blue)
are shown beside them. Or it is a data set, a folder with imgs/ and json/data.json, or a data.json: then the true points
can be moved. With --landmarks it is a folder of images without points, and the landmarks of a data.json are to be
placed. Writes review.html beside it, one file per test set, which needs no server and no network. What it saves:
for predictions, the corrected points as the truth, with the mm per px of their errors; for a data set, all records,
untouched ones unchanged.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from machine import exit_status, training_command
from reading.images import FORMATS, image_size, read_image
from run_folder import written_whole
from settings import Parser, UserError
from tools.formats.common import data_options, record_points
from tools.review_source import Review, ReviewImage, is_number, read_source, read_unannotated

PAGE = Path(__file__).parent / "review_page"
SCRIPTS = ("model.js", "view.js", "tables.js", "script.js")  # joined in this order to one script
PLACE = ("X", "Y", "visible", "occluded")  # the keys of a point that belong to its place
SHOWN_AS_THEY_ARE = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP"}  # by a browser, if 8-bit


# --- Page ----------------------------------------------------------------------------------------


def prepare_image(path: Path, pixels: int, beside: Path | None) -> tuple[tuple[int, int], str, str]:
    """Return an image's size (w, h), its address, and, if it has none, its JPEG data in base64, up to `pixels` high.

    beside: the folder of the page, if images that a browser can show are to be linked; otherwise None.
    """
    if beside is not None and path.suffix.lower() in SHOWN_AS_THEY_ARE:
        try:
            with Image.open(path, formats=FORMATS) as image:
                deep = image.mode.startswith(("I", "F")) or ";16" in str(image.tile)  # a browser shows it dark
                fits = image.format == SHOWN_AS_THEY_ARE[path.suffix.lower()] and not deep
            if fits:
                address = os.path.relpath(path.resolve(), beside.resolve()).replace(os.sep, "/")
                return image_size(path), quote(address), ""
        except (OSError, ValueError):  # read_image reports what is wrong; or it is on another drive of Windows
            pass
    image = np.clip(read_image(path), 0, 255).astype(np.uint8)
    size = (image.shape[1], image.shape[0])
    if size[1] > pixels:
        image = cv2.resize(image, (max(1, round(size[0] * pixels / size[1])), pixels), interpolation=cv2.INTER_AREA)
    image = image[..., ::-1] if image.ndim == 3 else image
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        raise UserError(f"image {path} of {size[0]} x {size[1]} px cannot be written as JPEG; lower --pixels")
    return size, "", base64.b64encode(jpeg.tobytes()).decode("ascii")


def describe_image(
    landmarks: Mapping[str, str], shown: ReviewImage, size: tuple[int, int], address: str
) -> dict[str, Any]:
    """Return what the page needs of an image.

    The record is passed on as text, `keys` and an entry per point, because a browser would round long whole numbers.
    """
    points, order = record_points(shown.record), list(landmarks)
    return {
        "name": shown.record["imagePath"],
        "split": shown.record.get("split"),
        "place": shown.place,
        "width": size[0],
        "height": size[1],
        "address": address,
        "spacing": shown.spacing,
        "points": [points[abbreviation] for abbreviation in landmarks],
        "truth": shown.truth,
        "score": shown.score,
        "verdict": shown.verdict,
        "radius": shown.radius,
        "reviewed": bool(shown.record.get("reviewed")),
        "keys": record_keys(shown.record),
        "otherKeys": record_keys({key: value for key, value in shown.record.items() if key != "reviewed"}),
        "entries": [
            {"landmark": order.index(point["pointAbbreviation"]), **point_texts(point)}
            for point in shown.record["points"]
        ],
    }


def record_keys(record: Mapping[str, Any]) -> str:
    """Return everything but the points of a record, as JSON without its braces."""
    return json.dumps({key: value for key, value in record.items() if key != "points"}, ensure_ascii=False)[1:-1]


def point_texts(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point as JSON: `whole` unchanged; `keys` without its place and braces, for a place that changed."""
    keys = {key: value for key, value in point.items() if key not in PLACE}
    x, y = point.get("X"), point.get("Y")
    known = is_number(x) and is_number(y) and (x, y) != (0, 0)  # programs write (0, 0) for no place
    return {
        "whole": json.dumps(point, ensure_ascii=False),
        "keys": json.dumps(keys, ensure_ascii=False)[1:-1],
        "visible": "visible" in point,
        "occluded": json.dumps(point["occluded"]) if "occluded" in point else None,
        "place": (x, y) if known else None,  # even if the point is not visible
    }


def write_page(review: Review, out: Path, pixels: int, link: bool) -> None:
    """Write the page as one file, completely or not at all. Raises UserError for an image that cannot be read."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} is not the name of a page; give one that ends with .html")
    pieces = re.split(r"\{\{(\w+)\}\}", (PAGE / "page.html").read_text(encoding="utf-8"))
    prepare = partial(prepare_image, pixels=pixels, beside=out.parent if link else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    described: list[dict] = []

    def content(name: str) -> Iterator[str]:
        """Yield the text for a name in page.html, piece by piece."""
        if name == "images":
            with ThreadPoolExecutor(max_workers=4) as pool:  # decoding releases Python's lock
                ready = pool.map(prepare, [shown.path for shown in review.images])
                bar = tqdm(ready, "preparing images", len(review.images), leave=False, disable=None)
                for number, (shown, (size, address, text)) in enumerate(zip(review.images, bar, strict=True)):
                    described.append(describe_image(review.landmarks, shown, size, address))
                    if text:
                        yield f'<script type="text/plain" id="image-{number}">{text}</script>\n'
        elif name == "data":  # without "<", nothing in it can end the element that holds it
            yield page_data(review, described).replace("<", "\\u003c")
        elif name == "sources":
            yield " file: 'self'" if link else ""
        elif name == "style":
            yield (PAGE / "style.css").read_text(encoding="utf-8")
        elif name == "script":
            yield from ((PAGE / script).read_text(encoding="utf-8") for script in SCRIPTS)

    with written_whole(out) as file:
        for number, piece in enumerate(pieces):
            file.writelines(text.encode() for text in (content(piece) if number % 2 else [piece]))


def page_data(review: Review, described: Sequence[dict]) -> str:
    """Return the JSON that the page is made from."""
    data = {
        "title": review.title,
        "predicted": review.predicted,
        "unit": review.unit,
        "threshold": review.threshold,
        "landmarks": [{"abbreviation": abbreviation, "name": name} for abbreviation, name in review.landmarks.items()],
        "images": described,
        "others": [[place, json.dumps(record, ensure_ascii=False)] for place, record in review.others.items()],
    }
    data["fingerprint"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]  # edits belong to this page alone
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


# --- Command -------------------------------------------------------------------------------------


def next_commands(review: Review) -> list[str]:
    """Return the commands that use the saved file: to train on it, or to test if its records belong to test sets.

    Corrected predictions train the network that made them, with the settings of its run.
    """
    records = [*(image.record for image in review.images), *review.others.values()]
    saved, lines = (review.folder, "SAVED/data.json"), []
    if {None, "train"} & {record.get("split") for record in records}:
        command = training_command(*saved, *data_options(records))
        if review.checkpoint and review.config:
            words = ["--config", str(review.config), "--run_dir", "none", "--start_from", str(review.checkpoint)]
            words += [
                "--start_names",
                "none",
                "--folds",
                "0",
                "--fold",
                "0",
                "--img_dir",
                str(saved[0]),
                "--json_path",
                saved[1],
            ]
            command = f"python main.py {shlex.join(words)}"
        lines.append(f"train on the saved file with: {command}")
    if review.checkpoint or not lines:
        words = ["--test", str(review.checkpoint or "RUN/best.pt"), "--img_dir", str(saved[0]), "--json_path", saved[1]]
        lines.append(f"test on the saved file with: python main.py {shlex.join(words)}")
    return lines


def run() -> None:
    """Do what the command line says. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=Path, metavar="IMGS", help="folder of the images; default: the source's")
    parser.add_argument("--split", metavar="NAME", help="show only this split, or this test set of a run")
    parser.add_argument("--landmarks", type=Path, metavar="FILE", help="a data.json: place its landmarks in new images")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: review.html beside the source")
    parser.add_argument("--pixels", type=int, default=1200, help="largest height of an embedded image, default 1200")
    parser.add_argument("--link", action="store_true", help="link images that a browser can show, do not embed them")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if options.pixels < 1:
        raise UserError(f"--pixels {options.pixels} is not allowed; it must be at least 1")
    if options.landmarks:
        reviews = [read_unannotated(options.source, options.landmarks)]
    else:
        reviews = read_source(options.source, options.images, options.split)
    if options.out and len(reviews) > 1:
        raise UserError(f"--out is one file, but {options.source} holds {len(reviews)} test sets; choose with --split")
    for review in reviews:
        out = options.out or review.out
        write_page(review, out, options.pixels, options.link)
        notes = [f"note: {note}" for note in review.notes]
        size = f"{len(review.images)} images, {out.stat().st_size / 1e6:.1f} MB"
        print(*notes, f"open {out} in a browser: {size}", *next_commands(review), sep="\n")


def main() -> int:
    """Return exit status 2 for a source that cannot be shown."""
    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
