"""A second stage for every method that finds landmarks in the whole image: it looks closer, at crops (setting refine).

The method sees a smaller image than the network input; then each landmark is looked for in a crop of the input around
the place that the method found. Related: iterated crops of Gilmour and Ray, "Locating Cephalometric X-Ray Landmarks
with Foveated Pyramid Attention", MIDL 2020, arXiv 2008.04428. Letters and frames: data.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from config import Config
from data import Sample
from detector import LandmarkDetector
from networks.crop_network import CropNetwork, decode_shifts, places_from_centre, take_crops
from utils import scale_landmarks

SIDE = 64  # of a crop, px of the network input
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
JITTER = 4.0  # px: median standard deviation, in x and in y, of the shifts of crops in training
TARGET = 3.0  # px: standard deviation of the target distribution


class CropRefiner(LandmarkDetector):
    """Moves landmarks that are almost right; trained on crops around the truth with random shifts.

    The loss is the mean distance of the moved landmarks from the truth, px, plus half the divergence of the soft-max
    from a Gaussian around it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        weights = "imagenet" if config.backbone_weights == "imagenet" else "none"
        self.network = CropNetwork(self.num_landmarks, weights)

    def forward(self, image: Tensor, guesses: Tensor) -> Tensor:
        """Return logits (B N, SIDE/2, SIDE/2) of images (B, 3, H, W) for guesses of landmarks (B, N, 2) px."""
        numbers = torch.arange(self.num_landmarks, device=image.device).expand(guesses.shape[0], -1).flatten()
        crops = take_crops(image, guesses, SIDE)
        with self.autocast(image.device):
            return self.network(crops, numbers).float()

    def refine(self, image: Tensor, guesses: Tensor) -> Tensor:
        """Return better landmarks (B, N, 2) px in images (B, 3, H, W) than the guesses (B, N, 2) px."""
        found = guesses + decode_shifts(self(image, guesses)).view(guesses.shape)
        return torch.stack(
            [found[..., 0].clamp(-0.5, self.config.width - 0.5), found[..., 1].clamp(-0.5, self.config.height - 0.5)],
            -1,
        )

    def loss(self, batch: Sample, epoch: int) -> dict[str, Tensor]:
        """Return the loss of crops around jittered truth; 0 if no landmark is annotated."""
        truth = batch.landmarks
        annotated = truth.isfinite().all(-1).flatten().float()
        # drawn image by image, so that it does not depend on the others of a batch
        drawn = torch.stack([torch.randn(self.num_landmarks, 3, device=truth.device) for _ in truth])
        spread = JITTER * torch.exp(drawn[..., 2:] / 2)
        jitter = (spread * drawn[..., :2]).clamp(-0.4 * SIDE, 0.4 * SIDE)
        logits = self(batch.image, torch.nan_to_num(truth) + jitter)
        aim = -jitter.flatten(0, 1)  # (B N, 2) px from the centre of the crop
        distance = (decode_shifts(logits) - aim).norm(dim=-1)
        places = places_from_centre(logits)
        near = [torch.exp(-(((places - aim[:, axis, None]) / TARGET) ** 2) / 2) for axis in (0, 1)]
        target = near[1][:, :, None] * near[0][:, None]
        target = (target / target.sum((1, 2), keepdim=True)).flatten(1)
        shares = logits.flatten(1).log_softmax(1)
        divergence = F.kl_div(shares, target, reduction="none").sum(1)
        return {"refinement": ((distance + divergence / 2) * annotated).sum() / annotated.sum().clamp(min=1)}


def first_config(config: Config) -> Config:
    """Return the settings of the method itself, which sees 1/refine of the size."""
    return config.replace(height=config.height // config.refine, width=config.width // config.refine, refine=1)


class RefinedDetector(LandmarkDetector):
    """A method at 1/refine of the size of the network input, and a CropRefiner for what it finds.

    Each trains with its own optimiser. Scores and extras are the method's.
    """

    def __init__(self, config: Config, first: LandmarkDetector, second: CropRefiner | None = None) -> None:
        super().__init__(config)
        self.first, self.second = first, second or CropRefiner(config)
        self.seen = first.seen

    @property
    def config(self) -> Config:  # type: ignore[override]
        """The settings; a replacement reaches both stages."""
        return self._config

    @config.setter
    def config(self, config: Config) -> None:
        self._config = config
        if hasattr(self, "first"):
            self.first.config, self.second.config = first_config(config), config

    def name_landmarks(self, abbreviations: Sequence[str]) -> None:
        self.first.name_landmarks(abbreviations)

    def kinds(self, name: str) -> int:
        return self.first.kinds(name.removeprefix("first."))

    def forward(self, image: Tensor) -> Any:
        """Return the method's outputs for images (B, 3, H, W), which explanations are about."""
        return self.first(F.avg_pool2d(image, self.config.refine))

    def last_layer(self) -> nn.Module:
        return self.first.last_layer()

    def explained_value(self, outputs: Any) -> Tensor:
        return self.first.explained_value(outputs)

    def labels(self, batch: Sample, epoch: int) -> Any:
        return self.first.labels(self.shrink(batch), epoch)

    def loss(self, batch: Sample, epoch: int) -> dict[str, Tensor]:
        """Return the terms of both."""
        return self.first.loss(self.shrink(batch), epoch) | self.second.loss(batch, epoch)

    def decode(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Return what the method found, in px of the network input."""
        landmarks, scores = self.first.decode(outputs)
        return scale_landmarks(landmarks, self.config.refine), scores

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        landmarks, scores = self.first.predict(F.avg_pool2d(image, self.config.refine))
        return self.second.refine(image, scale_landmarks(landmarks, self.config.refine)), scores

    def predict_with_extras(self, batch: Sample, epoch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        landmarks, scores, extras = self.first.predict_with_extras(self.shrink(batch), epoch)
        return self.second.refine(batch.image, scale_landmarks(landmarks, self.config.refine)), scores, extras

    def shrink(self, batch: Sample) -> Sample:
        """Return a batch as the method sees it, at 1/refine of the size."""
        times = self.config.refine
        linear, offset = batch.to_original.split((2, 1), -1)
        to_original = torch.cat([times * linear, offset + linear.sum(-1, keepdim=True) * (times - 1) / 2], -1)
        landmarks = scale_landmarks(batch.landmarks, 1 / times)
        return batch._replace(image=F.avg_pool2d(batch.image, times), landmarks=landmarks, to_original=to_original)

    def configure_optimizers(self) -> dict[str, Optimizer]:
        second = AdamW(self.second.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        return self.first.configure_optimizers() | {"refinement": second}

    def train_step(self, batch: Sample, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """Take a step of the method and one of the refiner; return the terms of both.

        Neither takes it if a term of one is not finite.
        """
        own = {name: optimizer for name, optimizer in optimizers.items() if name != "refinement"}
        second = {"refinement": optimizers["refinement"]}
        values = self.second.compute_gradients(batch, epoch, second)
        values = self.first.train_step(self.shrink(batch), epoch, own) | values
        second["refinement"].step()
        return values

    def distribute(self, device: torch.device) -> None:
        self.first.distribute(device)
        self.second.distribute(device)

    def for_inference(self) -> "RefinedDetector":
        second = CropRefiner.for_inference(self.second)
        return RefinedDetector(self.config, self.first.for_inference(), second).eval()  # type: ignore[arg-type]
