"""Find the landmarks of images with a trained method.

    python -m tools.predict CHECKPOINT IMAGES... --out DIR [--ensemble CHECKPOINT...] [--spacing 0.1] [--overlays 100]

IMAGES: files, folders (with their subfolders) or patterns such as 'films/*.png'; JPEG, PNG, TIFF, BMP, DICOM. Several
checkpoints, of the same or of different methods, give the mean of their landmarks and how far they are apart. Writes

    DIR/predictions.csv    image, landmark, x, y, score, and what else the method measures, px of the image file
    DIR/json/data.json     the same as records that main.py and tools.review read
    DIR/measurements.csv   angles and distances (cephalometry.py), where the landmarks have them
    DIR/overlays/          pictures, from the surest image to the least sure
    DIR/config.json        settings, command, commit, hardware; DIR/skipped.txt: what could not be read, and why

An image that cannot be read is named and left out; the exit status is then 1. Uncertainties are px of the image file:
vote_spread of the method noothout, ensemble_spread of several checkpoints. measurements.csv tells the mm per px that it
took: a DICOM file's, else --spacing, else as the checkpoint; data.json has the first two.
"""

import argparse
import csv
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from config import Config
from data import Sample, limit_threads
from evaluate import Predictions, gather_predictions, predict_batch, prepare_detector
from machine import prepare_device
from methods import load_detector, method_class
from reading.annotation import Record, read_spacing
from reporting.measurements import measure
from reporting.pictures import draw_overlays
from reporting.predictions import read_predictions, write_predictions
from run_folder import read_checkpoint, write_provenance, write_text
from settings import UserError, build_config
from tools.unannotated import ImageFiles, UnreadableImage, find_images


class Member(NamedTuple):
    """One checkpoint of an ensemble: what it was, and the settings that it predicts with."""

    state: dict[str, Any]
    config: Config


# --- Prediction -----------------------------------------------------------------------------------------


def read_members(checkpoints: Sequence[str], settings: dict[str, Any]) -> list[Member]:
    """Checkpoints with some settings changed. Raises UserError where they do not find the same landmarks."""
    members = []
    for checkpoint in checkpoints:
        state = read_checkpoint(checkpoint)
        config = build_config(method_class(state["method"]).Config, state["settings"] | settings)
        members.append(Member(state, config))
        first, own = members[0].state["abbreviations"], state["abbreviations"]
        if sorted(first) != sorted(own):
            odd = sorted(set(first) ^ set(own))[0]
            raise UserError(f"{checkpoint} does not find the landmarks of {checkpoints[0]}: {odd!r} is of one alone")
    return members


def predict_images(
    members: Sequence[Member], loader: DataLoader
) -> tuple[Predictions, list[Record], list[UnreadableImage]]:
    """The predictions of the images of a loader that can be read, their records, and the others.

    Of several members the mean; in measures also "ensemble_spread", the root of their mean squared distance from it.
    Prints what is odd about a file, the first of many.
    """
    device = prepare_device(members[0].config)
    detectors = [prepare_detector(member.state, member.config, device) for member in members]
    order = members[0].state["abbreviations"]
    columns = [[member.state["abbreviations"].index(name) for name in order] for member in members]
    results, unread, notes = [], [], []
    bar = tqdm(total=len(loader.dataset), desc="predicting", unit="image", disable=None)
    for items in loader:
        unread += [item for item in items if isinstance(item, UnreadableImage)]
        good = [item for item in items if not isinstance(item, UnreadableImage)]
        found, figures = [], []
        for number, (detector, member) in enumerate(zip(detectors, members, strict=True)):
            samples = [sample for film in good for sample in film.samples[number]]
            landmarks, values = predict_samples(detector, member, samples, device)
            found.append(landmarks[:, columns[number]])
            figures.append({name: each[:, columns[number]] for name, each in values.items()})
        notes += [note for film in good for note in film.notes]
        for index, (record, *_) in enumerate(good):
            places = np.stack([own[index] for own in found])
            own = {name: np.mean([f[name][index] for f in figures if name in f], 0) for f in figures for name in f}
            if len(members) > 1:
                own["ensemble_spread"] = np.sqrt(((places - places.mean(0)) ** 2).sum(-1).mean(0))
            results.append((record, places.mean(0), own))
        bar.update(len(items))
    bar.close()
    if notes:
        print(f"note: {notes[0]}" + (f" ({len(notes) - 1} more notes like it)" if notes[1:] else ""), file=sys.stderr)
    if not results:
        raise UserError(f"none of {len(unread)} images can be read; the first: {unread[0].reason}")
    known = {name for _, _, own in results for name, values in own.items() if np.isfinite(values).any()}
    results = [(record, found, {n: v for n, v in own.items() if n in known}) for record, found, own in results]
    return gather_predictions(results), [record for record, _, _ in results], unread


