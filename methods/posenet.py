"""Adversarial PoseNet: Chen et al., "Adversarial PoseNet: A Structure-aware Convolutional Network for Human Pose
Estimation", ICCV 2017 (arXiv 1705.00389), and its version for radiographs of legs. Letters and frames: data.py.

The generator draws a map of each landmark; two discriminators judge them, the pose discriminator P beside the image,
the confidence discriminator C by themselves. Their networks: hourglass.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from config import Config
from detector import LandmarkDetector, split_batch
from machine import average_gradients, mean_over_processes
from networks.hourglass import STRIDE, Discriminator, Generator
from networks.normalisation import use_image_statistics
from utils import decode_heatmaps, gaussian_heatmaps, is_loss_term, network_errors, scale_landmarks


@dataclass(frozen=True)
class PoseNetConfig(Config):
    """The paper's recipe but for its occlusion maps; ours is what it does not tell."""

    method: str = "posenet"
    height: int = 256
    width: int = 256
    keep_aspect: bool = True  # ours
    backbone_weights: str = "none"  # the networks are the method's own
    norm: str = "batch"
    sigma: float = 4.0  # of the maps' Gaussians, network px (ours): one px of the maps, a quarter of the size
    decode: str = "subpixel"  # ours
    epochs: int = 230
    batch_size: int = 8  # ours
    lr: float = 2.5e-4
    lr_milestones: tuple[int, ...] = ()
    optimizer: str = "rmsprop"
    rotation: float = 30.0
    scaling: float = 0.25
    adversarial: str = "pose+confidence"  # none: the generator alone; pose: with P; pose+confidence: with P and C
    pretrain_epochs: int = 20  # ours: epochs of the generator alone, at first
    stacks: int = 4  # hourglasses (of the pose) after each other
    hourglass_depth: int = 4  # ours: how often an hourglass halves its maps
    channels: int = 512  # of the generator
    discriminator_channels: int = 128  # ours: of P and C
    occlusion: bool = False  # maps of occluded landmarks too: hourglasses, and inputs to P and C, of their own
    pose_weight: float = 1 / 180  # of P in the generator's loss
    confidence_weight: float = 1 / 220  # of C in the generator's loss
    delta: float = 4.0  # ours: P is to call real what is nearer to the truth, mm (px of the file without a spacing)
    epsilon: float = 1.0  # ours: C is to call a map real whose squared error, summed over its px, is below this
    objective: str = "minimax"  # minimax: as in the paper; real: that P and C call every landmark real

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # 8 stacks of 256 channels, and P calls a landmark real within the 10 mm by which it is scored
        "legs": dict(stacks=8, channels=256, delta=10.0),
        # a small generator; at twice the size of the other methods' demo, since its maps have a quarter of it
        "demo": dict(
            height=384, width=320, sigma=6.0, stacks=2, channels=64, discriminator_channels=32, optimizer="adam",
            batch_size=2, epochs=30, pretrain_epochs=10,
        ),
    }  # fmt: skip
    fixed_by_weights: ClassVar[tuple[str, ...]] = (
        *Config.fixed_by_weights, "occlusion", "adversarial", "stacks", "hourglass_depth", "channels",
        "discriminator_channels",
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        choices = {"adversarial": ("none", "pose", "pose+confidence"), "objective": ("minimax", "real")}
        for name, allowed in choices.items():
            self.require(getattr(self, name) in allowed, name, f"choose one of {', '.join(allowed)}")
        for name in ("stacks", "hourglass_depth"):
            self.require(getattr(self, name) >= 1, name, "it must be at least 1")
        for name in ("channels", "discriminator_channels"):
            value = getattr(self, name)
            self.require(value >= 4 and value % 4 == 0, name, "it must be a multiple of 4")
        for name in ("pretrain_epochs", "pose_weight", "confidence_weight"):
            self.require(getattr(self, name) >= 0, name, "it must be 0 or above")
        for name in ("delta", "epsilon"):
            self.require(getattr(self, name) > 0, name, "it must be above 0")
        self.require(
            self.adversarial == "none" or self.pretrain_epochs < self.epochs,
            "pretrain_epochs", f"it leaves P and C none of {self.epochs} epochs; lower it, or set adversarial to none",
        )  # fmt: skip
        small = min(self.height, self.width) // STRIDE
        deepest = int(math.log2(small)) - 1
        self.require(
            self.hourglass_depth <= deepest, "hourglass_depth", f"maps of {small} px may be halved {deepest} times"
        )

    @property
    def judges(self) -> dict[str, float]:
        """The discriminators of this recipe, by their letters, and their weights."""
        weights = {"P": self.pose_weight, "C": self.confidence_weight}
        return {
            letter: weights[letter] for letter in {"none": "", "pose": "P", "pose+confidence": "PC"}[self.adversarial]
        }


class PoseNet(LandmarkDetector):
    """A generator of maps learns from the truth, and from discriminators that learn to tell its maps from true ones.

    Different from the paper: (1) delta and epsilon, which it does not tell, are settings, in mm and in squared error;
    (2) squared errors and logarithms alike are means over landmarks, where its formulas have sums, so that their shares
    hold for any number; maps are not bounded to 0..1; (3) P sees the image at the size of the maps, and the
    discriminators' maps are averaged over 16 x 16 cells before the layer that gives a number per landmark, so that
    weights fit any image size; (4) landmarks to fractions of a px, in the frame of the image file; (5) missing
    landmarks count nowhere; for P and C neither do those that augmentation has moved out of the image, whose maps are
    empty, true or not; (6) occlusion maps by setting, since radiographs seldom say what is hidden: Gaussians at
    landmarks with "occluded" true, nothing elsewhere; (7) epochs of the generator alone at first, which begins with
    empty maps, its last weights being near 0; (8) adversarial none is the generator alone with the two steps per batch
    that it takes beside P and C, so that recipes differ in what they learn from and not in how often; (9) the paper's
    minimax pushes a landmark that is right already, whose fake label is 1, towards being called fake; objective real
    does not. The preset legs has the network and the sizes of the version for legs, and the paper's optimiser and
    augmentation; that version repeats the pose's maps as those of what is occluded, which adds nothing to know, takes
    one label for P and C, and cuts the gradient off that P and C send to the generator: ours does not. With compile,
    the generator alone is compiled.
    """

    Config = PoseNetConfig
    config: PoseNetConfig

    def __init__(self, config: PoseNetConfig) -> None:
        super().__init__(config)
        kinds = 2 if config.occlusion else 1
        depth, num_landmarks = config.hourglass_depth, config.num_landmarks
        self.generator = Generator(num_landmarks, config.stacks, depth, config.channels, config.occlusion)
        beside = {"P": 3, "C": 0}  # channels of the image
        self.discriminators = nn.ModuleDict(
            {
                letter: Discriminator(
                    beside[letter] + kinds * num_landmarks, num_landmarks, depth, config.discriminator_channels
                )
                for letter in config.judges
            }
        )
        if config.norm == "instance":
            use_image_statistics(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the maps (B, N or 2N, H/4, W/4) of each stack: of the pose, then of what is occluded."""
        with self.autocast(image.device):
            return self.generator(image)

    def labels(self, batch, epoch: int) -> Tensor:
        """The true maps (B, N or 2N, H/4, W/4): Gaussians of peak 1; nothing for a missing landmark."""
        size = [length // STRIDE for length in batch.image.shape[-2:]]
        landmarks = scale_landmarks(batch.landmarks, 1 / STRIDE)
        maps = gaussian_heatmaps(landmarks, size, self.config.sigma / STRIDE, self.config.channels_last)
        if not self.config.occlusion:
            return maps
        return torch.cat([maps, maps * batch.occluded.to(maps.device)[..., None, None]], 1)

    def loss(self, batch, epoch: int) -> dict[str, Tensor]:
        """Half the squared error of all stacks' maps; and each discriminator's loss, which no map feels."""
        outputs, truth = self(batch.image), self.labels(batch, epoch)
        terms = {"maps": maps_loss(outputs, truth, is_annotated(batch))}
        for letter in self.config.judges if epoch >= self.config.pretrain_epochs else ():
            terms |= self.judge_fake(letter, batch, outputs[-1].detach().float(), truth)
            terms |= self.judge_true(letter, batch, truth)
        return {name: term for name, term in terms.items() if is_loss_term(name)}

    def decode(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The peaks of the last stack's pose maps; the score is the peak's height, about 1 for a sure landmark."""
        maps = outputs[-1][:, : self.config.num_landmarks]
        landmarks, score = decode_heatmaps(maps, self.config.decode, self.config.sigma / STRIDE)
        return scale_landmarks(landmarks, STRIDE), score

    def last_layer(self) -> nn.Module:
        """What makes the last stack's pose maps of its features."""
        return self.generator.poses[-1].maps

    # --- The discriminators ----------------------------------------------------------------------

    def judge(self, letter: str, batch, maps: Tensor) -> Tensor:
        """What a discriminator says of maps (B, N or 2N, h, w): logits (B, N), above 0 for a real landmark."""
        inside = is_inside(batch).repeat(1, maps.shape[1] // batch.landmarks.shape[1])
        seen = maps * inside[..., None, None]
        if letter == "P":
            seen = torch.cat([F.avg_pool2d(batch.image, STRIDE), seen], 1)
        with self.autocast(seen.device):
            logits = self.discriminators[letter](seen)
        return logits.float()

    @torch.no_grad()
    def fake_labels(self, letter: str, batch, maps: Tensor, truth: Tensor) -> Tensor:
        """Which of the generator's landmarks (B, N) are to be called real: 1, or 0.

        P: those less than delta mm from the truth; C: those whose maps' squared error is below epsilon.
        """
        if letter == "P":
            found, _ = self.decode([maps.nan_to_num()])  # that maps are nan is said by their loss
            errors = network_errors(found, batch.landmarks, batch.to_original, batch.spacing)
            return (errors < self.config.delta).float().to(maps.device)
        num_landmarks = self.config.num_landmarks
        squares = (maps[:, :num_landmarks] - truth[:, :num_landmarks]).square().sum((-2, -1))
        return (squares < self.config.epsilon).float()

    def judge_fake(self, letter: str, batch, maps: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """A discriminator's loss on the generator's maps, how often it is right there, and how often they are."""
        logits, real = self.judge(letter, batch, maps), self.fake_labels(letter, batch, maps, truth)
        return {
            f"discriminator_{letter}_fake": masked_entropy(logits, real, is_inside(batch)),
            f"accuracy_{letter}_fake": masked_mean(((logits > 0) == real).float(), is_inside(batch)),
            f"accuracy_generator_{letter}": masked_mean(real, is_inside(batch)),
        }

    def judge_true(self, letter: str, batch, truth: Tensor) -> dict[str, Tensor]:
        """A discriminator's loss on true maps, and how often it is right there."""
        logits = self.judge(letter, batch, truth)
        return {
            f"discriminator_{letter}_true": masked_entropy(logits, torch.ones_like(logits), is_inside(batch)),
            f"accuracy_{letter}_true": masked_mean((logits > 0).float(), is_inside(batch)),
        }

    # --- A step ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """One for the generator and one for each discriminator."""
        networks = {"generator": self.generator, **self.discriminators}
        return {name: self.make_optimizer(network.parameters()) for name, network in networks.items()}

    def distribute(self, device: torch.device) -> None:
        """Nothing to prepare: a step has several passes and optimisers, so it averages the gradients itself."""

    def train_step(self, batch, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """The paper's order: the generator on its maps, P on fake, on true ones, C likewise, the generator on all.

        While it is pretrained, the first alone. Beside the terms: how often each discriminator is right, how many
        landmarks are to be called real, and the norm of the gradient that the truth, P and C send into the last maps
        (of parts and processes the mean norm, not that of the whole batch).
        """
        parts = split_batch(batch, self.config.accumulate)
        truths = [self.labels(part, epoch) for part in parts]
        fakes: list[Tensor] = []
        values: dict[str, float] = {}
        take_step = partial(self.take_step, parts, epoch, optimizers, values)

        def draw(i: int) -> dict[str, Tensor]:
            outputs = self(parts[i].image)
            fakes.append(outputs[-1].detach().float())
            return {"maps": maps_loss(outputs, truths[i], is_annotated(parts[i]))}

        def draw_again(i: int) -> dict[str, Tensor]:
            outputs = self(parts[i].image)
            loss = maps_loss(outputs, truths[i], is_annotated(parts[i]))
            (gradient,) = torch.autograd.grad(loss, outputs[-1], retain_graph=True)
            terms = self.adversarial_terms(parts[i], outputs[-1], truths[i])
            return {"maps_again": loss, "gradient_truth": gradient.float().norm(), **terms}

        take_step("generator", draw)
        if epoch >= self.config.pretrain_epochs:
            for letter in self.config.judges:
                take_step(letter, lambda i, who=letter: self.judge_fake(who, parts[i], fakes[i], truths[i]))
                take_step(letter, lambda i, who=letter: self.judge_true(who, parts[i], truths[i]))
            take_step("generator", draw_again)
        return values

    def adversarial_terms(self, batch, maps: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """What the discriminators make the generator pay for its last maps, weighted, and the gradient they send.

        minimax: the part of their own gain that it can change, E log(1 - |D(maps) - label|); real: E -log D(maps).
        """
        terms = {}
        for letter, weight in self.config.judges.items():
            logits = self.judge(letter, batch, maps.float())
            if self.config.objective == "minimax":
                term = -masked_entropy(logits, self.fake_labels(letter, batch, maps.float(), truth), is_inside(batch))
            else:
                term = masked_entropy(logits, torch.ones_like(logits), is_inside(batch))
            terms[f"adversarial_{letter}"] = weight * term
        for letter in self.config.judges:
            (gradient,) = torch.autograd.grad(terms[f"adversarial_{letter}"], maps, retain_graph=True)
            terms[f"gradient_{letter}"] = gradient.float().norm()
        return terms

    def take_step(
        self,
        parts: list,
        epoch: int,
        optimizers: Mapping[str, Optimizer],
        values: dict[str, float],
        name: str,
        play: Callable[[int], dict[str, Tensor]],
    ) -> None:
        """One step of one network: play(i) gives the terms, and other figures, of part i; their means go to values.

        Raises NonFiniteLoss, on all processes, before a weight is changed if one of them is nan or infinite.
        """
        optimizer = optimizers[name]
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        count = sum(len(part.name) for part in parts)
        for number, part in enumerate(parts):
            share, results = len(part.name) / count, play(number)
            now = mean_over_processes({key: value.item() for key, value in results.items()})
            if not all(math.isfinite(value) for value in now.values()):
                raise self.non_finite_loss(part, epoch, now)
            for key, value in now.items():
                values[key] = values.get(key, 0.0) + share * value
            objective = torch.stack([value for key, value in results.items() if is_loss_term(key)]).sum()
            (share * objective).backward(inputs=own)  # not to the weights of the other networks it passes through
        average_gradients(own)
        optimizer.step()


# --- Losses --------------------------------------------------------------------------------------


def is_annotated(batch) -> Tensor:
    """Which landmarks (B, N) of a batch have a true map."""
    return batch.landmarks.isfinite().all(-1)


def is_inside(batch) -> Tensor:
    """Which landmarks (B, N) of a batch are annotated and in the image: of others also a true map is empty."""
    size = batch.landmarks.new_tensor(batch.image.shape[:1:-1])
    return ((batch.landmarks >= -0.5) & (batch.landmarks < size - 0.5)).all(-1)  # not so nan


def maps_loss(outputs: list[Tensor], truth: Tensor, annotated: Tensor) -> Tensor:
    """Half the squared error of maps (B, N or 2N, h, w), summed over px, its mean over stacks, images and landmarks.

    In float32, over annotated landmarks. Maps of the pose and of what is occluded are added.
    """
    kinds = truth.shape[1] // annotated.shape[1]
    squares = torch.stack([(maps.float() - truth).square().sum((-2, -1)) for maps in outputs]).mean(0)
    return kinds * masked_mean(squares, annotated.repeat(1, kinds)) / 2


def masked_entropy(logits: Tensor, real: Tensor, annotated: Tensor) -> Tensor:
    """The mean of -log(1 - |D - real|), D the sigmoid of logits (B, N), over annotated landmarks; real: 0 or 1."""
    return masked_mean(F.binary_cross_entropy_with_logits(logits, real, reduction="none"), annotated)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values in a mask; 0 if it is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
