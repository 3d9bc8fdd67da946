"""The benchmark and the table of differences, run at a tiny size: that they work, not how fast anything is."""

import json

import pytest
import torch
from conftest import tiny_config

from experiments import benchmark, differences, stopwatch
from methods import METHODS
from model import FARNet

pytestmark = pytest.mark.slow


def test_the_benchmark_ends_with_one_json_line_that_holds_its_table(dataset, monkeypatch, run_program):
    (dataset / "settings.json").write_text(json.dumps(tiny_config(dataset, height=64, width=64).to_dict()))
    monkeypatch.setitem(stopwatch.MATRIX, "cpu", 64)
    monkeypatch.setitem(METHODS, "farnet", FARNet)  # as wide as its reference
    status, output = run_program(benchmark, "--repeats", 1, "--config", dataset / "settings.json")
    assert status == 0
    result = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    ours, references = result["ours"], result["references"]
    assert references.keys() == result["ratios"].keys() == {"reference", "reference, memory kept"}
    for name, reference in references.items():
        for row in (ours, reference):
            assert all(row[stage] >= 0 for stage in ("targets", "forward", "backward", "optimiser", "decoding"))
        assert result["ratios"][name]["training"] == pytest.approx(
            ours["train_images_per_s"] / reference["train_images_per_s"]
        )
        # two convolutions instead of one cost more at the same size
        assert reference["forward_GFLOP_per_image"] > ours["forward_GFLOP_per_image"]


def test_the_effects_are_those_of_each_setting_for_speed(dataset, monkeypatch):
    config = tiny_config(dataset, height=64, width=64, ema=0.9)
    monkeypatch.setattr(benchmark, "measure_recipe", benchmark.measure_here)  # no new processes
    rows = benchmark.measure_effects(config, torch.device("cpu"), repeats=1)
    assert {row["setting"] for row in rows} == {
        "accumulate", "ema", "keep_memory", "precision", "test_precision", "channels_last",
    }  # fmt: skip
    assert all(row["step"] > 0 and row["inference"] > 0 for row in rows)


def test_a_benchmark_of_impossible_settings_is_refused(run_program):
    status, output = run_program(benchmark, "--height", 70)
    assert status == 2 and "height" in output


def test_the_differences_table_measures_a_checkpoint(trained_run, monkeypatch, run_program):
    monkeypatch.setattr(differences, "measure_head", lambda: ("heads", "1 s", "2 s"))
    monkeypatch.setattr(differences, "measure_labels", lambda: ("labels", "1 s", "2 s"))
    status, output = run_program(differences, trained_run / "best.pt")
    assert status == 0
    lines = output.splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 10
    assert any(line.startswith("| sub-pixel") and "| 0.00" in line for line in lines)


def test_the_differences_of_something_else_than_a_checkpoint_are_refused(tmp_path, run_program):
    status, output = run_program(differences, tmp_path / "none.pt")
    assert status == 2 and "none.pt" in output
