"""Measure what a recipe costs, stage by stage, beside a textbook program, in one run.

    python -m experiments.benchmark [--preset modern ...] [--<setting> VALUE ...]       settings as for main.py
    python -m experiments.benchmark --preset modern --effects --curves  and of each setting; cost over size and K
    python -m experiments.benchmark --preset modern --batches 1,4,16    and of other batch sizes

Times are medians after a warm-up, synchronised. On a CPU every recipe runs in a process of its own, with its own
allocator and peak memory. The `reference` row is the textbook program at the same size and number of landmarks: fp32,
batch 1, plain Adam without an average of the weights, freed memory given back to the system, and for FARNet also dense
float64 targets drawn on the host and the convolutions of the paper. On a CPU the reference is measured a second time
with freed memory kept, which alone is worth much; on CUDA with TF32, torch's default, and in bf16 with channels_last.
The loss's written-out gradient, the peak by rows and, on CUDA, upsampling by products make all rows faster. Inference
is timed for one view of an image, whatever `views` is. The last line is the table as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from data import Sample, make_loader, make_sample, read_for_network
from evaluate import to_device
from experiments.stopwatch import matrix_peaks, median_ms, operator_shares
from experiments.textbook import REFERENCE, TextbookFARNet
from machine import describe_hardware, exit_status, memory_text, prepare_device
from main import parse_arguments, resolve_config
from methods import method_class
from networks.average import MovingAverage
from reading.images import read_image
from reading.splits import load_data
from run_folder import source_commit

RATES = {"training": "train_images_per_s", "inference": "inference_images_per_s"}


# --- What is measured -------------------------------------------------------------------------------


def random_batch(config: Config, device: torch.device) -> Sample:
    """Return a batch of noise with landmarks at random places."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(config.batch_size, 3, config.height, config.width, generator=generator).to(device)
    if config.channels_last:
        image = image.to(memory_format=torch.channels_last)
    size = torch.tensor([config.width, config.height])
    landmarks = torch.rand(config.batch_size, config.num_landmarks, 2, generator=generator) * size
    to_original = torch.eye(2, 3, dtype=torch.float64).repeat(config.batch_size, 1, 1)
    spacing, occluded = torch.ones(config.batch_size, dtype=torch.float64), torch.zeros(landmarks.shape[:2]) > 0
    return Sample(image, landmarks.to(device), to_original, spacing, ["noise"] * config.batch_size, occluded)


# --- The two recipes -------------------------------------------------------------------------------


