"""Global-to-local regression and classification of patches: Noothout et al., "Deep Learning-Based Regression and
Classification for Automatic Landmark Localization in Medical Images", IEEE TMI 2020. Letters and frames: data.py.

Its networks (patch_networks.py), targets and votes (patches.py) are written for D spatial dimensions, 2 or 3; the
method as a whole is for images, like the rest of the repository.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from config import Config
from detector import LandmarkDetector
from methods.patches import class_targets, count_votes, displacement_targets, patch_loss, random_chunk, take_windows
from networks.normalisation import use_image_statistics
from networks.patch_networks import GlobalNetwork, LocalNetworks
from run_folder import read_checkpoint, seen_images
from settings import UserError
from utils import network_errors


@dataclass(frozen=True)
class NoothoutConfig(Config):
    """Both stages at the network size of the other methods; `--preset faithful` is the authors' recipe."""

    method: str = "noothout"
    backbone_weights: str = "none"  # the networks are the method's own
    norm: str = "batch"
    decode: str = "subpixel"  # the mean of votes; there is no other
    batch_size: int = 4
    lr: float = 1e-3
    lr_milestones: tuple[int, ...] = ()
    amsgrad: bool = True  # Adam's variant, as the authors have it
    stages: str = "both"  # both, global alone, or local on the frozen global network of global_checkpoint
    global_checkpoint: str | None = None  # a run's best.pt: the global network starts with its weights
    chunk: int = 0  # the global network trains on a random square of this many network px; 0: on the whole image
    patch_size: int = 32  # side of the global network's patches, network px: 32, or 16 or 8 with 1 or 2 stages fewer
    log_base: float = 10.0  # of the logarithm of displacements
    class_weight: float = 20.0  # of the classification in the global loss
    local_size: int = 64  # side of a local network's crop, network px; twice what the global network may be off
    local_restart_epochs: int = 0  # the local lr falls by a cosine in so many epochs, then in twice as many; 0: plain

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # after isbi2015: 1935 x 2400 px as they are; with 150 images 38 steps an epoch, so 10,000 to the first restart
        # and 310,000 in all (the authors' global network takes 300,000)
        "faithful": dict(
            height=2400, width=1952, keep_aspect=True, chunk=992, local_size=16, local_restart_epochs=263, epochs=8153,
            watch_every=100, save_every=100,
        ),
        # small networks: at twice the size of the other methods' demo they cost as much
        "demo": dict(height=384, width=320, patch_size=16, local_size=48, batch_size=2, epochs=40),
    }  # fmt: skip
    fixed_by_weights: ClassVar[tuple[str, ...]] = (*Config.fixed_by_weights, "patch_size", "log_base")

    def check(self) -> None:
        super().check()
        self.require(self.stages in ("both", "global", "local"), "stages", "choose one of both, global, local")
        self.require(self.decode == "subpixel", "decode", "votes have a mean, not a maximum; it must be subpixel")
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
        small = min(self.height, self.width)
        self.require(
            self.chunk == 0 or 64 <= self.chunk <= small and self.chunk % 32 == 0,
            "chunk", f"it must be 0, or a multiple of 32 from 64 to the input's shorter side, {small}",
        )  # fmt: skip

    def without_pretrained(self) -> "NoothoutConfig":
        return super().without_pretrained().replace(global_checkpoint=None)


# --- Method ----------------------------------------------------------------------------------------


