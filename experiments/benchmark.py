"""What a recipe costs, stage by stage, beside the textbook recipe, in one run.

    python -m experiments.benchmark [--preset modern ...] [--<setting> VALUE ...]       settings as for main.py
    python -m experiments.benchmark --preset modern --effects --curves  and of each setting; cost over size and K

Medians after a warm-up, synchronised; every recipe in a process of its own, with its own allocator and peak memory. The
`reference` row is the textbook recipe at the same size and number of landmarks: fp32, batch 1, dense float64 targets
drawn on the host, convolutions as in the paper (heads as two, none before upsampling), plain Adam, no average of the
weights, memory given back to the system. On a CPU the same recipe is also measured with memory kept, since that alone
is worth much. What has no setting (the loss's written-out gradient, the peak by rows) makes both faster, too. Inference
is timed for one view of an image, whatever `views` says. The last line is the table as JSON.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from data import Sample, make_loader, make_sample, read_for_network
from detector import LandmarkDetector
from evaluate import to_device
from experiments.stopwatch import matrix_peaks, median_ms, operator_shares
from experiments.textbook import TextbookFARNet
from machine import describe_hardware, memory_text, prepare_device
from main import parse_arguments, resolve_config
from methods import create_detector
from reading.images import read_image
from reading.splits import load_data
from run_folder import source_commit
from settings import UserError
from train import moving_average

REFERENCE = dict(  # the textbook recipe, as predecessors have it; textbook.py has what is no setting
    batch_size=1, accumulate=1, precision="fp32", test_precision="fp32", channels_last=False, norm="batch",
    optimizer="adam", ema=0.0,
)  # fmt: skip
TEXTBOOK = {"farnet": TextbookFARNet}


def random_batch(config: Config, device: torch.device) -> Sample:
    """A batch of noise with landmarks somewhere."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(config.batch_size, 3, config.height, config.width, generator=generator).to(device)
    if config.channels_last:
        image = image.to(memory_format=torch.channels_last)
    size = torch.tensor([config.width, config.height])
    landmarks = torch.rand(config.batch_size, config.num_landmarks, 2, generator=generator) * size
    to_original = torch.eye(2, 3, dtype=torch.float64).repeat(config.batch_size, 1, 1)
    spacing, occluded = torch.ones(config.batch_size, dtype=torch.float64), torch.zeros(landmarks.shape[:2]) > 0
    return Sample(image, landmarks.to(device), to_original, spacing, ["noise"] * config.batch_size, occluded)


def forward_gflops(detector: LandmarkDetector, image: Tensor) -> float:
    """Floating-point operations of one forward pass per image, from the layers that run, in 1e9."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(image[:1])
    return counter.get_total_flops() / 1e9


# --- The two recipes -------------------------------------------------------------------------------


def measure_recipe(config: Config, device: torch.device, repeats: int, **options: bool) -> dict[str, Any]:
    """ms per batch of each stage of training and of inference, images per second, and the work they do.

    options: those of measure_here. Measured in a fresh process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure_here, config, device, repeats, **options).result()


def measure_here(
    config: Config,
    device: torch.device,
    repeats: int,
    shares: bool = False,
    textbook: bool = False,
    keep_memory: bool = True,
    compile: bool = False,
) -> dict[str, Any]:
    """Measure a recipe in this process.

    shares: also report which operators the time goes to. textbook: compute as textbook.py does. keep_memory: tell the
    allocator to keep freed memory, as training does. compile: with torch.compile.
    """
    if keep_memory:
        prepare_device(config)  # as in training
    torch.manual_seed(0)
    create = TEXTBOOK.get(config.method, create_detector) if textbook else create_detector
    detector = create(config).to(device)
    if config.channels_last:
        detector.to(memory_format=torch.channels_last)
    if compile:
        for network in detector.children():
            network.compile()
    optimizers, batch, averaged = detector.configure_optimizers(), random_batch(config, device), None
    if config.ema > 0:
        averaged = AveragedModel(detector, multi_avg_fn=moving_average(config.ema), use_buffers=True)
    row: dict[str, Any] = {"batch": config.batch_size, "precision": config.precision}
    epoch = config.epochs - 1  # by then all that a method has takes part
    row["targets"] = median_ms(lambda: detector.labels(batch, epoch), device, repeats)

    def forward() -> Tensor:
        return torch.stack(list(detector.loss(batch, epoch).values())).sum()

    def step() -> None:
        detector.train_step(batch, epoch, optimizers)
        average()

    def average() -> None:
        if averaged is not None:
            averaged.update_parameters(detector)

    def change_weights() -> None:
        for optimizer in optimizers.values():
            optimizer.step()
        average()

    detector.train()
    row["step"] = median_ms(step, device, repeats, warm_ups=3)  # the allocator takes two steps to settle
    row["forward"] = median_ms(forward, device, repeats)
    row["optimiser"] = median_ms(change_weights, device, repeats)
    if shares:
        row["step_shares"] = operator_shares(step, device)
    row["backward"] = max(0.0, row["step"] - row["forward"] - row["optimiser"])
    with torch.no_grad():  # the forward pass alone, in the precision of training
        forward_ms = median_ms(lambda: detector(batch.image), device, repeats)
        if shares:
            row["forward_shares"] = operator_shares(lambda: detector(batch.image), device)
    row["forward_GFLOP_per_image"] = forward_gflops(detector, batch.image)
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
    rows = []
    others: dict[str, Any] = {"accumulate": config.batch_size, "ema": 0.0, "channels_last": not config.channels_last}
    for name in ("precision", "test_precision"):
        others[name] = "bf16" if getattr(config, name) == "fp32" else "fp32"
    others = {name: other for name, other in others.items() if other != getattr(config, name)}
    # what is no setting: memory is kept on CPUs alone; compiling takes minutes on a CPU and gains nothing there
    options = {"keep_memory": False} if device.type == "cpu" else {"compile": True}
    for name, other in (others | options).items():
        if name in options:
            row = measure_recipe(config, device, repeats, **options)
        else:
            row = measure_recipe(config.replace(**{name: other}), device, repeats)
        rows.append({"setting": name, "value": other, "step": row["step"], "inference": row["inference"]})
    return rows


