"""Measure whether predictions know when they are wrong: verdicts on spoiled images, rulers, slips in annotations.

    python -m experiments.trust verdicts CHECKPOINT FOLDER [--set test] [--most 40] [--others DIR...] [--out FILE.json]
    python -m experiments.trust slips FOLDER [--set train] [--draws 5] [--out FILE.json]

FOLDER is a data set as tools.convert writes it. "verdicts" predicts the images of a split as they are; mirrored,
inverted and turned; in ways that must not matter; and, if a ruler is annotated, with its ends painted over. --others
are folders of images of something else. For each kind it prints how many are good, to be checked or rejected, and for
how many the ruler gives a spacing that is wrong by more than 10 %, those of a kind together, as tools.predict does.
"slips" spoils eight images by a slip of 10 mm (three), swapped names (three) or mirroring (two), and prints how many of
them are among the 15 that tools.inspect_data lists first.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from config import Config
from evaluate import Verdict, gather_predictions
from machine import exit_status
from reading.annotation import Record
from reading.images import read_image
from reporting.trust import TOLERANCE, variants
from run_folder import write_text
from settings import Parser, UserError
from tools.inspect_data import load
from tools.label_check import MOST, find_doubts
from tools.predict import find_spacing
from tools.predictor import Predictor
from tools.unannotated import find_image_files, unannotated_record

BORDER = 0.06  # of the height: a collimated border
SLIP = 10.0  # mm


def turn(image: np.ndarray, degrees: float) -> np.ndarray:
    """Return an image turned about its centre; what is missing is black."""
    height, width = image.shape[:2]
    affine = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), degrees, 1.0)
    return cv2.warpAffine(image, affine, (width, height))


def collimate(image: np.ndarray) -> np.ndarray:
    """Return an image with a black border."""
    edge, framed = round(BORDER * len(image)), np.zeros_like(image)
    framed[edge:-edge, edge:-edge] = image[edge:-edge, edge:-edge]
    return framed


def compress(image: np.ndarray) -> np.ndarray:
    """Return an image as a JPEG file of quality 30 shows it."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_UNCHANGED)


HARMLESS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda image: image,
    "brightness -40 %": lambda image: (0.6 * image).astype(np.uint8),
    "brightness +40 %": lambda image: np.minimum(255, 1.4 * image).astype(np.uint8),
    "turned by 10 degrees": lambda image: turn(image, 10),
    "turned by -10 degrees": lambda image: turn(image, -10),
    "JPEG quality 30": compress,
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "collimated": collimate,
}


def paint_over(image: np.ndarray, points: np.ndarray, spacing: float) -> np.ndarray:
    """Return an image in which what lies within 3 mm of points (P, 2) px is filled from around."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for x, y in points[np.isfinite(points).all(1)]:
        cv2.circle(mask, (round(x), round(y)), max(2, round(3 / spacing)), 255, -1)
    return cv2.inpaint(image, mask, 3, cv2.INPAINT_TELEA)


def choose(options: argparse.Namespace, records: Sequence[Record]) -> list[Record]:
    """Return the records of the asked split. Raises UserError if there are fewer than ten."""
    chosen = [record for record in records if record.split in (None, options.set)]
    if len(chosen) < 10:
        raise UserError(f"{options.folder} has {len(chosen)} images in the split {options.set}; it takes ten")
    return chosen


def measure_verdicts(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Return the number of verdicts, and of rulers that are believed and right or wrong, by kind of image."""
    predictor = Predictor(options.checkpoint)
    names, config = list(predictor.landmarks["abbreviations"]), predictor.configs[0]
    abbreviations, records, _ = load(options.folder)
    records = choose(options, records)
    records = [records[n] for n in sorted(set(np.linspace(0, len(records) - 1, options.most).round().astype(int)))]
    ends = [abbreviations.index(name) for name in Config.ruler if name in abbreviations]
    results: dict[str, list[tuple[tuple[Record, np.ndarray, dict[str, np.ndarray]], Verdict, float]]] = {}

    def judge(kind: str, image: np.ndarray, spacing: float = math.nan) -> None:
        image, own = np.ascontiguousarray(image), results.setdefault(kind, [])
        found, figures, verdict = predictor.judge(image, *predictor.predict_pixels(image), False)
        record = unannotated_record(image, len(names), str(len(own)))
        own.append(((record, found, figures), verdict, spacing))

    for record in tqdm(records, "images", leave=False, disable=None):
        image = read_image(record.path).astype(np.uint8)
        for kind, change in HARMLESS.items():
            judge(kind, change(image), record.spacing * len(image) / len(change(image)))
        for kind, (other, _) in variants(image).items():
            judge(kind, other)
        for kind, covered in (("ruler covered", ends), ("one end covered", ends[1:])) if ends else ():
            judge(kind, paint_over(image, record.landmarks[covered], record.spacing), record.spacing)
    for folder in options.others:
        for path in find_image_files([str(folder)])[: options.most]:
            judge(folder.name, read_image(path).astype(np.uint8))
    counts = {}
    for kind, own in results.items():
        counts[kind] = Counter(verdict.name for _, verdict, _ in own)
        found = [one for one, *_ in own]
        predictions = gather_predictions(found)._replace(verdicts=[verdict for _, verdict, _ in own])
        taken, _ = find_spacing(config, names, [record for record, *_ in found], predictions, predictor.memory)
        for record, (*_, true) in zip(taken, own, strict=True) if config.spacing == "ruler" else ():
            if math.isfinite(true):
                right = "right" if abs(record.spacing / true - 1) <= TOLERANCE else "wrong"
                counts[kind]["no ruler" if math.isnan(record.spacing) else f"ruler {right}"] += 1
    return {kind: dict(own) for kind, own in counts.items()}


