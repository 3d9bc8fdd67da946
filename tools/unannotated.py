"""Images that nobody has annotated: find their files, read them, and make the samples that a network sees.

A file that cannot be read is reported on its own; the others are processed.
"""

import glob
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from config import Config
from data import Crop, Sample, make_sample, own_config, shrink_for_network
from reading.annotation import Record, read_annotation
from reading.images import ENDINGS, is_image_file, read_film, stretch_intensities
from reading.paths import find_file, is_hidden
from settings import UserError


def find_image_files(places: Sequence[str]) -> list[Path]:
    """Return the image files of files, folders and patterns, each once. Raises UserError for a place without any."""
    files: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if is_image_file(p) and not is_hidden(p, path)]
        elif path.exists() or path.is_symlink():  # a broken link counts as an image that cannot be read
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(place, recursive=True)) if Path(name).is_file()]
        if not found:
            raise UserError(f"{place}: no image there; give files, folders or patterns of {', '.join(ENDINGS)}")
        files |= dict.fromkeys(Path(os.path.abspath(p)) for p in found)  # links keep their names
    return list(files)


def recorded_spacings(files: Sequence[Path]) -> tuple[list[float], list[str]]:
    """Return mm per px of image files by their records, nan where there are none, and notes.

    The records are those of a data set as main.py reads and tools.convert writes it: json/data.json beside imgs/.
    """
    known, notes = dict[str, float](), list[str]()
    for folder in {parent for file in files for parent in file.parents if parent.name == "imgs"}:
        data = folder.parent / "json" / "data.json"
        try:
            records = read_annotation(data, folder)[2] if data.is_file() else []
        except UserError as error:
            notes.append(f"the records beside the images are not used: {error}")
            continue
        paths = [find_file(folder, record.name) or record.path for record in records]
        known |= {os.path.abspath(path): record.spacing for path, record in zip(paths, records, strict=True)}
    return [known.get(str(file), math.nan) for file in files], notes


def read_pixels(image: str | os.PathLike | np.ndarray) -> tuple[np.ndarray, float, list[str]]:
    """Return an image as reading.images.read_image does, mm per px if its file states it, else nan, and notes.

    image: a file, or an array that is treated like the pixels of one. Raises UserError for what is not an image.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            path.stat()
        except OSError as error:  # without read_film's advice on imagePath
            raise UserError(f"image {path} cannot be read ({error.strerror})") from None
        film = read_film(path)
        return film.image, math.nan if film.spacing is None else film.spacing, film.notes
    pixels = np.ascontiguousarray(image)
    grey_or_rgb = pixels.ndim == 2 or pixels.shape[2:] == (3,)
    if not (grey_or_rgb and pixels.size and pixels.dtype.kind in "biuf"):
        found = f"found {pixels.shape} of {pixels.dtype}"
        raise UserError(f"image: expected a file, or an array (h, w) or (h, w, 3) of numbers; {found}")
    if not np.isfinite(pixels).all():
        raise UserError("image: the array holds nan or infinite values; replace them")
    return pixels if pixels.dtype == np.uint8 else stretch_intensities(pixels), math.nan, []


def unannotated_record(image: np.ndarray, count: int, name="", path=Path(), spacing=math.nan) -> Record:
    """Return the record of an image (h, w[, 3]) with `count` landmarks, all of them missing."""
    landmarks, occluded = np.full((count, 2), math.nan), np.zeros(count, bool)
    return Record(name, path, landmarks, occluded, spacing, size=(image.shape[1], image.shape[0]))


def make_views(
    configs: Sequence[Config], image: np.ndarray, crops: Sequence[Crop | None] | None = None
) -> list[list[Sample]]:
    """Return the samples of an image (h, w[, 3]) for each of several networks: all config.views of it.

    A network whose crop follows the landmarks gets one plain view of config.crop, to look for its crop, unless that is
    given.
    """
    record = unannotated_record(image, configs[0].num_landmarks)  # without a spacing, so that extras stay in px
    samples = []
    for config, crop in zip(configs, crops or [None] * len(configs), strict=True):
        small = shrink_for_network(own_config(config, crop), image)
        views = 1 if config.crop_follows and crop is None else config.views
        samples.append([make_sample(config, record, image=small, view=view, crop=crop) for view in range(views)])
    return samples


class UnreadableImage(NamedTuple):
    """An image that cannot be read."""

    path: Path
    reason: str


class UnannotatedImage(NamedTuple):
    """An image that nobody has annotated."""

    record: Record
    pixels: np.ndarray  # (h, w) grey or (h, w, 3) RGB
    samples: list[list[Sample]]  # of make_views, for each network
    notes: list[str]  # oddities of its file


class ImageFiles(Dataset):
    """Image files, each as an UnannotatedImage or, if it cannot be read, an UnreadableImage."""

    def __init__(
        self, files: Sequence[Path], names: Sequence[str], configs: Sequence[Config], recorded: Sequence[float],
        spacing: float,
    ) -> None:  # fmt: skip
        """recorded: mm per px of each file by its record, or nan; spacing: mm per px if the file states none either."""
        self.files, self.names, self.configs, self.recorded, self.spacing = files, names, configs, recorded, spacing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> UnannotatedImage | UnreadableImage:
        path, name = self.files[index], self.names[index]
        try:
            name.encode()
            image, stated, notes = read_pixels(path)
        except UnicodeEncodeError:
            return UnreadableImage(path, f"image {name!a}: its name is not UTF-8; rename the file")
        except UserError as error:
            return UnreadableImage(path, str(error))
        spacing = next((mm for mm in (self.recorded[index], stated) if not math.isnan(mm)), self.spacing)
        record = unannotated_record(image, self.configs[0].num_landmarks, name, path, spacing)
        return UnannotatedImage(record, image, make_views(self.configs, image), notes)
