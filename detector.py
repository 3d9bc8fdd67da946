"""LandmarkDetector, the contract of every method: outputs, loss, decoding, training step and precision."""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, AdamW, Optimizer, RMSprop

from config import Config as BaseConfig
from machine import gather_shares, mean_over_processes, process_count, uses_bfloat16
from reading.splits import LandmarkData
from settings import UserError


class NonFiniteLoss(UserError):
    """A loss is nan or infinite; the weights are still those from before the step."""


class LandmarkDetector(nn.Module):
    """A method as the training loop, the evaluation and the tools see it.

    A method subclasses this in one file and writes `forward`, `labels`, `loss` and `decode`. The default
    `configure_optimizers` and `train_step` suit every method with one optimiser.
    `batch` is a collated data.Sample on the detector's device; `epoch` counts from 0.
    """

    Config = BaseConfig

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        if config.num_landmarks is None:
            raise ValueError("num_landmarks is None: take it from the data, as train.py does")
        self.config, self.num_landmarks = config, config.num_landmarks
        self.twins: tuple[int, int] | None = None  # landmarks that look the same: the ends of the ruler
        self.seen: dict[str, str] = {}  # images of the initial weights: fingerprint -> "train" or "val"

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def name_landmarks(self, abbreviations: Sequence[str]) -> None:
        """Tell the detector the abbreviations (N) of its landmarks, so that it knows the ends of the ruler."""
        ruler = [name for name in self.config.ruler if name in abbreviations]
        self.twins = (abbreviations.index(ruler[0]), abbreviations.index(ruler[1])) if len(ruler) == 2 else None

    def check_initial_weights(self, data: LandmarkData) -> None:
        """Refuse data with an image in val or test that the initial weights have seen in another split.

        Raises UserError. Called once before training.
        """
        if self.config.split == "same":
            return
        for split in ("val", *data.test_sets):
            for record in data.select(split):
                before = self.seen.get(record.fingerprint, split)
                if before != split:
                    raise UserError(
                        f"the run of the initial weights had {record.name} in {before}, here it is in {split}: use the "
                        "same data, split, seed, val_fraction, test_fraction and fold"
                    )

    def kinds(self, name: str) -> int:
        """Return how often an axis of a weight lists all landmarks; 1: each landmark has its rows side by side.

        Landmarks come last on an axis, after what belongs to none; methods/start.py takes them from another network.
        """
        return 1

    def labels(self, batch, epoch: int) -> Any:
        """Return the training targets, drawn from a batch's landmarks."""
        raise NotImplementedError

    def loss(self, batch, epoch: int) -> dict[str, Tensor]:
        """Return named scalar terms, float32; training minimises their sum."""
        raise NotImplementedError

    def decode(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Return landmarks (B, N, 2), network px, and scores (B, N), higher is more certain, from forward's outputs."""
        raise NotImplementedError

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return landmarks and scores as decode does for a normalised image (B, 3, H, W)."""
        return self.decode(self(image))

    def predict_with_extras(self, batch, epoch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return landmarks, scores and extras of a batch: other values (B, N) by name, nan where undefined."""
        return (*self.predict(batch.image), {})

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Return the optimisers by name; called after the move to the device. Default: one over all parameters."""
        return {self.config.optimizer: self.make_optimizer(self.parameters())}

    def make_optimizer(self, parameters: Iterable[Tensor], **settings: Any) -> Optimizer:
        """Return the optimiser of config.optimizer for some parameters; settings: other arguments of torch's class."""
        config = self.config
        if config.optimizer == "rmsprop":  # torch has no fused one
            return RMSprop(parameters, lr=config.lr, foreach=True, **settings)
        settings |= dict(lr=config.lr, fused=True)
        if config.optimizer == "adamw":
            return AdamW(parameters, weight_decay=config.weight_decay, **settings)
        return Adam(parameters, **settings)

    def last_layer(self) -> nn.Module:
        """Return the module that Grad-CAM explains; its first input is a feature map (B, C, h, w) of the whole image.

        Default: the last convolution with one output map per landmark. A method that ends otherwise overrides it.
        """
        return [m for m in self.modules() if getattr(m, "out_channels", None) == self.config.num_landmarks][-1]

    def explained_value(self, outputs: Any) -> Tensor:
        """Return the value that Grad-CAM explains, one per landmark (B, N), from forward's outputs. Default: the score.

        A method with a probability as score returns its logit, because the gradient of a probability near 1 vanishes.
        """
        return self.decode(outputs)[1]

    def for_inference(self) -> "LandmarkDetector":
        """Return a detector in eval mode that predicts the same up to rounding, maybe faster, and cannot be trained."""
        return self.eval()

    def distribute(self, device: torch.device) -> None:
        """Make train_step average gradients over the processes of the run, by DistributedDataParallel."""
        if process_count() > 1:
            devices = [device] if device.type == "cuda" else None
            parallel = DistributedDataParallel(SharedLoss(self), device_ids=devices, gradient_as_bucket_view=True)
            self.__dict__["parallel"] = parallel  # not a submodule: the state dict does not change

    def train_step(self, batch, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """Take one optimiser step on the sum of the loss terms; return the terms' values.

        A method may return other values of the step, under names that utils.is_loss_term excludes.
        Raises NonFiniteLoss on all processes, before a weight changes, if a term is nan or infinite.
        """
        values = self.compute_gradients(batch, epoch, optimizers)
        for optimizer in optimizers.values():
            optimizer.step()
        return values

    def compute_gradients(self, batch, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """Compute the gradients of the sum of the loss terms, in config.accumulate parts; return the terms' values.

        Under torchrun each process has its part of the batch; values and gradients are means over the processes.
        Raises NonFiniteLoss on all processes if a term is nan or infinite.
        """
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        computed: list[dict[str, Tensor]] = []
        parallel = self.__dict__.get("parallel")
        parts = split_batch(batch, self.config.accumulate)
        shares = [len(part.name) / len(batch.name) for part in parts]
        for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
            last = number == len(parts) - 1  # gradients are exchanged once, after the last part
            with contextlib.nullcontext() if parallel is None or last else parallel.no_sync():
                terms = (parallel or self.loss)(part, epoch)
                (share * torch.stack(list(terms.values())).sum()).backward()
            computed.append({name: term.detach() for name, term in terms.items()})
        values: dict[str, float] = {}
        for part, share, terms in zip(parts, shares, computed, strict=True):
            now = mean_over_processes(read_values(terms))
            if not all(math.isfinite(value) for value in now.values()):
                raise self.non_finite_loss(part, epoch, now)
            for name, value in now.items():
                values[name] = values.get(name, 0.0) + share * value
        return values

    @torch.no_grad()
    def non_finite_loss(self, batch, epoch: int, values: Mapping[str, float]) -> NonFiniteLoss:
        """Return the error that names the terms that are not finite, and the images that cause it."""
        self.train()  # as in training: the running statistics may be nan by now
        each = split_batch(batch, len(batch.name))
        own = [one.name[0] for one in each if not torch.stack(list(self.loss(one, epoch).values())).sum().isfinite()]
        names = [name for share in gather_shares(own) for name in share]
        terms = ", ".join(f"{name} is {value:g}" for name, value in values.items() if not math.isfinite(value))
        images = ", ".join(names) if names else f"the batch {', '.join(batch.name)}"
        return NonFiniteLoss(
            f"the loss is not finite in epoch {epoch + 1} ({terms}; at {images}): lower lr, or set precision to fp32"
        )

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Return the context of mixed precision: config.precision in train mode, config.test_precision in eval mode.

        Losses are computed outside it, in float32. Tests are in float32 by default: bf16 rounds values near 1 to
        1/256, which flattens a peak over several pixels and harms argmax more than a fit over the whole peak.
        """
        precision = self.config.precision if self.training else self.config.test_precision
        return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(precision, device))


def read_values(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return scalars on a device as numbers, in one copy, for which the host waits: a step does it once, at its end."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


class SharedLoss(nn.Module):
    """A detector's loss as the forward pass of a module, as DistributedDataParallel needs it."""

    def __init__(self, detector: LandmarkDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch, epoch: int) -> dict[str, Tensor]:
        return self.detector.loss(batch, epoch)


def split_batch(batch, parts: int) -> list:
    """Split a batch (data.Sample) into at most `parts` batches of about the same size; None stays None."""
    size = math.ceil(len(batch.name) / parts)
    return [
        type(batch)(*(None if column is None else column[start : start + size] for column in batch))
        for start in range(0, len(batch.name), size)
    ]
