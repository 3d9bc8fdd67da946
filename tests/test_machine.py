import importlib
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import mentions, refusal

from machine import (
    exit_status,
    keep_freed_memory,
    mean_over_processes,
    merge_shares,
    on_first_process,
    peak_memory,
    process_count,
    process_rank,
    resolve_device,
    take_share,
    training_command,
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
        message = refusal(resolve_device, name)
        assert "device" in message and name in message and "cuda:N" in message


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
    message = refusal(resolve_device, "auto")
    assert "2 GPUs" in message and "--nproc_per_node" in message


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak memory of a process")
def test_the_peak_of_memory_is_this_process_own():
    held = bytearray(1 << 30)  # and touched, being zeroed by Python or by the system on its first use
    held[:: 1 << 12] = b"\1" * (1 << 18)
    assert peak_memory() > 1 << 30
    code = "from machine import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < 1 << 30  # importing torch takes less


# --- Exit status ---


def raising(error: BaseException):
    """Work that ends with this error."""

    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(("own", "status"), [(None, 0), (0, 0), (1, 1), (2, 2)])
def test_work_that_is_done_has_its_own_status(own, status, capsys):
    assert exit_status(lambda: own) == status
    assert capsys.readouterr() == ("", "")


LOADER = """Caught UserError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "data.py", line 1, in read
settings.UserError: image a.png does not exist"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("setting lr: too high"), "setting lr: too high"),
        (UserError(LOADER), "image a.png does not exist"),
        (OSError(28, "No space left on device", "results.xls"), "results.xls: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "--resume"),
        (RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)"), "/dev/shm"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "batch_size"),
    ],
)
def test_what_the_user_can_mend_ends_with_status_2_in_one_line(error, words, capsys):
    assert exit_status(raising(error)) == 2
    out, message = capsys.readouterr()
    assert message.startswith("error: ") and message.count("\n") == 1 and words in message and not out
    assert "Traceback" not in message and "None" not in message and "UserError" not in message


def test_the_error_of_another_process_of_a_run_names_it(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert exit_status(raising(UserError("no"))) == 2
    assert capsys.readouterr().err == "process 3: error: no\n"


def test_interrupted_work_has_status_130(capsys):
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), OSError("no errno")])
def test_errors_of_the_program_itself_are_not_hidden(error):
    with pytest.raises(type(error)):
        exit_status(raising(error))


def test_the_recommended_command_is_whole_and_made_for_this_machine(monkeypatch):
    for cuda, presets in ((True, "modern"), (False, "modern cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert training_command("a b", Path("data.json"), "--spacing", "none") == (
            f"python main.py --preset {presets} --img_dir 'a b' --json_path data.json --spacing none"
        )


@pytest.mark.parametrize("name", ["compare", "convert", "export", "inspect_data", "predict", "review"])
def test_a_mistake_on_the_command_line_of_a_tool_is_said_in_one_line(run_program, name):
    tool = importlib.import_module(f"tools.{name}")
    wrong = ("coco", "a", "b", "--bogus") if name == "convert" else ("a", "b", "--bogus")
    status, output = run_program(tool, *wrong)
    assert status == 2 and output.startswith("error: ") and output.count("\n") == 1


def test_a_spacing_with_a_decimal_comma_is_named_by_every_tool_that_takes_one(run_program):
    for name, words in (
        ("predict", ("a.pt", "b.png", "--out", "c")),
        ("inspect_data", ("a",)),
        ("convert", ("coco", "a", "b")),
    ):
        status, output = run_program(importlib.import_module(f"tools.{name}"), *words, "--spacing", "0,1")
        assert status == 2 and mentions(output, "--spacing", "'0,1'") and output.count("\n") == 1
