"""Find the landmarks of images with a trained network.

    python -m tools.predict CHECKPOINT IMAGES... --out DIR [--ensemble CHECKPOINT...] [--spacing 0.1] [--overlays 100]
        [--fix_orientation] [--strict] [--landmarks FILE]

IMAGES are files, folders (with their subfolders) or patterns such as 'films/*.png', in JPEG, PNG, TIFF, BMP or DICOM.
With --ensemble the landmarks are the mean over several checkpoints, of the same method or of different ones. Writes

    DIR/predictions.csv    image, landmark, x, y, score and the extras of the method, in px of the image file
    DIR/json/data.json     the same as records that main.py and tools.review read
    DIR/measurements.csv   angles and distances (reporting/cephalometry.py), if the landmarks allow any
    DIR/overlays/          pictures, from the most certain image to the least certain
    DIR/config.json        settings, command, commit and hardware
    DIR/skipped.txt        the images that could not be read, and why; the exit status is then 1

Every image gets a verdict (reporting/trust.py): good, check or reject, with the reason. A rejected one, such as a
mirrored or inverted film, gets no measurements. --fix_orientation uses the landmarks found in the mirrored, inverted or
turned image where that explains the reason. With --strict the exit status is 1 if any image is not good.
With --landmarks, data.json has the landmarks of FILE, a data.json, to annotate the images with: filled in where the
network finds them, matched by abbreviation, and missing otherwise.
Uncertainties are in px of the image file: vote_spread of the method noothout, view_spread of several views and
ensemble_spread of several checkpoints.
measurements.csv states the mm per px that it used: from the record, if IMAGES are the imgs/ of a data set; else from
the DICOM file; else from --spacing; else from the settings of the checkpoint. data.json holds only the first three.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import Config
from data import limit_threads
from evaluate import Predictions, gather_predictions
from machine import exit_status
from reading.annotation import Record, shorten
from reading.names import match_landmarks, read_landmarks
from reporting.measurements import measure
from reporting.memory import Memory
from reporting.pictures import draw_overlays
from reporting.predictions import read_predictions, write_predictions
from reporting.trust import (
    IMPOSSIBLE,
    TOLERANCE,
    assess,
    differs_from_training,
    doubt_ruler,
    doubt_spacing,
    ruler_error,
    rulers_needed,
)
from run_folder import write_csv, write_provenance, write_text
from settings import Parser, UserError
from tools.formats.common import spacing_number
from tools.formats.files import check_out, filling
from tools.predictor import NOTHING_REMEMBERED, Predictor
from tools.unannotated import ImageFiles, UnreadableImage, find_image_files, recorded_spacings
from utils import clip_to_image

DISAGREEMENT, MOST_DISAGREE = 0.25, 0.25  # of rulers in images of one size, from their median; the share that may
MOST_FLAGGED = 20  # images that are listed on the terminal


def predict_images(
    predictor: Predictor, loader: DataLoader, fix_orientation: bool = False
) -> tuple[Predictions, list[Record], list[UnreadableImage]]:
    """Return the predictions and the records of the images of a loader (ImageFiles), and those that cannot be read.

    The images are judged, if the checkpoint remembers by what. Prints the first oddity of the files to standard error.
    Raises UserError if no image can be read.
    """
    results, verdicts, unread, notes = [], [], [], []
    with tqdm(total=len(loader.dataset), desc="predicting", unit="image", disable=None) as bar:
        for items in loader:
            unread += [item for item in items if isinstance(item, UnreadableImage)]
            good = [item for item in items if not isinstance(item, UnreadableImage)]
            if good:
                landmarks, figures = predictor.predict([film.pixels for film in good], [film.samples for film in good])
            for index, film in enumerate(good):
                notes += film.notes
                own = {name: values[index] for name, values in figures.items()}
                places, own, verdict = predictor.judge(film.pixels, landmarks[index], own, fix_orientation)
                results.append((film.record, places, own))
                verdicts.append(verdict)
            bar.update(len(items))
    if notes:
        print(f"note: {notes[0]}" + (f" ({len(notes) - 1} more notes like it)" if notes[1:] else ""), file=sys.stderr)
    if not results:
        raise UserError(f"none of {len(unread)} images can be read; the first: {unread[0].reason}")
    known = {name for _, _, own in results for name, values in own.items() if np.isfinite(values).any()}
    results = [(record, found, {n: v for n, v in own.items() if n in known}) for record, found, own in results]
    predictions = gather_predictions(results)
    if predictor.memory is not None:
        predictions = predictions._replace(verdicts=verdicts)
    return predictions, [record for record, _, _ in results], unread


# --- Files ----------------------------------------------------------------------------------------------


def write_records(
    path: Path,
    predictions: Predictions,
    records: Sequence[Record],
    landmarks: Mapping[str, str],
    rows: Mapping[int, int],
) -> None:
    """Write predictions as a data.json; a landmark outside its image is moved to the border.

    landmarks: names by abbreviation, those of the file; rows: of the predictions, by number in `landmarks`; the others
    are missing.
    """
    entries = []
    for index, record in enumerate(records):
        places = clip_to_image(predictions.landmarks[index], record.size)
        further = {"score": predictions.score[index]} | {n: v[index] for n, v in predictions.extras.items()}
        points = []
        for number, (abbreviation, name) in enumerate(landmarks.items()):
            point: dict[str, Any] = {"pointName": name, "pointAbbreviation": abbreviation, "X": None, "Y": None}
            if (n := rows.get(number)) is not None:
                point |= {"X": round(float(places[n, 0]), 4), "Y": round(float(places[n, 1]), 4)}
                point |= {key: round(float(values[n]), 4) for key, values in further.items() if np.isfinite(values[n])}
            points.append(point)
        own: dict[str, Any] = {} if math.isnan(record.spacing) else {"spacing": record.spacing}
        if predictions.verdicts:
            own["verdict"], own["reason"] = predictions.verdicts[index]
        entries.append({"imagePath": record.name, **own, "points": points})
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False))


def find_spacing(
    config: Config,
    abbreviations: Sequence[str],
    records: Sequence[Record],
    predictions: Predictions,
    memory: Memory | None,
) -> tuple[list[Record], list[str]]:
    """Return the records with mm per px for measurements: their own, else by the settings or nan; and notes.

    Those of the settings are a number or the predicted ruler (measure_rulers). They are taken where the anatomy can be
    of that size (trust.doubt_spacing), and what a record states unless that is impossible by far.
    """
    rows = [abbreviations.index(name) for name in config.ruler if name in abbreviations]
    known = {record.name: record.spacing for record in records}
    doubts: dict[str, str] = {}
    if config.spacing == "ruler" and len(rows) == 2:
        measured, doubts = measure_rulers(config, rows, records, predictions, memory)
        known |= measured
    elif isinstance(config.spacing, float):
        known |= {record.name: config.spacing for record in records if math.isnan(record.spacing)}
    for n, record in enumerate(records):
        rejected = bool(predictions.verdicts) and predictions.verdicts[n].name == "reject"
        tolerance = {} if math.isnan(record.spacing) else {"tolerance": IMPOSSIBLE}
        why = doubt_spacing(memory, predictions.landmarks[n], known[record.name], **tolerance)
        if why and not rejected:
            known[record.name], doubts[record.name] = math.nan, why
    notes = []
    if left := [name for name in doubts if math.isnan(known[name])]:
        why = "; ".join(f"{name}: {doubts[name]}" for name in left[:3])
        notes.append(
            f"no distances in mm for {len(left)} images without a believable mm per px ({why}): give --spacing MM, or "
            "correct what the images state"
        )
    return [replace(record, spacing=known[record.name]) for record in records], notes


def measure_rulers(
    config: Config, rows: Sequence[int], records: Sequence[Record], predictions: Predictions, memory: Memory | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Return mm per px by the rulers found in images that state none, by name, and why a ruler is not believed.

    They are those of the rulers that can be true (trust.doubt_ruler): the median over images of one size, if there are
    enough of them (trust.rulers_needed) and they do not disagree. An image whose own ruler gives another value, by more
    than the usual error of a ruler, gets none. rows: of the ruler's ends.
    """
    found: dict[tuple[int, int], dict[str, float]] = {}
    read: dict[str, float] = {}  # rulers that are found, also those of another spacing
    known: dict[str, float] = {}
    doubts: dict[str, str] = {}
    for i, record in enumerate(records):
        if not math.isnan(record.spacing):
            continue
        length = float(np.linalg.norm(np.diff(predictions.landmarks[i, rows], axis=0)))
        own = config.ruler_mm / length if length > 0 else math.inf
        rejected = bool(predictions.verdicts) and predictions.verdicts[i].name == "reject"
        points = predictions.landmarks[i], predictions.score[i]
        reason = "the image is rejected" if rejected else doubt_ruler(memory, *points, own, rows)
        read |= {} if reason else {record.name: own}
        reason = reason or differs_from_training(memory, record.size, own)
        found.setdefault(record.size, {})[record.name] = math.nan if reason else own
        doubts |= {record.name: reason} if reason else {}
    apart = 0.0 if memory is None else 2 * ruler_error(memory, rows, config.ruler_mm)
    for (width, height), rulers in found.items():
        values = np.array([value for value in rulers.values() if math.isfinite(value)])
        middle = float(np.median(values)) if len(values) else math.nan
        needed, why = rulers_needed(memory, (width, height), rows, config.ruler_mm), ""
        if len(values) < needed:
            why = f"{needed} rulers are needed in images of {width} x {height} px: one alone is not exact enough"
        elif np.mean(np.abs(values / middle - 1) > DISAGREEMENT) > MOST_DISAGREE:
            why = f"rulers in images of {width} x {height} px give {values.min():.3g} to {values.max():.3g} mm per px"
        known |= dict.fromkeys(rulers, math.nan if why else middle)
        doubts |= {name: why for name, value in rulers.items() if why and math.isfinite(value)}
        for name in rulers.keys() & read.keys() if not why else ():
            if abs(read[name] / middle - 1) > max(TOLERANCE, apart):  # more than its usual error
                known[name] = math.nan
                doubts[name] = f"its ruler gives {read[name]:.3g} mm per px, those of its size {middle:.3g}"
    return known, doubts


