"""The only training loop, for every method.

`train(config, run_dir)` is the whole of a training run: everything it needs is in these two. Every epoch is
reseeded from (seed, epoch) and the learning rate is a function of the epoch, so resuming equals not stopping.
"""

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import Config
from data import make_loader
from detector import LandmarkDetector
from evaluate import evaluate, to_device
from machine import (
    broadcast_buffers,
    memory_text,
    prepare_device,
    process_count,
    process_rank,
    training_command,
    uses_bfloat16,
)
from methods import create_detector, load_detector
from reading.splits import LandmarkData, load_data
from reporting.pictures import draw_curves, draw_progress
from run_folder import read_checkpoint, save_checkpoint, write_provenance, write_text
from utils import error_figures, finite_mean, is_loss_term, seed_everything

log = logging.getLogger("farnet")


def train(config: Config, run_dir: Path) -> LandmarkData:
    """Train a method as config says into run_dir, from its last.pt if there is one; return the data set.

    Writes config.json, split.json, metrics.csv (one row per epoch), curves.png, last.pt and, if there is a
    val split, best.pt: the epoch of the lowest validation MRE. Raises UserError.
    Over several processes each computes its part of every batch, and only the first one writes.
    """
    device, first = prepare_device(config), process_rank() == 0
    state = start_or_resume(config, run_dir, device)
    config, data = state.config, state.data
    if first:
        if not (run_dir / "config.json").exists():
            write_provenance(run_dir, config, state.detector.num_parameters, device)
        splits = {name: [data.records[i].name for i in members] for name, members in data.splits.items()}
        write_text(run_dir / "split.json", json.dumps(splits, indent=1, ensure_ascii=False))
    rows = read_metrics(run_dir / "metrics.csv")[: state.epoch]  # a row may be ahead of its checkpoint
    loaders = make_loaders(config, data, device)
    describe_training(state, device)

    total = config.epochs * len(loaders.train)
    bar = tqdm(total=total, initial=state.epoch * len(loaders.train), unit="step", disable=None if first else True)
    started, epochs_done, best_MRE = time.perf_counter(), state.epoch, state.best_MRE
    for epoch in range(epochs_done, config.epochs):
        epoch_started = time.perf_counter()
        terms = train_epoch(state, loaders.train, epoch, device, bar)
        row: dict[str, Any] = {"epoch": epoch + 1, "lr": config.lr * learning_rate_factor(config, epoch), **terms}
        row["loss"] = sum(value for name, value in terms.items() if is_loss_term(name))
        row |= validate(state, loaders, epoch, device, run_dir)
        row["seconds"] = round(time.perf_counter() - epoch_started, 2)
        rows.append(row)
        if first:
            write_metrics(run_dir / "metrics.csv", rows)
            draw_curves(rows, run_dir / "curves.png", data.unit)
        mean_seconds = (time.perf_counter() - started) / (epoch + 1 - epochs_done)
        log.info(epoch_text(row, config.epochs, data.unit, mean_seconds))
        best_MRE = save_epoch(state, epoch, row, best_MRE, run_dir)
    bar.close()
    log.info("trained in %.1f min", (time.perf_counter() - started) / 60)
    return data


# --- An epoch ------------------------------------------------------------------------------------


class Loaders(NamedTuple):
    """The loaders of a run; val and watched are None where there is nothing to predict."""

    train: DataLoader
    val: DataLoader | None
    watched: DataLoader | None  # the image that is drawn every config.watch_every epochs, if it is not one of val


def make_loaders(config: Config, data: LandmarkData, device: torch.device) -> Loaders:
    """Make the loaders of a run."""
    train_records, val_records = data.select("train"), data.select("val")
    watch = config.watch_every and not val_records
    return Loaders(
        make_loader(config, train_records, train=True, pin_memory=device.type == "cuda"),
        make_loader(config, val_records, train=False) if val_records else None,
        make_loader(config, train_records[:1], train=False) if watch else None,
    )


def train_epoch(
    state: "TrainingState", loader: DataLoader, epoch: int, device: torch.device, bar: tqdm
) -> dict[str, float]:
    """Train on every image once; return the mean of each value that the method's steps report, by name."""
    config, rank, steps = state.config, process_rank(), len(loader)
    seed_everything(config.seed, epoch, *([rank] if rank else []))
    loader.sampler.epoch = epoch
    set_learning_rate(state.optimizers, learning_rate_factor(config, epoch))
    bar.set_description(f"epoch {epoch + 1}/{config.epochs}")
    state.detector.train()
    terms: dict[str, float] = {}
    for batch in loader:
        values = state.detector.train_step(to_device(batch, device, config.channels_last), epoch, state.optimizers)
        if state.averaged is not None:
            state.averaged.update_parameters(state.detector)
        for name, value in values.items():
            terms[name] = terms.get(name, 0.0) + value / steps
        bar.update()
        bar.set_postfix(**{name: f"{value:.3g}" for name, value in values.items()}, memory=memory_text(device))
        if device.type == "cpu" and len(state.step_ends) < 5:
            state.step_ends.append(time.perf_counter())
            if len(state.step_ends) == 5:  # the first step is slower than the others
                warn_of_long_run(config, (state.step_ends[4] - state.step_ends[0]) / 4, config.epochs * steps)
    return terms