def predict_samples(
    detector, member: Member, samples: list[Sample], device: torch.device
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Landmarks (I, N, 2) in original px and figures (I, N) of I images: the mean of their views."""
    config, found, figures = member.config, [], []
    for start in range(0, len(samples), config.batch_size):
        batch = default_collate(samples[start : start + config.batch_size])
        landmarks, values = predict_batch(detector, batch, device, member.state["epoch"] - 1)
        found.append(landmarks)
        figures.append(values)
    if not samples:
        return np.zeros((0, config.num_landmarks, 2)), {}

    def mean_of_views(values: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(values)
        return joined.reshape(-1, config.views, *joined.shape[1:]).mean(1)

    return mean_of_views(found), {name: mean_of_views([own[name] for own in figures]) for name in figures[0]}


# --- What is written ------------------------------------------------------------------------------------


def write_records(path: Path, predictions: Predictions, records: Sequence[Record], state: dict[str, Any]) -> None:
    """Predictions as a data.json; a landmark found outside its image, in what fills it up, on the image's border."""
    entries = []
    for index, record in enumerate(records):
        places = np.clip(predictions.landmarks[index], -0.5, np.array(record.size) - 0.5)
        further = {"score": predictions.score[index]} | {n: v[index] for n, v in predictions.extras.items()}
        points = []
        for n, (abbreviation, name) in enumerate(zip(state["abbreviations"], state["names"], strict=True)):
            point: dict[str, Any] = {"pointName": name, "pointAbbreviation": abbreviation}
            point |= {"X": round(float(places[n, 0]), 4), "Y": round(float(places[n, 1]), 4)}
            point |= {key: round(float(values[n]), 4) for key, values in further.items() if np.isfinite(values[n])}
            points.append(point)
        own = {} if math.isnan(record.spacing) else {"spacing": record.spacing}
        entries.append({"imagePath": record.name, **own, "points": points})
    path.parent.mkdir()
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False))


def find_spacing(config: Config, abbreviations: Sequence[str], records: Sequence[Record]) -> list[Record]:
    """The records with mm per px for measurements: their own, else by the checkpoint's settings, else nan.

    By the ruler that was found, if that is the setting, its median over images of one size.
    """
    if isinstance(config.spacing, float):
        return [replace(r, spacing=config.spacing) if math.isnan(r.spacing) else r for r in records]
    if config.spacing != "ruler" or not set(config.ruler) <= set(abbreviations):
        return list(records)
    by_size: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        by_size.setdefault(record.size, []).append(record)
    known: dict[str, float] = {}
    for own in by_size.values():
        try:
            known |= {record.name: record.spacing for record in read_spacing(config, abbreviations, own)}
        except UserError as error:  # a ruler without length
            print(f"no distances in mm: {str(error).partition(': ')[2].partition(';')[0]}", file=sys.stderr)
    return [replace(record, spacing=known.get(record.name, record.spacing)) for record in records]


