"""What a program computes on: its device, that device's precision, memory and name; its processes under torchrun; and
its exit status.

A run that was not started by torchrun is one process; every function here then does the plain thing.
"""

import ctypes
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from config import PRESETS, Config
from settings import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

T = TypeVar("T")


# --- Device --------------------------------------------------------------------------------------


def resolve_device(name: str) -> torch.device:
    """The device of a `device` setting: auto is CUDA if there is one. Raises UserError if it is not there.

    Under torchrun, auto and cuda are the GPU of this process.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        if torch.cuda.is_available() and local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started more processes on this machine than its {torch.cuda.device_count()} GPUs; lower "
                "--nproc_per_node, or set device to cpu"
            )
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        reason = "only CPU and CUDA are tested" if device.type not in ("cpu", "cuda") else ""
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise UserError(f"setting device: {name} cannot be used here ({reason}); allowed: auto, cpu, cuda, cuda:N")
    return device


def training_command(img_dir: str | Path, json_path: str | Path, *options: str, data_preset: str = "") -> str:
    """Return the whole command of the best measured recipe for this machine (docs/training.md), on a data set.

    data_preset: the preset that belongs to the data, e.g. spine.
    """
    presets, size = [*filter(None, [data_preset]), "modern"], []
    if not torch.cuda.is_available():
        presets.append("cpu")
        data, cpu = PRESETS.get(data_preset, {}), PRESETS["cpu"]
        if "height" in data:  # as many px as cpu has, but in the shape that fits the data: tall for a spine
            scale = math.sqrt(cpu["height"] * cpu["width"] / (data["height"] * data["width"]))
            for side in ("height", "width"):
                size += [f"--{side}", str(32 * round(data[side] * scale / 32))]
    places = ["--img_dir", str(img_dir), "--json_path", str(json_path)]
    return shlex.join(["python", "main.py", "--preset", *presets, *size, *places, *options])


def prepare_device(config: Config) -> torch.device:
    """Return the device of config.device, with torch set up for it as a run needs it. Raises UserError."""
    device = resolve_device(config.device)
    keep_freed_memory(device)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not config.deterministic
    if config.deterministic:  # cuBLAS asks for this before its first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    return device


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a precision setting means bf16 on this device; auto asks for hardware that multiplies in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory(device: torch.device) -> bool:
    """Tell glibc to keep freed blocks for the next step instead of giving them back to the system; whether it does.

    Every step on a CPU allocates the same large tensors; mapping their pages anew took a third of a step
    (measured: 0.55 -> 0.36 s per image). Elsewhere than on Linux with glibc this does nothing.
    """
    if device.type != "cpu" or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))  # no block apart; never give back


def peak_memory() -> int | None:
    """Most bytes of memory this process has held at once so far; None where the system does not tell.

    On Linux from /proc: getrusage's ru_maxrss there begins with the peak of whichever process started this one.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_text(device: torch.device) -> str:
    """Peak memory of this process so far: the device's, or the host's on a CPU."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return "?" if peak is None else f"{peak / 2**30:.1f}GB"


def describe_hardware(device: torch.device) -> str:
    """The device a run computes on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


# --- Processes -----------------------------------------------------------------------------------


def join_processes(device: torch.device) -> None:
    """Join the other processes that torchrun started: over nccl on CUDA, over gloo on a CPU."""
    if torch.distributed.is_torchelastic_launched() and not torch.distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave_processes() -> None:
    """Undo join_processes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def process_rank() -> int:
    """The number of this process among all of the run, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def process_count() -> int:
    """How many processes share the run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def take_share(items: Sequence[T]) -> Sequence[T]:
    """The items that this process is to work on; merge_shares puts the results together again."""
    return items[process_rank() :: process_count()]


def gather_shares(share: T) -> list[T]:
    """What each process holds, in the order of their ranks, on every process."""
    shares: list[Any] = [share] * process_count()
    if process_count() > 1:
        torch.distributed.all_gather_object(shares, share)
    return shares


def merge_shares(share: list[T]) -> list[T]:
    """One result for each item of take_share -> the results for all items in their order, on every process."""
    shares = gather_shares(share)
    merged: list[Any] = [None] * sum(map(len, shares))
    for rank, part in enumerate(shares):
        merged[rank :: len(shares)] = part
    return merged


def mean_over_processes(values: Mapping[str, float]) -> dict[str, float]:
    """Each value averaged over the processes; all of them must name the same values."""
    if process_count() == 1:
        return dict(values)
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return dict(zip(values, (total / process_count()).tolist(), strict=True))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of some parameters by their means over the processes, in one exchange."""
    if process_count() > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(together)
        parts = (together / process_count()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers, such as the running statistics of batch norm."""
    if process_count() > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def on_first_process(work: Callable[[], T]) -> T:
    """Do a piece of work, such as making a folder, on the first process alone; its result, or UserError, on all."""
    if process_count() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if process_rank() == 0:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = str(error)
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


# --- Exit status ---------------------------------------------------------------------------------


def exit_status(work: Callable[[], int | None]) -> int:
    """Run a program's work; return its own status, else 0.

    2 for what the user can mend, such as a wrong setting or a full disk, said in one line on standard error; 130 for
    Ctrl-C. Errors of the program itself are raised.
    """
    try:
        return work() or 0
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno is None:
            raise
        name = f"{error.filename}: " if error.filename is not None else ""
        message = f"{name}{error.strerror}; free space, close the file, or choose another place to write to"
    except torch.OutOfMemoryError:
        message = "the device has not enough memory: lower batch_size, or set precision to bf16"
    except KeyboardInterrupt:
        return 130
    # a loader process reports its error with a traceback, the message in the last line
    message = message.splitlines()[-1].removeprefix("settings.UserError: ")
    process = f"process {os.environ['RANK']}: " if os.environ.get("RANK", "0") != "0" else ""
    print(f"{process}error: {message}", file=sys.stderr)
    return 2
