"""The machine that a program runs on: device, precision, memory and hardware; processes under torchrun; exit status.

A run that torchrun did not start is a single process, in which the functions on processes change nothing.
"""

import ctypes
import gc
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

T = TypeVar("T")


# --- Device --------------------------------------------------------------------------------------


def resolve_device(name: str) -> torch.device:
    """Return the device of a `device` setting; auto is CUDA if there is a GPU. Raises UserError if it cannot be used.

    Under torchrun, auto and cuda mean the GPU of this process.
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
        data, cpu = PRESETS.get(data_preset, {}), {"width": Config.width} | PRESETS["cpu"]
        if "height" in data:  # as many px as cpu has, but in the shape that fits the data: tall for a spine
            scale = math.sqrt(cpu["height"] * cpu["width"] / (data["height"] * data["width"]))
            for side in ("height", "width"):
                step = 32 * cpu["refine"]
                size += [f"--{side}", str(step * round(data[side] * scale / step))]
    places = ["--img_dir", str(img_dir), "--json_path", str(json_path)]
    return shlex.join(["python", "main.py", "--preset", *presets, *size, *places, *options])


def prepare_device(config: Config) -> torch.device:
    """Return the device of config.device, with torch set up for a run on it. Raises UserError if it cannot be used."""
    device = resolve_device(config.device)
    keep_freed_memory(device)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not config.deterministic
    torch.backends.cudnn.benchmark_limit = 4  # of 10 algorithms: timing one takes seconds of every new shape
    if config.deterministic:  # cuBLAS reads this before its first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    return device


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether a precision setting means bf16 on this device; auto does if the hardware multiplies in bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory(device: torch.device) -> bool:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system; return whether it does.

    Every step on a CPU allocates the same large tensors, and requesting their pages again took a third of a step
    (measured: 0.55 -> 0.36 s per image). This only works on Linux with glibc.
    """
    if device.type != "cpu" or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))  # no separate blocks, never returned


def peak_memory() -> int | None:
    """Return the peak memory of this process so far, bytes; None where the system does not report it.

    On Linux it comes from /proc, because there ru_maxrss of getrusage starts at the peak of the parent process.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_text(device: torch.device) -> str:
    """Return the peak memory of this process so far as text: on the GPU, or on the host if the device is a CPU."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return "?" if peak is None else f"{peak / 2**30:.1f}GB"


def describe_hardware(device: torch.device) -> str:
    """Return the name of a device: the GPU, or the CPU and its number of threads."""
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
    """Connect to the other processes that torchrun started: by nccl on CUDA, by gloo on a CPU."""
    if torch.distributed.is_torchelastic_launched() and not torch.distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave_processes() -> None:
    """Disconnect from the other processes."""
    if torch.distributed.is_initialized():
        # a detector and its DistributedDataParallel refer to each other: what is left of them when Python exits can
        # abort the process in a thread of gloo (pytorch pull request 179291)
        gc.collect()
        torch.distributed.destroy_process_group()


def process_rank() -> int:
    """Return the number of this process in the run, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def process_count() -> int:
    """Return the number of processes of the run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def take_share(items: Sequence[T]) -> Sequence[T]:
    """Return the items that this process works on; merge_shares puts the results together again."""
    return items[process_rank() :: process_count()]


def gather_shares(share: T) -> list[T]:
    """Return the share of every process, in the order of their ranks, on all of them."""
    shares: list[Any] = [share] * process_count()
    if process_count() > 1:
        torch.distributed.all_gather_object(shares, share)
    return shares


def merge_shares(share: list[T]) -> list[T]:
    """Return the results for all items in their order, on every process, from one result per item of take_share."""
    shares = gather_shares(share)
    merged: list[Any] = [None] * sum(map(len, shares))
    for rank, part in enumerate(shares):
        merged[rank :: len(shares)] = part
    return merged


def mean_over_processes(values: Mapping[str, float]) -> dict[str, float]:
    """Return each value averaged over the processes, which must all pass the same names."""
    if process_count() == 1:
        return dict(values)
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return dict(zip(values, (total / process_count()).tolist(), strict=True))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of parameters by their means over the processes, in one exchange."""
    if process_count() > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(together)
        parts = (together / process_count()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the first process's buffers, such as the running statistics of batch norm, to every process."""
    if process_count() > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def on_first_process(work: Callable[[], T]) -> T:
    """Do work, such as creating a folder, on the first process; return its result, or raise its UserError, on all."""
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


# what torch says when a loader process was killed, or could not hand over its images through shared memory
LOADER_DIED = ("DataLoader worker (pid", "shared memory", "shared file mapping", "unable to write to file </torch_")


def exit_status(work: Callable[[], int | None]) -> int:
    """Run a program and return its exit status: the one that work returns, or 0 for None.

    An error that the user can fix, such as a wrong setting or a full disk, is printed as one line on standard error
    and gives 2. Ctrl-C gives 130. Errors of the program itself are raised.
    """
    try:
        return work() or 0
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno is None:
            raise
        name = f"{error.filename}: " if error.filename is not None else ""
        message = f"{name}{error.strerror}; check path, permissions and free space, and close the file elsewhere"
    except torch.OutOfMemoryError:
        message = "the device is out of memory: lower batch_size, raise accumulate, or set precision to bf16"
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOADER_DIED):
            raise
        message = (
            "a process that loads images was killed, or /dev/shm is too small for its images: free memory, or set "
            "workers to 0; all finished files are whole: resume the run with --resume"
        )
    except KeyboardInterrupt:
        return 130
    process = f"process {os.environ['RANK']}: " if os.environ.get("RANK", "0") != "0" else ""
    print(f"{process}error: {message}", file=sys.stderr)
    return 2
