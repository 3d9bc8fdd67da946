import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xlrd
from conftest import ABBREVIATIONS, make_records, refusal, tiny_config, write_records
from PIL import Image

import main
from methods import load_detector
from model import FARNet
from reporting.memory import read_memory
from reporting.predictions import read_predictions
from run_folder import read_checkpoint, read_metrics, save_checkpoint
from tools.read_runs import read_runs

SPLITS = ["train", "train", "train", "val", "test1", "test2"]


def write_settings(folder: Path, **settings) -> list[str]:
    """The arguments of a run in folder/run with the smallest method."""
    settings = tiny_config(folder, **{"method": "tiny", "epochs": 1, "save_every": 1} | settings).to_dict()
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return ["--config", str(folder / "settings.json"), "--run_dir", str(folder / "run")]


@pytest.fixture
def refused(run_program):
    """The one line with which main.py, with these arguments, ends with status 2."""

    def call(*arguments) -> str:
        status, message = run_program(main, *arguments)
        assert status == 2 and message.startswith("error: ") and message.count("\n") == 1
        return message

    return call


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, to see that nothing was lost."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tiny_run(dataset) -> Path:
    """A finished run of the smallest method with two test sets."""
    write_records(dataset, [r | {"split": s} for r, s in zip(make_records(dataset), SPLITS, strict=True)])
    main.run(write_settings(dataset))
    return dataset / "run"


# --- A whole run ---


def test_a_run_of_farnet_writes_everything_that_the_design_promises(farnet_run):
    files = {path.name for path in farnet_run.iterdir()}
    assert files == {"config.json", "log.txt", "metrics.csv", "curves.png", "split.json", "last.pt", "best.pt", "test"}
    files = {path.name for path in (farnet_run / "test").iterdir()}
    assert files == {"predictions.csv", "results.xls", "summary.json", "overlays", "rates.png"}
    split = json.loads((farnet_run / "split.json").read_text(encoding="utf-8"))
    assert {name: len(images) for name, images in split.items()} == {"train": 4, "val": 1, "test": 1}
    names, abbreviations, columns, unit = read_predictions(farnet_run / "test" / "predictions.csv")
    assert (names, abbreviations, unit) == (split["test"], list(ABBREVIATIONS), "mm")
    assert np.isfinite(columns["error"]).all() and columns["x_true"].shape == (1, 4)
    assert len(list((farnet_run / "test" / "overlays").glob("*.png"))) == 1
    provenance = json.loads((farnet_run / "config.json").read_text(encoding="utf-8"))
    detector = load_detector(read_checkpoint(farnet_run / "best.pt"))
    assert provenance["parameters"] == detector.num_parameters and isinstance(detector, FARNet)
    rows = read_metrics(farnet_run / "metrics.csv")
    assert len(rows) == 2 and all(row["loss"] == pytest.approx(row["coarse"] + row["fine"]) for row in rows)


def test_the_truth_in_the_predictions_is_that_of_the_json_to_the_last_digit(trained_run):
    records = json.loads((trained_run.parent / "json" / "data.json").read_text(encoding="utf-8"))
    by_name = {record["imagePath"]: record["points"] for record in records}
    names, _, columns, _ = read_predictions(trained_run / "test" / "predictions.csv")
    for row, name in enumerate(names):
        assert columns["x_true"][row].tolist() == [point["X"] for point in by_name[name]]
        assert columns["y_true"][row].tolist() == [point["Y"] for point in by_name[name]]


def test_every_split_that_is_neither_train_nor_val_is_a_test_set_of_its_own(tiny_run):
    for test_set, image in (("test1", 4), ("test2", 5)):
        names, *_ = read_predictions(tiny_run / test_set / "predictions.csv")
        assert names == [f"image {image} (ä).png"]
        book = xlrd.open_workbook(tiny_run / test_set / "results.xls")
        assert book.sheet_names() == ["summary", "landmarks", "images", "agreement", "settings"]


def test_the_headline_leaves_out_the_ruler_and_both_figures_are_printed(tiny_run):
    summary = json.loads((tiny_run / "test1" / "summary.json").read_text(encoding="utf-8"))
    assert summary["headline"]["n_landmarks"] == 2 and summary["all"]["n_landmarks"] == 4
    log = (tiny_run / "log.txt").read_text(encoding="utf-8")
    assert re.search(r"headline.*R1, R2.*: MRE", log) and re.search(r"all .*: MRE", log)


