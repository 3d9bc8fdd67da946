"""Train a method, test it on every test set, write the report.

python main.py                                       the settings of config.py
python main.py --preset demo                         presets, e.g. the bundled phantoms in a few minutes
python main.py --config FILE.json --epochs 100       settings from a file and the command line
python main.py --resume runs/farnet-...              go on with a run that was stopped
python main.py --test runs/farnet-.../best.pt        only test, with the settings of the checkpoint
python main.py --folds 4                             cross-validation: four runs and a pooled report
torchrun --nproc_per_node=4 main.py ...              any of these on four GPUs
"""

import argparse
import json
import logging
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from config import (
    PRESETS,
    Config,
    UserError,
    build_config,
    check_names,
    parse_text,
    preset_settings,
    read_settings,
    setting_types,
)
from data import make_loader
from evaluate import evaluate, prepare_detector
from machine import join_processes, leave_processes, on_first_process, process_rank, resolve_device
from methods import METHODS, create_detector, load_detector, method_class
from reading.annotation import Record
from reading.splits import LandmarkData, load_data
from reporting.explain import draw_explanations
from reporting.measurements import measure
from reporting.pictures import draw_overlays, draw_rates
from reporting.report import pool_predictions, read_predictions, summary_table, write_predictions, write_report
from run_folder import create_run_folder, discard_unstarted, read_checkpoint, source_commit, start_log, write_provenance
from train import train

log = logging.getLogger("farnet")

