"""The only training loop, for every method.

`train(config, run_dir)` is a whole training run and needs nothing else. Every epoch is reseeded from (seed, epoch) and
the learning rate is a function of the epoch, so a resumed run gives the same numbers as one that was never stopped.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import Config
from data import make_loader
from detector import LandmarkDetector
from evaluate import evaluate, to_device
from machine import memory_text, prepare_device, process_count, process_rank, training_command, uses_bfloat16
from methods import create_detector, load_detector, trained_config
from methods.start import read_start, start_detector
from networks.average import MovingAverage
from reading.splits import LandmarkData, load_data, read_split_file
from reporting.charts import draw_curves
from reporting.pictures import draw_progress
from run_folder import (
    describe_tensor,
    load_weights,
    read_checkpoint,
    read_metrics,
    save_checkpoint,
    seen_images,
    write_metrics,
    write_provenance,
    write_text,
)
from settings import UserError
from utils import error_figures, finite_mean, is_loss_term, seed_everything

log = logging.getLogger("farnet")


def train(config: Config, run_dir: Path) -> LandmarkData:
    """Train a method as config says, in run_dir; return the data set. Resumes from run_dir/last.pt if it exists.

    Stops at config.epochs, or when the validation MRE has not become lower for config.patience epochs. Writes
    config.json, split.json, metrics.csv (one row per epoch), curves.png, last.pt and, if there is a val split, best.pt:
    the epoch of the lowest validation MRE. Raises UserError.
    Under torchrun every process computes its part of each batch, and only the first one writes.
    """
    first = process_rank() == 0
    state = start_or_resume(config, run_dir, prepare_device(config))
    config, data = state.config, state.data
    if first:
        if not (run_dir / "config.json").exists():
            write_provenance(run_dir, config, state.detector.num_parameters, state.device)
        splits = {name: [data.records[i].name for i in members] for name, members in data.splits.items()}
        write_text(run_dir / "split.json", json.dumps(splits, indent=1, ensure_ascii=False))
    rows = read_metrics(run_dir / "metrics.csv", state.epoch)
    rows = [row for row in rows if row["epoch"] <= state.epoch]  # a row may be ahead of its checkpoint
    loader = make_loader(config, data.select("train"), train=True)
    # without a val split, the first training image is watched
    val_loader = make_loader(config, data.select("val") or data.select("train")[:1], train=False)
    describe_training(state)

    steps_done, steps = state.epoch * len(loader), config.epochs * len(loader)
    bar = tqdm(total=steps, initial=steps_done, unit="step", disable=None if first else True)
    started, epochs_before = time.perf_counter(), state.epoch
    if config.epochs == 0:
        save_epoch(state, validate(state, val_loader), last=True)
    stopped = is_stale(config, rows)
    while state.epoch < config.epochs and not stopped:
        epoch_started = time.perf_counter()
        terms = train_epoch(state, loader, bar)
        row: dict[str, Any] = {"epoch": state.epoch + 1, "lr": config.lr * learning_rate_factor(config, state.epoch)}
        row |= terms | {"loss": sum(value for name, value in terms.items() if is_loss_term(name))}
        row |= validate(state, val_loader)
        row["seconds"] = round(time.perf_counter() - epoch_started, 2)
        rows.append(row)
        if first:
            write_metrics(run_dir / "metrics.csv", rows)
            draw_curves(rows, run_dir / "curves.png", data.unit)
        state.epoch += 1
        mean_seconds = (time.perf_counter() - started) / (state.epoch - epochs_before)
        log.info(epoch_text(row, config.epochs, data.unit, mean_seconds))
        stopped = is_stale(config, rows)
        save_epoch(state, row, last=stopped or state.epoch == config.epochs)
    bar.close()
    if stopped:
        log.info("stopped after epoch %d: no lower validation MRE in %d epochs", state.epoch, config.patience)
    log.info("trained in %.1f min", (time.perf_counter() - started) / 60)
    return data


# --- An epoch ------------------------------------------------------------------------------------


@dataclass
class TrainingState:
    """State of a training run between two epochs."""

    config: Config  # with crop and num_landmarks resolved
    data: LandmarkData
    run_dir: Path
    device: torch.device
    detector: LandmarkDetector  # the one that is trained
    averaged: MovingAverage | None  # of its weights, if config.ema > 0
    optimizers: dict[str, Optimizer]
    epoch: int  # epochs done, which is also the number of the next one, from 0
    best_MRE: float  # lowest validation MRE so far
    step_ends: list[float] = field(default_factory=list)  # when the first steps of this program ended, s

    @property
    def tested(self) -> LandmarkDetector:
        """The detector that is validated, tested and saved: the average if there is one."""
        return self.detector if self.averaged is None else self.averaged.detector


def train_epoch(state: TrainingState, loader: DataLoader, bar: tqdm) -> dict[str, float]:
    """Train on every image once; return the mean of each value that the method's steps report, by name."""
    config, device, rank, steps = state.config, state.device, process_rank(), len(loader)
    seed_everything(config.seed, state.epoch, *([rank] if rank else []))
    loader.sampler.epoch = state.epoch  # type: ignore[attr-defined]
    set_learning_rate(state.optimizers, learning_rate_factor(config, state.epoch))
    bar.set_description(f"epoch {state.epoch + 1}/{config.epochs}")
    state.detector.train()
    terms: dict[str, float] = {}
    for batch in loader:
        batch = to_device(batch, device, config.channels_last)
        values = state.detector.train_step(batch, state.epoch, state.optimizers)
        if state.averaged is not None:
            state.averaged.update()
        for name, value in values.items():
            terms[name] = terms.get(name, 0.0) + value / steps
        bar.set_postfix({n: f"{v:.3g}" for n, v in values.items()} | {"memory": memory_text(device)}, refresh=False)
        bar.update()
        if device.type == "cpu" and len(state.step_ends) < 5:
            state.step_ends.append(time.perf_counter())
            if len(state.step_ends) == 5:  # the first step is slower than the others
                warn_of_long_run(config, (state.step_ends[4] - state.step_ends[0]) / 4, config.epochs * steps)
    return terms


