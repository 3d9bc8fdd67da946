"""The folder of a run: creating it, its provenance (config.json), its log, and reading and writing checkpoints."""

import contextlib
import csv
import io
import json
import logging
import math
import os
import pickle
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from machine import describe_hardware, process_count
from reading.annotation import read_split
from settings import UNPRINTABLE, UserError, require_file, without_retired

log = logging.getLogger("farnet")

CHECKPOINT_FORMAT = "landmark checkpoint 1"
CHECKPOINT_ENTRIES: dict[str, type] = {  # that every program uses
    "method": str, "settings": dict, "abbreviations": list, "names": list, "images": dict, "model": dict, "epoch": int,
}  # fmt: skip
RESUMED_ENTRIES: dict[str, type] = {  # that last.pt has beside them, or some of them; spacing: best.pt too
    "best_MRE": float, "processes": int, "averaged_steps": int, "training_model": dict, "optimizers": dict,
    "spacing": float,
}  # fmt: skip


def create_run_folder(config: Config, kind: str = "") -> Path:
    """Create and return a new folder, config.run_dir or runs/<method>-<time>.

    kind: "-test" for the test of a checkpoint, which may be repeated in its folder if it failed. Raises UserError if
    the folder exists and holds more than the log of a run that never started.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run_dir = Path(config.run_dir) if config.run_dir else Path("runs") / f"{config.method}{kind}-{stamp}"
    try:
        # a run that was killed before it wrote config.json left nothing to lose
        files = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else {""}
        unstarted = files <= {"log.txt", "config.json.partial"}
        # main.py removes the config.json of a test that failed: its reports are whole and will be written again
        unstarted = unstarted or (bool(kind) and "log.txt" in files and not {"config.json", "last.pt"} & files)
        run_dir.mkdir(parents=True, exist_ok=unstarted)
        (run_dir / "log.txt").touch()
    except FileExistsError:
        message = f"run folder {run_dir} exists already; choose another run_dir, or resume it with --resume {run_dir}"
        raise UserError(message) from None
    except OSError as error:
        raise UserError(f"run folder {run_dir} cannot be written ({error.strerror}); choose another run_dir") from None
    return run_dir


def discard_unstarted(run_dir: Path) -> None:
    """Remove the folder of a run that has not started: it, or its first fold, only contains a log."""
    if not run_dir.is_dir():  # somebody removed it
        return
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


class RunLog(logging.FileHandler):
    """A log file that reports a line it cannot write as UserError, where logging would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        raise UserError(f"{self.baseFilename} cannot be written ({reason_of(error)}); {RESUME}") from None

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # the line that did not fit, which was reported when it was written
            pass


def start_log(run_dir: Path | None) -> None:
    """Log to the terminal and to log.txt of this run, and no longer to that of another run; None: log nowhere."""
    close_log()
    log.setLevel(logging.INFO)
    log.propagate = False
    if run_dir is None:  # not the first process of a run
        log.addHandler(logging.NullHandler())
        return
    log.addHandler(TqdmHandler())
    file = RunLog(run_dir / "log.txt", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)


def close_log() -> None:
    """Close the log of the previous run."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


RESUME = "all files before it are whole: free space, then resume the run with --resume, or repeat the command"


def reason_of(error: BaseException | None) -> str:
    """Return why a file cannot be read or written, in one line."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file to write to; move it to `path` when all is on the disk: path is whole or unchanged.

    All programs write their files here. Raises UserError if the disk is full, or the folder is gone or read-only.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise UserError(f"{path} cannot be written ({reason_of(error)}); {RESUME}") from None
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, write: Callable[[io.BytesIO], Any]) -> None:
    """Write what write(file) puts into a file in memory, whole or not at all. Raises UserError if that fails."""
    content = io.BytesIO()
    write(content)
    with written_whole(path) as file:
        file.write(content.getbuffer())


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises UserError if that fails."""
    write_bytes(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a csv file whole or not at all. Raises UserError if that fails."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def read_metrics(path: Path, epochs: int = 0) -> list[dict[str, Any]]:
    """Return the rows of a metrics.csv with numbers as numbers; [] if there is no file.

    Raises UserError if it is damaged: it must hold successive epochs, and this many or more.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = [
                {k: float(v) if k != "epoch" else int(v) for k, v in row.items()} for row in csv.DictReader(file)
            ]
        start = rows[0]["epoch"] if rows else 1  # later than 1 where an older file was removed
        after = start + len(rows)
        if not start <= epochs + 1 <= after or [row["epoch"] for row in rows] != [*range(start, after)]:
            raise ValueError("epochs are missing")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({reason_of(error)}); restore it, or remove it to go on without") from None
    return rows


