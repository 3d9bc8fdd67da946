"""A trained network, or an ensemble, as a Python object that finds landmarks in images and judges what it found."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import default_collate

from data import Sample, crop_to_landmarks
from detector import LandmarkDetector
from evaluate import Verdict, average_landmarks, average_members, predict_batch
from machine import prepare_device
from methods import load_detector, trained_config
from reporting.memory import join_memories, read_memory, reorder
from reporting.trust import judge, radii, variants
from run_folder import read_checkpoint
from settings import UserError, build_config
from tools.unannotated import make_views, read_pixels
from utils import apply_affine

NOTHING_REMEMBERED = (
    "the checkpoint remembers nothing to judge images by: only the one that its run tested does, best.pt if there is "
    "one, and none of an earlier version"
)


class Finding(NamedTuple):
    """What Predictor.examine finds in an image."""

    landmarks: np.ndarray  # (N, 2) float64 x, y in px of the image
    scores: np.ndarray  # (N,)
    names: list[str]  # (N) abbreviations
    verdict: str  # good | check | reject
    reason: str  # why not good, else ""
    radius_90: np.ndarray | None  # (N,) px of the image that 90 % of errors stay below, and
    radius_95: np.ndarray | None  # (N,) 95 %; None if it is rejected, or the network was tested on no unseen image


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
        memories = []
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
            rows = [own.index(name) for name in order]
            self.members.append((detector, state["epoch"] - 1, rows))
            if memory := read_memory(state):
                memory = reorder(memory, rows)
            memories.append(memory)
        self.configs = [detector.config for detector, _, _ in self.members]
        self.memory = join_memories(memories)

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
        landmarks, figures = self.predict_pixels(read_pixels(image)[0])
        return landmarks, figures["score"], list(self.landmarks["abbreviations"])

    def examine(self, image: str | os.PathLike | np.ndarray, fix_orientation: bool = False) -> Finding:
        """Return what find returns, and a verdict on the image with the radii of its landmarks, if they are known.

        fix_orientation: if the image is mirrored, inverted or turned, take the landmarks of the image as it was meant.
        Raises UserError for what is not an image, and for a checkpoint that remembers nothing to judge by.
        """
        if self.memory is None:
            raise UserError(NOTHING_REMEMBERED)
        pixels = read_pixels(image)[0]
        landmarks, figures, verdict = self.judge(pixels, *self.predict_pixels(pixels), fix_orientation)
        score, names = figures["score"], list(self.landmarks["abbreviations"])
        found = radii(self.memory, landmarks, score).values()
        known = [own if np.isfinite(own).any() and verdict.name != "reject" else None for own in found]
        return Finding(landmarks, score, names, *verdict, *known)

    def judge(
        self, pixels: np.ndarray, landmarks: np.ndarray, figures: dict[str, np.ndarray], fix_orientation: bool
    ) -> tuple[np.ndarray, dict[str, np.ndarray], Verdict]:
        """Return landmarks (N, 2), figures (N,) by name and the verdict on an image with these landmarks and figures.

        If they are not those of a good image as a whole, the mirrored, inverted and turned images are tried.
        """
        names, memory = self.landmarks["abbreviations"], self.memory
        if memory is None:
            return landmarks, figures, Verdict("good")
        verdict = judge(memory, landmarks, figures["score"], names)
        if verdict.name == "good" or not (verdict.name == "reject" or figures["score"].mean() < memory.least_score):
            return landmarks, figures, verdict
        tried = {}
        for what, (other, affine) in variants(pixels).items():
            found, own = self.predict_pixels(np.ascontiguousarray(other))
            if judge(memory, found, own["score"], names).name == "good":
                tried[what] = apply_affine(affine, found), own
        if not tried:
            return landmarks, figures, verdict
        best = max(tried, key=lambda what: tried[what][1]["score"].mean())
        if fix_orientation:
            return *tried[best], Verdict("check", f"{best}: the landmarks are those of the image as it was meant")
        means = figures["score"].mean(), tried[best][1]["score"].mean()
        reason = "{}? its mean score is {:.2f}, that of the image as it was meant {:.2f}".format(best, *means)
        return landmarks, figures, Verdict("reject", reason)

    def predict_pixels(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return landmarks (N, 2) in px and figures (N,) by name of one image (h, w[, 3])."""
        landmarks, figures = self.predict([pixels], [make_views(self.configs, pixels)])
        return landmarks[0], {name: own[0] for name, own in figures.items()}

    def predict(
        self, images: Sequence[np.ndarray], samples: Sequence[Sequence[Sequence[Sample]]]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return landmarks (I, N, 2) in original px and figures (I, N) by name for I images and the make_views of each.

        All are means over views and checkpoints. The figures are "score", the extras of the methods and, for several
        views and checkpoints, "view_spread" and "ensemble_spread": the root mean square distance from the mean.
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
            landmarks, spread = average_landmarks(landmarks.reshape(*shape, 2)[:, :, order].swapaxes(0, 1))
            found.append((landmarks, means | ({"view_spread": spread} if config.views > 1 else {})))
        return average_members(found)

    def predict_samples(self, number: int, samples: Sequence[Sample]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return landmarks (S, N, 2) in original px and figures (S, N) by name of a member, in its own order."""
        detector, epoch, _ = self.members[number]
        size = detector.config.batch_size
        batches = (default_collate(samples[start : start + size]) for start in range(0, len(samples), size))
        parts = [predict_batch(detector, batch, self.device, epoch) for batch in batches]
        figures = {name: np.concatenate([values[name] for _, values in parts]) for name in parts[0][1]}
        return np.concatenate([landmarks for landmarks, _ in parts]), figures