def test_sixteen_bit_and_colour_images_of_several_sizes_train_together(dataset):
    records = make_records(dataset, count=6)
    for number, size in ((0, (192, 160)), (1, (128, 200))):
        for point in records[number]["points"]:
            point["X"], point["Y"] = point["X"] * size[0] / 96, point["Y"] * size[1] / 80
    paths = [dataset / "imgs" / record["imagePath"] for record in records]
    Image.open(paths[0]).resize((192, 160)).convert("RGB").save(paths[0])
    deep = np.asarray(Image.open(paths[1]).resize((128, 200))).astype(np.uint16) * 16
    Image.fromarray(deep).save(paths[1])
    write_records(dataset, records)
    main.run(write_settings(dataset, workers=2, spacing=0.1, split="same"))
    names, _, columns, _ = read_predictions(dataset / "run" / "test" / "predictions.csv")
    assert names == [record["imagePath"] for record in records]
    truth = [[point["X"] for point in record["points"]] for record in records]
    assert np.allclose(columns["x_true"], truth) and columns["x_true"][0].max() > 96  # in the px of its own file
    assert abs(columns["x"][0] - truth[0]).max() < 192
    assert np.isfinite(columns["error"]).all() and columns["x"].shape == (6, 4)
    log = read_metrics(dataset / "run" / "metrics.csv")
    assert len(log) == 1 and np.isfinite(log[0]["loss"])


# --- Going on and testing ---


def test_a_finished_run_that_is_resumed_writes_the_same_report(tiny_run):
    before = contents(tiny_run)
    main.run(["--resume", str(tiny_run)])
    after = contents(tiny_run)
    derived = {name for name in before if name.endswith((".csv", ".json", ".png", ".pt"))}
    assert {name for name in derived if before[name] != after[name]} == set()
    assert before.keys() == after.keys()


def test_a_finished_run_goes_on_for_more_epochs(tiny_run):
    main.run(["--resume", str(tiny_run), "--epochs", "3"])
    assert read_checkpoint(tiny_run / "last.pt")["epoch"] == 3
    assert len((tiny_run / "metrics.csv").read_text().splitlines()) == 4


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tiny_run):
    for name in ("last.pt", "best.pt", "metrics.csv"):
        (tiny_run / name).unlink()
    main.run(["--resume", str(tiny_run)])
    assert read_checkpoint(tiny_run / "last.pt")["epoch"] == 1


def test_a_test_alone_repeats_the_predictions_of_its_run(tiny_run):
    main.run(["--test", str(tiny_run / "best.pt"), "--run_dir", str(tiny_run.parent / "again")])
    for test_set in ("test1", "test2"):
        again = (tiny_run.parent / "again" / test_set / "predictions.csv").read_bytes()
        assert again == (tiny_run / test_set / "predictions.csv").read_bytes()


