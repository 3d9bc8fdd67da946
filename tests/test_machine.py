import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from machine import (
    keep_freed_memory,
    mean_over_processes,
    merge_shares,
    on_first_process,
    peak_memory,
    process_count,
    process_rank,
    resolve_device,
    take_share,
    uses_bfloat16,
)  # fmt: skip
from settings import UserError

ROOT = Path(__file__).resolve().parents[1]


def test_bf16_follows_the_setting():
    cpu = torch.device("cpu")
    assert uses_bfloat16("bf16", cpu) and not uses_bfloat16("fp32", cpu)
    assert isinstance(uses_bfloat16("auto", cpu), bool)


def test_devices_are_chosen_or_refused_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f"setting device: {name} cannot be used"):
            resolve_device(name)


def test_freed_memory_is_kept_where_the_allocator_is_glibcs():
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    assert keep_freed_memory(torch.device("cpu")) is glibc
    assert keep_freed_memory(torch.device("cpu")) is glibc  # a second call is harmless


def test_one_process_does_the_plain_thing():
    assert (process_rank(), process_count()) == (0, 1)
    assert merge_shares(list(take_share([3, 1, 2]))) == [3, 1, 2]
    assert mean_over_processes({"a": 1.5}) == {"a": 1.5} and on_first_process(lambda: 7) == 7


def test_under_torchrun_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="more processes on this machine than its 2 GPUs"):
        resolve_device("auto")


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells a process's own peak")
def test_the_peak_of_memory_is_this_process_own():
    held = bytearray(1 << 30)  # and touched, being zeroed by Python or by the system on its first use
    held[:: 1 << 12] = b"\1" * (1 << 18)
    assert peak_memory() > 1 << 30
    code = "from machine import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < 1 << 30  # importing torch takes less
