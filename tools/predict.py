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
vote_spread of the method noothout, ensemble_spread of several checkpoints.
"""

import argparse
import csv
import glob
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
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

import dicom
from annotation import Record, read_spacing
from config import Config, UserError, build_config
from data import Sample, limit_threads, make_sample, shrink_for_network
from evaluate import Predictions, gather_predictions, predict_batch, prepare_detector
from images import ENDINGS, read_image, stretch_intensities
from machine import resolve_device
from measurements import measure
from methods import method_class
from pictures import draw_overlays
from report import write_predictions
from run_folder import read_checkpoint, write_provenance, write_text


class Member(NamedTuple):
    """One checkpoint of an ensemble: what it was, and the settings that it predicts with."""

    state: dict[str, Any]
    config: Config


# --- Images ---------------------------------------------------------------------------------------------


def find_images(places: Sequence[str]) -> list[Path]:
    """The image files of files, folders and patterns, each once. Raises UserError for a place without any."""
    files: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if p.is_file() and looks_like_image(p)]
        elif path.exists():
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(place, recursive=True)) if Path(name).is_file()]
        if not found:
            raise UserError(f"{place}: no image there; give files, folders or patterns of {', '.join(ENDINGS)}")
        files |= dict.fromkeys(Path(os.path.abspath(p)) for p in found)  # links keep their names
    return list(files)


def looks_like_image(path: Path) -> bool:
    """Whether a file of a folder is meant: by its ending, or a DICOM file that has none."""
    return path.suffix.lower() in ENDINGS or (not path.suffix and dicom.is_dicom(path))


class Unread(NamedTuple):
    """An image that cannot be read."""

    path: Path
    reason: str


class ImageFiles(Dataset):
    """Images that nobody has annotated: of each its record, and the samples (all views) for each member; or Unread."""

    def __init__(self, files: Sequence[Path], names: Sequence[str], configs: Sequence[Config], spacing: float) -> None:
        self.files, self.names, self.configs, self.spacing = files, names, configs, spacing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Record, list[list[Sample]]] | Unread:
        path = self.files[index]
        try:
            image, spacing = read_with_spacing(path)
        except UserError as error:
            return Unread(path, str(error))
        count = self.configs[0].num_landmarks
        record = Record(
            name=self.names[index], path=path, landmarks=np.full((count, 2), math.nan),
            occluded=np.zeros(count, bool), size=(image.shape[1], image.shape[0]),
        )  # fmt: skip
        samples = []  # without a spacing: so what is measured stays in px
        for config in self.configs:
            small = shrink_for_network(config, image)
            samples.append([make_sample(config, record, image=small, view=view) for view in range(config.views)])
        return replace(record, spacing=self.spacing if math.isnan(spacing) else spacing), samples


def read_with_spacing(path: Path) -> tuple[np.ndarray, float]:
    """An image as images.read_image gives it, and mm per px where its file says, else nan. Raises UserError."""
    try:
        if path.stat().st_size and dicom.is_dicom(path):
            content = dicom.read(path)
            return stretch_intensities(content.image), math.nan if content.spacing is None else content.spacing
    except OSError as error:
        raise UserError(f"image {path} cannot be read ({error.strerror})") from None
    return read_image(path), math.nan


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


def predict_images(members: Sequence[Member], loader: DataLoader) -> tuple[Predictions, list[Record], list[Unread]]:
    """The predictions of the images of a loader that can be read, their records, and the others.

    Of several members the mean; in measures also "ensemble_spread", the root of their mean squared distance from it.
    """
    device = resolve_device(members[0].config.device)
    detectors = [prepare_detector(member.state, member.config, device) for member in members]
    order = members[0].state["abbreviations"]
    columns = [[member.state["abbreviations"].index(name) for name in order] for member in members]
    results, unread = [], []
    bar = tqdm(total=len(loader.dataset), desc="predicting", unit="image", disable=None)
    for items in loader:
        unread += [item for item in items if isinstance(item, Unread)]
        good = [item for item in items if not isinstance(item, Unread)]
        found, figures = [], []
        for number, (detector, member) in enumerate(zip(detectors, members, strict=True)):
            samples = [sample for _, of_members in good for sample in of_members[number]]
            landmarks, values = predict_samples(detector, member, samples, device)
            found.append(landmarks[:, columns[number]])
            figures.append({name: each[:, columns[number]] for name, each in values.items()})
        for index, (record, _) in enumerate(good):
            places = np.stack([own[index] for own in found])
            own = {name: np.mean([f[name][index] for f in figures if name in f], 0) for f in figures for name in f}
            if len(members) > 1:
                own["ensemble_spread"] = np.sqrt(((places - places.mean(0)) ** 2).sum(-1).mean(0))
            results.append((record, places.mean(0), own))
        bar.update(len(items))
    bar.close()
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
        further = {"score": predictions.score[index]} | {n: v[index] for n, v in predictions.measures.items()}
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


def write_measurements(path: Path, config: Config, predictions: Predictions, records: list[Record], state) -> bool:
    """measurements.csv, where the landmarks have measures: a row per image, blank where one is missing."""
    records = [replace(r, landmarks=own) for r, own in zip(records, predictions.landmarks, strict=True)]
    if config.spacing == "ruler" and set(config.ruler) <= set(state["abbreviations"]):
        try:
            records = read_spacing(config, state["abbreviations"], records)  # by the ruler that was found
        except UserError:  # one that has no length
            print("no ruler was found in some images: their distances in mm are left blank", file=sys.stderr)
    spacing = [record.spacing for record in records]
    sizes = [record.size for record in records]
    kind = "auto" if config.measurements == "none" else config.measurements  # of a report, that setting says
    landmarks = predictions.landmarks, predictions.truth
    measured = measure(kind, state["abbreviations"], *landmarks, sizes, spacing)
    if measured is None:
        return False
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *measured.names])
        for record, row in zip(records, measured.predicted, strict=True):
            writer.writerow([record.name, *(f"{value:.3f}" if math.isfinite(value) else "" for value in row)])
    return True


def run(options: argparse.Namespace) -> int:
    """Predict and write everything; the exit status. Raises UserError."""
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another --out, or empty it")
    settings = {name: getattr(options, name) for name in ("device", "batch_size", "workers", "views", "spacing")}
    settings = {name: value for name, value in settings.items() if value is not None}
    members = read_members([options.checkpoint, *options.ensemble], settings)
    state, config = members[0]
    files = find_images(options.images)
    folder = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(folder).as_posix() for file in files]
    configs = [member.config for member in members]
    spacing = config.spacing if isinstance(config.spacing, float) else math.nan
    loader = DataLoader(
        ImageFiles(files, names, configs, spacing), batch_size=config.batch_size, collate_fn=list,
        num_workers=min(config.workers, math.ceil(len(files) / config.batch_size)), worker_init_fn=limit_threads,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        predictions, records, unread = predict_images(members, loader)
    except UserError:
        out.rmdir()
        raise
    seconds = time.perf_counter() - started
    print(f"{len(records)} images in {seconds:.1f} s, {len(records) / seconds:.2f} images/s")
    write_predictions(out / "predictions.csv", predictions, state["abbreviations"], "px")
    write_records(out / "json" / "data.json", predictions, records, state)
    measured = write_measurements(out / "measurements.csv", config, predictions, records, state)
    used = config.replace(img_dir=str(folder), json_path=str(out / "json" / "data.json"), run_dir=str(out))
    size = sum(weights.numel() for member in members for weights in member.state["model"].values())
    write_provenance(out, used, size, resolve_device(config.device))
    draw_overlays(out, records, options.overlays)
    if unread:
        write_text(out / "skipped.txt", "".join(f"{each.path}: {each.reason}\n" for each in unread))
    for each in unread:
        print(f"skipped: {each.reason}", file=sys.stderr)
    print(f"predictions.csv, json/data.json{', measurements.csv' if measured else ''} and overlays/ in {out}")
    return 1 if unread else 0


def main() -> int:
    """Exit status: 0 done, 1 some images could not be read, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or patterns")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--ensemble", nargs="+", default=[], metavar="CHECKPOINT", help="further checkpoints")
    parser.add_argument("--spacing", type=float, help="mm per px, for distances in mm where no DICOM file says it")
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
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