# What may change when a run goes on: where and how long it runs, not what is trained.
RESUMABLE = (
    "epochs",
    "device",
    "workers",
    "save_every",
    "watch_every",
    "gif",
    "overlays",
    "explain",
    "explain_landmarks",
    "img_dir",
    "json_path",
)


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes as UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str | None]]:
    """The options, and the settings given as --<setting> VALUE (or --<setting>=VALUE) as text; none without VALUE."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    presets = dict.fromkeys(name for cls in METHODS.values() for name in (*PRESETS, *cls.Config.presets))
    parser.add_argument("--preset", nargs="+", default=[], metavar="P", help=f"any of {', '.join(presets)}; later wins")
    parser.add_argument("--config", metavar="FILE.json", help="settings by name, e.g. a run's config.json")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")
    action.add_argument("--test", metavar="CHECKPOINT", help="test this best.pt or last.pt, no training")
    shared = setting_types(Config)
    groups = {"every setting of config.py is an option too": list(shared)}
    for method, cls in METHODS.items():
        groups[f"and of --method {method}"] = [name for name in setting_types(cls.Config) if name not in shared]
    parser.epilog = "\n\n".join(
        textwrap.fill(f"{words}: {' '.join(f'--{name}' for name in names)}", 110, break_on_hyphens=False)
        for words, names in groups.items()
        if names
    )
    options, rest = parser.parse_known_args(arguments)
    overrides: dict[str, str | None] = {}
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(f"unexpected argument {name!r}; settings are given as --<setting> VALUE")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else None
        overrides[name[2:]] = value
    return options, overrides


def parse_settings(config_class: type[Config], overrides: dict[str, str | None]) -> dict[str, Any]:
    """The command line's settings with their types; one that is true or false needs no value to be true.

    Raises UserError for an unknown name, a mistyped value, or none.
    """
    hints = setting_types(config_class)
    check_names(overrides, hints, "setting")
    for name, text in overrides.items():
        if text is None and hints[name] is not bool:
            raise UserError(f"setting {name} has no value; give --{name} VALUE")
    return {name: parse_text(name, "true" if text is None else text, hints[name]) for name, text in overrides.items()}


def resolve_config(options: argparse.Namespace, overrides: dict[str, str | None]) -> Config:
    """The settings of a new run: defaults < presets < file < command line."""
    from_file = read_settings(options.config) if options.config else {}
    method = overrides.get("method")
    if method is None:
        method = from_file.get("method") or preset_settings(Config, options.preset).get("method") or Config.method
    cls = method_class(method).Config
    settings = preset_settings(cls, options.preset) | from_file | parse_settings(cls, overrides)
    return build_config(cls, settings | {"method": method})


def resolve_resumed_config(options: argparse.Namespace, overrides: dict[str, str | None]) -> tuple[Config, Path]:
    """The settings of the run to go on with, and its folder. Raises UserError for a change of what is trained."""
    run_dir = Path(options.resume)
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir} is no run folder: it has no config.json")
    if options.preset or options.config:
        raise UserError("--resume takes the settings of its run; leave out --preset and --config")
    check_names(overrides, RESUMABLE, "setting that a resumed run may change named")
    settings = read_settings(run_dir / "config.json")
    cls = method_class(settings.get("method", Config.method)).Config
    return build_config(cls, settings | parse_settings(cls, overrides)), run_dir


def resolve_tested_config(
    options: argparse.Namespace, overrides: dict[str, str | None]
) -> tuple[Config, dict[str, Any]]:
    """A checkpoint's settings with the changes asked for, and the checkpoint.

    Raises UserError for a change of what the weights were made for.
    """
    state = read_checkpoint(options.test)
    cls = method_class(state["method"]).Config
    changes = preset_settings(cls, options.preset)
    changes |= (read_settings(options.config) if options.config else {}) | parse_settings(cls, overrides)
    for name in cls.of_the_weights:
        if name in changes and changes[name] != state["settings"][name]:
            raise UserError(
                f"{options.test} was trained with {name} {state['settings'][name]}, not {changes[name]}; use another "
                f"checkpoint, or leave out {name}"
            )
    return build_config(cls, state["settings"] | {"run_dir": None} | changes), state


def test(config: Config, run_dir: Path, data: LandmarkData, state: dict[str, Any]) -> None:
    """Predict every test set with a checkpoint; write the report of each into run_dir/<test set>."""
    started = time.perf_counter()
    device = resolve_device(config.device)
    detector = prepare_detector(state, config, device)
    if not data.test_sets:
        log.warning("there is no test set (splits: %s): no report; set test_fraction", ", ".join(data.splits))
    for test_set in data.test_sets:
        records = data.select(test_set)
        folder = run_dir / test_set
        loader = make_loader(config, records, train=False, views=config.views)
        predictions = evaluate(detector, loader, device, state["epoch"] - 1)
        if process_rank() > 0:
            continue
        folder.mkdir(exist_ok=True)
        write_predictions(folder / "predictions.csv", predictions, data.abbreviations, data.unit)
        table = report(config, run_dir, folder, data, records)
        if config.explain:
            whole, _ = load_detector(state)
            whole.config = config
            draw_explanations(folder, records, whole.to(device))
        log.info("test set %s, report in %s\n%s", test_set, folder, table)
    log.info("tested in %.1f min", (time.perf_counter() - started) / 60)


def report(config: Config, run_dir: Path, folder: Path, data: LandmarkData, records: Sequence[Record]) -> str:
    """Everything that is made from folder/predictions.csv, which is of these records; the figures as text."""
    names, abbreviations, columns, _ = read_predictions(folder / "predictions.csv")
    by_name = {record.name: record for record in records}
    own = [by_name[name] for name in names]
    points = [np.stack([columns[x], columns[y]], -1) for x, y in (("x", "y"), ("x_true", "y_true"))]
    sizes, spacing = [record.size for record in own], [record.spacing for record in own]
    measured = measure(config.measurements, abbreviations, *points, sizes, spacing)
    provenance = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    summary = write_report(folder, data.names, config.report_exclude, config.sdr_thresholds, provenance, measured)
    draw_overlays(folder, records, config.overlays)
    draw_rates(folder, config.sdr_thresholds)
    return summary_table(summary, config.sdr_thresholds)


def run_training(config: Config, run_dir: Path) -> LandmarkData:
    """Train, or go on training, then test with the best checkpoint; the last one where there is no val split."""
    try:
        data = train(config, run_dir)
    except KeyboardInterrupt:
        if (run_dir / "last.pt").exists():
            log.warning("stopped; go on with: python main.py --resume %s", run_dir)
        raise
    best, last = run_dir / "best.pt", run_dir / "last.pt"
    state = read_checkpoint(on_first_process(lambda: best if best.exists() else last))
    test(config.replace(crop=tuple(state["settings"].get("crop", config.crop))), run_dir, data, state)
    return data


def run_folds(config: Config, run_dir: Path) -> None:
    """Cross-validation: a whole run for each fold in run_dir/fold1, ...; their predictions pooled in run_dir/pooled.

    Goes on with the folds that are there.
    """
    first, device = process_rank() == 0, resolve_device(config.device)
    if first and not (run_dir / "config.json").exists():
        write_provenance(run_dir, config, create_detector(config.replace(backbone_weights="none")).size, device)
    folders = [run_dir / f"fold{fold}" for fold in range(1, config.folds + 1)]
    for fold, folder in enumerate(folders, 1):
        if first:
            folder.mkdir(exist_ok=True)
            start_log(folder)
        log.info("fold %d of %d", fold, config.folds)
        data = run_training(config.replace(fold=fold, run_dir=str(folder)), folder)
    if first:
        start_log(run_dir)
        pooled = run_dir / "pooled"
        pooled.mkdir(exist_ok=True)
        pool_predictions([folder / "test" / "predictions.csv" for folder in folders], pooled / "predictions.csv")
        table = report(config, run_dir, pooled, data, data.records)
        log.info("%d folds together, report in %s\n%s", config.folds, pooled, table)


def run_test(config: Config, run_dir: Path, state: dict[str, Any]) -> None:
    """Test a checkpoint that was read. Without splits of their own, images new to it form the test set."""
    data = load_data(config, state["abbreviations"], seen=state["images"], for_training=False)
    detector, _ = load_detector(state)
    if process_rank() == 0:
        write_provenance(run_dir, config, detector.size, resolve_device(config.device))
    test(config, run_dir, data, state)


def run(arguments: list[str]) -> None:
    """Everything that main.py does. Raises UserError."""
    options, overrides = parse_arguments(arguments)
    run_dir: Path | None = None
    state: dict[str, Any] = {}
    if options.resume:
        config, run_dir = resolve_resumed_config(options, overrides)
    elif options.test:
        config, state = resolve_tested_config(options, overrides)
    else:
        config = resolve_config(options, overrides)
    join_processes(resolve_device(config.device))
    try:
        if not options.resume:
            run_dir = on_first_process(lambda: create_run_folder(config, "-test" if options.test else ""))
        start_log(run_dir if process_rank() == 0 else None)
        log.info("run folder %s, commit %s", run_dir, source_commit())
        if options.test:
            run_test(config, run_dir, state)
        elif config.folds and not config.fold:
            run_folds(config, run_dir)
        else:
            run_training(config, run_dir)
    except UserError:
        if process_rank() == 0 and run_dir is not None:
            discard_unstarted(run_dir)
        raise
    leave_processes()


def main() -> int:
    """Exit status: 0 done, 2 a mistake of the user or a full or forbidden disk (said in one line), 130 interrupted."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}; free space, close the file, or choose another run_dir"
    except torch.OutOfMemoryError:
        message = "the device has not enough memory: lower batch_size, or set precision to bf16"
    except KeyboardInterrupt:
        return 130
    else:
        return 0
    # a loader process reports its error with a traceback, the message in the last line
    process = f"process {os.environ['RANK']}: " if os.environ.get("RANK", "0") != "0" else ""
    print(f"{process}error: {message.splitlines()[-1].removeprefix('config.UserError: ')}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