def write_measurements(path: Path, config: Config, predictions: Predictions, records: Sequence[Record], state) -> bool:
    """measurements.csv, where the landmarks have measures: a row per image, blank where one is missing."""
    records = [replace(r, landmarks=own) for r, own in zip(records, predictions.landmarks, strict=True)]
    records = find_spacing(config, state["abbreviations"], records)
    spacing = [record.spacing for record in records]
    sizes = [record.size for record in records]
    kind = "auto" if config.measurements == "none" else config.measurements  # of a report, that setting says
    landmarks = predictions.landmarks, predictions.truth
    measured = measure(kind, state["abbreviations"], *landmarks, sizes, spacing)
    if measured is None:
        return False
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mm per px", *measured.names])
        for record, row in zip(records, measured.predicted, strict=True):
            cells = [f"{record.spacing:.6g}", *(f"{value:.3f}" for value in row)]
            writer.writerow([record.name, *("" if cell == "nan" else cell for cell in cells)])
    return True


def run(options: argparse.Namespace) -> int:
    """Predict and write everything; the exit status. Raises UserError."""
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another --out, or empty it")
    if options.overlays < 0:
        raise UserError("--overlays must be 0 or above")
    settings = {name: getattr(options, name) for name in ("device", "batch_size", "workers", "views", "spacing")}
    settings = {name: value for name, value in settings.items() if value is not None}
    members = read_members([options.checkpoint, *options.ensemble], settings)
    state, config = members[0]
    files = find_images(options.images)
    folder = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(folder).as_posix() for file in files]
    configs = [member.config for member in members]
    spacing = math.nan if options.spacing is None else options.spacing
    loader = DataLoader(
        ImageFiles(files, names, configs, spacing), batch_size=config.batch_size, collate_fn=list,
        num_workers=min(config.workers, math.ceil(len(files) / config.batch_size)), worker_init_fn=limit_threads,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        predictions, records, unread = predict_images(members, loader)
    except BaseException:  # Ctrl-C too: an empty folder would say nothing
        out.rmdir()
        raise
    seconds = time.perf_counter() - started
    print(f"{len(records)} images in {seconds:.1f} s, {len(records) / seconds:.2f} images/s")
    if unread:
        lines = [f"{ascii(str(each.path))}: {each.reason}\n" for each in unread]
        write_text(out / "skipped.txt", "".join(lines))
    for each in unread:
        print(f"skipped: {each.reason}", file=sys.stderr)
    write_predictions(out / "predictions.csv", predictions, state["abbreviations"], "px")
    write_records(out / "json" / "data.json", predictions, records, state)
    measured = write_measurements(out / "measurements.csv", config, predictions, records, state)
    used = config.replace(img_dir=str(folder), json_path=str(out / "json" / "data.json"), run_dir=str(out))
    size = sum(load_detector(member.state).num_parameters for member in members)
    write_provenance(out, used, size, prepare_device(config))
    draw_overlays(out, read_predictions(out / "predictions.csv"), records, options.overlays)
    print(f"predictions.csv, json/data.json{', measurements.csv' if measured else ''} and overlays/ in {out}")
    return 1 if unread else 0


def main() -> int:
    """Exit status: 0 done, 1 some images could not be read, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or patterns")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--ensemble", nargs="+", default=[], metavar="CHECKPOINT", help="further checkpoints")
    parser.add_argument("--spacing", type=float, help="mm per px, where no DICOM file says it (as in the checkpoint)")
    parser.add_argument("--overlays", type=int, default=100, help="of how many images at most (100)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ... (as in the checkpoint)")
    parser.add_argument("--batch_size", type=int, help="images at a time (as in the checkpoint)")
    parser.add_argument("--workers", type=int, help="processes that read images (as in the checkpoint)")
    parser.add_argument("--views", type=int, help="slightly turned views that are averaged (as in the checkpoint)")
    options = parser.parse_args()
    try:
        return run(options)
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}"
    except torch.OutOfMemoryError:
        message = "the device has not enough memory: lower --batch_size"
    except KeyboardInterrupt:
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
