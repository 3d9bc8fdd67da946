"""The only evaluation, for every method: from a detector and a loader to landmarks in original px."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import LandmarkDataset, Sample, ViewSampler, crop_to_landmarks
from detector import LandmarkDetector
from machine import broadcast_buffers, merge_shares, process_rank
from reading.annotation import Record
from utils import apply_affine, radial_errors


class Verdict(NamedTuple):
    """Whether the prediction of an image can be used."""

    name: str  # good | check | reject
    reason: str = ""


class Predictions(NamedTuple):
    """The predictions of a detector on I images, and the ground truth."""

    names: list[str]  # imagePath of each image
    landmarks: np.ndarray  # (I, N, 2) (x, y) original px
    truth: np.ndarray  # (I, N, 2) original px, nan where not annotated
    score: np.ndarray  # (I, N)
    spacing: np.ndarray  # (I,) mm per original px, nan where unknown
    extras: Mapping[str, np.ndarray] = {}  # (I, N) by name: other values of the method, such as Dice
    occluded: np.ndarray | None = None  # (I, N) bool: annotated although it is occluded
    verdicts: Sequence[Verdict] = ()  # (I,), or none: see reporting/trust.py

    def errors(self) -> np.ndarray:
        """Return radial errors (I, N) in mm, or in px where the spacing is unknown; nan where not annotated."""
        return radial_errors(self.landmarks, self.truth, np.nan_to_num(self.spacing, nan=1.0))


def evaluate(
    detector: LandmarkDetector, loader: DataLoader, device: torch.device, epoch: int = 0, views: int = 1
) -> Predictions:
    """Predict every image of a loader in eval mode; return landmarks in original px, in the order of its records.

    With several views of an image (data.view_affine), landmarks, scores and extras are averaged over them, and
    "view_spread" is an extra: how far they are apart, as in average_landmarks. With config.crop_follows a first pass
    finds where to look. Under torchrun each process predicts its share of the images, and all get the whole.
    epoch: of the weights, from 0.
    """
    detector.eval()
    broadcast_buffers(detector)  # on a CPU, a batch norm has only seen the images of its own process
    config, dataset, sampler = detector.config, cast(LandmarkDataset, loader.dataset), cast(ViewSampler, loader.sampler)
    records = dataset.records
    if config.crop_follows:
        sampler.views, sampler.crops = 1, [None] * len(records)
        found, _ = predict_all(detector, loader, device, epoch, "looking for crops")
        sampler.crops = [crop_to_landmarks(config, own, r.size) for own, r in zip(found, records, strict=True)]
    sampler.views = views
    landmarks, figures = predict_all(detector, loader, device, epoch, "predicting")
    landmarks, spread = average_landmarks(landmarks.reshape(-1, views, *landmarks.shape[1:]).swapaxes(0, 1))
    groups = [figures[start : start + views] for start in range(0, len(figures), views)]
    means = [{name: np.mean([one[name] for one in group], 0) for name in group[0]} for group in groups]
    if views > 1:
        means = [own | {"view_spread": each} for own, each in zip(means, spread, strict=True)]
    results = merge_shares(list(zip(records, landmarks, means, strict=True)))
    return gather_predictions(results)


def predict_all(
    detector: LandmarkDetector, loader: DataLoader, device: torch.device, epoch: int, title: str
) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """Return landmarks (S, N, 2) in original px and figures (N,) by name of all S samples of a loader."""
    landmarks, figures = [np.zeros((0, detector.num_landmarks, 2))], []
    for batch in tqdm(loader, title, leave=False, disable=None if process_rank() == 0 else True):
        found, arrays = predict_batch(detector, batch, device, epoch)
        landmarks.append(found)
        figures += [{name: values[i] for name, values in arrays.items()} for i in range(len(batch.name))]
    return np.concatenate(landmarks), figures


def average_landmarks(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (I, N, 2) of landmarks (V, I, N, 2) and their root mean square distance (I, N) from it."""
    mean = found.mean(0)
    return mean, np.sqrt(((found - mean) ** 2).sum(-1).mean(0))


def average_members(
    found: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the mean landmarks (I, N, 2) and figures (I, N) by name of several networks; a figure may lack in some.

    For more than one network also "ensemble_spread": the root mean square distance of their landmarks from the mean.
    """
    mean, spread = average_landmarks(np.stack([landmarks for landmarks, _ in found]))
    names = dict.fromkeys(name for _, figures in found for name in figures)
    means = {name: np.mean([figures[name] for _, figures in found if name in figures], 0) for name in names}
    if len(found) > 1:
        means["ensemble_spread"] = spread
    return mean, means


def predict_batch(
    detector: LandmarkDetector, batch: Sample, device: torch.device, epoch: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return landmarks (B, N, 2) in original px of a collated batch; "score" and the method's extras (B, N) by name."""
    with torch.inference_mode():
        moved = to_device(batch, device, detector.config.channels_last)
        found, score, extras = detector.predict_with_extras(moved, epoch)
    landmarks = apply_affine(batch.to_original, found.double().cpu()).numpy()
    return landmarks, {name: values.float().cpu().numpy() for name, values in {"score": score, **extras}.items()}


def gather_predictions(results: Sequence[tuple[Record, np.ndarray, Mapping[str, np.ndarray]]]) -> Predictions:
    """Return predictions from each image's record, landmarks (N, 2) and values (N,) by name, which include "score"."""
    return Predictions(
        names=[record.name for record, _, _ in results],
        landmarks=np.stack([found for _, found, _ in results]),
        truth=np.stack([record.landmarks for record, _, _ in results]),
        score=np.stack([figures["score"] for _, _, figures in results]),
        spacing=np.array([record.spacing for record, _, _ in results]),
        extras={name: np.stack([each[name] for _, _, each in results]) for name in results[0][2] if name != "score"},
        occluded=np.stack([record.occluded for record, _, _ in results]),
    )


def to_device(batch: Sample, device: torch.device, channels_last: bool = False) -> Sample:
    """Return the batch with image and landmarks on the device; the rest is only needed on the host."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    image = batch.image.to(device, non_blocking=True, memory_format=layout)
    return batch._replace(image=image, landmarks=batch.landmarks.to(device, non_blocking=True))
