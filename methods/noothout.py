"""Global-to-local regression and classification of patches: Noothout et al., "Deep Learning-Based Regression and
Classification for Automatic Landmark Localization in Medical Images", IEEE TMI 2020. Letters and frames: data.py.

Its networks (networks/patch_networks.py), targets and votes (patches.py) are written for D spatial dimensions, 2 or 3;
the method itself is for images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from config import Config
from data import Sample
from detector import LandmarkDetector
from methods.patches import class_targets, count_votes, displacement_targets, patch_loss, random_chunk, take_windows
from networks.normalisation import use_image_statistics
from networks.patch_networks import GlobalNetwork, LocalNetworks
from settings import UserError
from utils import network_errors


@dataclass(frozen=True)
class NoothoutConfig(Config):
    """Both stages at the network size of the other methods; `--preset faithful` is the authors' recipe."""

    method: str = "noothout"  # patches that vote, in the image and then in crops
    backbone_weights: str = "none"  # none: the method has its own networks
    norm: str = "batch"  # batch | instance: statistics of the batch or of each image
    decode: str = "subpixel"  # subpixel: the mean of the votes; no other value
    batch_size: int = 4  # images per step
    lr: float = 1e-3  # learning rate
    lr_milestones: tuple[int, ...] = ()  # epochs, for lr_schedule step; none: a constant learning rate
    amsgrad: bool = True  # the AMSGrad variant of Adam, as in the authors' program: true | false
    stages: str = "both"  # both | global | local: what is trained; local: on the frozen first stage of start_from
    chunk: int = 0  # side of the random square the global network trains on, px, a multiple of 32; 0: the whole image
    patch_size: int = 32  # 8 | 16 | 32: side of the global network's patches, px; smaller ones take fewer stages
    log_base: float = 10.0  # base of the logarithm of displacements, above 1
    class_weight: float = 20.0  # weight of the classification in the loss of the global network, above 0
    local_size: int = 64  # side of a local network's crop, px, even, from 4: twice the expected global error
    local_restart_epochs: int = 0  # local lr: cosine to 0 in this many epochs, then in twice as many ...; 0: constant

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # after isbi2015: 1935 x 2400 px, not resized. 150 images make 38 steps per epoch: 10,000 to the first restart,
        # 310,000 in all (the authors train the global network for 300,000)
        "faithful": dict(
            height=2400, width=1952, keep_aspect=True, chunk=992, local_size=16, local_restart_epochs=263, epochs=8153,
            watch_every=100, save_every=100,
        ),
        # small networks: at twice the input size of the other methods' demo they take the same time
        "demo": dict(
            height=384, width=320, patch_size=16, local_size=48, batch_size=2, epochs=40, lr_schedule="cosine",
        ),
        "cpu": dict(height=384, width=320, refine=1, epochs=30),
    }  # fmt: skip
    fixed_by_weights: ClassVar[tuple[str, ...]] = (*Config.fixed_by_weights, "patch_size", "log_base")

    def check(self) -> None:
        super().check()
        self.require(self.stages in ("both", "global", "local"), "stages", "choose one of both, global, local")
        self.require(self.refine == 1, "refine", "the method has a second stage of its own; it must be 1")
        self.require(self.decode == "subpixel", "decode", "votes have a mean and no maximum; it must be subpixel")
        self.require(self.patch_size in (8, 16, 32), "patch_size", "choose one of 8, 16, 32")
        self.require(self.log_base > 1, "log_base", "it must be above 1")
        self.require(self.class_weight > 0, "class_weight", "it must be above 0")
        self.require(self.local_restart_epochs >= 0, "local_restart_epochs", "it must be 0 or above")
        constant = self.lr_schedule == "step" and not self.lr_milestones and not self.warmup_epochs
        self.require(
            constant or not self.local_restart_epochs,
            "local_restart_epochs", "restarts go with a constant lr: lr_schedule step, no milestones, no warm-up",
        )  # fmt: skip
        self.require(self.local_size >= 4 and self.local_size % 2 == 0, "local_size", "it must be even and at least 4")
        self.limit(local_size=1024)
        small = min(self.height, self.width)
        self.require(
            self.chunk == 0 or 64 <= self.chunk <= small and self.chunk % 32 == 0,
            "chunk", f"it must be 0, or a multiple of 32 from 64 to the input's shorter side, {small}",
        )  # fmt: skip

    def kept_from_start(self) -> tuple[str, ...]:
        frozen = ("height", "width", "keep_aspect", "crop") if self.stages == "local" else ()
        return ("log_base", *frozen)


