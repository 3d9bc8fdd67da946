"""FARNet as a textbook would program it, to compare the cost of this repository with (experiments/benchmark.py)."""

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from config import Config
from data import Sample
from model import FARNet
from utils import scale_landmarks

REFERENCE = dict(  # the settings of the textbook program; the rest is in TextbookFARNet
    batch_size=1, accumulate=1, precision="fp32", test_precision="fp32", channels_last=False, norm="batch",
    optimizer="adam", ema=0.0,
)  # fmt: skip


def dense_heatmaps(landmarks: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Draw utils.gaussian_heatmaps the long way: on the host, a float64 grid of distances for every landmark."""
    y, x = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in size), indexing="ij")
    centre = landmarks.cpu()[..., None, None].double()
    heatmaps = torch.exp(-((x - centre[:, :, 0]) ** 2 + (y - centre[:, :, 1]) ** 2) / (2 * sigma**2))
    return heatmaps.nan_to_num(0.0).float().to(landmarks.device)


class TextbookFARNet(FARNet):
    """FARNet with the convolutions of the paper (two per head, none before upsampling), dense targets from the host, an
    optimiser that updates one parameter at a time, and batch norms that are not folded for testing.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for module in self.modules():
            if hasattr(module, "compose"):
                module.compose = False

    def labels(self, batch: Sample, epoch: int) -> tuple[Tensor, Tensor]:
        height, width = batch.image.shape[-2:]
        coarse = dense_heatmaps(scale_landmarks(batch.landmarks, 0.5), (height // 2, width // 2), self.config.sigma)
        return coarse, dense_heatmaps(batch.landmarks, (height, width), self.config.sigma)

    def configure_optimizers(self) -> dict[str, Optimizer]:
        return {"adam": Adam(self.parameters(), lr=self.config.lr, foreach=False)}

    def for_inference(self) -> FARNet:
        return self.eval()