def test_a_test_on_other_data_tests_every_image(tiny_run, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_records(other, make_records(other, count=3, seed=5))
    data = ["--img_dir", str(other / "imgs"), "--json_path", str(other / "json" / "data.json")]
    main.run(["--test", str(tiny_run / "last.pt"), *data, "--run_dir", str(other / "run")])
    assert len(read_predictions(other / "run" / "test" / "predictions.csv")[0]) == 3


def test_a_cross_validation_tests_every_image_once_and_pools_the_folds(dataset):
    arguments = write_settings(dataset, folds=2, num_landmarks=None)
    main.run(arguments)
    folds = [read_predictions(dataset / "run" / f"fold{fold}" / "test" / "predictions.csv") for fold in (1, 2)]
    names, _, columns, _ = read_predictions(dataset / "run" / "pooled" / "predictions.csv")
    assert sorted(names) == sorted(record["imagePath"] for record in make_records(dataset))
    assert np.array_equal(columns["x"], np.concatenate([fold[2]["x"] for fold in folds]))
    sheets = xlrd.open_workbook(dataset / "run" / "pooled" / "results.xls").sheet_names()
    assert sheets == ["summary", "landmarks", "images", "agreement", "settings"]
    assert {"config.json", "log.txt", "fold1", "fold2", "pooled"} == {p.name for p in (dataset / "run").iterdir()}


def test_a_cross_validation_that_was_stopped_goes_on_with_the_folds_that_are_missing(dataset):
    main.run(write_settings(dataset, folds=2, num_landmarks=None))
    before = contents(dataset / "run")
    shutil.rmtree(dataset / "run" / "fold2")
    shutil.rmtree(dataset / "run" / "pooled")
    main.run(["--resume", str(dataset / "run")])
    after = contents(dataset / "run")
    for name in ("fold1/test/predictions.csv", "fold2/test/predictions.csv", "pooled/predictions.csv"):
        assert after[name] == before[name]


def test_one_fold_alone_is_a_plain_run(dataset):
    main.run(write_settings(dataset, folds=3, fold=2))
    assert (dataset / "run" / "test" / "results.xls").exists() and not (dataset / "run" / "pooled").exists()
    assert len(read_predictions(dataset / "run" / "test" / "predictions.csv")[0]) == 2


def test_a_cross_validation_of_bad_data_leaves_no_run_folder_behind(dataset, refused):
    arguments = write_settings(dataset, folds=2, num_landmarks=None)
    (dataset / "imgs" / make_records(dataset)[1]["imagePath"]).unlink()
    refused(*arguments)
    assert not (dataset / "run").exists()


def test_only_a_test_may_change_how_landmarks_are_decoded(tiny_run, run_program, refused):
    arguments = ["--decode", "argmax", "--run_dir", tiny_run.parent / "argmax"]
    assert run_program(main, "--test", tiny_run / "best.pt", *arguments)[0] == 0
    config = json.loads((tiny_run.parent / "argmax" / "config.json").read_text(encoding="utf-8"))
    assert config["settings"]["decode"] == "argmax"
    assert "decode" in refused("--resume", tiny_run, "--decode", "argmax")


# --- Bad input: one line, status 2, nothing lost ---


def test_a_run_folder_that_exists_is_refused_and_untouched(tiny_run, refused):
    before = contents(tiny_run)
    message = refused(*write_settings(tiny_run.parent))
    assert str(tiny_run) in message and "--resume" in message
    assert contents(tiny_run) == before


def test_bad_data_leaves_no_run_folder_behind(dataset, run_program, refused):
    arguments = write_settings(dataset)
    (dataset / "imgs" / "image 2 (ä).png").write_bytes(b"")
    assert "image 2 (ä).png" in refused(*arguments)
    assert not (dataset / "run").exists()
    make_records(dataset)
    assert run_program(main, *arguments)[0] == 0


def test_bad_settings_leave_no_run_folder_behind(dataset, refused):
    arguments = write_settings(dataset, method="farnet")
    message = refused(*arguments, "--backbone", "alexnet")
    assert "backbone" in message and "densenet121" in message
    message = refused(*arguments, "--device", "cuda:99")
    assert "device" in message and "cuda:99" in message
    assert not (dataset / "run").exists()


def test_an_image_that_vanishes_during_training_is_named_in_one_line(dataset, monkeypatch, refused):
    original, lost = main.train, []

    def lose_an_image(config, run_dir):
        import train as module

        load = module.load_data

        def load_then_lose(*arguments, **keywords):
            data = load(*arguments, **keywords)
            lost.append(data.select("train")[0].path)
            lost[0].unlink()
            return data

        monkeypatch.setattr(module, "load_data", load_then_lose)
        return original(config, run_dir)

    monkeypatch.setattr(main, "train", lose_an_image)
    message = refused(*write_settings(dataset, workers=1))
    assert str(lost[0]) in message and "Traceback" not in message


def test_a_checkpoint_of_another_number_of_landmarks_is_refused(tiny_run, refused):
    arguments = ["--test", tiny_run / "best.pt", "--run_dir", tiny_run.parent / "other"]
    message = refused(*arguments, "--num_landmarks", "19")
    assert all(word in message for word in ("best.pt", "num_landmarks", "4", "19"))
    write_records(tiny_run.parent, [r | {"points": r["points"][:3]} for r in make_records(tiny_run.parent)])
    assert "B" in refused(*arguments).split()
    assert not (tiny_run.parent / "other").exists()


def test_a_checkpoint_of_another_method_is_refused(tiny_run, refused):
    arguments = ["--test", tiny_run / "best.pt", "--run_dir", tiny_run.parent / "other"]
    assert all(word in refused(*arguments, "--method", "farnet") for word in ("best.pt", "tiny", "farnet"))
    state = read_checkpoint(tiny_run / "best.pt")
    save_checkpoint(tiny_run / "best.pt", {k: v for k, v in state.items() if k != "format"} | {"method": "farnet"})
    assert "weights" in refused(*arguments)
    save_checkpoint(tiny_run / "best.pt", {k: v for k, v in state.items() if k != "format"} | {"method": "gone"})
    assert "gone" in refused(*arguments)


def test_a_resumed_run_names_the_records_that_it_does_not_know_and_stops(tiny_run, refused):
    records = make_records(tiny_run.parent, count=8)
    write_records(tiny_run.parent, [record | {"split": "train"} for record in records])
    before = (tiny_run / "last.pt").read_bytes()
    message = refused("--resume", tiny_run, "--epochs", "2")
    assert " 2 " in message and "image 6 (ä).png" in message and "image 7 (ä).png" in message
    assert (tiny_run / "last.pt").read_bytes() == before


def test_an_old_run_that_excludes_an_unknown_landmark_can_be_resumed_without_it(tiny_run, refused):
    path = tiny_run / "config.json"
    provenance = json.loads(path.read_text(encoding="utf-8"))
    provenance["settings"]["report_exclude"] = ["Q"]
    path.write_text(json.dumps(provenance), encoding="utf-8")
    message = refused("--resume", tiny_run)
    assert "report_exclude" in message and "'Q'" in message
    main.run(["--resume", str(tiny_run), "--report_exclude", "none"])


@pytest.mark.parametrize("option", ["--test", "--resume"])
def test_a_truncated_checkpoint_is_refused_and_kept(tiny_run, option, refused):
    path = tiny_run / "last.pt"
    path.write_bytes(path.read_bytes()[:2000])
    before = contents(tiny_run)
    message = refused(option, path if option == "--test" else tiny_run)
    assert "last.pt" in message
    assert {k: v for k, v in contents(tiny_run).items() if k != "log.txt"} == {
        k: v for k, v in before.items() if k != "log.txt"
    }


def test_a_pickle_that_is_not_a_checkpoint_is_refused_and_not_executed(tmp_path, refused):
    class Malicious:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"format": "landmark checkpoint 1", "model": Malicious()}, tmp_path / "best.pt")
    assert "best.pt" in refused("--test", tmp_path / "best.pt")
    assert not (tmp_path / "executed").exists()


