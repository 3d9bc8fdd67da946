import csv
import logging
import math

import numpy as np
import pytest
import torch
from conftest import ABBREVIATIONS, TinyDetector, make_records, mentions, refusal, refuses, tiny_config, write_records
from torch.optim.swa_utils import AveragedModel

import train as train_module
from config import Config
from data import make_loader
from evaluate import evaluate
from machine import training_command
from methods import load_detector
from networks.average import MovingAverage
from reading.splits import load_data
from run_folder import read_checkpoint, read_metrics, save_checkpoint, write_metrics
from settings import RETIRED, warn_of_retired
from train import learning_rate_factor, resolve_crop, train, warn_of_long_run


def run(config, folder) -> None:
    folder.mkdir(exist_ok=True)
    train(config, folder)


def weights(folder, name="last.pt") -> dict:
    return read_checkpoint(folder / name)["model"]


def without_time(folder) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder / "metrics.csv")]


def assert_same(a, b) -> None:
    assert without_time(a) == without_time(b)
    assert all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def small_config(folder, **settings):
    """Settings for the smallest method there is."""
    return tiny_config(folder, **dict(method="tiny", save_every=1) | settings)


@pytest.fixture(params=[0.0, 0.9], ids=["weights", "average of weights"], scope="module")
def augmented(tmp_path_factory, request):
    """A data set, settings with every source of randomness on, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("augmented")
    write_records(folder, make_records(folder))
    config = small_config(
        folder, epochs=4, rotation=10.0, scaling=0.1, intensity=0.3, lr_schedule="cosine", warmup_epochs=1,
        ema=request.param, optimizer="adamw", weight_decay=0.01, crop_follows=request.param > 0, crop_margin=0.1,
    )  # fmt: skip
    run(config, folder / "straight")
    return folder, config


def test_resuming_equals_not_stopping(augmented, tmp_path, monkeypatch):
    folder, config = augmented
    original, steps = TinyDetector.train_step, []

    def interrupted(self, batch, epoch, optimizers):
        steps.append(epoch)
        if epoch == 2 and len(steps) > 5:  # in the middle of the third epoch
            raise KeyboardInterrupt
        return original(self, batch, epoch, optimizers)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TinyDetector, "train_step", interrupted)
        run(config, tmp_path / "stopped")
    assert read_checkpoint(tmp_path / "stopped" / "last.pt")["epoch"] == 2
    run(config, tmp_path / "stopped")
    assert_same(folder / "straight", tmp_path / "stopped")


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(augmented, tmp_path):
    folder, config = augmented
    run(config, tmp_path / "again")
    assert_same(folder / "straight", tmp_path / "again")
    run(config.replace(seed=1, epochs=1), tmp_path / "other")
    assert without_time(tmp_path / "other")[0]["loss"] != without_time(folder / "straight")[0]["loss"]


def test_metrics_hold_one_row_per_epoch_with_every_loss_term(augmented):
    rows = without_time(augmented[0] / "straight")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(rows[0]["squares"] + rows[0]["peaks"])
    assert {"val_MRE", "val_SDR_2.0", "lr"} <= rows[0].keys()
    errors = [rows[0][f"val_error_{abbreviation}"] for abbreviation in ABBREVIATIONS]
    assert np.mean(errors) == pytest.approx(rows[0]["val_MRE"])  # one validation image
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_one_validation_image_is_drawn_every_few_epochs(dataset):
    run(tiny_config(dataset, method="tiny", epochs=5, watch_every=2), dataset / "run")
    assert sorted(path.name for path in (dataset / "run" / "progress").iterdir()) == [
        "epoch_0002.png",
        "epoch_0004.png",
    ]


def test_metrics_survive_a_round_trip_with_names_that_hold_commas_and_figures_that_are_unknown(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 1 / 3, 'val_error_A, "B"': math.nan}]
    write_metrics(tmp_path / "metrics.csv", rows)
    one, two = read_metrics(tmp_path / "metrics.csv")
    assert list(one) == list(two) == list(rows[1]) and two["loss"] == 1 / 3 and one["loss"] == 0.1
    assert math.isnan(one['val_error_A, "B"']) and math.isnan(two['val_error_A, "B"'])


def test_a_row_that_is_ahead_of_its_checkpoint_is_written_again(augmented, tmp_path):
    folder, config = augmented
    config = config.replace(save_every=3)
    run(config.replace(epochs=3), tmp_path / "run")  # last.pt after epoch 3
    with open(tmp_path / "run" / "metrics.csv", "a") as file:
        row = without_time(folder / "straight")[3]
        file.write(",".join(["4", *["9"] * len(row)]) + "\n")
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    run(config, tmp_path / "run")
    assert [row["epoch"] for row in without_time(tmp_path / "run")] == [1, 2, 3, 4]
    assert without_time(tmp_path / "run")[3]["loss"] < 1


def test_the_average_of_the_weights_is_what_is_tested(dataset):
    config = small_config(dataset, ema=0.9, epochs=1, val_fraction=0.0)
    run(config, dataset / "run")
    state = read_checkpoint(dataset / "run" / "last.pt")
    detector = load_detector(read_checkpoint(dataset / "run" / "last.pt"))
    assert all(torch.equal(value, state["model"][name]) for name, value in detector.state_dict().items())
    assert any(not torch.equal(value, state["training_model"][name]) for name, value in state["model"].items())


def test_the_moving_average_by_hand():
    network = torch.nn.BatchNorm1d(1)  # weight, bias, mean and variance, and a counter
    average = MovingAverage(network, 0.5)

    def update(weight: float) -> float:
        with torch.no_grad():
            network.weight.fill_(weight)
        network.running_mean.fill_(weight)
        network.num_batches_tracked += 1
        average.update()
        assert average.detector.running_mean.item() == average.detector.weight.item()
        assert average.detector.num_batches_tracked == network.num_batches_tracked
        return average.detector.weight.item()

    assert update(1.0) == 1.0  # the first is a copy
    assert update(2.0) == pytest.approx(2 / 11 * 1 + 9 / 11 * 2)  # (1 + 1) / (10 + 1) is below the decay of 0.5
    average.steps = 100
    before = average.detector.weight.item()
    assert update(4.0) == pytest.approx(0.5 * before + 0.5 * 4)


def test_the_moving_average_equals_torchs_bit_for_bit(dataset):
    def decayed(own, current, steps):
        if own[0].is_floating_point():
            torch._foreach_lerp_(own, current, 1 - min(0.9, (1 + int(steps)) / (10 + int(steps))))
        else:
            torch._foreach_copy_(own, current)

    detector = TinyDetector(small_config(dataset))
    ours, theirs = MovingAverage(detector, 0.9), AveragedModel(detector, multi_avg_fn=decayed, use_buffers=True)
    for _ in range(4):
        detector.train().network(torch.randn(2, 3, 64, 96))
        with torch.no_grad():
            for parameter in detector.parameters():
                parameter += torch.randn_like(parameter)
            ours.update()
            theirs.update_parameters(detector)
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(ours.detector.state_dict()[name], value)


def test_the_best_checkpoint_is_that_of_the_lowest_validation_error(augmented):
    folder, _ = augmented
    rows = without_time(folder / "straight")
    best = min(rows, key=lambda row: row["val_MRE"])
    assert read_checkpoint(folder / "straight" / "best.pt")["epoch"] == best["epoch"]


def test_without_a_validation_split_no_best_checkpoint_is_chosen(dataset):
    run(small_config(dataset, val_fraction=0.0, epochs=1), dataset / "run")
    assert (dataset / "run" / "last.pt").exists() and not (dataset / "run" / "best.pt").exists()
    assert "val_MRE" not in without_time(dataset / "run")[0]


def test_a_loss_that_becomes_infinite_stops_the_run_and_leaves_its_last_checkpoint(dataset, monkeypatch):
    config = small_config(dataset, epochs=3)
    original = train_module.set_learning_rate

    def explode(optimizers, factor):
        original(optimizers, 1e30 if (dataset / "run" / "last.pt").exists() else factor)

    monkeypatch.setattr(train_module, "set_learning_rate", explode)
    message = refusal(run, config, dataset / "run")
    assert "epoch 2" in message and "squares" in message and "lr" in message
    assert read_checkpoint(dataset / "run" / "last.pt")["epoch"] == 1
    assert all(value.isfinite().all() for value in weights(dataset / "run").values())


def test_a_missing_landmark_has_no_influence_on_training(dataset):
    records = make_records(dataset)
    for record in records:
        record["points"][3] |= {"X": None, "Y": None}
    write_records(dataset, records)
    config = small_config(dataset, epochs=1)
    run(config, dataset / "run")
    detector = load_detector(read_checkpoint(dataset / "run" / "last.pt"))
    data = load_data(config)
    predictions = evaluate(detector, make_loader(config, data.select("test"), train=False), torch.device("cpu"))
    assert torch.tensor(predictions.errors()).isnan().tolist() == [[False, False, False, True]]
    assert without_time(dataset / "run")[0]["loss"] > 0


def test_the_step_schedule_is_the_papers():
    config = Config()
    assert [learning_rate_factor(config, epoch) for epoch in (0, 199)] == [1, 1]
    assert learning_rate_factor(config, 200) == learning_rate_factor(config, 299) == pytest.approx(0.1)


def test_the_cosine_schedule_rises_then_falls_to_almost_nothing(tmp_path):
    config = small_config(tmp_path, epochs=20, lr_schedule="cosine", warmup_epochs=3)
    factors = [learning_rate_factor(config, epoch) for epoch in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[3:] == sorted(factors[3:], reverse=True)
    assert 0 < factors[-1] < 0.02


def test_a_crop_that_cuts_off_training_landmarks_is_warned_of_and_where_they_lie_is_said(dataset, caplog):
    logging.getLogger("farnet").propagate = True
    config = small_config(dataset)
    data = load_data(config)
    left, top, right, bottom = data.landmark_box("train")
    places = np.concatenate([(record.landmarks + 0.5) / (96, 80) for record in data.select("train")])
    assert (left, top) == tuple(places.min(0)) and (right, bottom) == tuple(places.max(0))
    with caplog.at_level(logging.INFO, "farnet"):
        assert resolve_crop(config, data) == config
        assert all(f"{side:.2f}" in caplog.text for side in (left, top, right, bottom))
        assert all(record.levelno == logging.INFO for record in caplog.records)
        resolve_crop(config.replace(crop=(0.0, 0.0, right - 0.01, 1.0)), data)
    assert [record.levelno for record in caplog.records][-1] == logging.WARNING and "crop" in caplog.messages[-1]


def test_a_crop_by_margin_is_settled_on_the_training_landmarks_and_kept(dataset):
    config = small_config(dataset, crop_margin=0.02, epochs=1)
    box = load_data(config).landmark_box("train")
    run(config, dataset / "run")
    crop = read_checkpoint(dataset / "run" / "last.pt")["settings"]["crop"]
    wider = [max(0, box[0] - 0.02), max(0, box[1] - 0.02), min(1, box[2] + 0.02), min(1, box[3] + 0.02)]
    assert crop == pytest.approx(wider, abs=6e-4)
    records = make_records(dataset)  # the annotation changes, the crop of a run that goes on does not
    records[0]["points"][0] |= {"X": 1.0, "Y": 1.0}
    write_records(dataset, records)
    run(config.replace(epochs=2), dataset / "run")
    assert read_checkpoint(dataset / "run" / "last.pt")["settings"]["crop"] == crop


def test_a_long_run_on_a_cpu_is_announced_with_the_way_out(caplog):
    logging.getLogger("farnet").propagate = True
    config = Config(img_dir="my films", json_path="set.json")
    warn_of_long_run(config, seconds_per_step=10, steps=45_000)
    command = training_command("my films", "set.json")
    assert "125 hours" in caplog.text and command in caplog.text and "'my films'" in command
    caplog.clear()
    warn_of_long_run(config, seconds_per_step=0.1, steps=300)
    assert not caplog.text


def test_a_long_run_is_announced_also_where_an_epoch_has_few_steps(dataset, monkeypatch):
    announced = []
    monkeypatch.setattr(train_module, "warn_of_long_run", lambda *arguments: announced.append(arguments))
    config = small_config(dataset, epochs=4)  # of two steps each
    run(config, dataset / "run")
    ((known, seconds, steps),) = announced
    assert known == config.replace(crop=known.crop) and seconds > 0 and steps == 8


def test_the_loss_of_an_epoch_is_the_sum_of_its_terms_and_of_no_other_figure(dataset, monkeypatch):
    original = TinyDetector.train_step

    def step(self, batch, epoch, optimizers):
        return original(self, batch, epoch, optimizers) | {"accuracy_P": 100.0, "gradient_P": 100.0}

    monkeypatch.setattr(TinyDetector, "train_step", step)
    train(tiny_config(dataset, method="tiny", epochs=1), dataset)
    (row,) = read_metrics(dataset / "metrics.csv")
    assert row["loss"] == pytest.approx(row["squares"] + row["peaks"]) and row["accuracy_P"] == 100


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("rmsprop", "RMSprop")])
def test_the_optimiser_is_that_of_the_setting(dataset, name, kind):
    config = tiny_config(dataset, method="tiny", optimizer=name, lr=0.25)
    detector = TinyDetector(config)
    ((given, optimizer),) = detector.configure_optimizers().items()
    assert given == name and type(optimizer).__name__ == kind and optimizer.param_groups[0]["lr"] == 0.25
    sum(parameter.square().sum() for parameter in detector.parameters()).backward()
    before = [parameter.detach().clone() for parameter in detector.parameters()]
    optimizer.step()
    assert any(not torch.equal(p, b) for p, b in zip(detector.parameters(), before, strict=True))


@pytest.mark.parametrize("named", [None, 4])
def test_the_number_of_landmarks_is_taken_from_the_data_and_kept_in_the_checkpoint(dataset, named):
    run(small_config(dataset, num_landmarks=named, epochs=1), dataset / "run")
    state = read_checkpoint(dataset / "run" / "last.pt")
    assert state["settings"]["num_landmarks"] == 4 and load_detector(state).num_landmarks == 4
    run(small_config(dataset, num_landmarks=named, epochs=2), dataset / "run")  # it goes on
    assert read_checkpoint(dataset / "run" / "last.pt")["epoch"] == 2


def test_a_checkpoint_of_an_older_run_resumes_with_one_note_of_what_is_ignored(dataset, caplog):
    logging.getLogger("farnet").propagate = True
    config = small_config(dataset, epochs=1)
    run(config, dataset / "run")
    state = read_checkpoint(dataset / "run" / "last.pt")
    older = {k: v for k, v in state.items() if k != "format"}
    older["settings"] = state["settings"] | {name: True for name in RETIRED}
    save_checkpoint(dataset / "run" / "last.pt", older)
    warn_of_retired.cache_clear()
    caplog.clear()
    run(config.replace(epochs=2), dataset / "run")
    (note,) = (message for message in caplog.messages if "compose_heads" in message)
    assert all(name in note for name in RETIRED)
    assert not set(RETIRED) & read_checkpoint(dataset / "run" / "last.pt")["settings"].keys()
    older["settings"] |= {"unheard_of": 1}
    save_checkpoint(dataset / "run" / "last.pt", older)
    message = refusal(lambda: load_detector(read_checkpoint(dataset / "run" / "last.pt")))
    assert mentions(message, "unheard_of", dataset / "run" / "last.pt")


def test_a_last_pt_without_what_training_goes_on_from_is_refused(dataset):
    config = small_config(dataset, epochs=1, ema=0.9)
    run(config, dataset / "run")
    last = dataset / "run" / "last.pt"
    state = read_checkpoint(last)
    moments = state["optimizers"]["adam"]
    odd = {"state": moments["state"] | {0: moments["state"][0] | {"exp_avg": torch.zeros(1)}}}
    for wrong in ({"training_model": {}}, *({"optimizers": each} for each in ({}, {"adam": {}}, {"adam": odd}))):
        save_checkpoint(last, state | wrong)
        with refuses(last):
            run(config.replace(epochs=2), dataset / "run")
    for name in ("optimizers", "training_model", "averaged_steps", "best_MRE"):
        save_checkpoint(last, {key: value for key, value in state.items() if key != name})
        with refuses(last, name):
            run(config.replace(epochs=2), dataset / "run")
    save_checkpoint(last, state)
    with refuses(last, "averaged_steps", "ema 0"):
        run(config.replace(epochs=2, ema=0.0), dataset / "run")
    (dataset / "run" / "metrics.csv").write_text("epoch,lr\n")
    with refuses("metrics.csv"):
        run(config.replace(epochs=2), dataset / "run")
    (dataset / "run" / "metrics.csv").unlink()
    for epochs in (2, 3):  # without the rows that were removed
        run(config.replace(epochs=epochs), dataset / "run")
    assert [row["epoch"] for row in read_metrics(dataset / "run" / "metrics.csv", 3)] == [2, 3]