def measure_loading(config: Config, repeats: int) -> dict[str, float]:
    """ms per image: reading and decoding a file, and warping and augmenting it."""
    records = load_data(config, for_training=False).records[:repeats]
    images = [read_for_network(config, record) for record in records]
    generator, cpu, number = np.random.default_rng(0), torch.device("cpu"), iter(range(10**9))

    def augment() -> Sample:
        index = next(number) % len(records)
        return make_sample(config, records[index], generator, images[index])

    return {
        "read and decode": median_ms(lambda: read_image(records[next(number) % len(records)].path), cpu, repeats),
        "warp and augment": median_ms(augment, cpu, repeats),
    }


def measure_loader(config: Config, device: torch.device, images: int = 64) -> float:
    """Images per second of the training loader on its own, over whole passes after the first, which starts it."""
    loader = make_loader(config, load_data(config, for_training=False).records, train=True)

    def read_all() -> int:
        return sum(len(to_device(batch, device, config.channels_last).name) for batch in loader)

    read_all()
    started, count = time.perf_counter(), 0
    while count < images:
        count += read_all()
    return count / (time.perf_counter() - started)


def cost_curves(config: Config, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Step and inference over image sizes and numbers of landmarks."""
    rows = []
    for factor in (0.25, 0.5, 0.75, 1.0):
        height, width = (max(64, round(factor * side / 32) * 32) for side in (config.height, config.width))
        rows.append(config.replace(height=height, width=width))
    for num_landmarks in (19, 37, 52, 68):
        rows.append(config.replace(num_landmarks=num_landmarks))
    curves = []
    for one in rows:
        row = measure_recipe(one, device, repeats)
        row = {name: row[name] for name in ("step", "inference", "forward_GFLOP_per_image")}
        curves.append({"height": one.height, "width": one.width, "num_landmarks": one.num_landmarks} | row)
    return curves


# --- Table -----------------------------------------------------------------------------------------


def print_table(result: dict[str, Any]) -> None:
    """The result for people."""
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
    print(
        f"matrix product: bf16 {peaks['bf16']:.0f}, fp32 {peaks['fp32']:.0f} GFLOP/s; forward pass "
        f"{ours['forward_GFLOP_per_s']:.0f} GFLOP/s, {ours['forward_GFLOP_per_s'] / peaks['bf16']:.0%} of the bf16 peak"
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
    for row in result.get("curves", []):
        print(
            f"{row['width']} x {row['height']}, {row['num_landmarks']} landmarks: step {row['step']:.0f} ms, inference "
            f"{row['inference']:.0f} ms, {row['forward_GFLOP_per_image']:.0f} GFLOP per image"
        )


def speed_ratios(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """How many times as many images per second."""
    return {
        "training": ours["train_images_per_s"] / reference["train_images_per_s"],
        "inference": ours["inference_images_per_s"] / reference["inference_images_per_s"],
    }


def benchmark(config: Config, effects: bool, curves: bool, repeats: int) -> dict[str, Any]:
    """All measurements of one run."""
    device = prepare_device(config)
    num_landmarks = config.num_landmarks or len(load_data(config, for_training=False).abbreviations)
    config = config.replace(backbone_weights="none", num_landmarks=num_landmarks)  # time does not depend on them
    ours = measure_recipe(config, device, repeats, shares=True)
    reference = config.replace(**REFERENCE)
    references = {"reference": measure_recipe(reference, device, repeats, textbook=True, keep_memory=False)}
    if device.type == "cpu":
        references["reference, memory kept"] = measure_recipe(reference, device, repeats, textbook=True)
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
        "ratios": {name: speed_ratios(ours, reference) for name, reference in references.items()},
    }
    if effects:
        result["effects"] = measure_effects(config, device, repeats)
    if curves:
        result["curves"] = cost_curves(config, device, max(1, repeats // 2))
    return result


def main() -> int:
    """Exit status 2 for settings or data that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effects", action="store_true", help="also with each setting for speed switched over")
    parser.add_argument("--curves", action="store_true", help="also over image sizes and numbers of landmarks")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats of each stage")
    options, rest = parser.parse_known_args()
    try:
        result = benchmark(resolve_config(*parse_arguments(rest)), options.effects, options.curves, options.repeats)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