def validate(state: TrainingState, loader: DataLoader) -> dict[str, float]:
    """Return the validation columns of metrics.csv, {} without a val split; every config.watch_every epochs draw the
    loader's first image.
    """
    config, data, val_records = state.config, state.data, state.data.select("val")
    watch = config.watch_every > 0 and (state.epoch + 1) % config.watch_every == 0
    if not (val_records or watch):
        return {}
    predictions = evaluate(state.tested, loader, state.device, state.epoch)
    if watch and process_rank() == 0:
        record = (val_records or data.select("train"))[0]
        draw_progress(state.run_dir, state.epoch + 1, record, predictions.landmarks[0], data.unit)
    if not val_records:
        return {}
    errors = predictions.errors()
    figures = error_figures(errors[np.isfinite(errors)], config.sdr_thresholds)
    row = {f"val_{name}": value for name, value in figures.items() if name != "SD"}
    row |= {f"val_{name}": finite_mean(values) for name, values in predictions.extras.items()}
    return row | {f"val_error_{n}": finite_mean(one) for n, one in zip(data.abbreviations, errors.T, strict=True)}


def is_stale(config: Config, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the validation MRE has not become lower in the last config.patience epochs, if that is above 0."""
    found = np.nan_to_num([row["val_MRE"] for row in rows], nan=math.inf) if config.patience else np.empty(0)
    return len(found) > 0 and len(found) - 1 - int(found.argmin()) >= config.patience


def save_epoch(state: TrainingState, row: Mapping[str, Any], last: bool) -> None:
    """Write best.pt if the validation MRE is the lowest so far; last.pt every config.save_every epochs and at last."""
    config, better = state.config, row.get("val_MRE", math.inf) < state.best_MRE
    if better:
        state.best_MRE = row["val_MRE"]
    if process_rank() > 0:
        return
    progress = {"epoch": state.epoch, "best_MRE": state.best_MRE, "processes": process_count()}
    saved = checkpoint_state(config, state.data, state.tested, progress)
    if better:
        save_checkpoint(state.run_dir / "best.pt", saved)
    if last or state.epoch % config.save_every == 0:
        if state.averaged is not None:
            saved["training_model"] = state.detector.state_dict()
            saved["averaged_steps"] = state.averaged.steps
        saved["optimizers"] = {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()}
        save_checkpoint(state.run_dir / "last.pt", saved)


# --- Start and resume ----------------------------------------------------------------------------


def start_or_resume(config: Config, run_dir: Path, device: torch.device) -> TrainingState:
    """Return the state of a new run, or of the run that wrote run_dir/last.pt. Raises UserError."""
    last, split_file = run_dir / "last.pt", run_dir / "split.json"
    splits = read_split_file(split_file) if split_file.exists() else None
    saved = read_to_resume(last, config) if last.exists() else {}
    start = {} if saved else read_start(config)
    before = start["images"] | seen_images(start) if start else {}
    data = load_data(config, saved.get("abbreviations"), splits, before=before)
    config = config.replace(num_landmarks=len(data.abbreviations))
    if config.patience and not data.select("val"):
        raise UserError("setting patience: there is no validation image to judge an epoch by; set val_fraction")
    if saved:
        config = config.replace(crop=trained_config(saved).crop)
        detector = load_detector(saved, config)
        log.info("resuming from %s after epoch %d", last, saved["epoch"])
        before, now = saved.get("processes", process_count()), process_count()
        if before != now:
            log.warning(
                "this run had %d processes and is resumed with %d: a step takes batch_size images from each, so the "
                "numbers will differ from those of a run that was never stopped", before, now,
            )  # fmt: skip
    else:
        config = resolve_crop(config, data)
        seed_everything(config.seed)
        detector = start_detector(config, data.abbreviations, start) if start else create_detector(config)
        detector.name_landmarks(data.abbreviations)
        detector.check_initial_weights(data)
    detector.to(device)
    if config.channels_last:
        detector.to(memory_format=torch.channels_last)
    averaged = None
    if config.ema > 0:
        averaged = MovingAverage(detector, config.ema, saved.get("averaged_steps", 0))
        if saved:  # the checkpoint's model is the average
            load_weights(last, detector, saved["training_model"])
    if process_count() > 1 and any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()):
        if device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(detector)
        else:
            log.warning("on a CPU, batch norm only sees the images of its own process; set norm to instance")
    optimizers = detector.configure_optimizers()
    if saved and saved["optimizers"].keys() != optimizers.keys():
        names = ", ".join(saved["optimizers"]) or "none"
        raise UserError(f"{last} has the optimizers {names}, not {', '.join(optimizers)}; it cannot be resumed")
    for name, optimizer in optimizers.items():
        if saved:
            load_optimizer(last, optimizer, saved["optimizers"][name])
    detector.distribute(device)
    epoch, best_MRE = saved.get("epoch", 0), saved.get("best_MRE", math.inf)
    return TrainingState(config, data, run_dir, device, detector, averaged, optimizers, epoch, best_MRE)


def read_to_resume(path: Path, config: Config) -> dict[str, Any]:
    """Return the last.pt of a run. Raises UserError if it lacks an entry to resume from, or the method differs."""
    saved = read_checkpoint(path)
    if saved["method"] != config.method:
        raise UserError(f"{path} is a checkpoint of {saved['method']}, not {config.method}; it cannot be resumed")
    of_average = {"training_model", "averaged_steps"}
    expected = {"best_MRE", "optimizers"} | (of_average if config.ema > 0 else set())
    # without them training would start from the average, or anew, without a word
    for name in sorted(expected ^ (saved.keys() & (expected | of_average))):
        what = "has no" if name in expected else "has an"
        raise UserError(f"{path} {what} entry {name!r}, with setting ema {config.ema:g}; it cannot be resumed")
    return saved


def load_optimizer(path: Path, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load what an optimiser knows of its parameters; the settings of the run give all the rest.

    Raises UserError unless that is finite, and of the shape and type of the parameters: torch would cast it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known: Any = state.get("state")
    good = (
        isinstance(known, dict)
        and known.keys() <= set(range(len(parameters)))
        and all(isinstance(values, dict) for values in known.values())
        and len({frozenset(values) for values in known.values()}) <= 1
        and all(
            isinstance(value, Tensor)
            and describe_tensor(value) == describe_tensor(torch.zeros(()) if name == "step" else parameters[number])
            and value.isfinite().all()
            for number, values in known.items()
            for name, value in values.items()
        )
    )
    if not good:
        raise UserError(f"{path}: its entry 'optimizers' does not fit the settings of its run; it cannot be resumed")
    optimizer.load_state_dict({"state": known, "param_groups": optimizer.state_dict()["param_groups"]})


def describe_training(state: TrainingState) -> None:
    """Log the method, its size, the device and the precision."""
    precision = "bf16" if uses_bfloat16(state.config.precision, state.device) else "fp32"
    millions = state.detector.num_parameters / 1e6
    log.info("%s, %.1f million parameters, on %s in %s", state.config.method, millions, state.device, precision)
    if process_count() > 1:
        log.info("%d processes, each with %d images of a batch", process_count(), state.config.batch_size)


def checkpoint_state(config: Config, data: LandmarkData, detector: LandmarkDetector, state: Mapping) -> dict[str, Any]:
    """Return everything that rebuilds a detector: method, settings, landmarks, weights; `state` is added to it.

    spacing: the median mm per px of the training images, if it is known.
    """
    spacing = float(np.median([record.spacing for record in data.select("train")]))
    return {
        "method": config.method,
        "settings": config.to_dict(),
        "abbreviations": list(data.abbreviations),
        "names": list(data.names),
        "images": detector.seen | {r.fingerprint: split for split in data.splits for r in data.select(split)},
        # in torch's default layout, whatever channels_last is
        "model": {name: weight.contiguous() for name, weight in detector.state_dict().items()},
        **({} if math.isnan(spacing) else {"spacing": spacing}),
        **state,
    }


def learning_rate_factor(config: Config, epoch: int) -> float:
    """Return the learning rate of an epoch (from 0) divided by config.lr: a pure function, so a resumed run agrees."""
    if epoch < config.warmup_epochs:
        return (epoch + 1) / (config.warmup_epochs + 1)
    if config.lr_schedule == "step":
        return 0.1 ** sum(epoch >= milestone for milestone in config.lr_milestones)
    progress = (epoch - config.warmup_epochs) / max(1, config.epochs - config.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizers: Mapping[str, Optimizer], factor: float) -> None:
    """Set every learning rate to its initial value, which the optimiser's state keeps, times a factor."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def resolve_crop(config: Config, data: LandmarkData) -> Config:
    """Return the settings with `crop` as `crop_margin` asks for; log it, and warn if it cuts off training landmarks."""
    if config.crop_follows:
        log.info("each image is cropped to its own landmarks, plus %g of their extent", config.crop_margin)
        return config
    box = data.landmark_box("train")
    if config.crop_margin is not None:
        margin = config.crop_margin
        wider = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
        config = config.replace(crop=tuple(round(min(max(side, 0.0), 1.0), 3) for side in wider))
    sides = "left {:.2f}, top {:.2f}, right {:.2f}, bottom {:.2f}"
    log.info("training landmarks span %s of the image; crop %s", sides.format(*box), sides.format(*config.crop))
    left, top, right, bottom = config.crop
    if box[0] < left or box[1] < top or box[2] > right or box[3] > bottom:
        log.warning("the crop cuts off landmarks of training images: widen it")
    return config


def warn_of_long_run(config: Config, seconds_per_step: float, steps: int) -> None:
    """Log how long a whole run on a CPU takes, and which command takes less, if it is more than an hour."""
    hours = seconds_per_step * steps / 3600
    if hours > 1:
        log.warning(
            "on this CPU the whole run takes about %.0f hours (%.1f s per step): use a CUDA machine, or try %s",
            hours, seconds_per_step, training_command(config.img_dir, config.json_path),
        )  # fmt: skip


def epoch_text(row: Mapping[str, Any], epochs: int, unit: str, seconds_per_epoch: float) -> str:
    """Return an epoch as one line: loss, validation MRE, time, and the time that is left."""
    text = f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.5f}"
    if "val_MRE" in row:
        text += f"  val MRE {row['val_MRE']:.2f} {unit}"
    left = seconds_per_epoch * (epochs - row["epoch"])
    return f"{text}  {row['seconds']:.1f} s, {left // 60:.0f} min {left % 60:02.0f} s left"
