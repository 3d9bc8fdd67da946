"""Find the landmarks of images with a trained network.

    python -m tools.predict CHECKPOINT IMAGES... --out DIR [--ensemble CHECKPOINT...] [--spacing 0.1] [--overlays 100]

IMAGES are files, folders (with their subfolders) or patterns such as 'films/*.png', in JPEG, PNG, TIFF, BMP or DICOM.
With --ensemble the landmarks are the mean over several checkpoints, of the same method or of different ones. Writes

    DIR/predictions.csv    image, landmark, x, y, score and the extras of the method, in px of the image file
    DIR/json/data.json     the same as records that main.py and tools.review read
    DIR/measurements.csv   angles and distances (reporting/cephalometry.py), if the landmarks allow any
    DIR/overlays/          pictures, from the most certain image to the least certain
    DIR/config.json        settings, command, commit and hardware
    DIR/skipped.txt        the images that could not be read, and why; the exit status is then 1

Uncertainties are in px of the image file: vote_spread of the method noothout, ensemble_spread of several checkpoints.
measurements.csv states the mm per px that it used: from the record, if IMAGES are the imgs/ of a data set; else from
the DICOM file; else from --spacing; else from the settings of the checkpoint. data.json holds only the first three.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from config import Config
from data import Sample, crop_to_landmarks, limit_threads
from detector import LandmarkDetector
from evaluate import Predictions, average_members, gather_predictions, predict_batch
from machine import exit_status, prepare_device
from methods import load_detector, trained_config
from reading.annotation import Record, read_spacing, shorten
from reporting.measurements import measure
from reporting.pictures import draw_overlays
from reporting.predictions import read_predictions, write_predictions
from run_folder import read_checkpoint, write_csv, write_provenance, write_text
from settings import Parser, UserError, build_config
from tools.formats.common import spacing_number
from tools.formats.files import check_out, filling
from tools.unannotated import ImageFiles, UnreadableImage, find_image_files, make_views, read_pixels, recorded_spacings
from utils import clip_to_image


class Predictor:
    """A trained network, or an ensemble of them, that finds landmarks. Each checkpoint is loaded once.

        from tools.predict import Predictor

        predictor = Predictor("runs/demo/best.pt", device="auto")
        landmarks, scores, names = predictor.find("film.png")
        for name, (x, y), score in zip(names, landmarks, scores):
            print(f"{name}: x {x:.1f} px, y {y:.1f} px, score {score:.2f}")

    checkpoint: best.pt or last.pt of a run. It forms an ensemble with `others`, which must find the same landmarks.
    settings: replace those of the checkpoints, such as device="cpu", views=8 or batch_size=1.
    Raises UserError if a checkpoint cannot be read, a setting is not allowed or the device is not there.
    """

    def __init__(self, checkpoint: str | os.PathLike, *others: str | os.PathLike, **settings: Any) -> None:
        self.members: list[tuple[LandmarkDetector, int, list[int]]] = []  # detector, epoch from 0, order of landmarks
        self.num_parameters = 0
        for path in (checkpoint, *others):
            state = read_checkpoint(path)
            config = build_config(type(trained_config(state)), state["settings"] | settings)
            if not self.members:
                self.landmarks = {name: state[name] for name in ("abbreviations", "names")}
                self.device = prepare_device(config)
            order, own = self.landmarks["abbreviations"], state["abbreviations"]
            if odd := sorted(set(order) ^ set(own)):
                where = f"{path} does not find the landmarks of {checkpoint}"
                raise UserError(f"{where}: {odd[0]!r} is known to only one of them")
            self.trained_spacing: float | None = state.get("spacing")  # of the last one
            detector = load_detector(state, config)
            self.num_parameters += detector.num_parameters  # before for_inference folds layers
            detector = detector.to(self.device).for_inference()
            self.members.append((detector, state["epoch"] - 1, [own.index(name) for name in order]))
        self.configs = [detector.config for detector, _, _ in self.members]

    def find(self, image: str | os.PathLike | np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return the landmarks (N, 2), scores (N,) and abbreviations (N) that are found in an image.

        image: a file (JPEG, PNG, TIFF, BMP, DICOM), or its pixels as an array, (h, w) grey or (h, w, 3) RGB: uint8, or
        any other type, which is stretched from its own minimum..maximum to 0..255 as a file of 16 bit is.
        landmarks: float64 x, y in px of the image (upright, if its EXIF data turns it), pixel centres at integers.
        They are exactly those that tools.predict finds in this image alone, before it rounds them to four decimals;
        other images in the same batch change the last digits.
        scores: higher is more certain; the scale depends on the method.
        Raises UserError for what is not an image.
        """
        pixels = read_pixels(image)[0]
        landmarks, figures = self.predict([pixels], [make_views(self.configs, pixels)])
        return landmarks[0], figures["score"][0], list(self.landmarks["abbreviations"])

    def predict(
        self, images: Sequence[np.ndarray], samples: Sequence[Sequence[Sequence[Sample]]]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return landmarks (I, N, 2) in original px and figures (I, N) by name for I images and the make_views of each.

        All are means over views and checkpoints. The figures are "score", the extras of the methods and, for several
        checkpoints, "ensemble_spread": the root mean square distance of their landmarks from the mean.
        """
        found = []
        for number, (detector, _, order) in enumerate(self.members):
            views, config = [own[number] for own in samples], detector.config
            if config.crop_follows:
                firsts = self.predict_samples(number, [sample for own in views for sample in own])[0]
                sizes = [(image.shape[1], image.shape[0]) for image in images]
                crops = [crop_to_landmarks(config, first, size) for first, size in zip(firsts, sizes, strict=True)]
                views = [make_views([config], image, [crop])[0] for image, crop in zip(images, crops, strict=True)]
            landmarks, figures = self.predict_samples(number, [sample for own in views for sample in own])
            shape = (len(images), -1, len(order))
            means = {name: values.reshape(shape).mean(1)[:, order] for name, values in figures.items()}
            found.append((landmarks.reshape(*shape, 2).mean(1)[:, order], means))
        return average_members(found)

    def predict_samples(self, number: int, samples: Sequence[Sample]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return landmarks (S, N, 2) in original px and figures (S, N) by name of a member, in its own order."""
        detector, epoch, _ = self.members[number]
        size = detector.config.batch_size
        batches = (default_collate(samples[start : start + size]) for start in range(0, len(samples), size))
        parts = [predict_batch(detector, batch, self.device, epoch) for batch in batches]
        figures = {name: np.concatenate([values[name] for _, values in parts]) for name in parts[0][1]}
        return np.concatenate([landmarks for landmarks, _ in parts]), figures


def predict_images(predictor: Predictor, loader: DataLoader) -> tuple[Predictions, list[Record], list[UnreadableImage]]:
    """Return the predictions and the records of the images of a loader (ImageFiles), and those that cannot be read.

    Prints the first oddity of the files to standard error. Raises UserError if no image can be read.
    """
    results, unread, notes = [], [], []
    with tqdm(total=len(loader.dataset), desc="predicting", unit="image", disable=None) as bar:
        for items in loader:
            unread += [item for item in items if isinstance(item, UnreadableImage)]
            good = [item for item in items if not isinstance(item, UnreadableImage)]
            if good:
                landmarks, figures = predictor.predict([film.pixels for film in good], [film.samples for film in good])
            for index, film in enumerate(good):
                notes += film.notes
                results.append((film.record, landmarks[index], {name: own[index] for name, own in figures.items()}))
            bar.update(len(items))
    if notes:
        print(f"note: {notes[0]}" + (f" ({len(notes) - 1} more notes like it)" if notes[1:] else ""), file=sys.stderr)
    if not results:
        raise UserError(f"none of {len(unread)} images can be read; the first: {unread[0].reason}")
    known = {name for _, _, own in results for name, values in own.items() if np.isfinite(values).any()}
    results = [(record, found, {n: v for n, v in own.items() if n in known}) for record, found, own in results]
    return gather_predictions(results), [record for record, _, _ in results], unread


# --- Files ----------------------------------------------------------------------------------------------


def write_records(
    path: Path, predictions: Predictions, records: Sequence[Record], state: Mapping[str, Sequence[str]]
) -> None:
    """Write predictions as a data.json; a landmark outside its image is moved to the border.

    state: abbreviations and names of the landmarks, as in a checkpoint.
    """
    entries = []
    for index, record in enumerate(records):
        places = clip_to_image(predictions.landmarks[index], record.size)
        further = {"score": predictions.score[index]} | {n: v[index] for n, v in predictions.extras.items()}
        points = []
        for n, (abbreviation, name) in enumerate(zip(state["abbreviations"], state["names"], strict=True)):
            point: dict[str, Any] = {"pointName": name, "pointAbbreviation": abbreviation}
            point |= {"X": round(float(places[n, 0]), 4), "Y": round(float(places[n, 1]), 4)}
            point |= {key: round(float(values[n]), 4) for key, values in further.items() if np.isfinite(values[n])}
            points.append(point)
        own = {} if math.isnan(record.spacing) else {"spacing": record.spacing}
        entries.append({"imagePath": record.name, **own, "points": points})
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False))


