"""Train a method, test it on every test set and write the report.

python main.py                                       the settings of config.py
python main.py --preset demo                         presets, e.g. the bundled phantoms in a few minutes
python main.py --config FILE.json --epochs 100       settings from a file and from the command line
python main.py --resume runs/farnet-...              resume an interrupted run
python main.py --test runs/farnet-.../best.pt        test a checkpoint with its settings, or the mean of several
python main.py --folds 4                             cross-validation: four runs and a pooled report
torchrun --nproc_per_node=4 main.py ...              any of these on four GPUs
"""

import argparse
import contextlib
import logging
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import PRESETS, Config
from data import make_loader
from evaluate import average_members, evaluate
from machine import exit_status, join_processes, leave_processes, on_first_process, prepare_device, process_rank
from methods import METHODS, create_detector, load_detector, method_class, trained_config
from reading.annotation import read_annotation
from reading.splits import LandmarkData, load_data
from reporting.explain import draw_explanations
from reporting.memory import join_memories, read_memory, recall, share_errors
from reporting.predictions import pool_predictions, read_predictions, write_predictions
from reporting.report import report
from reporting.trust import assess
from run_folder import (
    create_run_folder,
    discard_unstarted,
    read_checkpoint,
    save_checkpoint,
    source_commit,
    start_log,
    write_provenance,
)
from settings import (
    Parser,
    UserError,
    build_config,
    parse_settings,
    preset_settings,
    read_json,
    read_settings,
    setting_comments,
)
from train import train

log = logging.getLogger("farnet")

Tested = tuple[Config, dict[str, Any]]  # the settings of a test, and the checkpoint
Overrides = dict[str, str | None]  # settings from the command line, as text; None: given without a value
# Settings that may change when a run is resumed: where and how long it runs, not what it trains.
RESUMABLE = (
    "epochs", "device", "workers", "save_every", "watch_every", "overlays", "explain", "explain_landmarks", "img_dir",
    "json_path", "report_exclude", "report_by", "circles",
)  # fmt: skip


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Return the options, and the settings given as --<setting> VALUE or --<setting>=VALUE. Raises UserError."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="settings, each with its default; edit them in config.py:\n\n" + describe_settings(),
    )  # fmt: skip
    presets = dict.fromkeys(name for cls in METHODS.values() for name in (*PRESETS, *cls.Config.presets))
    parser.add_argument("--preset", nargs="+", default=[], metavar="P", help=f"any of {', '.join(presets)}; later wins")
    parser.add_argument("--config", metavar="FILE.json", help="settings by name, e.g. a run's config.json")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--resume", metavar="RUN", help="folder of a run to resume")
    action.add_argument(
        "--test", nargs="+", metavar="CHECKPOINT", help="best.pt or last.pt to test; several: their mean"
    )
    options, rest = parser.parse_known_args(arguments)
    overrides: Overrides = {}
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(f"unexpected argument {name!r}; settings are given as --<setting> VALUE")
        overrides[name[2:]] = text if equals else None
        if not equals and rest and not rest[0].startswith("--"):
            overrides[name[2:]] = rest.pop(0)
    return options, overrides


def describe_settings() -> str:
    """Return every setting with its default and its comment in the source, for --help."""
    classes = {f"--method {name}": cls.Config for name, cls in METHODS.items() if cls.Config is not Config}
    lines: list[str] = []
    for title, cls in ({"": Config} | classes).items():
        for section, comments in setting_comments(cls).items():
            lines.append(f"{title or section}:")
            for name, comment in comments.items():
                head = f"  --{name} {value_text(getattr(cls, name))}"
                lines += textwrap.wrap(f"{head:<32} {comment}", 118, subsequent_indent=" " * 33)
            lines.append("")
    return "\n".join(lines).replace("%", "%%")


def resolve_config(options: argparse.Namespace, overrides: Overrides) -> Config:
    """Return the settings of a new run: config.py < presets < file < command line.

    Raises UserError, also for a wrong value in config.py that a preset replaces.
    """
    from_file = read_settings(options.config) if options.config else {}
    method = overrides.get("method")
    if method is None:
        method = from_file.get("method") or preset_settings(Config, options.preset).get("method") or Config.method
    cls = method_class(method).Config
    build_config(cls, {"method": method})
    settings = preset_settings(cls, options.preset) | from_file | parse_settings(cls, overrides)
    return build_config(cls, settings | {"method": method})


