"""Measure the effect of each difference from the original release: the table of docs/differences.md.

    python -m experiments.differences runs/farnet-.../best.pt

A checkpoint is tested as this repository does it, and again with one habit of the release restored. Frames and labels
are measured on the landmarks of the data set at the recipe's 640 x 800 px, without a network.
"""

import argparse
import copy
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from config import Config
from data import make_loader
from detector import LandmarkDetector
from evaluate import evaluate
from experiments.stopwatch import median_ms
from experiments.textbook import dense_heatmaps
from machine import describe_hardware, exit_status
from methods import load_detector
from networks.heads import RefinementHead
from reading.images import IMAGENET_MEAN, IMAGENET_SD
from reading.splits import LandmarkData, load_data
from run_folder import read_checkpoint, source_commit
from settings import UserError
from utils import (
    apply_affine,
    decode_heatmaps,
    error_figures,
    gaussian_heatmaps,
    invert_affine,
    radial_errors,
    resize_affine,
)

CPU = torch.device("cpu")
RELEASE_SCALES = np.array([1935 / 640, 2400 / 800])  # its constants from network to original px, for every image


def headline(errors: np.ndarray, data: LandmarkData, config: Config) -> str:
    """Return MRE and SDR at 2 mm in words, without the landmarks of report_exclude."""
    kept = [n for n, name in enumerate(data.abbreviations) if name not in config.report_exclude]
    figures = error_figures(errors[:, kept][np.isfinite(errors[:, kept])], (2.0,))
    return f"MRE {figures['MRE']:.2f} {data.unit}, SDR 2 {data.unit} {figures['SDR_2.0']:.1f} %"


def frame_errors(data: LandmarkData, size: tuple[int, int] = (640, 800)) -> dict[str, np.ndarray]:
    """Return the errors (I, N) of perfect heatmaps that are decoded again, by choice of frames and decoder."""
    errors: dict[str, list[np.ndarray]] = {}
    for record in data.records:
        scale = np.divide(record.size, size)
        to_original = resize_affine(size, record.size)
        maps = draw_maps(apply_affine(invert_affine(to_original), record.landmarks), size)
        # the release divides by the scale and counts pixels from 1, so its peak lies one pixel early
        early = draw_maps(record.landmarks / scale - 1, size)
        found = {
            "sub-pixel": apply_affine(to_original, decode_maps(maps, "subpixel")),
            "argmax": apply_affine(to_original, decode_maps(maps, "argmax")),
            "release's frames, true scale": decode_maps(early, "argmax") * scale,
            "release's frames and constants": decode_maps(early, "argmax") * RELEASE_SCALES,
            "truth cut to whole px": np.trunc(record.landmarks),
        }
        for name, landmarks in found.items():
            errors.setdefault(name, []).append(radial_errors(landmarks, record.landmarks, record.spacing))
    return {name: np.stack(rows) for name, rows in errors.items()}