def note_on_spacing(config: Config, trained: float | None, records: Sequence[Record]) -> list[str]:
    """Return a note if images state no mm per px: what takes their place, and how to give it.

    trained: the median mm per px of the network's training images, if it is known.
    """
    unknown = [record.name for record in records if math.isnan(record.spacing)]
    if not unknown:
        return []
    used = {None: "there are no distances in mm", "ruler": "measurements take it from the ruler points found, if any"}
    text = used.get(config.spacing, f"measurements take {config.spacing} from the network's settings")  # type: ignore
    known = f"; its training images had {trained:.4g} mm per px" if trained else ""
    return [f"{len(unknown)} images state no mm per px ({shorten(unknown)}): {text}{known}. Give it with --spacing MM"]


def write_measurements(path: Path, config: Config, predictions: Predictions, records: Sequence[Record], state) -> bool:
    """Write measurements.csv, a row per image, blank where a value is unknown; return whether there are any.

    records: with the mm per px of find_spacing. Nothing is computed from the landmarks of a rejected image.
    """
    rejected = np.array([verdict.name == "reject" for verdict in predictions.verdicts] or [False] * len(records))
    landmarks = np.where(rejected[:, None, None], np.nan, predictions.landmarks)
    kind = "auto" if config.measurements == "none" else config.measurements  # none is meant for the report only
    measured = measure(
        kind, state["abbreviations"], landmarks, predictions.truth,
        [record.size for record in records], [record.spacing for record in records],
    )  # fmt: skip
    if measured is None:
        return False
    rows = [["image", "mm per px", *measured.names]]
    for record, row in zip(records, measured.predicted, strict=True):
        cells = [f"{record.spacing:.6g}", *(f"{value:.3f}" for value in row)]
        rows.append([record.name, *("" if cell == "nan" else cell for cell in cells)])
    write_csv(path, rows)
    return True