def validate(
    state: "TrainingState", loaders: Loaders, epoch: int, device: torch.device, run_dir: Path
) -> dict[str, float]:
    """Return the validation columns of metrics.csv, and draw the watched image every config.watch_every epochs."""
    config, data, row = state.config, state.data, {}
    broadcast_buffers(state.tested)  # on a CPU, a batch norm has only seen the images of its own process
    predictions = evaluate(state.tested, loaders.val, device, epoch) if loaders.val is not None else None
    if predictions is not None:
        errors = predictions.errors()
        figures = error_figures(errors[np.isfinite(errors)], config.sdr_thresholds)
        row |= {f"val_{name}": value for name, value in figures.items() if name != "SD"}
        row |= {f"val_{name}": finite_mean(values) for name, values in predictions.extras.items()}
        row |= {f"val_error_{n}": finite_mean(one) for n, one in zip(data.abbreviations, errors.T, strict=True)}
    if config.watch_every and (epoch + 1) % config.watch_every == 0:
        if loaders.watched is not None:
            predictions = evaluate(state.tested, loaders.watched, device, epoch)
        if process_rank() == 0:
            record = (data.select("val") or data.select("train"))[0]
            draw_progress(run_dir, epoch + 1, record, predictions.landmarks[0], data.unit)
    return row


def save_epoch(state: "TrainingState", epoch: int, row: Mapping[str, Any], best_MRE: float, run_dir: Path) -> float:
    """Write best.pt if the validation MRE is the lowest so far, last.pt every config.save_every epochs.

    Returns the lowest validation MRE.
    """
    config, better = state.config, row.get("val_MRE", math.inf) < best_MRE
    best_MRE = min(best_MRE, row.get("val_MRE", math.inf))
    if process_rank() > 0:
        return best_MRE
    progress = {"epoch": epoch + 1, "best_MRE": best_MRE, "processes": process_count()}
    saved = checkpoint_state(config, state.data, state.tested, progress)
    if better:
        save_checkpoint(run_dir / "best.pt", saved)
    if (epoch + 1) % config.save_every == 0 or epoch + 1 == config.epochs:
        if state.averaged is not None:
            saved |= {
                "training_model": state.detector.state_dict(), "averaged_steps": int(state.averaged.n_averaged)
            }  # fmt: skip
        saved["optimizers"] = {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()}
        save_checkpoint(run_dir / "last.pt", saved)
    return best_MRE


# --- Start and resume ----------------------------------------------------------------------------


class TrainingState(NamedTuple):
    """State of a training run between two epochs."""

    config: Config  # with crop and num_landmarks resolved
    data: LandmarkData
    detector: LandmarkDetector  # what is trained
    averaged: AveragedModel | None  # the moving average of its weights, if config.ema asks for it
    optimizers: dict[str, Optimizer]
    epoch: int  # epochs done
    best_MRE: float  # lowest validation MRE so far
    step_ends: list[float]  # when the first steps of this program ended, s, to tell how long the run takes

    @property
    def tested(self) -> LandmarkDetector:
        """What is validated, tested and saved."""
        return self.detector if self.averaged is None else self.averaged.module


def start_or_resume(config: Config, run_dir: Path, device: torch.device) -> TrainingState:
    """Return the start of a new run, or the end of the run whose last.pt is in run_dir."""
    state: dict[str, Any] = {"epoch": 0, "best_MRE": math.inf}
    last, split_file = run_dir / "last.pt", run_dir / "split.json"
    splits = json.loads(split_file.read_text(encoding="utf-8")) if split_file.exists() else None
    if last.exists():
        state = read_checkpoint(last)
        data = load_data(config, state["abbreviations"], splits)
        config = config.replace(
            crop=tuple(state["settings"].get("crop", config.crop)), num_landmarks=len(data.abbreviations)
        )
        detector = load_detector(state, config)
        log.info("resuming from %s after epoch %d", last, state["epoch"])
        before = state.get("processes", process_count())
        if before != process_count():
            log.warning(
                "this run had %d processes and is resumed with %d: a step takes batch_size images from each, so the "
                "numbers will differ from those of a run that was never stopped",
                before,
                process_count(),
            )
    else:
        data = load_data(config, splits=splits)
        config = resolve_crop(config.replace(num_landmarks=len(data.abbreviations)), data)
        seed_everything(config.seed)
        detector = create_detector(config)
        detector.check_initial_weights(data)
    detector.to(device)
    if config.channels_last:
        detector.to(memory_format=torch.channels_last)
    averaged = None
    if config.ema > 0:
        averaged = AveragedModel(detector, multi_avg_fn=moving_average(config.ema), use_buffers=True)
        if "training_model" in state:  # the checkpoint's model is the average
            averaged.n_averaged += state["averaged_steps"]
            detector.load_state_dict(state["training_model"])
    if process_count() > 1 and any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()):
        if device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(detector)
        else:
            log.warning("on a CPU, batch norm only sees the images of its own process; set norm to instance")
    optimizers = detector.configure_optimizers()
    for name, optimizer in optimizers.items():
        if "optimizers" in state:
            optimizer.load_state_dict(state["optimizers"][name])
    detector.distribute(device)
    return TrainingState(config, data, detector, averaged, optimizers, state["epoch"], state["best_MRE"], [])