class Noothout(LandmarkDetector):
    """Patches of the whole image vote for every landmark; then patches of a crop around each result vote again.

    Differences from the authors' program: (1) by default the input has the network size, which fits every data set;
    the channels are averaged, which for a grey image gives its grey values up to a factor and a constant; (2) crops are
    of local_size px, because a landmark that the global network misses by more than 8 px is outside the authors' 16 px;
    beyond the image, its border is repeated instead of zeros; (3) landmarks are not rounded to whole px, and the centre
    of a patch is the middle of its pixels; (4) missing landmarks are ignored; the local networks also ignore those that
    augmentation has moved out of the image, and see crops of another image instead, to keep their norms clean;
    (5) random offsets differ in every step and repeat with the seed; the authors' workers all draw the same; (6) an
    estimate outside the image is moved to its border; (7) the learning rate of the local networks restarts by epochs,
    not steps; (8) images are drawn without replacement, in epochs, and one checkpoint holds both stages, chosen by the
    final error; (9) the number of landmarks is free.
    """

    Config = NoothoutConfig
    config: NoothoutConfig

    def __init__(self, config: NoothoutConfig) -> None:
        super().__init__(config)
        self.global_network = GlobalNetwork(self.num_landmarks, config.patch_size)
        self.local_networks = LocalNetworks(self.num_landmarks) if config.stages != "global" else None
        if config.norm == "instance":
            use_image_statistics(self)
        self.global_network.requires_grad_(config.stages != "local")

    def train(self, mode: bool = True) -> "Noothout":
        """Set train or eval mode; a frozen global network stays in eval mode, so that its batch norms do not change."""
        super().train(mode)
        if self.config.stages == "local":
            self.global_network.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the global network's logits (B, N, h, w) and displacements (B, N, 2, h, w) of images (B, 3, H, W)."""
        with self.autocast(image.device):
            return self.global_network(image.mean(1, keepdim=True))

    def labels(self, batch: Sample, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the global network's targets."""
        return self.patch_labels(batch.landmarks, batch.image.shape[2:], self.config.patch_size)

    def patch_labels(self, landmarks: Tensor, size: Sequence[int], patch: int) -> tuple[Tensor, Tensor]:
        """Return class_targets and displacement_targets of an image or crop of a size (h, w)."""
        grid = [length // patch for length in size]
        classes = class_targets(landmarks, grid, patch)
        return classes, displacement_targets(landmarks, grid, patch, self.config.log_base)

    def loss(self, batch: Sample, epoch: int) -> dict[str, Tensor]:
        """Return the L1 of displacements and the cross-entropy of classes of each stage that is trained."""
        annotated = batch.landmarks.isfinite().all(-1)
        terms: dict[str, Tensor] = {}
        if self.config.stages != "local":
            seen = batch
            if self.config.chunk:
                image, landmarks = random_chunk(batch.image, batch.landmarks, self.config.chunk)
                seen = batch._replace(image=image, landmarks=landmarks)
            displacement, entropy = patch_loss(self(seen.image), self.labels(seen, epoch), annotated)
            terms |= {"global_displacement": displacement, "global_class": self.config.class_weight * entropy}
        if self.local_networks is not None:
            side, size = self.config.local_size, batch.landmarks.new_tensor(batch.image.shape[:1:-1])
            inside = ((batch.landmarks >= -0.5) & (batch.landmarks < size - 0.5)).all(-1)  # false for nan
            # norms should see crops of the landmark only: where it is missing, crop another image, which has it
            own = torch.arange(len(inside), device=inside.device)[:, None]
            source = torch.where(inside, own, inside.int().argmax(0))
            landmarks = batch.landmarks.gather(0, source[..., None].expand_as(batch.landmarks))
            # the landmark may lie at any pixel of its crop
            offset = torch.randint(side, landmarks.shape).to(landmarks.device)
            start = landmarks.round().nan_to_num(0.0).long() - offset
            outputs = self.look_closer(batch.image, start, source)
            labels = self.patch_labels(landmarks - start, [side, side], LocalNetworks.patch)
            displacement, entropy = patch_loss(outputs, labels, inside)
            terms |= {"local_displacement": displacement, "local_class": entropy}
        return terms

    def look_closer(self, image: Tensor, start: Tensor, source: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the local networks' outputs on crops of images (B, 3, H, W) from px (B, N, 2); see take_windows."""
        crops = take_windows(image.mean(1), start, self.config.local_size, source)
        with self.autocast(image.device):
            return self.local_networks(crops)  # type: ignore[misc]

    def decode(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the result of the global network's votes."""
        return count_votes(*outputs, self.config.patch_size, self.config.log_base)[:2]

    def last_layer(self) -> nn.Module:
        """Return the head that classifies the patches of the global network."""
        return self.global_network.class_head

    def explained_value(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        """Return the highest logit of a patch of the whole image (B, N)."""
        return outputs[0].float().flatten(2).amax(-1)

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of the last stage's votes; the score is the highest probability of its patches."""
        _, landmarks, score, _ = self.localise(image)
        return landmarks, score

    def localise(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return global and final landmarks (B, N, 2), the score (B, N) and the spread (B, N, 2) of the final votes.

        With stages global, even when a network of both stages is tested, the global landmarks are the final ones.
        """
        base = self.config.log_base
        most = torch.tensor(image.shape[:1:-1], device=image.device) - 1
        outputs: tuple[Tensor, Tensor] = self(image)
        found, score, spread = count_votes(*outputs, self.config.patch_size, base)
        first = found.clamp(torch.zeros_like(most), most)
        if self.local_networks is None or self.config.stages == "global":
            return first, first, score, spread
        start = (first - (self.config.local_size - 1) / 2).round().long()
        found, score, spread = count_votes(*self.look_closer(image, start), LocalNetworks.patch, base)
        return first, (start + found).clamp(torch.zeros_like(most), most), score, spread

    def predict_with_extras(self, batch: Sample, epoch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Predict; the extras are the error of the global landmarks and the spread of the final votes (uncertainty).

        Both are in mm, or original px if the spacing is unknown. Over several views global_error is the mean error,
        while the final error is that of the mean landmark; `--test CHECKPOINT --stages global` compares like with like.
        """
        first, landmarks, score, spread = self.localise(batch.image)
        scales = batch.to_original[:, :, :2].square().sum(1).sqrt()  # original px per network px along each axis
        distances = (spread.double().cpu() * scales[:, None]).norm(dim=-1)
        return landmarks, score, {
            "global_error": network_errors(first, batch.landmarks, batch.to_original, batch.spacing),
            "vote_spread": distances * batch.spacing.nan_to_num(1.0)[:, None],
        }  # fmt: skip

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Return one for each stage that is trained. Raises UserError for stages local without a global network."""
        config = self.config
        if config.stages == "local" and config.start_from is None:
            raise UserError("setting start_from: stages local needs a trained global network; give a run of noothout")
        return {
            name: self.make_optimizer(network.parameters(), amsgrad=config.amsgrad)
            for name, network in (("global", self.global_network), ("local", self.local_networks))
            if network is not None and config.stages in ("both", name)
        }

    def train_step(self, batch: Sample, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """Train both stages at once; they share no weights, so each learns as if trained alone."""
        if self.config.local_restart_epochs and "local" in optimizers:
            for group in optimizers["local"].param_groups:
                first = group.setdefault("initial_lr", group["lr"])
                group["lr"] = first * restart_factor(epoch, self.config.local_restart_epochs)
        return super().train_step(batch, epoch, optimizers)


def restart_factor(epoch: int, first: int) -> float:
    """Return the factor of the learning rate in an epoch (from 0): a cosine to 0 in `first` epochs, then twice that."""
    length = first
    while epoch >= length:
        epoch, length = epoch - length, 2 * length
    return 0.5 * (1 + math.cos(math.pi * epoch / length))
