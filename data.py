"""From checked records (annotation.py) to Samples: frames, augmentation, loaders.

Words and frames of the whole repository:
B batch, N landmarks, H x W network input in px, h x w any other image or map. A point is (x, y), x right, y down,
pixel centres at integers: (0, 0) is the centre of the top-left pixel. Two frames: *original* px (data.json and
every file on disk) and *network* px (what methods see), tied by one 2x3 affine per sample that also holds the
augmentation. A missing landmark is nan. Spacing is mm per original px, nan where unknown; errors are then in px.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from annotation import Record
from config import Config
from images import normalise_image, read_image, vary_intensities, warp_image
from utils import apply_affine, compose_affines, invert_affine, resize_affine


class Sample(NamedTuple):
    """What a method sees of one image; collated, every tensor has a leading B and name is a list."""

    image: Tensor  # (3, H, W) float32 RGB, ImageNet-normalised
    landmarks: Tensor  # (N, 2) float32 (x, y) network px, nan where not annotated
    to_original: Tensor  # (2, 3) float64 affine, network px -> original px
    spacing: Tensor  # () float64 mm per original px, nan if unknown
    name: str  # imagePath of the record


def draw_affine(config: Config, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A random affine (2, 3) of the original frame: rotation, scaling, shift about the centre of (width, height).

    No flips: a flipped profile looks the other way.
    """
    angle = math.radians(generator.uniform(-config.rotation, config.rotation))
    scale = math.exp(generator.uniform(-1, 1) * math.log1p(config.scaling))
    shift = generator.uniform(-config.shift, config.shift, 2) * size
    centre = (np.array(size) - 1) / 2
    matrix = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.column_stack([matrix, centre + shift - matrix @ centre])


def make_sample(config: Config, record: Record, generator: np.random.Generator | None = None) -> Sample:
    """A record as the methods see it; augmented if a generator is given. The one preprocessing of all paths."""
    image = read_image(record.path)
    original_size, size = (image.shape[1], image.shape[0]), (config.width, config.height)
    to_original = resize_affine(size, original_size)
    if generator is not None:
        to_original = compose_affines(to_original, draw_affine(config, original_size, generator))
    image = warp_image(image, to_original, size).astype(np.float32) / 255
    if generator is not None and config.intensity > 0:
        image = vary_intensities(image, config.intensity, generator)
    return Sample(
        image=normalise_image(image),
        landmarks=torch.from_numpy(apply_affine(invert_affine(to_original), record.landmarks)).float(),
        to_original=torch.from_numpy(to_original),
        spacing=torch.tensor(record.spacing, dtype=torch.float64),
        name=record.name,
    )


class LandmarkDataset(Dataset):
    """Records as Samples. A key is an index (never augmented) or (epoch, index), augmented by (seed, epoch, index).

    So a sample does not depend on which worker makes it, in which order, or on how many there are.
    """

    def __init__(self, config: Config, records: Sequence[Record]) -> None:
        self.config, self.records = config, list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        if isinstance(key, tuple):
            epoch, index = key
            generator = np.random.default_rng((self.config.seed, epoch, index))
            return make_sample(self.config, self.records[index], generator)
        return make_sample(self.config, self.records[key])


class EpochSampler(Sampler):
    """The keys (epoch, index) of a data set in an order drawn from (seed, epoch)."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter([(self.epoch, int(index)) for index in order])


def make_loader(config: Config, records: Sequence[Record], train: bool, pin_memory: bool = False) -> DataLoader:
    """Batches of Samples. Train: shuffled and augmented by `loader.sampler.epoch`; else in order, as they are."""
    dataset = LandmarkDataset(config, records)
    workers = min(config.workers, math.ceil(len(dataset) / config.batch_size))
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=EpochSampler(len(dataset), config.seed) if train else None,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=limit_threads,
    )


def limit_threads(worker: int) -> None:
    """One thread per loader process: they are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