class Noothout(LandmarkDetector):
    """Patches of the whole image vote for every landmark, then patches of a crop around each vote again.

    Different from the authors' program: (1) the network-size image by default; its mean over channels, which for a grey
    image is its grey up to a factor and a constant; (2) crops of local_size px, since theirs of 16 px lose a landmark
    that the global network misses by more than 8, and beyond the image its border instead of zeros; (3) landmarks to
    fractions of a px, and a patch's centre at the middle of its pixels; (4) missing landmarks count nowhere, and for
    the local networks neither do those that augmentation has moved out of the image: their crops are another image's;
    (5) random offsets differ in every step, and repeat with the seed; (6) an estimate outside the image is moved to its
    border; (7) the local networks' rate restarts by epochs, not steps; (8) images without replacement, in epochs, and
    one checkpoint of both stages, the best by the final error; (9) any number of landmarks.
    """

    Config = NoothoutConfig
    config: NoothoutConfig

    def __init__(self, config: NoothoutConfig) -> None:
        super().__init__(config)
        self.global_network = GlobalNetwork(config.num_landmarks, config.patch_size)
        self.local_networks = LocalNetworks(config.num_landmarks) if config.stages != "global" else None
        if config.norm == "instance":
            use_image_statistics(self)
        if config.global_checkpoint is not None:
            state, prefix = read_global_run(config), "global_network."
            weights = {name.removeprefix(prefix): w for name, w in state["model"].items() if name.startswith(prefix)}
            self.global_network.load_state_dict(weights)
            self.seen, self.abbreviations = seen_images(state), tuple(state["abbreviations"])
        self.global_network.requires_grad_(config.stages != "local")

    def train(self, mode: bool = True) -> "Noothout":
        """A frozen global network stays in eval mode: its batch norms learn nothing either."""
        super().train(mode)
        if self.config.stages == "local":
            self.global_network.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the global network's logits (B, N, h, w) and displacements (B, N, 2, h, w)."""
        with self.autocast(image.device):
            return self.global_network(image.mean(1, keepdim=True))

    def labels(self, batch, epoch: int) -> tuple[Tensor, Tensor]:
        """What the global network's outputs are held against."""
        return self.patch_labels(batch.landmarks, batch.image.shape[2:], self.config.patch_size)

    def patch_labels(self, landmarks: Tensor, size: Sequence[int], patch: int) -> tuple[Tensor, Tensor]:
        """class_targets and displacement_targets of an image or crop of a size (h, w)."""
        grid = [length // patch for length in size]
        classes = class_targets(landmarks, grid, patch)
        return classes, displacement_targets(landmarks, grid, patch, self.config.log_base)

    def loss(self, batch, epoch: int) -> dict[str, Tensor]:
        """L1 of displacements and cross-entropy of classes (times class_weight), of each stage that is trained."""
        annotated, terms = batch.landmarks.isfinite().all(-1), {}
        if self.config.stages != "local":
            seen = batch
            if self.config.chunk:
                image, landmarks = random_chunk(batch.image, batch.landmarks, self.config.chunk)
                seen = batch._replace(image=image, landmarks=landmarks)
            displacement, entropy = patch_loss(self(seen.image), self.labels(seen, epoch), annotated)
            terms |= {"global_displacement": displacement, "global_class": self.config.class_weight * entropy}
        if self.local_networks is not None:
            side, size = self.config.local_size, batch.landmarks.new_tensor(batch.image.shape[:1:-1])
            inside = ((batch.landmarks >= -0.5) & (batch.landmarks < size - 0.5)).all(-1)  # not so nan
            # norms see crops of the landmark alone: where it is missing, that of an image that has it
            source = torch.where(
                inside, torch.arange(len(inside), device=inside.device)[:, None], inside.int().argmax(0)
            )
            landmarks = batch.landmarks.gather(0, source[..., None].expand_as(batch.landmarks))
            # the landmark's pixel lies anywhere in its crop
            offset = torch.randint(side, landmarks.shape).to(landmarks.device)
            start = landmarks.round().nan_to_num(0.0).long() - offset
            outputs = self.look_closer(batch.image, start, source)
            labels = self.patch_labels(landmarks - start, [side, side], LocalNetworks.patch)
            displacement, entropy = patch_loss(outputs, labels, inside)
            terms |= {"local_displacement": displacement, "local_class": entropy}
        return terms

    def look_closer(self, image: Tensor, start: Tensor, source: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The local networks' outputs for images (B, 3, H, W) and crops from px (B, N, 2) on; see take_windows."""
        crops = take_windows(image.mean(1), start, self.config.local_size, source)
        with self.autocast(image.device):
            return self.local_networks(crops)

    def decode(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The global network's votes."""
        return count_votes(*outputs, self.config.patch_size, self.config.log_base)[:2]

    def last_layer(self) -> nn.Module:
        """What tells of the global network's patches whether they hold a landmark."""
        return self.global_network.class_head

    def explained_value(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        """The greatest logit of a patch of the whole image."""
        return outputs[0].float().flatten(2).amax(-1)

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The votes of the last stage; the score is the greatest probability of its patches."""
        _, landmarks, score, _ = self.localise(image)
        return landmarks, score

    def localise(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Global and final landmarks (B, N, 2), the score (B, N) and the spread (B, N, 2) of the final votes.

        With stages global, also in testing what both have learned, the global landmarks are the final ones.
        """
        base = self.config.log_base
        most = torch.tensor(image.shape[:1:-1], device=image.device) - 1
        found, score, spread = count_votes(*self(image), self.config.patch_size, base)
        first = found.clamp(torch.zeros_like(most), most)
        if self.local_networks is None or self.config.stages == "global":
            return first, first, score, spread
        start = (first - (self.config.local_size - 1) / 2).round().long()
        found, score, spread = count_votes(*self.look_closer(image, start), LocalNetworks.patch, base)
        return first, (start + found).clamp(torch.zeros_like(most), most), score, spread

    def predict_with_extras(self, batch, epoch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """predict, beside it the error of the global landmarks and the spread of the final votes, an uncertainty.

        Both in mm, or px of the image file where the spacing is unknown. Of several views the mean; the final error is
        that of their mean landmark: `--test CHECKPOINT --stages global` scores the global landmarks in the same way.
        """
        first, landmarks, score, spread = self.localise(batch.image)
        steps = batch.to_original[:, :, :2].square().sum(1).sqrt()  # px of the file per network px along each axis
        extras = {
            "global_error": network_errors(first, batch.landmarks, batch.to_original, batch.spacing),
            "vote_spread": (spread.double().cpu() * steps[:, None]).norm(dim=-1)
            * batch.spacing.nan_to_num(1.0)[:, None],
        }
        return landmarks, score, extras

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """One for each stage that is trained. Raises UserError for local stages on no global network."""
        config = self.config
        if config.stages == "local" and config.global_checkpoint is None:
            raise UserError(
                "setting global_checkpoint: stages local needs a trained global network; give a run's best.pt"
            )
        networks = {"global": self.global_network, "local": self.local_networks}
        trained = networks if config.stages == "both" else [config.stages]
        return {name: self.make_optimizer(networks[name].parameters(), amsgrad=config.amsgrad) for name in trained}

    def train_step(self, batch, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """Both stages at once: they share no weight, so each learns as if it were alone."""
        if self.config.local_restart_epochs and "local" in optimizers:
            for group in optimizers["local"].param_groups:
                first = group.setdefault("initial_lr", group["lr"])
                group["lr"] = first * restart_factor(epoch, self.config.local_restart_epochs)
        return super().train_step(batch, epoch, optimizers)


def restart_factor(epoch: int, first: int) -> float:
    """The learning rate's share in an epoch (from 0): a cosine from 1 to 0 in `first` epochs, then in twice as many."""
    length = first
    while epoch >= length:
        epoch, length = epoch - length, 2 * length
    return 0.5 * (1 + math.cos(math.pi * epoch / length))


def read_global_run(config: NoothoutConfig) -> dict[str, Any]:
    """The checkpoint in config.global_checkpoint. Raises UserError where its global network sees something else."""
    state = read_checkpoint(config.global_checkpoint)
    where = f"setting global_checkpoint: {config.global_checkpoint}"
    if state["method"] != "noothout":
        raise UserError(f"{where} is a run of {state['method']}; give one of noothout")
    settings = config.to_dict()
    for name in ("num_landmarks", "patch_size", "log_base", "norm", "height", "width", "keep_aspect", "crop"):
        theirs = state["settings"].get(name, "unknown")
        if theirs != settings[name]:
            raise UserError(f"{where} was trained with {name} {theirs}, not {settings[name]}")
    return state
