"""The only evaluation, for every method: a detector and a loader -> landmarks in original px."""

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import Sample
from detector import LandmarkDetector
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
    """Predict every image of a loader in eval mode; landmarks in original px, in the loader's order."""
    detector.eval()
    landmarks, scores = [], []
    for batch in tqdm(loader, "predicting", leave=False, disable=None):
        with torch.inference_mode():
            found, score = detector.predict(to_device(batch, device, detector.config.channels_last).image)
        landmarks.append(apply_affine(batch.to_original, found.double().cpu()).numpy())
        scores.append(score.float().cpu().numpy())
    records = loader.dataset.records
    return Predictions(
        names=[record.name for record in records],
        landmarks=np.concatenate(landmarks),
        truth=np.stack([record.landmarks for record in records]),
        score=np.concatenate(scores),
        spacing=np.array([record.spacing for record in records]),
    )


def to_device(batch: Sample, device: torch.device, channels_last: bool = False) -> Sample:
    """The batch with image and landmarks on the device; the rest is needed on the host alone."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    image = batch.image.to(device, non_blocking=True, memory_format=layout)
    return batch._replace(image=image, landmarks=batch.landmarks.to(device, non_blocking=True))
