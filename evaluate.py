"""The only evaluation, for every method: a detector and a loader -> landmarks in original px."""

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import Sample
from detector import LandmarkDetector
from machine import merge_shares, process_rank
from utils import apply_affine, radial_errors


class Predictions(NamedTuple):
    """What a detector says of I images, beside the truth."""

    names: list[str]  # imagePath of each image
    landmarks: np.ndarray  # (I, N, 2) (x, y) original px
    truth: np.ndarray  # (I, N, 2) original px, nan where not annotated
    score: np.ndarray  # (I, N)
    spacing: np.ndarray  # (I,) mm per original px, nan where unknown

    def errors(self) -> np.ndarray:
        """(I, N) radial errors in mm, or in px where the spacing is unknown."""
        return radial_errors(self.landmarks, self.truth, np.nan_to_num(self.spacing, nan=1.0))


def evaluate(detector: LandmarkDetector, loader: DataLoader, device: torch.device) -> Predictions:
    """Predict every image of a loader in eval mode; landmarks in original px, in the order of its records.

    Several views of an image (data.view_affine) give the mean of their landmarks and scores. Over several processes
    each predicts the images of its share, and all get all.
    """
    detector.eval()
    dataset, count = loader.dataset, detector.config.num_landmarks
    landmarks, scores = [np.zeros((0, count, 2))], [np.zeros((0, count), np.float32)]
    for batch in tqdm(loader, "predicting", leave=False, disable=None if process_rank() == 0 else True):
        with torch.inference_mode():
            found, score = detector.predict(to_device(batch, device, detector.config.channels_last).image)
        landmarks.append(apply_affine(batch.to_original, found.double().cpu()).numpy())
        scores.append(score.float().cpu().numpy())
    landmarks = np.concatenate(landmarks).reshape(-1, dataset.views, count, 2).mean(1)
    scores = np.concatenate(scores).reshape(-1, dataset.views, count).mean(1)
    results = merge_shares(list(zip(dataset.records, landmarks, scores, strict=True)))
    return Predictions(
        names=[record.name for record, _, _ in results],
        landmarks=np.stack([found for _, found, _ in results]),
        truth=np.stack([record.landmarks for record, _, _ in results]),
        score=np.stack([score for _, _, score in results]),
        spacing=np.array([record.spacing for record, _, _ in results]),
    )


def to_device(batch: Sample, device: torch.device, channels_last: bool = False) -> Sample:
    """The batch with image and landmarks on the device; the rest is needed on the host alone."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    image = batch.image.to(device, non_blocking=True, memory_format=layout)
    return batch._replace(image=image, landmarks=batch.landmarks.to(device, non_blocking=True))