def describe_training(state: TrainingState, device: torch.device) -> None:
    """Log what is trained, and on what."""
    precision = "bf16" if uses_bfloat16(state.config.precision, device) else "fp32"
    millions = state.detector.num_parameters / 1e6
    log.info("%s, %.1f million parameters, on %s in %s", state.config.method, millions, device, precision)
    if process_count() > 1:
        log.info("%d processes, each with %d images of a batch", process_count(), state.config.batch_size)


def checkpoint_state(config: Config, data: LandmarkData, detector: LandmarkDetector, state: Mapping) -> dict[str, Any]:
    """Return what describes and rebuilds a detector: method, settings, landmarks, weights."""
    return {
        "method": config.method,
        "settings": config.to_dict(),
        "abbreviations": list(data.abbreviations),
        "names": list(data.names),
        "images": detector.seen | {r.fingerprint: split for split in data.splits for r in data.select(split)},
        "model": detector.state_dict(),
        **state,
    }


def moving_average(decay: float) -> Callable:
    """The update of AveragedModel for an exponential moving average, which forgets its start faster at first."""

    def update(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        if not averaged[0].is_floating_point():  # the counters of batch norm
            torch._foreach_copy_(averaged, current)
            return
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return torch.no_grad()(update)


def learning_rate_factor(config: Config, epoch: int) -> float:
    """The learning rate of an epoch (from 0) as a share of config.lr: a pure function, so a resumed run agrees."""
    if epoch < config.warmup_epochs:
        return (epoch + 1) / (config.warmup_epochs + 1)
    if config.lr_schedule == "step":
        return 0.1 ** sum(epoch >= milestone for milestone in config.lr_milestones)
    progress = (epoch - config.warmup_epochs) / max(1, config.epochs - config.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizers: Mapping[str, Optimizer], factor: float) -> None:
    """Every parameter group's learning rate: its initial one, which the optimiser's state keeps, times a factor."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def resolve_crop(config: Config, data: LandmarkData) -> Config:
    """The settings with `crop` as `crop_margin` asks for; says where the training landmarks lie, and warns of a cut."""
    box = data.landmark_box("train")
    if config.crop_margin is not None:
        margin = config.crop_margin
        wider = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
        config = config.replace(crop=tuple(round(min(max(side, 0.0), 1.0), 3) for side in wider))
    words = [",".join(f"{side:.2f}" for side in sides) for sides in (box, config.crop)]
    log.info("the landmarks of train lie within %s of their images, the crop is %s", *words)
    left, top, right, bottom = config.crop
    if box[0] < left or box[1] < top or box[2] > right or box[3] > bottom:
        log.warning("the crop cuts off landmarks of the training images: widen it")
    return config


def warn_of_long_run(config: Config, seconds_per_step: float, steps: int) -> None:
    """On a CPU, say early how long the whole run will take, and which command takes less."""
    hours = seconds_per_step * steps / 3600
    if hours > 1:
        log.warning(
            "on this CPU the whole run takes about %.0f hours (%.1f s a step): use a CUDA machine, or try %s",
            hours, seconds_per_step, training_command(config.img_dir, config.json_path),
        )  # fmt: skip


def epoch_text(row: Mapping[str, Any], epochs: int, unit: str, seconds_per_epoch: float) -> str:
    """An epoch in one line: loss, validation, time, and how long is left."""
    text = f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.5f}"
    if "val_MRE" in row:
        text += f"  val MRE {row['val_MRE']:.2f} {unit}"
    left = seconds_per_epoch * (epochs - row["epoch"])
    return f"{text}  {row['seconds']:.1f} s, {left // 60:.0f} min {left % 60:02.0f} s left"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv, numbers as numbers; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: float(v) if k != "epoch" else int(v) for k, v in row.items()} for row in csv.DictReader(file)]


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """metrics.csv, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), restval=math.nan, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