def describe_replaced(config: Config, presets: Sequence[str]) -> str:
    """Return the values of config.py that a run's method and presets replaced, as "name: old -> new, ..."."""
    edited, given = vars(Config(method=config.method)), vars(type(config)()) | preset_settings(type(config), presets)
    pairs = [(name, old, given[name]) for name, old in edited.items() if given[name] == getattr(config, name)]
    return ", ".join(f"{name}: {value_text(old)} -> {value_text(new)}" for name, old, new in pairs if old != new)


def value_text(value: Any) -> str:
    """Return a setting's value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(value_text, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def resolve_resumed_config(options: argparse.Namespace, overrides: Overrides) -> tuple[Config, Path]:
    """Return the settings of the run to resume, and its folder. Raises UserError for any other change."""
    run_dir = Path(options.resume)
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir} is not a run folder: it has no config.json")
    provenance = read_json(run_dir / "config.json")
    if isinstance(provenance, dict) and re.search("'--test[=']|predict.py'", str(provenance.get("argv"))):
        raise UserError(f"{run_dir} holds a test or predictions, not a training run; repeat its command instead")
    if options.preset or options.config:
        raise UserError("--resume takes the settings of its run; leave out --preset and --config")
    for name in overrides:
        if name not in RESUMABLE:
            raise UserError(f"a resumed run cannot change {name}; it can change: {', '.join(RESUMABLE)}")
    settings = read_settings(run_dir / "config.json")
    cls = method_class(settings.get("method", Config.method)).Config
    return build_config(cls, settings | parse_settings(cls, overrides)), run_dir


def resolve_tested_config(path: str, options: argparse.Namespace, overrides: Overrides) -> Tested:
    """Return a checkpoint's settings with the requested changes, and the checkpoint.

    Raises UserError for a change of a setting that its weights depend on.
    """
    state = read_checkpoint(path)
    trained = trained_config(state)
    cls = type(trained)
    changes = preset_settings(cls, options.preset)
    changes |= (read_settings(options.config) if options.config else {}) | parse_settings(cls, overrides)
    for name in cls.fixed_by_weights:
        value = getattr(trained, name)
        if changes.get(name, value) not in (None, value):
            raise UserError(
                f"{path} was trained with {name} {value}, not {changes[name]}; use another "
                f"checkpoint, or leave out {name}"
            )
    changes["num_landmarks"] = state["settings"]["num_landmarks"]
    return build_config(cls, state["settings"] | {"run_dir": None} | changes), state


def test(run_dir: Path, data: LandmarkData, tested: Sequence[Tested]) -> None:
    """Predict every test set with checkpoints, as their mean, and write the report of each to run_dir/<test set>."""
    config, started, device = tested[0][0], time.perf_counter(), prepare_device(tested[0][0])
    detectors = [load_detector(state, own).to(device) for own, state in tested]
    fast = [detector.for_inference() for detector in detectors]
    memories = [read_memory(state) for _, state in tested]
    if not data.test_sets:
        log.warning("no test set (splits: %s), so no report; set test_fraction", ", ".join(data.splits))
    for test_set in data.test_sets:
        records = data.select(test_set)
        folder = run_dir / test_set
        members = []
        for detector, (own, state) in zip(fast, tested, strict=True):
            loader = make_loader(own, records, train=False)
            members.append(evaluate(detector, loader, device, state["epoch"] - 1, own.views))
        mean, figures = average_members([(each.landmarks, {"score": each.score, **each.extras}) for each in members])
        predictions = members[0]._replace(landmarks=mean, score=figures.pop("score"), extras=figures)
        predictions = assess(join_memories(memories), predictions, data.abbreviations, data.unit)
        if process_rank() > 0:
            continue
        folder.mkdir(exist_ok=True)
        for number, each in enumerate(members if len(members) > 1 else [], 1):  # for tools.compare
            each = assess(memories[number - 1], each, data.abbreviations, data.unit)
            write_predictions(folder / f"member{number}.csv", each, data.abbreviations, data.unit)
        write_predictions(folder / "predictions.csv", predictions, data.abbreviations, data.unit)
        table = read_predictions(folder / "predictions.csv")
        summary = report(config, run_dir, folder, data, records, table, [state["path"] for _, state in tested])
        if config.explain and len(tested) > 1:
            log.warning("explain: activation maps are those of one network; test one checkpoint to draw them")
        elif config.explain:
            draw_explanations(folder, table, records, detectors[0])
        log.info("test set %s, report in %s\n%s", test_set, folder, summary)
    log.info("tested in %.1f min", (time.perf_counter() - started) / 60)


def run_training(config: Config, run_dir: Path) -> LandmarkData:
    """Train or resume, then test the best checkpoint, or the last one without a val split; return the data set."""
    data = train(config, run_dir)
    path = on_first_process(lambda: tested_checkpoint(run_dir))
    state = read_checkpoint(path)
    config = config.replace(crop=trained_config(state).crop, num_landmarks=len(data.abbreviations))
    state.pop("shared_memory", None)  # of all folds: it knows this fold's test images
    if "memory" not in state:
        state["memory"] = recall(config, data, state).to_state()
        if process_rank() == 0:
            save_checkpoint(path, state)
    test(run_dir, data, [(config, state)])
    return data


def tested_checkpoint(run_dir: Path) -> Path:
    """Return the checkpoint of a run that is tested: best.pt, or last.pt without a val split."""
    best = run_dir / "best.pt"
    return best if best.exists() else run_dir / "last.pt"


def run_folds(config: Config, run_dir: Path) -> None:
    """Cross-validate: train and test each fold in run_dir/fold1, ..., then report their pooled predictions.

    The pooled report is in run_dir/pooled. Folds that exist are resumed.
    """
    first = process_rank() == 0
    if first and not (run_dir / "config.json").exists():
        abbreviations, *_ = read_annotation(config.json_path, config.img_dir, config.num_landmarks)
        counted = config.without_pretrained().replace(num_landmarks=len(abbreviations))
        write_provenance(run_dir, config, create_detector(counted).num_parameters, prepare_device(config))
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
        table = read_predictions(pooled / "predictions.csv")
        share_errors([tested_checkpoint(folder) for folder in folders], table)
        figures = report(config, run_dir, pooled, data, data.records, table)
        log.info("all %d folds, report in %s\n%s", config.folds, pooled, figures)


def run_test(run_dir: Path, tested: Sequence[Tested]) -> None:
    """Test checkpoints, as their mean. If the records name no splits, the images that none has seen form the test set.

    Raises UserError if the checkpoints do not find the same landmarks in the same order.
    """
    (config, first), seen = tested[0], dict[str, str]()
    for _, state in tested:
        if state["abbreviations"] != first["abbreviations"]:
            raise UserError(f"{state['path']} does not find the landmarks of {first['path']} in their order")
        seen |= {image: split for image, split in state["images"].items() if seen.get(image) not in ("train", "val")}
    data = load_data(config, first["abbreviations"], seen=seen, for_training=False)
    if any(record.fingerprint in seen for name in data.test_sets for record in data.select(name)):
        for _, state in tested:
            state.pop("shared_memory", None)  # of all folds: it may know these images
    if process_rank() == 0:
        parameters = sum(load_detector(state).num_parameters for _, state in tested)
        write_provenance(run_dir, config, parameters, prepare_device(config), str(first["path"]))
    test(run_dir, data, tested)


def run(arguments: list[str]) -> None:
    """Run main.py with these command-line arguments. Raises UserError."""
    options, overrides = parse_arguments(arguments)
    tested: list[Tested] = []
    if options.resume:
        config, run_dir = resolve_resumed_config(options, overrides)
    elif options.test:
        tested = [resolve_tested_config(path, options, overrides) for path in options.test]
        config = tested[0][0]
    else:
        config = resolve_config(options, overrides)
    join_processes(prepare_device(config))
    if not options.resume:
        run_dir = on_first_process(lambda: create_run_folder(config, "-test" if options.test else ""))
    try:
        start_log(run_dir if process_rank() == 0 else None)
        log.info("run folder %s, commit %s", run_dir, source_commit())
        if not (options.test or options.resume) and (replaced := describe_replaced(config, options.preset)):
            source = " ".join(["--method", config.method, *(["--preset", *options.preset] if options.preset else [])])
            log.info("%s replaced these values of config.py: %s", source, replaced)
        if options.test:
            run_test(run_dir, tested)
        elif config.folds and not config.fold:
            run_folds(config, run_dir)
        else:
            run_training(config, run_dir)
    except BaseException as error:
        if process_rank() == 0:
            if options.test:  # so that the same command can be given again
                (run_dir / "config.json").unlink(missing_ok=True)
            if isinstance(error, UserError | KeyboardInterrupt):
                discard_unstarted(run_dir)
            if (run_dir / "config.json").exists():
                with contextlib.suppress(UserError):  # the log may be what failed
                    log.warning("stopped; resume with: python main.py --resume %s", run_dir)
        raise
    leave_processes()


def main() -> int:
    """Run main.py; return the exit status: 0 done, 2 an error that the user can fix, 130 interrupted."""
    return exit_status(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
