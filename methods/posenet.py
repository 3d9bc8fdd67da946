"""Adversarial PoseNet: Chen et al., "Adversarial PoseNet: A Structure-aware Convolutional Network for Human Pose
Estimation", ICCV 2017 (arXiv 1705.00389), and its version for radiographs of legs. Letters and frames: data.py.

The generator draws a map of each landmark. Two discriminators judge the maps: the pose discriminator P together with
the image, the confidence discriminator C without it. Their networks: networks/hourglass.py.
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
from data import Sample
from detector import LandmarkDetector, read_values, split_batch
from machine import average_gradients, mean_over_processes
from networks.hourglass import STRIDE, Discriminator, Generator
from networks.normalisation import use_image_statistics
from utils import decode_heatmaps, gaussian_heatmaps, is_loss_term, network_errors, scale_landmarks


@dataclass(frozen=True)
class PoseNetConfig(Config):
    """The paper's recipe without its occlusion maps.

    The paper does not state keep_aspect, sigma, decode, batch_size, pretrain_epochs, hourglass_depth,
    discriminator_channels, delta and epsilon: these values are ours.
    """

    method: str = "posenet"  # Adversarial PoseNet
    height: int = 256  # of the network input, px, a multiple of 32 from 64
    width: int = 256  # of the network input, px, a multiple of 32 from 64
    keep_aspect: bool = True  # true: keep the aspect ratio, filling up with what surrounds the crop | false: stretch
    backbone_weights: str = "none"  # none: the method has its own networks
    norm: str = "batch"  # batch | instance: statistics of the batch or of each image
    sigma: float = 4.0  # standard deviation of the Gaussians, px; the maps have a quarter of the size: 1 px there
    decode: str = "subpixel"  # argmax: the highest pixel | subpixel: a Gaussian fitted around it
    epochs: int = 230  # passes over the training images
    batch_size: int = 8  # images per step
    lr: float = 2.5e-4  # learning rate
    lr_milestones: tuple[int, ...] = ()  # epochs, for lr_schedule step; none: a constant learning rate
    optimizer: str = "rmsprop"  # adam | adamw: decoupled weight decay | rmsprop
    rotation: float = 30.0  # augmentation: up to +- this many degrees
    scaling: float = 0.25  # augmentation: up to +- this fraction, 0 to 1
    adversarial: str = "pose+confidence"  # none: the generator alone | pose: with P | pose+confidence: with P and C
    pretrain_epochs: int = 20  # epochs that train the generator alone before P and C take part
    stacks: int = 4  # hourglasses of the generator, one after another, at least 1
    hourglass_depth: int = 4  # how often an hourglass halves its maps, at least 1
    channels: int = 512  # width of the generator, a multiple of 4
    discriminator_channels: int = 128  # width of P and of C, a multiple of 4
    occlusion: bool = False  # true: also maps of occluded landmarks, with their own hourglasses, which P and C see
    pose_weight: float = 1 / 180  # weight of P in the generator's loss, 0 or above
    confidence_weight: float = 1 / 220  # weight of C in the generator's loss, 0 or above
    delta: float = 4.0  # P should call a landmark real within this distance, mm (original px without a spacing)
    epsilon: float = 1.0  # C should call a map real if its squared error, summed over pixels, is below this
    objective: str = "minimax"  # minimax: the paper's | real: the generator wants every landmark to be called real

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # 8 stacks of 256 channels; P calls a landmark real within 10 mm, the threshold of that version's score
        "legs": dict(stacks=8, channels=256, delta=10.0),
        # a small generator at twice the input size of the other methods' demo, because its maps have a quarter of it
        "demo": dict(
            height=384, width=320, sigma=6.0, stacks=2, channels=64, discriminator_channels=32, optimizer="adam",
            batch_size=2, epochs=30, pretrain_epochs=10, lr_schedule="cosine",
        ),
        "cpu": dict(height=384, width=320, refine=1, epochs=30),
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
        self.limit(stacks=32, hourglass_depth=12, channels=4096, discriminator_channels=4096)
        for name in ("pretrain_epochs", "pose_weight", "confidence_weight"):
            self.require(getattr(self, name) >= 0, name, "it must be 0 or above")
        for name in ("delta", "epsilon"):
            self.require(getattr(self, name) > 0, name, "it must be above 0")
        self.require(
            self.adversarial == "none" or self.pretrain_epochs < self.epochs or self.epochs == 0,
            "pretrain_epochs", f"it leaves P and C none of {self.epochs} epochs; lower it, or set adversarial to none",
        )  # fmt: skip
        small = min(self.height, self.width) // STRIDE
        most = int(math.log2(small)) - 1
        self.require(self.hourglass_depth <= most, "hourglass_depth", f"maps of {small} px may be halved {most} times")

    @property
    def judges(self) -> dict[str, float]:
        """Return the weights of this recipe's discriminators, by letter."""
        weights = {"P": self.pose_weight, "C": self.confidence_weight}
        letters = {"none": "", "pose": "P", "pose+confidence": "PC"}[self.adversarial]
        return {letter: weights[letter] for letter in letters}