def write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.csv with the columns of the last row, whole or not at all. Raises UserError."""
    names = list(rows[-1])
    write_csv(path, [names, *([row.get(name, math.nan) for name in names] for row in rows)])


def write_provenance(
    run_dir: Path, config: Config, parameters: int, device: torch.device, checkpoint: str | None = None
) -> None:
    """Write config.json: the settings, and the command, commit, time, hardware and versions of the run.

    checkpoint: the file whose network was used, where none was trained.
    """
    provenance = {
        "settings": config.to_dict(),
        "argv": sys.argv,
        "commit": source_commit(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **({"checkpoint": checkpoint} if checkpoint else {}),
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
    kept = {name: value for name, value in state.items() if name != "path"}  # which read_checkpoint adds
    with written_whole(path) as file:
        torch.save({"format": CHECKPOINT_FORMAT, **kept}, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what save_checkpoint wrote, without executing anything in the file.

    Its entry "path" is the file itself, for messages.
    Raises UserError for a file that is absent, truncated, damaged, or not a checkpoint of this repository.
    """
    require_file(path, "give a best.pt or last.pt of a run")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load checks no CRC-32, and allocates what the file claims
            claimed = sum(member.file_size for member in archive.infolist())
            if claimed > Path(path).stat().st_size:
                raise ValueError("it claims to hold more bytes than it has")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a checkpoint of this repository (it contains code or other objects, which are not loaded); "
            "give a best.pt or last.pt of a run"
        ) from None
    except Exception as error:  # a damaged file fails in as many ways as there are bits
        raise UserError(
            f"checkpoint {path} cannot be read ({reason_of(error)}); it is truncated or damaged: use another one"
        ) from None
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path} is not a checkpoint of this repository; give a best.pt or last.pt of a run")
    state.setdefault("names", state.get("abbreviations"))
    check_entries(path, state)
    return state | {"settings": without_retired(state["settings"]), "path": str(path)}


def check_entries(path: str | Path, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint in which an entry is absent or has a wrong type or range. Raises UserError."""
    for name, kind in (CHECKPOINT_ENTRIES | RESUMED_ENTRIES).items():
        if name not in state and name in RESUMED_ENTRIES:
            continue
        value: Any = state.get(name)
        good = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if good and kind is int:
            good = 0 <= value < 10**9
        elif good and kind is float:
            good = value == value  # not nan
        elif good and kind in (list, dict):
            held = {"model": Tensor, "training_model": Tensor, "optimizers": dict, "settings": object}.get(name, str)
            good = all(isinstance(item, str) and not UNPRINTABLE.search(item) for item in value)
            good = good and (kind is list or all(isinstance(item, held) for item in value.values()))
        if good and name == "settings":
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError):  # a tensor, for one
                good = False
        if not good:
            what = "is absent" if name not in state else f"has a wrong value ({type(value).__name__})"
            raise UserError(f"checkpoint {path}: its entry {name!r} {what}; give a best.pt or last.pt of a run")
    landmarks, count = state["abbreviations"], state["settings"].get("num_landmarks")
    if not landmarks or not len(set(landmarks)) == len(landmarks) == len(state["names"]) == count:
        raise UserError(f"checkpoint {path}: its landmarks, their names and their number disagree; use another one")
    for split in set(state["images"].values()):  # main.py makes folders with these names
        read_split(f"checkpoint {path}: its entry 'images'", split)


def load_weights(path: str | Path, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a checkpoint, exactly those that it holds: torch would cast other numbers without a word.

    Raises UserError, which names the file, unless names, shapes and types are the network's and all numbers are finite.
    """
    own = network.state_dict()
    for name in {**own, **weights}:
        if name not in weights or name not in own:
            reason = f"{name} is {'absent' if name in own else 'unknown'}"
        elif describe_tensor(weights[name]) != describe_tensor(own[name]):
            reason = f"{name} is {describe_tensor(weights[name])}, not {describe_tensor(own[name])}"
        elif not weights[name].isfinite().all():
            reason = f"{name} holds nan or infinite values"
        else:
            continue
        raise UserError(f"checkpoint {path}: its weights cannot be used: {reason}; use another one")
    network.load_state_dict(dict(weights))


def describe_tensor(tensor: Tensor) -> str:
    """Return shape and type of a tensor, and how it is stored if that is unusual, in one line."""
    odd = "" if tensor.layout == torch.strided and not tensor.is_meta else " (sparse or without numbers)"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"


def seen_images(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the images, by fingerprint, on which a checkpoint was trained ("train") or selected ("val")."""
    if state["settings"].get("split") == "same":
        return dict.fromkeys(state["images"], "train")
    return {image: split for image, split in state["images"].items() if split in ("train", "val")}