def find_spacing(config: Config, abbreviations: Sequence[str], records: Sequence[Record]) -> list[Record]:
    """Return the records with mm per px for measurements: their own, else by the checkpoint's settings, else nan.

    If the setting is the ruler, it is the predicted one: its median over images of one size.
    """
    if config.spacing is None or (config.spacing == "ruler" and not set(config.ruler) <= set(abbreviations)):
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
    """Write measurements.csv, a row per image, blank where a value is unknown; return whether there are any."""
    records = [replace(r, landmarks=own) for r, own in zip(records, predictions.landmarks, strict=True)]
    records = find_spacing(config, state["abbreviations"], records)
    kind = "auto" if config.measurements == "none" else config.measurements  # none is meant for the report only
    measured = measure(
        kind, state["abbreviations"], predictions.landmarks, predictions.truth,
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
    config, landmarks = predictor.configs[0], predictor.landmarks
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
        predictions, records, unread = predict_images(predictor, loader)
    except BaseException:  # Ctrl-C too: leave no empty folder
        with contextlib.suppress(OSError):  # it holds what an earlier try wrote
            out.rmdir()
        raise
    seconds = time.perf_counter() - started
    print(f"{len(records)} images in {seconds:.1f} s, {len(records) / seconds:.2f} images/s")
    if options.spacing is None:
        notes += note_on_spacing(config, predictor.trained_spacing, records)
    elif own := [record.name for record in records if record.spacing != options.spacing]:
        notes.append(f"--spacing is not used for {len(own)} images that state their own: {shorten(own)}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for each in unread:
        print(f"skipped: {each.reason}", file=sys.stderr)
    with filling(out):
        if unread:
            write_text(out / "skipped.txt", "".join(f"{ascii(str(each.path))}: {each.reason}\n" for each in unread))
        write_predictions(out / "predictions.csv", predictions, landmarks["abbreviations"], "px")
        write_records(out / "json" / "data.json", predictions, records, landmarks)
        measured = write_measurements(out / "measurements.csv", config, predictions, records, landmarks)
        used = config.replace(img_dir=str(folder), json_path=str(out / "json" / "data.json"), run_dir=str(out))
        write_provenance(out, used, predictor.num_parameters, predictor.device)
        draw_overlays(out, read_predictions(out / "predictions.csv"), records, options.overlays)
    print(f"predictions.csv, json/data.json{', measurements.csv' if measured else ''} and overlays/ in {out}")
    return 1 if unread else 0


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
    parser.add_argument("--overlays", type=int, default=100, help="largest number of pictures (100)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ... (as in the checkpoint)")
    parser.add_argument("--batch_size", type=int, help="images at a time (as in the checkpoint)")
    parser.add_argument("--workers", type=int, help="processes that read images (as in the checkpoint)")
    parser.add_argument("--views", type=int, help="slightly turned views to average (as in the checkpoint)")
    return exit_status(lambda: run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