def test_a_folder_that_is_not_a_run_cannot_be_resumed(tmp_path, refused):
    assert f"{tmp_path} " in refused("--resume", tmp_path)
    assert str(tmp_path / "none") in refused("--resume", tmp_path / "none")


def test_the_tested_checkpoint_remembers_what_later_predictions_are_judged_by(tiny_run, tmp_path):
    state = read_checkpoint(tiny_run / "best.pt")
    memory = read_memory(state)
    assert memory.mean.shape == (4, 2) and memory.extent[0] > 0 and memory.spacing.tolist() == [[96, 80, 0.5]]
    assert "memory" not in read_checkpoint(tiny_run / "last.pt")
    table = read_predictions(tiny_run / "test1" / "predictions.csv")
    assert table.verdicts[0][0] in ("good", "check", "reject")
    before = contents(tiny_run)
    main.run(["--resume", str(tiny_run)])  # nothing is left to train, and nothing is measured again
    assert contents(tiny_run)["best.pt"] == before["best.pt"]
    save_checkpoint(tmp_path / "old.pt", {name: own for name, own in state.items() if name != "memory"})
    main.run(["--test", str(tmp_path / "old.pt"), "--run_dir", str(tmp_path / "tested")])
    assert not read_predictions(tmp_path / "tested" / "test1" / "predictions.csv").verdicts


def test_the_folds_share_the_errors_of_all_images(dataset):
    main.run(write_settings(dataset, folds=2, num_landmarks=None))
    states = [read_checkpoint(dataset / "run" / f"fold{n}" / "best.pt") for n in (1, 2)]
    shared = [read_memory(state) for state in states]
    assert (
        np.array_equal(shared[0].relative_error, shared[1].relative_error)
        and np.isfinite(shared[0].relative_error).all()
    )  # of 6 images
    alone = [read_memory({name: own for name, own in state.items() if name != "shared_memory"}) for state in states]
    assert not np.isfinite(alone[0].relative_error).any()  # a single validation image
    main.run(["--test", str(dataset / "run" / "fold1" / "best.pt"), "--run_dir", str(dataset / "again")])
    extras = read_predictions(dataset / "again" / "test" / "predictions.csv").extras
    assert not any(name.startswith("radius") for name in extras)  # the shared ones know these test images