def spoil(records: Sequence[Record], generator: np.random.Generator) -> tuple[list[Record], set[str]]:
    """Return the records with slips in eight of them, and the names of these eight."""
    spoiled = list(records)
    chosen = generator.choice(len(records), 8, replace=False)
    for n, kind in zip(chosen, ["off"] * 3 + ["swapped"] * 3 + ["mirrored"] * 2, strict=True):
        record = records[n]
        points = record.landmarks.copy()
        one, other = generator.choice(len(points), 2, replace=False)
        if kind == "off":
            angle = generator.uniform(0, 2 * math.pi)
            points[one] += SLIP / record.spacing * np.array([math.cos(angle), math.sin(angle)])
        elif kind == "swapped":
            points[[one, other]] = points[[other, one]]
        else:
            points[:, 0] = record.size[0] - 1 - points[:, 0]
        spoiled[n] = replace(record, landmarks=points)
    return spoiled, {records[n].name for n in chosen}


def measure_slips(options: argparse.Namespace) -> dict[str, Any]:
    """Return how many of the spoiled images are among the first MOST, over several draws."""
    abbreviations, records, _ = load(options.folder)
    records = choose(options, records)
    found = []
    for seed in range(options.draws):
        spoiled, names = spoil(records, np.random.default_rng(seed))
        first = {each.image for each in find_doubts(abbreviations, spoiled)[:MOST]}
        found.append(len(first & names))
    return {"spoiled": 8 * options.draws, "found": sum(found), "by draw": found, "images": len(records)}


def run() -> None:
    """Do what the command line says. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    verdicts, slips = actions.add_parser("verdicts"), actions.add_parser("slips")
    verdicts.add_argument("checkpoint")
    for action, split in ((verdicts, "test"), (slips, "train")):
        action.add_argument("folder", type=Path)
        action.add_argument(
            "--set", default=split, help=f"split of the images ({split}); records without one count too"
        )
        action.add_argument("--out", type=Path, help="JSON file to write")
    verdicts.add_argument("--most", type=int, default=40, help="images of the split and of each other folder (40)")
    verdicts.add_argument("--others", nargs="+", type=Path, default=[], help="folders of images of something else")
    slips.add_argument("--draws", type=int, default=5, help="of the images that are spoiled (5)")
    options = parser.parse_args()
    if options.action == "slips":
        result: dict[str, Any] = measure_slips(options)
        print(
            f"{result['found']} of {result['spoiled']} spoiled images are among the first {MOST} of {result['images']}"
        )
    else:
        result = measure_verdicts(options)
        for kind, counts in result.items():
            print(f"{kind}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    if options.out:
        write_text(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(exit_status(run))
