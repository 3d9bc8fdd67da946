"""Image files that nobody has annotated: finding them, and making samples of them for tools.predict.

What is wrong with one file is said of it alone, and the others go on.
"""

import glob
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from config import Config
from data import Sample, make_sample, shrink_for_network
from reading import dicom
from reading.annotation import Record
from reading.images import ENDINGS, read_image, stretch_intensities
from settings import UserError


def find_images(places: Sequence[str]) -> list[Path]:
    """The image files of files, folders and patterns, each once. Raises UserError for a place without any."""
    files: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if looks_like_image(p)]
        elif path.exists() or path.is_symlink():  # one that leads nowhere is an image that cannot be read
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(place, recursive=True)) if Path(name).is_file()]
        if not found:
            raise UserError(f"{place}: no image there; give files, folders or patterns of {', '.join(ENDINGS)}")
        files |= dict.fromkeys(Path(os.path.abspath(p)) for p in found)  # links keep their names
    return list(files)


def looks_like_image(path: Path) -> bool:
    """Whether a file of a folder is meant: by its ending, or a DICOM file that has none."""
    if path.suffix.lower() in ENDINGS:
        return not path.is_dir()
    return not path.suffix and path.is_file() and dicom.is_dicom(path)


class UnreadableImage(NamedTuple):
    """An image that cannot be read."""

    path: Path
    reason: str


class UnannotatedImage(NamedTuple):
    """An image that nobody has annotated."""

    record: Record
    samples: list[list[Sample]]  # of each member, all views
    notes: list[str]  # what its file says that is odd


class ImageFiles(Dataset):
    """Image files as UnannotatedImages; those that cannot be read as UnreadableImage."""

    def __init__(self, files: Sequence[Path], names: Sequence[str], configs: Sequence[Config], spacing: float) -> None:
        self.files, self.names, self.configs, self.spacing = files, names, configs, spacing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> UnannotatedImage | UnreadableImage:
        path = self.files[index]
        try:
            check_name(self.names[index])
            image, spacing, notes = read_with_spacing(path)
        except UserError as error:
            return UnreadableImage(path, str(error))
        count = self.configs[0].num_landmarks
        record = Record(
            name=self.names[index], path=path, landmarks=np.full((count, 2), math.nan),
            occluded=np.zeros(count, bool), size=(image.shape[1], image.shape[0]),
        )  # fmt: skip
        samples = []  # without a spacing: so what is measured stays in px
        for config in self.configs:
            small = shrink_for_network(config, image)
            samples.append([make_sample(config, record, image=small, view=view) for view in range(config.views)])
        return UnannotatedImage(
            replace(record, spacing=self.spacing if math.isnan(spacing) else spacing), samples, notes
        )


def check_name(name: str) -> None:
    """Refuse a file name that no text file can hold. Raises UserError."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"image {name!a}: its name is not UTF-8; rename the file") from None


def read_with_spacing(path: Path) -> tuple[np.ndarray, float, list[str]]:
    """An image as images.read_image gives it, mm per px where its file says, else nan, and notes. Raises UserError."""
    try:
        if path.stat().st_size and dicom.is_dicom(path):
            image, spacing, notes = dicom.read(path)
            return stretch_intensities(image), math.nan if spacing is None else spacing, notes if spacing else []
    except OSError as error:
        raise UserError(f"image {path} cannot be read ({error.strerror})") from None
    return read_image(path), math.nan, []