def measure_recipe(config: Config, device: torch.device, repeats: int, **options: bool) -> dict[str, Any]:
    """Do the same as measure_here, on a CPU in a fresh process; options: those of measure_here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        row = measure_here(config, device, repeats, **options)
        print(f"batch {config.batch_size}, {options}: {json.dumps(row)}", file=sys.stderr, flush=True)
        return row
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure_here, config, device, repeats, **options).result()


def measure_here(
    config: Config, device: torch.device, repeats: int, shares: bool = False, textbook: bool = False,
    keep_memory: bool = True, tf32: bool = True, choose_kernels: bool = True, compile: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return ms per batch of each stage of training and of inference, images per second, and operations.

    shares: also the operators that take most time. textbook: compute as TextbookFARNet does. keep_memory: on a CPU,
    keep freed memory as training does. tf32: on CUDA, let convolutions in fp32 round their inputs to 10 bits.
    choose_kernels: on CUDA, let cuDNN time its algorithms for each shape. compile: the loss by torch.compile.
    """
    if keep_memory or device.type != "cpu":
        prepare_device(config)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark and choose_kernels
    torch.manual_seed(0)
    cls = TextbookFARNet if textbook and config.method == "farnet" else method_class(config.method)
    detector = cls(config).to(device)
    if config.channels_last:
        detector.to(memory_format=torch.channels_last)
    if compile:
        detector.__dict__["loss"] = torch.compile(detector.loss)
    optimizers, batch, averaged = detector.configure_optimizers(), random_batch(config, device), None
    if config.ema > 0:
        averaged = MovingAverage(detector, config.ema)
    row: dict[str, Any] = {"batch": config.batch_size, "precision": config.precision}
    epoch = config.epochs - 1  # by then all parts of a method are in use
    row["targets"] = median_ms(lambda: detector.labels(batch, epoch), device, repeats)

    def forward() -> Tensor:
        return torch.stack(list(detector.loss(batch, epoch).values())).sum()

    def step() -> None:
        detector.train_step(batch, epoch, optimizers)
        average()

    def average() -> None:
        if averaged is not None:
            averaged.update()

    def change_weights() -> None:
        for optimizer in optimizers.values():
            optimizer.step()
        average()

    detector.train()
    started = time.perf_counter()
    step()
    row["first_step_s"] = time.perf_counter() - started  # compiles, or chooses kernels, if the settings say so
    row["step"] = median_ms(step, device, repeats, warm_ups=3)  # the allocator takes two steps to settle
    row["forward"] = median_ms(forward, device, repeats)
    row["optimiser"] = median_ms(change_weights, device, repeats)
    if shares:
        row["step_shares"] = operator_shares(step, device)
    row["backward"] = max(0.0, row["step"] - row["forward"] - row["optimiser"])
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(cls.loss(detector, batch, epoch).values())).sum().backward()  # compiled or not
    operations = sum(count for kernel, count in counter.get_flop_counts()["Global"].items() if "conv" in str(kernel))
    row["training_GFLOP_per_image"] = operations / config.batch_size / 1e9
    row["training_GFLOP_per_s"] = operations / (row["forward"] + row["backward"]) / 1e6
    with torch.no_grad():  # the forward pass alone, in the precision of training
        forward_ms = median_ms(lambda: detector(batch.image), device, repeats)
        if shares:
            row["forward_shares"] = operator_shares(lambda: detector(batch.image), device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(batch.image[:1])
    row["forward_GFLOP_per_image"] = counter.get_total_flops() / 1e9
    row["forward_GFLOP_per_s"] = row["forward_GFLOP_per_image"] * config.batch_size / forward_ms * 1000
    detector = detector.for_inference()
    with torch.inference_mode():
        row["inference"] = median_ms(lambda: detector.predict(batch.image), device, repeats, warm_ups=3)
        outputs = detector(batch.image)
        row["decoding"] = median_ms(lambda: detector.decode(outputs), device, repeats)
    row["memory"] = memory_text(device)
    row["train_images_per_s"] = 1000 * config.batch_size / row["step"]
    row["inference_images_per_s"] = 1000 * config.batch_size / row["inference"]
    return row


def measure_effects(config: Config, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Measure step and inference with one setting or option switched over, all others unchanged."""
    others: dict[str, Any] = {"ema": 0.0}
    if device.type == "cuda":  # what the references do not show
        others |= {"choose_kernels": False, "compile": True}
    else:
        others |= {"accumulate": config.batch_size, "channels_last": not config.channels_last, "keep_memory": False}
        for name in ("precision", "test_precision"):
            others[name] = "bf16" if getattr(config, name) == "fp32" else "fp32"
    rows = []
    for name, other in others.items():
        if not hasattr(config, name):
            row = measure_recipe(config, device, repeats, **{name: other})
        elif getattr(config, name) != other:
            row = measure_recipe(config.replace(**{name: other}), device, repeats)
        else:
            continue
        rows.append(
            {"setting": name, "value": other, **{key: row[key] for key in ("first_step_s", "step", "inference")}}
        )
    return rows


def measure_batches(
    config: Config, device: torch.device, repeats: int, sizes: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Measure images per second and memory at other batch sizes; a size that does not fit into memory has none."""
    for size in sizes:
        try:
            row = measure_recipe(config.replace(batch_size=size), device, repeats)
        except torch.OutOfMemoryError:
            row = {"memory": "out of memory"}
        yield {"batch": size, **{name: row.get(name) for name in (*RATES.values(), "training_GFLOP_per_s", "memory")}}


def measure_loading(config: Config, repeats: int) -> dict[str, float]:
    """Return the ms per image to read and decode a file, and to warp and augment it."""
    records, cpu = load_data(config, for_training=False).records[:repeats], torch.device("cpu")
    generator, paths = np.random.default_rng(0), cycle([record.path for record in records])
    pairs = cycle([(record, read_for_network(config, record)) for record in records])

    def augment() -> Sample:
        record, image = next(pairs)
        return make_sample(config, record, generator, image)

    return {
        "read and decode": median_ms(lambda: read_image(next(paths)), cpu, repeats),
        "warp and augment": median_ms(augment, cpu, repeats),
    }


def measure_loader(config: Config, device: torch.device, images: int = 64) -> float:
    """Return the images per second of the training loader alone, over whole passes after the one that starts it."""
    loader = make_loader(config, load_data(config, for_training=False).records, train=True)

    def read_all() -> int:
        return sum(len(to_device(batch, device, config.channels_last).name) for batch in loader)

    read_all()
    started, count = time.perf_counter(), 0
    while count < images:
        count += read_all()
    return count / (time.perf_counter() - started)


def cost_curves(config: Config, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Measure step and inference over image sizes and numbers of landmarks."""
    recipes = []
    for factor in (0.25, 0.5, 0.75, 1.0):
        height, width = (max(64, round(factor * side / 32) * 32) for side in (config.height, config.width))
        recipes.append(config.replace(height=height, width=width))
    recipes += [config.replace(num_landmarks=num_landmarks) for num_landmarks in (19, 37, 52, 68)]
    curves = []
    for recipe in recipes:
        row = measure_recipe(recipe, device, repeats)
        inputs = {name: getattr(recipe, name) for name in ("height", "width", "num_landmarks")}
        curves.append(inputs | {name: row[name] for name in ("step", "inference", "forward_GFLOP_per_image")})
    return curves


# --- Table -----------------------------------------------------------------------------------------


def print_table(result: dict[str, Any]) -> None:
    """Print the result as tables and sentences, and as JSON in the last line."""
    ours, references, peaks = result["ours"], result["references"], result["peaks_GFLOP_per_s"]
    columns = {"ours": ours} | references
    print(f"\n{'ms per batch':24}" + "".join(f"{name:>26}" for name in columns))
    for name in ("targets", "forward", "backward", "optimiser", "step", "decoding", "inference"):
        print(f"{name:24}" + "".join(f"{column[name]:26.1f}" for column in columns.values()))
    for name in ("batch", "train_images_per_s", "inference_images_per_s", "forward_GFLOP_per_image"):
        print(f"{name:24}" + "".join(f"{column[name]:26.4g}" for column in columns.values()))
    for name, value in result["loading_ms_per_image"].items():
        print(f"{name + ', 1 image':24}{value:26.1f}")
    print()
    for name, ratios in result["ratios"].items():
        print(f"training {ratios['training']:.2f} x, inference {ratios['inference']:.2f} x the {name}")
    forward, both = (ours[f"{part}_GFLOP_per_s"] / peaks["bf16"] for part in ("forward", "training"))
    print(
        f"matrix product: bf16 {peaks['bf16']:.0f}, fp32 {peaks['fp32']:.0f} GFLOP/s; share of the bf16 peak: forward "
        f"{forward:.0%}, forward and backward {both:.0%} (convolutions)"
    )
    for name, words in (("forward_shares", "forward pass"), ("step_shares", "step")):
        print(f"{words}: {', '.join(f'{operator} {share:.0f} %' for operator, share in ours[name].items())}")
    print(
        f"the loader's {result['settings']['workers']} processes give {result['loader_images_per_s']:.3g} images/s, "
        f"training takes {ours['train_images_per_s']:.3g}"
    )
    print(
        f"peak memory {ours['memory']}, of the reference {references['reference']['memory']}; {result['hardware']}; "
        f"commit {result['commit']}"
    )
    for row in result.get("effects", []):
        costs = [f"{stage} {row[stage]:.0f} ms ({row[stage] / ours[stage]:.2f} x)" for stage in ("step", "inference")]
        print(f"{row['setting']} {row['value']}: {', '.join(costs)}")
    for row in result.get("batches", []):
        rates = [f"{stage} {row[key]:.3g}" for stage, key in RATES.items() if row[key] is not None]
        print(f"batch {row['batch']}: images/s {', '.join(rates)}; memory {row['memory']}")
    for row in result.get("curves", []):
        print(
            f"{row['width']} x {row['height']}, {row['num_landmarks']} landmarks: step {row['step']:.0f} ms, inference "
            f"{row['inference']:.0f} ms, {row['forward_GFLOP_per_image']:.0f} GFLOP per image"
        )
    print(json.dumps(result))


def measure_references(config: Config, device: torch.device, repeats: int) -> dict[str, dict[str, Any]]:
    """Measure the textbook program, and what single steps away from it are worth."""
    reference = config.replace(**REFERENCE)
    if device.type == "cpu":
        return {
            "reference": measure_recipe(reference, device, repeats, textbook=True, keep_memory=False),
            "reference, memory kept": measure_recipe(reference, device, repeats, textbook=True),
        }
    plain = dict(textbook=True, choose_kernels=False)
    mixed = reference.replace(precision="bf16", test_precision="bf16", channels_last=True)
    return {
        "reference": measure_recipe(reference, device, repeats, tf32=False, **plain),
        "reference, TF32": measure_recipe(reference, device, repeats, **plain),
        "reference, bf16": measure_recipe(mixed, device, repeats, **plain),
    }


def benchmark(config: Config, effects: bool, curves: bool, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return all measurements of one run. Raises UserError for settings or data that cannot be used."""
    device = prepare_device(config)
    num_landmarks = config.num_landmarks or len(load_data(config, for_training=False).abbreviations)
    config = config.replace(backbone_weights="none", num_landmarks=num_landmarks)  # weights do not change the time
    ours = measure_recipe(config, device, repeats, shares=True)
    references = measure_references(config, device, repeats)
    result = {
        "commit": source_commit(),
        "hardware": describe_hardware(device),
        "torch": torch.__version__,
        "settings": config.to_dict(),
        "peaks_GFLOP_per_s": matrix_peaks(device),
        "loading_ms_per_image": measure_loading(config, 4 * repeats),
        "loader_images_per_s": measure_loader(config, device),
        "ours": ours,
        "references": references,
        "ratios": {
            name: {stage: ours[key] / reference[key] for stage, key in RATES.items()}
            for name, reference in references.items()
        },
    }
    if batches:
        result["batches"] = list(measure_batches(config, device, repeats, batches))
    if effects:
        result["effects"] = measure_effects(config, device, repeats)
    if curves:
        result["curves"] = cost_curves(config, device, max(1, repeats // 2))
    return result


def main() -> int:
    """Return exit status 2 for settings or data that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effects", action="store_true", help="also with each setting for speed switched over")
    parser.add_argument("--curves", action="store_true", help="also over image sizes and numbers of landmarks")
    parser.add_argument("--batches", default="", help="also at these batch sizes, e.g. 1,4,16")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats of each stage")
    options, rest = parser.parse_known_args()

    def work() -> None:
        config = resolve_config(*parse_arguments(rest))
        batches = [int(size) for size in options.batches.split(",") if size]
        print_table(benchmark(config, options.effects, options.curves, batches, options.repeats))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