def draw_maps(landmarks: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Draw perfect heatmaps (1, N, H, W) of landmarks (N, 2) in network px; size = (W, H)."""
    return gaussian_heatmaps(torch.from_numpy(landmarks)[None].float(), (size[1], size[0]), sigma=10.0)


def decode_maps(maps: Tensor, decode: str) -> np.ndarray:
    """Decode the landmarks (N, 2) of heatmaps (1, N, H, W)."""
    return decode_heatmaps(maps, decode, sigma=10.0)[0][0].double().numpy()


class Habit(LandmarkDetector):
    """A detector with one habit of the release restored."""

    def __init__(self, detector: LandmarkDetector, change: Callable[[Tensor], Tensor], train_mode: bool) -> None:
        super().__init__(detector.config)
        self.detector, self.change, self.train_mode = copy.deepcopy(detector), change, train_mode

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.detector.train(self.train_mode)
        return self.detector.predict(self.change(image))


def rescale_to_255(image: Tensor) -> Tensor:
    """Turn normalised RGB into BGR of 0..255, normalised by the statistics of 0..1."""
    mean, sd = (torch.from_numpy(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_SD))
    return (((image * sd + mean) * 255).flip(1) - mean) / sd


def measure_network(detector: LandmarkDetector, data: LandmarkData) -> list[tuple[str, str, str]]:
    """Return rows of the table: a difference, our figure, the figure with the release's habit."""
    config = detector.config.replace(batch_size=1)
    loader = make_loader(config, data.select(data.test_sets[0]), train=False)

    def test(change: Callable[[Tensor], Tensor] = lambda image: image, train_mode: bool = False, **settings) -> str:
        habit = Habit(detector, change, train_mode)
        habit.detector.config = config.replace(precision=config.test_precision, **settings)  # also in train mode
        return headline(evaluate(habit, loader, CPU).errors(), data, config)

    ours = test()
    return [
        ("evaluation in eval mode", ours, test(train_mode=True)),
        ("one preprocessing for training and prediction", ours, test(change=rescale_to_255)),
        ("decoding", test(decode="subpixel"), test(decode="argmax")),
    ]


def measure_head() -> tuple[str, str, str]:
    """Time the composed full-size head and its two convolutions, K = 52, 640 x 800 px, forward and backward."""
    torch.manual_seed(0)
    head = RefinementHead(64, 32, 52)
    sizes = ((64, 400, 320), (32, 800, 640), (52, 400, 320))
    maps = [torch.randn(1, *size, requires_grad=True) for size in sizes]
    outputs, seconds = [], []
    for head.compose in (True, False):
        with torch.no_grad():
            outputs.append(head(*maps))
        seconds.append(median_ms(lambda: head(*maps).mean().backward(), CPU, 3) / 1000)
    difference, (one_seconds, two_seconds) = (outputs[0] - outputs[1]).abs().max().item(), seconds
    return (
        "heads computed as one convolution",
        f"{one_seconds:.2f} s, outputs differ by at most {difference:.0e}",
        f"{two_seconds:.2f} s ({two_seconds / one_seconds:.1f} x)",
    )


def measure_labels() -> tuple[str, str, str]:
    """Time the labels of one image, K = 52, 640 x 800 px and half of it: separable float32 and dense float64."""
    landmarks = torch.rand(1, 52, 2) * torch.tensor([640, 800])

    def seconds(draw: Callable[..., Tensor]) -> float:
        maps = ((landmarks, (800, 640)), (landmarks / 2, (400, 320)))
        return median_ms(lambda: [draw(points, size, 10.0) for points, size in maps], CPU, 5) / 1000

    ours, dense = seconds(gaussian_heatmaps), seconds(dense_heatmaps)
    return "labels from separable Gaussians", f"{ours:.3f} s", f"{dense:.3f} s ({dense / ours:.0f} x)"


def print_table(checkpoint: str) -> None:
    """Print the table. Raises UserError for a checkpoint or data that cannot be used."""
    state = read_checkpoint(checkpoint)
    detector = load_detector(state)
    data = load_data(detector.config, state["abbreviations"], seen=state["images"], for_training=False)
    if not data.test_sets:
        raise UserError(f"{checkpoint}: its data set has no test images")
    print(f"commit {source_commit()}, {describe_hardware(CPU)}, {len(data.records)} images")
    print("\n| what | here | with the release's habit |\n|---|---|---|")
    means = {name: f"{np.nanmean(rows):.3f} {data.unit}" for name, rows in frame_errors(data).items()}
    rows = [
        ("frames: a perfect map decoded by argmax", means["argmax"], means["release's frames, true scale"]),
        ("scale of each image: the same", means["argmax"], means["release's frames and constants"]),
        ("sub-pixel decoding of a perfect map", means["sub-pixel"], means["argmax"]),
        ("truth as it is written", f"0 {data.unit}", means["truth cut to whole px"]),
        *measure_network(detector, data),
        measure_head(),
        measure_labels(),
    ]
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> int:
    """Return exit status 2 for a checkpoint or data that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    options = parser.parse_args()
    return exit_status(lambda: print_table(options.checkpoint))


if __name__ == "__main__":
    sys.exit(main())
