"""The folder of a run: creating it, its provenance (config.json), its log, and reading and writing checkpoints."""

import contextlib
import json
import logging
import os
import pickle
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from tqdm import tqdm

from config import Config
from machine import describe_hardware, process_count
from settings import UserError, without_retired

log = logging.getLogger("farnet")

CHECKPOINT_FORMAT = "landmark checkpoint 1"


def create_run_folder(config: Config, kind: str = "") -> Path:
    """Create and return a new folder, config.run_dir or runs/<method>-<time>. Raises UserError if it exists."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run_dir = Path(config.run_dir) if config.run_dir else Path("runs") / f"{config.method}{kind}-{stamp}"
    try:
        run_dir.mkdir(parents=True, exist_ok=False)
        (run_dir / "log.txt").touch()
    except FileExistsError:
        message = f"run folder {run_dir} exists already; choose another run_dir, or resume it with --resume {run_dir}"
        raise UserError(message) from None
    except OSError as error:
        raise UserError(f"run folder {run_dir} cannot be written ({error.strerror}); choose another run_dir") from None
    return run_dir


def discard_unstarted(run_dir: Path) -> None:
    """Remove the folder of a run that has not started: it, or its first fold, only contains a log."""
    first_fold = run_dir / "fold1"
    if first_fold.exists():
        discard_unstarted(first_fold)
        if {path.name for path in run_dir.iterdir()} == {"config.json", "log.txt"}:
            (run_dir / "config.json").unlink()
    if [path.name for path in run_dir.iterdir()] == ["log.txt"]:
        close_log()
        (run_dir / "log.txt").unlink()
        run_dir.rmdir()


class TqdmHandler(logging.StreamHandler):
    """A handler that prints log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_log(run_dir: Path | None) -> None:
    """Log to the terminal and to log.txt of this run, and no longer to that of another run; None: log nowhere."""
    close_log()
    log.setLevel(logging.INFO)
    log.propagate = False
    if run_dir is None:  # not the first process of a run
        log.addHandler(logging.NullHandler())
        return
    log.addHandler(TqdmHandler())
    file = logging.FileHandler(run_dir / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)


def close_log() -> None:
    """Close the log of the previous run."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def written_whole(path: Path, remedy: str) -> Iterator[Path]:
    """Give a temporary path to write to; move it to `path` when all is written, so that path is whole or unchanged.

    Raises UserError, ending with the remedy, if the disk is full or the folder cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        partial.unlink(missing_ok=True)
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be written ({reason}); {remedy}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises UserError if that fails."""
    with written_whole(path, "free space or choose another run_dir") as partial:
        partial.write_text(text, encoding="utf-8")


def write_provenance(run_dir: Path, config: Config, parameters: int, device: torch.device) -> None:
    """Write config.json: the settings, and the command, commit, time, hardware and versions of the run."""
    provenance = {
        "settings": config.to_dict(),
        "argv": sys.argv,
        "commit": source_commit(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "parameters": parameters,
        "processes": process_count(),
        "hardware": describe_hardware(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }
    write_text(run_dir / "config.json", json.dumps(provenance, indent=2, ensure_ascii=False))


def source_commit() -> str:
    """Return the commit of this source tree, with "+changes" if it was edited; "unknown" outside git."""
    folder = Path(__file__).parent
    try:
        call: dict[str, Any] = dict(cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **call).stdout.strip()
        edited = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **call).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if edited else "")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write state dicts and plain values whole or not at all. Raises UserError if that fails."""
    remedy = f"the previous checkpoint is intact: free space, then python main.py --resume {path.parent}"
    with written_whole(path, remedy) as partial, open(partial, "wb") as file:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what save_checkpoint wrote, without executing anything in the file.

    Raises UserError for a file that is absent, truncated, or not a checkpoint of this repository.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a checkpoint in it, e.g. {Path(path) / 'best.pt'}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a checkpoint of this repository (it contains code or other objects, which are not loaded); "
            "give a best.pt or last.pt of a run"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}); it may be truncated: use another one") from None
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path} is not a checkpoint of this repository; give a best.pt or last.pt of a run")
    return state | {"settings": without_retired(state.get("settings", {}))}


def seen_images(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the images, by fingerprint, on which a checkpoint was trained ("train") or selected ("val")."""
    if state["settings"].get("split") == "same":
        return dict.fromkeys(state["images"], "train")
    return {image: split for image, split in state["images"].items() if split in ("train", "val")}
