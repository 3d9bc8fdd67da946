import pytest
import torch

from config import UserError
from machine import keep_freed_memory, resolve_device, uses_bfloat16


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


def test_keeping_freed_memory_is_harmless():
    keep_freed_memory()
    keep_freed_memory()
