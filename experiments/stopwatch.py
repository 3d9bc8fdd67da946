"""How long a piece of work takes on a device, what it is spent on, and how fast the device is at best."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MATRIX = 2048  # side of the matrices whose product is the machine's peak
OPERATORS = 8  # so many are named of those that take most time


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(work: Callable[[], Any], device: torch.device, repeats: int, warm_ups: int = 1) -> float:
    """Median time of a piece of work in ms, after some warm-ups."""
    seconds = []
    for _ in range(repeats + warm_ups):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[warm_ups:]))


def matrix_peaks(device: torch.device) -> dict[str, float]:
    """GFLOP/s of a matrix product in bf16 and fp32: what the machine can do at best."""
    peaks = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
        peaks[name] = 2 * MATRIX**3 / median_ms(lambda m=matrix: m @ m, device, 10) / 1e6
    return peaks


def operator_shares(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """What share of a piece of work the operators of torch take that take most, in per cent."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler says nothing on its own
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    with profile(activities=activities) as profiler:
        work()
        synchronise(device)
    events = profiler.key_averages()
    if on_cuda:  # kernels are events of their own, and their time is that of the operators that started them, too
        total = sum(
            e.self_device_time_total for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation
        )
    else:
        total = sum(event.self_cpu_time_total for event in events)
    times = {
        event.key.removeprefix("aten::"): event.self_device_time_total if on_cuda else event.self_cpu_time_total
        for event in events
        if event.device_type == DeviceType.CPU and event.key.startswith("aten::")
    }
    largest = sorted(times, key=times.get, reverse=True)[:OPERATORS]
    return {name: 100 * times[name] / total for name in largest}
