"""Timing on a device: the median time of some work, the operators it is spent on, and the peak of the device."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MATRIX = {"cpu": 1024, "cuda": 8192}  # side of the matrices that are multiplied to measure the peak
OPERATORS = 8  # how many of the most expensive operators are listed


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(work: Callable[[], Any], device: torch.device, repeats: int, warm_ups: int = 1) -> float:
    """Return the median time of some work in ms, after warm-ups."""
    seconds = []
    for _ in range(repeats + warm_ups):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[warm_ups:]))


def matrix_peaks(device: torch.device) -> dict[str, float]:
    """Return the GFLOP/s of a matrix product in bf16 and fp32, the peak of the machine."""
    peaks, side = {}, MATRIX[device.type]
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        matrix = torch.randn(side, side, device=device).to(dtype)
        peaks[name] = 2 * side**3 / median_ms(lambda m=matrix: m @ m, device, 10) / 1e6
    return peaks


def operator_shares(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return torch's most expensive operators in some work and their share of its time, per cent."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # keeps the profiler quiet
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    with profile(activities=activities) as profiler:
        work()
        synchronise(device)
    events = profiler.key_averages()
    own_time = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    # on CUDA, kernels are events of their own; their time is also that of the operators that started them
    counted = [e for e in events if not on_cuda or e.device_type != DeviceType.CPU and not e.is_user_annotation]
    total = sum(getattr(event, own_time) for event in counted)
    times = {
        event.key.removeprefix("aten::"): getattr(event, own_time)
        for event in events
        if event.device_type == DeviceType.CPU and event.key.startswith("aten::")
    }
    largest = sorted(times, key=times.get, reverse=True)[:OPERATORS]
    return {name: 100 * times[name] / total for name in largest}
