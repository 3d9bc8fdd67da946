"""From checked records (reading/) to Samples, the input of every method: frames, augmentation, loaders.

Words and frames of the whole repository:
B batch, N landmarks, H x W network input in px, h x w any other image or map. A point is (x, y), x to the right, y
down, with pixel centres at integers: (0, 0) is the centre of the top-left pixel. There are two frames: *original* px
(data.json and every file on disk) and *network* px (what a method sees). One 2x3 affine per sample connects them and
includes the augmentation. A missing landmark is nan. Spacing is mm per original px, nan where unknown. Errors are
radial, in mm, or in original px where the spacing is unknown.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from config import Config
from machine import process_count, process_rank, take_share
from reading.annotation import Record
from reading.images import blur_image, cut_out, normalise_image, read_image, shrink_image, vary_intensities, warp_image
from utils import apply_affine, compose_affines, invert_affine, resize_affine

log = logging.getLogger("farnet")

WIDE_SHARE = 0.2  # of the training samples show more than the crop, if it follows the landmarks
WIDEST = 0.25  # of the image's sides, beyond each border: the widest of them
CROP_STEP = 0.005  # of the image's sides: crops around landmarks begin and end at multiples of it
LEAST_CROP = 0.25  # of the image's longer side: the longer side of a crop around landmarks is at least that

Crop = tuple[float, ...]  # left, top, right, bottom as fractions of an image


class Sample(NamedTuple):
    """What a method sees of one image. In a batch every tensor has a leading B, and name is a list."""

    image: Tensor  # (3, H, W) float32 RGB, ImageNet-normalised
    landmarks: Tensor  # (N, 2) float32 (x, y) network px, nan where not annotated
    to_original: Tensor  # (2, 3) float64 affine, network px -> original px
    spacing: Tensor  # () float64 mm per original px, nan if unknown
    name: str  # imagePath of the record
    occluded: Tensor | None = None  # (N,) bool: annotated although it is occluded


def network_affine(config: Config, size: tuple[int, int]) -> np.ndarray:
    """Return the affine (2, 3) from network px to original px of an image (width, height) without augmentation.

    The network sees config.crop of the image. With config.keep_aspect both axes have one scale and the crop is centred;
    at a scale of 1 it is shifted by whole px, so that the image is not blurred.
    """
    left, top, right, bottom = config.crop
    crop = np.array([right - left, bottom - top]) * size
    seen = crop
    if config.keep_aspect:
        seen = np.array([config.width, config.height]) * max(crop / (config.width, config.height))
    affine = resize_affine((config.width, config.height), tuple(seen))
    margin = (crop - seen) / 2
    if config.keep_aspect and np.allclose(affine.diagonal(), 1):
        margin = np.floor(margin + 1e-6)
    affine[:, 2] += np.array([left, top]) * size + margin
    return affine


def own_config(config: Config, crop: Crop | None = None) -> Config:
    """Return the settings for one image: with its own crop, undistorted, if config.crop_follows; else as they are."""
    return config.replace(crop=crop or config.crop, keep_aspect=True) if config.crop_follows else config


def crop_to_landmarks(config: Config, landmarks: np.ndarray, size: tuple[int, int]) -> Crop:
    """Return the box of landmarks (N, 2) of an image (width, height), plus config.crop_margin of its longer side.

    It ends at multiples of CROP_STEP, so that what rounding does to landmarks hardly ever changes it.
    """
    low, high = np.nanmin(landmarks, 0) - 0.5, np.nanmax(landmarks, 0) + 0.5
    longer = (high - low).max()
    margin = max(config.crop_margin * longer, (LEAST_CROP * max(size) - longer) / 2)  # type: ignore[operator]
    low, high = (low - margin + 0.5) / size, (high + margin + 0.5) / size
    return (*(np.floor(low / CROP_STEP) * CROP_STEP).tolist(), *(np.ceil(high / CROP_STEP) * CROP_STEP).tolist())


def crops_of_truth(config: Config, records: Sequence[Record]) -> list[Crop]:
    """Return each record's crop to its annotated landmarks; a missing one is where the others put it on average.

    A record with fewer than two landmarks gets config.crop.
    """
    places = np.stack([(record.landmarks + 0.5) / record.size for record in records])
    known = np.isfinite(places[..., 0])
    counts = known.sum(0)[:, None]
    mean = np.where(counts > 0, np.nan_to_num(places).sum(0) / np.maximum(counts, 1), np.nan)  # (N, 2)
    crops = []
    for record, here in zip(records, known, strict=True):
        if here.sum() < 2:
            crops.append(config.crop)
            continue
        aspect = np.array(record.size)
        own, others = record.landmarks[here], mean[here] * aspect
        scale = min(5.0, math.sqrt(own.var(0).sum() / max(others.var(0).sum(), 1e-9)))  # if two lie at one place
        filled = np.where(here[:, None], record.landmarks, own.mean(0) + scale * (mean * aspect - others.mean(0)))
        crops.append(crop_to_landmarks(config, filled, record.size))
    return crops


def draw_crop(crop: Crop, generator: Generator) -> Crop:
    """Draw a crop for training: mostly the given one, else one between it and a frame wider than the image.

    Thus a network learns to find landmarks in whole images too, whatever surrounds the patient.
    """
    share = generator.uniform() if generator.uniform() < WIDE_SHARE else 0.0
    frame = (-WIDEST, -WIDEST, 1 + WIDEST, 1 + WIDEST)
    return tuple((1 - share) * side + share * far for side, far in zip(crop, frame, strict=True))


def draw_affine(config: Config, size: tuple[int, int], generator: Generator) -> np.ndarray:
    """Draw an affine (2, 3) within original px of an image (width, height): rotate, scale and shift the crop.

    There are no flips: a flipped profile looks the other way.
    """
    left, top, right, bottom = config.crop
    angle = math.radians(generator.uniform(-config.rotation, config.rotation))
    scale = math.exp(generator.uniform(-1, 1) * math.log1p(config.scaling))
    shift = generator.uniform(-config.shift, config.shift, 2) * (right - left, bottom - top) * size
    centre = np.array([left + right, top + bottom]) * size / 2 - 0.5
    return turn_affine(centre, angle, scale, shift)


def view_affine(config: Config, size: tuple[int, int], view: int) -> np.ndarray:
    """Return the affine (2, 3) within original px of an image (width, height) for a view of it; view 0 is the identity.

    The other views lie on a circle of small rotations (3 degrees), scales (5 %) and shifts (1 % of the crop).
    """
    if view == 0:
        return np.eye(2, 3)
    angle = 2 * math.pi * (view - 1) / (config.views - 1)
    left, top, right, bottom = config.crop
    centre = np.array([left + right, top + bottom]) * size / 2 - 0.5
    shift = 0.01 * np.array([math.cos(2 * angle + 1), math.sin(2 * angle + 1)]) * (right - left, bottom - top) * size
    return turn_affine(centre, math.radians(3) * math.cos(angle), 1.05 ** math.sin(angle), shift)


def turn_affine(centre: np.ndarray, angle: float, scale: float, shift: np.ndarray) -> np.ndarray:
    """Return the affine (2, 3) that rotates by an angle (radians), scales about a centre (2,) and shifts by (2,)."""
    matrix = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.column_stack([matrix, centre + shift - matrix @ centre])


def draw_displacement(config: Config, generator: Generator) -> np.ndarray:
    """Draw a smooth displacement field (H, W, 2) in network px from a 5 x 4 grid of normally distributed vectors."""
    grid = generator.normal(0, config.elastic * config.width, (5, 4, 2)).astype(np.float32)
    return cv2.resize(grid, (config.width, config.height), interpolation=cv2.INTER_CUBIC)


def undo_displacement(points: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Return the points p (N, 2) with p + displacement(p) = points, by fixed-point iteration; nan stays nan."""
    found = points.astype(np.float32)
    for _ in range(20):  # the field is smooth: each iteration shrinks the error by its slope, below 0.3
        at = cv2.remap(  # type: ignore[call-overload]
            displacement, np.nan_to_num(found)[None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        found = (points - at[0]).astype(np.float32)
    return found


def read_for_network(config: Config, record: Record) -> np.ndarray:
    """Read a record's image and shrink it as shrink_for_network does."""
    return shrink_for_network(config, read_image(record.path))


def shrink_for_network(config: Config, image: np.ndarray) -> np.ndarray:
    """Shrink an image (h, w[, 3]) to about twice the resolution of the network input, if it is larger."""
    size = (image.shape[1], image.shape[0])
    width, height = np.round(size / network_affine(config, size).diagonal()).astype(int).tolist()
    return shrink_image(image, (max(1, width), max(1, height)))


def make_sample(
    config: Config, record: Record, generator: Generator | None = None, image: np.ndarray | None = None, view: int = 0,
    crop: Crop | None = None,
) -> Sample:  # fmt: skip
    """Return a record as the methods see it, augmented if a generator is given. All programs preprocess with this.

    image: the result of read_for_network, if it was kept. view: number of the view in testing, below config.views.
    crop: of this image, if config.crop_follows; none: config.crop.
    """
    config = own_config(config, crop)
    if image is None:
        image = read_for_network(config, record)
    size = (config.width, config.height)
    to_original, displacement = network_affine(config, record.size), None
    if view > 0:
        to_original = compose_affines(to_original, view_affine(config, record.size, view))
    if generator is not None:
        to_original = compose_affines(to_original, draw_affine(config, record.size, generator))
        displacement = draw_displacement(config, generator) if config.elastic > 0 else None
    to_source = compose_affines(to_original, resize_affine(record.size, (image.shape[1], image.shape[0])))
    landmarks = apply_affine(invert_affine(to_original), record.landmarks)
    if displacement is not None:
        landmarks = undo_displacement(landmarks, displacement)
    image = warp_image(image, to_source, size, displacement).astype(np.float32) / 255
    if generator is not None:
        image = augment_intensities(config, image, generator)
    return Sample(
        image=normalise_image(image),
        landmarks=torch.from_numpy(landmarks).float(),
        to_original=torch.from_numpy(to_original),
        spacing=torch.tensor(record.spacing, dtype=torch.float64),
        name=record.name,
        occluded=torch.from_numpy(record.occluded),
    )


def augment_intensities(config: Config, image: np.ndarray, generator: Generator) -> np.ndarray:
    """Augment the intensities of an image in 0..1 as the settings say; landmarks stay where they are."""
    if config.blur > 0:
        image = blur_image(image, config.blur, generator)
    if config.intensity > 0:
        image = vary_intensities(image, config.intensity, generator)
    if config.cutout > 0:
        image = cut_out(image, config.cutout, generator)
    return image


class View(NamedTuple):
    """The key of a sample in testing."""

    record: int  # its index
    number: int = 0  # of the view, below config.views
    crop: Crop | None = None  # of the image, if config.crop_follows; none: config.crop


class LandmarkDataset(Dataset):
    """Records as Samples. A key (epoch, index) gives one augmented by (seed, epoch, index), a View a plain one.

    A sample therefore does not depend on the number of workers or on their order. An index is the first view.
    """

    def __init__(self, config: Config, records: Sequence[Record], train: bool = False) -> None:
        self.config, self.records = config, list(records)
        self.images: list[np.ndarray] = []  # of the first records, as many as fit into memory
        self.crops = crops_of_truth(config, records) if train and config.crop_follows else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | View | tuple[int, int]) -> Sample:
        key = View(key) if isinstance(key, int) else key
        if isinstance(key, View):
            return make_sample(self.config, self.records[key.record], view=key.number, crop=key.crop)
        epoch, index = key
        generator = np.random.default_rng((self.config.seed, epoch, index))
        image = self.images[index] if index < len(self.images) else None
        crop = draw_crop(self.crops[index], generator) if self.crops else None
        if crop is not None and image is not None:  # it was kept for the narrowest crop
            image = shrink_for_network(own_config(self.config, crop), image)
        return make_sample(self.config, self.records[index], generator, image, crop=crop)

    def keep_images(self, gigabytes: float) -> None:
        """Decode images into memory up to a limit; forked loader processes share them."""
        used = 0
        for index, record in enumerate(self.records):
            image = read_for_network(own_config(self.config, self.crops[index] if self.crops else None), record)
            used += image.nbytes
            if used > gigabytes * 1e9:
                break
            self.images.append(image)
        kept = sum(image.nbytes for image in self.images) / 1e9
        log.info("%d of %d training images kept in memory, %.2f GB", len(self.images), len(self.records), kept)


class EpochSampler(Sampler):
    """The keys (epoch, index) of a data set for this process, in an order drawn from (seed, epoch).

    Of each processes * batch_size consecutive keys a process takes batch_size, so that together they do what one
    process does with that larger batch. The first keys are repeated at the end until every process has as many.
    """

    def __init__(self, config: Config, length: int) -> None:
        self.seed, self.batch_size, self.length, self.epoch = config.seed, config.batch_size, length, 0

    def __len__(self) -> int:
        return math.ceil(self.length / process_count())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        order = np.resize(order, len(self) * process_count())
        for batch in np.split(order, range(0, len(order), self.batch_size * process_count())):
            own = np.split(batch, process_count())[process_rank()]
            yield from ((self.epoch, int(index)) for index in own)


class ViewSampler(Sampler):
    """The keys of a test: `views` of each record, one after another, in its crop of `crops` if there are any."""

    def __init__(self, length: int) -> None:
        self.length, self.views = length, 1
        self.crops: Sequence[Crop | None] = [None] * length

    def __len__(self) -> int:
        return self.length * self.views

    def __iter__(self) -> Iterator[View]:
        for index, crop in enumerate(self.crops):
            yield from (View(index, number, crop) for number in range(self.views))


def make_loader(config: Config, records: Sequence[Record], train: bool) -> DataLoader:
    """Return a loader of this process's share of the records, in batches of Samples.

    train: shuffled and augmented by `loader.sampler.epoch`; otherwise in their order, as `loader.sampler` says.
    """
    dataset = LandmarkDataset(config, records if train else take_share(records), train)
    if train and config.cache_gb > 0:
        dataset.keep_images(config.cache_gb)
    workers = min(config.workers, math.ceil(len(dataset) / config.batch_size))
    sampler = EpochSampler(config, len(dataset)) if train else ViewSampler(len(dataset))
    return DataLoader(
        dataset, config.batch_size, sampler=sampler, num_workers=workers,
        pin_memory=config.device != "cpu" and torch.cuda.is_available(), persistent_workers=workers > 0,
        worker_init_fn=limit_threads,
        generator=torch.Generator(),  # or starting workers would change the random numbers of training
    )  # fmt: skip


def limit_threads(worker: int) -> None:
    """Limit a loader process to one thread: the processes already run in parallel."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
