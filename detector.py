"""The contract that every method fulfils: loss and predict; how it takes a step and in which precision."""

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, AdamW, Optimizer, RMSprop

from config import Config
from machine import gather_shares, mean_over_processes, process_count, uses_bfloat16
from reading.splits import LandmarkData
from settings import UserError


class NonFiniteLoss(UserError):
    """A loss became nan or infinite; the weights that are trained on it are still those before the step."""


class LandmarkDetector(nn.Module):
    """What the training loop, the evaluation and the tools know of a method.

    A method subclasses this in one file: `forward`, `labels`, `loss` and `decode` are its own; `predict` decodes what
    the network gives, and `configure_optimizers` and `train_step` suit every method with one optimiser.
    `batch` is a collated data.Sample on the detector's device; `epoch` counts from 0.
    """

    Config = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.num_landmarks is None:
            raise ValueError("set num_landmarks, or take it from the data as train.py does")
        self.config, self.num_landmarks = config, config.num_landmarks
        self.abbreviations: tuple[str, ...] | None = None  # the landmarks that its first weights find; none: any
        self.seen: dict[str, str] = {}  # fingerprints of images that its first weights have seen, and "train" or "val"

    @property
    def num_parameters(self) -> int:
        """How many numbers its weights are."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_initial_weights(self, data: LandmarkData) -> None:
        """Refuse data that the initial weights cannot be trained or tested on. Raises UserError.

        Called once before training: the weights may find other landmarks, or have seen an image that is to test them.
        """
        if self.abbreviations not in (None, tuple(data.abbreviations)):
            theirs = ", ".join(self.abbreviations or ())
            raise UserError(f"the initial weights were trained for other landmarks, or in another order: {theirs}")
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

    def labels(self, batch, epoch: int) -> Any:
        """What the loss holds the network's outputs against, drawn from a batch's landmarks."""
        raise NotImplementedError

    def loss(self, batch, epoch: int) -> dict[str, Tensor]:
        """Named scalar terms, float32; their sum is minimised."""
        raise NotImplementedError

    def decode(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """What forward gives -> landmarks (B, N, 2) network px, score (B, N), higher is surer."""
        raise NotImplementedError

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised image -> landmarks (B, N, 2) network px, score (B, N), higher is surer."""
        return self.decode(self(image))

    def predict_with_extras(self, batch, epoch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """predict's landmarks and score for a batch, and what else a method measures: by name, (B, N), nan: nothing."""
        return (*self.predict(batch.image), {})

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """One Adam or AdamW over all parameters; called when they are on their device."""
        return {self.config.optimizer: self.make_optimizer(self.parameters())}

    def make_optimizer(self, parameters: Iterable[Tensor], **settings: Any) -> Optimizer:
        """The optimiser that config asks for, over some parameters; settings: torch's own, beside config's."""
        config = self.config
        if config.optimizer == "rmsprop":  # torch has it in groups of parameters, but not in one kernel
            return RMSprop(parameters, lr=config.lr, foreach=True, **settings)
        settings |= dict(lr=config.lr, fused=True)
        if config.optimizer == "adamw":
            return AdamW(parameters, weight_decay=config.weight_decay, **settings)
        return Adam(parameters, **settings)

    def last_layer(self) -> nn.Module:
        """The module whose first input (B, C, h, w), over the whole image, the outputs are made of; for explain.py.

        Here the last convolution that gives a map per landmark; a method overrides it that ends in something else.
        """
        return [m for m in self.modules() if getattr(m, "out_channels", None) == self.config.num_landmarks][-1]

    def explained_value(self, outputs: Any) -> Tensor:
        """What speaks for each landmark (B, N) in what forward gives; for explain.py. Here the score.

        A method whose score is a probability gives its logit, since a sure one has no gradient left.
        """
        return self.decode(outputs)[1]

    def for_inference(self) -> "LandmarkDetector":
        """A detector that predicts the same, up to rounding, and may be faster; it cannot be trained."""
        return self.eval()

    def distribute(self, device: torch.device) -> None:
        """From now on train_step averages gradients over the processes of the run (DistributedDataParallel)."""
        if process_count() > 1:
            devices = [device] if device.type == "cuda" else None
            parallel = DistributedDataParallel(SharedLoss(self), device_ids=devices, gradient_as_bucket_view=True)
            self.__dict__["parallel"] = parallel  # no submodule: the state dict stays the method's own

    def train_step(self, batch, epoch: int, optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
        """One optimiser step on the sum of the loss terms, in config.accumulate parts; returns their values.

        Among them may stand other figures of the step, under names that utils.is_loss_term tells from terms.
        Over several processes each has its part of the batch, and values and gradients are means over processes.
        Raises NonFiniteLoss, on all of them, before a weight is changed if a term is nan or infinite.
        """
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        parallel = self.__dict__.get("parallel")
        parts = split_batch(batch, self.config.accumulate)
        for number, part in enumerate(parts):
            share = len(part.name) / len(batch.name)
            alone = parallel is not None and number < len(parts) - 1  # gradients are exchanged once, with the last part
            with parallel.no_sync() if alone else contextlib.nullcontext():
                terms = (parallel or self.loss)(part, epoch)
                for name, value in mean_over_processes({name: term.item() for name, term in terms.items()}).items():
                    values[name] = values.get(name, 0.0) + share * value
                if not all(math.isfinite(value) for value in values.values()):
                    raise self.non_finite_loss(part, epoch, values)
                (share * torch.stack(list(terms.values())).sum()).backward()
        for optimizer in optimizers.values():
            optimizer.step()
        return values

    @torch.no_grad()
    def non_finite_loss(self, batch, epoch: int, values: Mapping[str, float]) -> NonFiniteLoss:
        """The error that names the terms that are not finite, and the images whose own loss is not."""
        self.train()  # each image as in training: the running statistics may be nan by now
        each = split_batch(batch, len(batch.name))
        own = [one.name[0] for one in each if not sum(self.loss(one, epoch).values()).isfinite()]
        names = [name for share in gather_shares(own) for name in share]
        terms = ", ".join(f"{name} is {value:g}" for name, value in values.items() if not math.isfinite(value))
        images = ", ".join(names) if names else f"the batch {', '.join(batch.name)}"
        return NonFiniteLoss(
            f"the loss is not finite in epoch {epoch + 1} ({terms}; at {images}): lower lr, or set precision to fp32"
        )

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Mixed precision as `config.precision` says in train mode, `config.test_precision` in eval mode.

        Losses are computed outside it, in float32. Tests are in float32 unless told otherwise: bf16 rounds values near
        1 to 1/256, which flattens a peak over several pixels; it costs argmax more than a fit over the whole peak.
        """
        precision = self.config.precision if self.training else self.config.test_precision
        return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(precision, device))


class SharedLoss(nn.Module):
    """A detector's loss as the forward pass that DistributedDataParallel asks for."""

    def __init__(self, detector: LandmarkDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch, epoch: int) -> dict[str, Tensor]:
        return self.detector.loss(batch, epoch)


def split_batch(batch, parts: int) -> list:
    """A batch (data.Sample) in at most `parts` batches of about the same size; what a batch lacks, so do they."""
    size = math.ceil(len(batch.name) / parts)
    return [
        type(batch)(*(None if column is None else column[start : start + size] for column in batch))
        for start in range(0, len(batch.name), size)
    ]
