"""What a run computes on: its device, that device's precision, memory and name."""

import ctypes
import platform
import sys
from pathlib import Path

import torch

from config import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None


def resolve_device(name: str) -> torch.device:
    """The device of a `device` setting: auto is CUDA if there is one. Raises UserError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        reason = "only CPU and CUDA are tested" if device.type not in ("cpu", "cuda") else ""
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise UserError(f"setting device: {name} cannot be used here ({reason}); allowed: auto, cpu, cuda, cuda:N")
    return device


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a precision setting means bf16 on this device; auto asks for hardware that multiplies in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks for the next step instead of giving them back to the system.

    Every step on a CPU allocates the same large tensors; mapping their pages anew took a third of a step
    (measured: 0.55 -> 0.36 s per image). Elsewhere than on Linux with glibc this does nothing.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def memory_text(device: torch.device) -> str:
    """Peak memory of this process so far: the device's, or the host's on a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}GB"
    if resource is None:
        return "?"
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f}GB"


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