class PoseNet(LandmarkDetector):
    """A generator of maps learns from the truth and from discriminators, which learn to tell its maps from true ones.

    Differences from the paper: (1) delta and epsilon, which it does not state, are settings, in mm and in squared
    error; (2) squared errors and logarithms are both means over landmarks instead of sums, so that their ratio holds
    for any number of landmarks; maps are not limited to 0..1; (3) P sees the image at the size of the maps, and the
    discriminators average their maps to 16 x 16 cells before the layer that gives one number per landmark, so that the
    weights fit any image size; (4) landmarks have fractions of a px, in the original frame; (5) missing landmarks are
    ignored; P and C also ignore those that augmentation has moved out of the image, because a true map of them is as
    empty as a false one; (6) occlusion maps are a setting, because radiographs are seldom annotated with occlusion:
    Gaussians at landmarks with "occluded" true, empty elsewhere; (7) the generator is first trained alone and starts
    with nearly empty maps; (8) adversarial none trains the generator with the same two steps per batch as with P and
    C, so that recipes differ in what the generator learns from and not in how often; (9) the paper's minimax pushes a
    landmark that is already right, which has the fake label 1, towards being called fake; objective real does not.

    The preset legs has the network and the sizes of the version for legs with the paper's optimiser and augmentation.
    That version repeats the pose maps as occlusion maps, which adds no information, uses one label for P and C, and
    cuts off the gradient from P and C to the generator; this one does not.
    """

    Config = PoseNetConfig
    config: PoseNetConfig

    def __init__(self, config: PoseNetConfig) -> None:
        super().__init__(config)
        kinds = 2 if config.occlusion else 1
        depth, num_landmarks = config.hourglass_depth, self.num_landmarks
        self.generator = Generator(num_landmarks, config.stacks, depth, config.channels, config.occlusion)
        width, image_channels = config.discriminator_channels, {"P": 3, "C": 0}
        self.discriminators = nn.ModuleDict()
        for letter in config.judges:
            inputs = image_channels[letter] + kinds * num_landmarks
            self.discriminators[letter] = Discriminator(inputs, num_landmarks, depth, width)
        if config.norm == "instance":
            use_image_statistics(self)

    def kinds(self, name: str) -> int:
        """Return 2 for what a discriminator sees if there are occlusion maps: they follow all pose maps."""
        seen = name.startswith("discriminators.") and name.endswith(".maps.0.weight")
        return 2 if seen and self.config.occlusion else 1

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps (B, N or 2N, H/4, W/4) of each stack, pose then occlusion, of images (B, 3, H, W)."""
        with self.autocast(image.device):
            return self.generator(image)

    def labels(self, batch: Sample, epoch: int) -> Tensor:
        """Return the true maps (B, N or 2N, H/4, W/4): Gaussians of peak 1, empty for a missing landmark."""
        size = (batch.image.shape[-2] // STRIDE, batch.image.shape[-1] // STRIDE)
        landmarks = scale_landmarks(batch.landmarks, 1 / STRIDE)
        maps = gaussian_heatmaps(landmarks, size, self.config.sigma / STRIDE, self.config.channels_last)
        if not self.config.occlusion:
            return maps
        occluded = batch.occluded.to(maps.device)  # type: ignore[union-attr]
        return torch.cat([maps, maps * occluded[..., None, None]], 1)

    def loss(self, batch: Sample, epoch: int) -> dict[str, Tensor]:
        """Return half the squared error of the maps of all stacks, and the losses of the discriminators alone."""
        outputs, truth = self(batch.image), self.labels(batch, epoch)
        terms = {"maps": maps_loss(outputs, truth, batch.landmarks.isfinite().all(-1))}
        for letter in self.config.judges if epoch >= self.config.pretrain_epochs else ():
            terms |= self.judge_fake(letter, batch, outputs[-1].detach().float(), truth)
            terms |= self.judge_true(letter, batch, truth)
        return {name: term for name, term in terms.items() if is_loss_term(name)}

    def decode(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the peaks of the last stack's pose maps; the score is the height, about 1 if confident."""
        maps = outputs[-1][:, : self.num_landmarks]
        landmarks, score = decode_heatmaps(maps, self.config.decode, self.config.sigma / STRIDE, self.twins)
        return scale_landmarks(landmarks, STRIDE), score

    def last_layer(self) -> nn.Module:
        """Return the layers that turn the last stack's features into pose maps."""
        return self.generator.poses[-1].get_submodule("maps")

    # --- The discriminators ----------------------------------------------------------------------

    def judge(self, letter: str, batch: Sample, maps: Tensor) -> Tensor:
        """Return a discriminator's logits (B, N) for maps (B, N or 2N, h, w); above 0 it calls a landmark real."""
        inside = is_inside(batch).repeat(1, maps.shape[1] // batch.landmarks.shape[1])
        seen = maps * inside[..., None, None]
        if letter == "P":
            seen = torch.cat([F.avg_pool2d(batch.image, STRIDE), seen], 1)
        with self.autocast(seen.device):
            logits = self.discriminators[letter](seen)
        return logits.float()

    @torch.no_grad()
    def fake_labels(self, letter: str, batch: Sample, maps: Tensor, truth: Tensor) -> Tensor:
        """Return 1 for each of the generator's landmarks (B, N) that should be called real, else 0.

        P: less than delta mm from the truth; C: a map with a squared error below epsilon.
        """
        if letter == "P":
            found, _ = self.decode([maps.nan_to_num()])  # the loss of the maps reports nan
            errors = network_errors(found, batch.landmarks, batch.to_original, batch.spacing)
            return (errors < self.config.delta).float().to(maps.device)
        squares = (maps - truth)[:, : self.num_landmarks].square().sum((-2, -1))
        return (squares < self.config.epsilon).float()

    def judge_fake(self, letter: str, batch: Sample, maps: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Return a discriminator's loss and accuracy on the generator's maps, and the share to be called real."""
        logits, real = self.judge(letter, batch, maps), self.fake_labels(letter, batch, maps, truth)
        return {
            f"discriminator_{letter}_fake": masked_entropy(logits, real, is_inside(batch)),
            f"accuracy_{letter}_fake": masked_mean(((logits > 0) == real).float(), is_inside(batch)),
            f"accuracy_generator_{letter}": masked_mean(real, is_inside(batch)),
        }

    def judge_true(self, letter: str, batch: Sample, truth: Tensor) -> dict[str, Tensor]:
        """Return a discriminator's loss and accuracy on true maps."""
        logits = self.judge(letter, batch, truth)
        return {
            f"discriminator_{letter}_true": masked_entropy(logits, torch.ones_like(logits), is_inside(batch)),
            f"accuracy_{letter}_true": masked_mean((logits > 0).float(), is_inside(batch)),
        }

    # --- A step ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Return one for the generator and one for each discriminator."""
        networks = {"generator": self.generator, **self.discriminators}
        return {name: self.make_optimizer(network.parameters()) for name, network in networks.items()}

    def distribute(self, device: torch.device) -> None:
        """Prepare nothing: a step has several passes and optimisers, so take_step averages the gradients itself."""

    def train_step(self, batch: Sample, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """Take the steps in the paper's order: the generator on its maps, P on fakes and on truth, C likewise, then G.

        During pretraining, only the first. Beside the loss terms, the values are the accuracy of each discriminator,
        the share of landmarks that should be called real, and the norms of the gradients that the truth, P and C send
        into the last maps (averaged over parts and processes; not the norm over the whole batch).
        """
        parts = split_batch(batch, self.config.accumulate)
        truths = [self.labels(part, epoch) for part in parts]
        fakes: list[Tensor] = []
        values: dict[str, float] = {}
        take_step = partial(self.take_step, parts, epoch, optimizers, values)

        def draw(i: int) -> dict[str, Tensor]:
            outputs = self(parts[i].image)
            fakes.append(outputs[-1].detach().float())
            return {"maps": maps_loss(outputs, truths[i], parts[i].landmarks.isfinite().all(-1))}

        def draw_again(i: int) -> dict[str, Tensor]:
            outputs = self(parts[i].image)
            loss = maps_loss(outputs, truths[i], parts[i].landmarks.isfinite().all(-1))
            (gradient,) = torch.autograd.grad(loss, outputs[-1], retain_graph=True)
            terms = self.adversarial_terms(parts[i], outputs[-1], truths[i])
            return {"maps_again": loss, "gradient_truth": gradient.float().norm(), **terms}

        def train_judge(letter: str) -> None:
            take_step(letter, lambda i: self.judge_fake(letter, parts[i], fakes[i], truths[i]))
            take_step(letter, lambda i: self.judge_true(letter, parts[i], truths[i]))

        take_step("generator", draw)
        if epoch >= self.config.pretrain_epochs:
            for letter in self.config.judges:
                train_judge(letter)
            take_step("generator", draw_again)
        return values

    def adversarial_terms(self, batch: Sample, maps: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Return the weighted loss terms that the discriminators add to the generator's, and their gradient norms.

        minimax: the part of the discriminators' objective that the maps change, E log(1 - |D(maps) - label|);
        real: E -log D(maps).
        """
        terms, minimax = {}, self.config.objective == "minimax"
        for letter, weight in self.config.judges.items():
            logits = self.judge(letter, batch, maps.float())
            real = self.fake_labels(letter, batch, maps.float(), truth) if minimax else torch.ones_like(logits)
            entropy = masked_entropy(logits, real, is_inside(batch))
            terms[f"adversarial_{letter}"] = weight * (-entropy if minimax else entropy)
        for letter in self.config.judges:
            (gradient,) = torch.autograd.grad(terms[f"adversarial_{letter}"], maps, retain_graph=True)
            terms[f"gradient_{letter}"] = gradient.float().norm()
        return terms

    def take_step(
        self,
        parts: list[Sample],
        epoch: int,
        optimizers: Mapping[str, Optimizer],
        values: dict[str, float],
        name: str,
        play: Callable[[int], dict[str, Tensor]],
    ) -> None:
        """Take one step of one network; play(i) returns the loss terms and other values of part i.

        Their means are added to values. Raises NonFiniteLoss, on all processes and before a weight changes, if a value
        is nan or infinite.
        """
        optimizer = optimizers[name]
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        count = sum(len(part.name) for part in parts)
        computed = []
        for number, part in enumerate(parts):
            share, results = len(part.name) / count, play(number)
            objective = torch.stack([value for key, value in results.items() if is_loss_term(key)]).sum()
            (share * objective).backward(inputs=own)  # the weights of other networks get no gradient
            computed.append((part, share, {key: value.detach() for key, value in results.items()}))
        for part, share, results in computed:
            now = mean_over_processes(read_values(results))
            if not all(math.isfinite(value) for value in now.values()):
                raise self.non_finite_loss(part, epoch, now)
            for key, value in now.items():
                values[key] = values.get(key, 0.0) + share * value
        average_gradients(own)
        optimizer.step()


# --- Losses --------------------------------------------------------------------------------------


def is_inside(batch: Sample) -> Tensor:
    """Return which landmarks (B, N) of a batch are annotated and inside the image; other true maps are empty."""
    size = batch.landmarks.new_tensor(batch.image.shape[:1:-1])
    return ((batch.landmarks >= -0.5) & (batch.landmarks < size - 0.5)).all(-1)  # false for nan


def maps_loss(outputs: list[Tensor], truth: Tensor, annotated: Tensor) -> Tensor:
    """Return half the squared error of maps (B, N or 2N, h, w), summed over px: mean over stacks, images and landmarks.

    In float32, over annotated landmarks. The errors of pose and occlusion maps are added.
    """
    kinds = truth.shape[1] // annotated.shape[1]
    squares = torch.stack([(maps.float() - truth).square().sum((-2, -1)) for maps in outputs]).mean(0)
    return kinds * masked_mean(squares, annotated.repeat(1, kinds)) / 2


def masked_entropy(logits: Tensor, real: Tensor, annotated: Tensor) -> Tensor:
    """Return the mean of -log(1 - |D - real|) over annotated landmarks; D: sigmoid of logits (B, N), real: 0 or 1."""
    return masked_mean(F.binary_cross_entropy_with_logits(logits, real, reduction="none"), annotated)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values in a mask; 0 if the mask is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