def run(options: argparse.Namespace) -> int:
    """Predict and write everything; return the exit status. Raises UserError."""
    out = check_out(Path(options.out))
    if options.overlays < 0:
        raise UserError("--overlays must be 0 or above")
    names = ("device", "batch_size", "workers", "views", "spacing")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    predictor = Predictor(options.checkpoint, *options.ensemble, **settings)
    if options.strict and predictor.memory is None:
        raise UserError(f"--strict: {NOTHING_REMEMBERED}")
    config, landmarks = predictor.configs[0], predictor.landmarks
    wanted = dict(zip(landmarks["abbreviations"], landmarks["names"], strict=True))
    if options.landmarks is not None:
        wanted = read_landmarks(options.landmarks)
    rows = match_landmarks(list(wanted), landmarks["abbreviations"])
    if not rows:
        raise UserError(f"--landmarks {options.landmarks}: the network finds none of them: {', '.join(wanted)}")
    files = find_image_files(options.images)
    folder = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(folder).as_posix() for file in files]
    spacing = math.nan if options.spacing is None else options.spacing
    recorded, notes = recorded_spacings(files)
    loader = DataLoader(
        ImageFiles(files, names, predictor.configs, recorded, spacing), batch_size=config.batch_size, collate_fn=list,
        num_workers=min(config.workers, math.ceil(len(files) / config.batch_size)), worker_init_fn=limit_threads,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        predictions, records, unread = predict_images(predictor, loader, options.fix_orientation)
    except BaseException:  # Ctrl-C too: leave no empty folder
        with contextlib.suppress(OSError):  # it holds what an earlier try wrote
            out.rmdir()
        raise
    seconds = time.perf_counter() - started
    print(f"{len(records)} images in {seconds:.1f} s, {len(records) / seconds:.2f} images/s")
    memory, abbreviations = predictor.memory, landmarks["abbreviations"]
    scaled, more = find_spacing(config, abbreviations, records, predictions, memory)
    if options.spacing is None:
        used = zip(records, scaled, strict=True)
        stating = [own for own, one in used if config.spacing is None or not math.isnan(one.spacing)]
        notes += note_on_spacing(config, predictor.trained_spacing, stating)
    elif own := [record.name for record in records if record.spacing != options.spacing]:
        notes.append(f"--spacing is not used for {len(own)} images that state their own: {shorten(own)}")
    # what a record states counts for the verdict, even where nothing is measured by it
    pairs = zip(records, scaled, strict=True)
    spacings = np.array([one.spacing if math.isnan(own.spacing) else own.spacing for own, one in pairs])
    predictions = assess(memory, predictions, abbreviations, "px", spacings)
    notes += more
    if memory is None:
        notes.append(NOTHING_REMEMBERED)
    if left := [name for number, name in enumerate(wanted) if number not in rows]:
        notes.append(f"data.json has {len(rows)} landmarks of the network, and these are missing: {', '.join(left)}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    flagged = describe_flagged(predictions)
    print(*flagged, sep="\n", end="\n" if flagged else "", file=sys.stderr)
    for each in unread:
        print(f"skipped: {each.reason}", file=sys.stderr)
    with filling(out):
        if unread:
            write_text(out / "skipped.txt", "".join(f"{ascii(str(each.path))}: {each.reason}\n" for each in unread))
        write_predictions(out / "predictions.csv", predictions, landmarks["abbreviations"], "px")
        write_records(out / "json" / "data.json", predictions, records, wanted, rows)
        measured = write_measurements(out / "measurements.csv", config, predictions, scaled, landmarks)
        used = config.replace(img_dir=str(folder), json_path=str(out / "json" / "data.json"), run_dir=str(out))
        write_provenance(out, used, predictor.num_parameters, predictor.device, options.checkpoint)
        draw_overlays(out, read_predictions(out / "predictions.csv"), records, options.overlays, options.circles)
    print(f"predictions.csv, json/data.json{', measurements.csv' if measured else ''} and overlays/ in {out}")
    if left:
        words = shlex.join([str(out / "json" / "data.json"), "--images", str(folder)])
        print(f"place the others with: python -m tools.review {words}")
    return 1 if unread or (options.strict and flagged) else 0


def describe_flagged(predictions: Predictions) -> list[str]:
    """Return a line for each image that is not good, rejected ones first, up to MOST_FLAGGED, and how many are left."""
    judged = zip(predictions.names, predictions.verdicts, strict=True) if predictions.verdicts else ()
    flagged = sorted((own.name != "reject", name, *own) for name, own in judged if own.name != "good")
    lines = [f"{verdict}: {name}: {reason}" for _, name, verdict, reason in flagged[:MOST_FLAGGED]]
    rest = len(flagged) - MOST_FLAGGED
    return lines + ([f"and {rest} more; predictions.csv has all verdicts"] if rest > 0 else [])


def main() -> int:
    """Return 0 if all is done, 1 if some images could not be read, or machine.exit_status's 2 and 130."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or patterns")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--ensemble", nargs="+", default=[], metavar="CHECKPOINT", help="more checkpoints")
    parser.add_argument(
        "--spacing",
        type=partial(spacing_number, where="--spacing"),
        help="mm per px, unless a record or a DICOM file states it (as in the checkpoint)",
    )
    parser.add_argument(
        "--fix_orientation", "--fix-orientation", action="store_true", help="use the mirrored, inverted or turned image"
    )
    parser.add_argument(
        "--landmarks", type=Path, metavar="FILE", help="a data.json with those that data.json is to have"
    )
    parser.add_argument("--strict", action="store_true", help="exit status 1 if an image is not good")
    parser.add_argument("--overlays", type=int, default=100, help="largest number of pictures (100)")
    parser.add_argument("--circles", action="store_true", help="draw the radius of each landmark in the pictures")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ... (as in the checkpoint)")
    parser.add_argument("--batch_size", type=int, help="images at a time (as in the checkpoint)")
    parser.add_argument("--workers", type=int, help="processes that read images (as in the checkpoint)")
    parser.add_argument("--views", type=int, help="slightly turned views to average (as in the checkpoint)")
    return exit_status(lambda: run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