def test_several_checkpoints_are_tested_as_their_mean(tiny_run, tmp_path, refused):
    state = read_checkpoint(tiny_run / "best.pt")
    weights = {name: weight * 1.1 if weight.is_floating_point() else weight for name, weight in state["model"].items()}
    save_checkpoint(tmp_path / "other.pt", state | {"model": weights})
    paths = [str(tiny_run / "best.pt"), str(tmp_path / "other.pt")]
    for name, tested in {"a": paths[:1], "b": paths[1:], "both": paths}.items():
        main.run(["--test", *tested, "--run_dir", str(tmp_path / name), "--explain", str(len(tested) - 1)])
    tables = [read_predictions(tmp_path / name / "test1" / "predictions.csv") for name in ("a", "b", "both")]
    assert np.abs(tables[0].landmarks - tables[1].landmarks).max() > 0.01
    assert np.abs(tables[2].landmarks - (tables[0].landmarks + tables[1].landmarks) / 2).max() < 1e-3
    spread = np.linalg.norm(tables[0].landmarks - tables[1].landmarks, axis=-1) / 2
    assert np.abs(tables[2].columns["ensemble_spread"] - spread).max() < 1e-3
    members = [tmp_path / "both" / "test1" / f"member{number}.csv" for number in (1, 2)]
    assert [each.read_bytes() for each in members] == [
        (tmp_path / name / "test1" / "predictions.csv").read_bytes() for name in ("a", "b")
    ]
    runs = read_runs([*members, tmp_path / "both" / "test1"], None)
    assert [run.label for run in runs] == ["member1", "member2", "both"]
    assert "explain" in (tmp_path / "both" / "log.txt").read_text(encoding="utf-8")
    last_first = {key: state[key][::-1] for key in ("abbreviations", "names")}
    save_checkpoint(tmp_path / "other.pt", state | last_first)
    assert "other.pt" in refused("--test", *paths)


@pytest.mark.parametrize("words", [["main.py", "--test", "best.pt"], ["tools/predict.py", "best.pt"]])
def test_a_test_and_predictions_cannot_be_resumed_as_a_training_run(tiny_run, words, refused):
    path = tiny_run / "config.json"
    provenance = json.loads(path.read_text(encoding="utf-8")) | {"argv": words}
    path.write_text(json.dumps(provenance), encoding="utf-8")
    assert "repeat its command" in refused("--resume", tiny_run)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--height", "700"], "height 700 32 704"),
        (["--epochs", "many"], "epochs many"),
        (["--epoch", "3"], "epoch epochs"),
        (["--preset", "dmeo"], "dmeo demo"),
        (["--method", "unett"], "unett unet"),
        (["--config", "none.json"], "none.json"),
        (["--spacing", "0,2"], "spacing 0,2 0.2"),
        (["--test", "a.pt", "--resume", "b"], "--test --resume"),
    ],
)
def test_bad_arguments_are_refused(arguments, words, refused):
    message = refused(*arguments)
    assert all(word in message for word in words.split())


def test_a_full_disk_is_said_in_one_line(tiny_run, monkeypatch, refused):
    def full(*arguments):
        raise OSError(28, "No space left on device", "results.xls")

    monkeypatch.setattr(main, "report", full)
    assert "results.xls: No space left on device" in refused("--resume", tiny_run)


def test_the_program_itself_ends_with_status_2_and_one_line(tmp_path):
    program = Path(main.__file__)
    done = subprocess.run(
        [sys.executable, str(program), "--json_path", "none.json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "none.json" in done.stderr
    assert done.stderr.count("\n") == 1 and not list((tmp_path / "runs").iterdir())


def test_interrupting_ends_with_status_130_and_says_how_to_go_on(tiny_run, monkeypatch, run_program):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "train", interrupt)
    assert run_program(main, "--resume", tiny_run)[0] == 130
    assert f"--resume {tiny_run}" in (tiny_run / "log.txt").read_text(encoding="utf-8")


def test_an_unknown_setting_in_a_file_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text('{"epoch": 3}')
    message = refusal(main.resolve_config, *main.parse_arguments(["--config", str(tmp_path / "settings.json")]))
    assert "'epoch'" in message and "epochs" in message
