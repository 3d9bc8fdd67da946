import csv
import json
import shlex

import numpy as np
import pytest
import torch
from conftest import (
    ABBREVIATIONS,
    METHOD_SETTINGS,
    make_records,
    mentions,
    refusal,
    refuses,
    tiny_config,
    write_records,
)

import main
from methods import create_detector, method_class
from methods.start import read_start, start_detector
from reading.names import match_landmarks
from reading.splits import load_data
from run_folder import read_checkpoint, save_checkpoint
from settings import build_config
from tools import predict, review
from tools.formats.isbi2015 import LANDMARKS
from tools.review_source import read_source
from train import train

AARIZ = "A ANS B Me N Or Pog PNS Pn R S Ar Co Gn Go Po LPM LIT LMT UPM UIA UIT UMT LIA Li Ls N` Pog` Sn".split()
NAMES = {
    "farnet": dict(METHOD_SETTINGS["farnet"], decoder_channels=32),
    "refined": dict(METHOD_SETTINGS["refined"], method="farnet", decoder_channels=32),
    "unet": METHOD_SETTINGS["unet"],
    "noothout": METHOD_SETTINGS["noothout"],
    "posenet": dict(METHOD_SETTINGS["posenet"], occlusion=True),
}


# --- Names ---


def fifty_two() -> list[str]:
    with open("CustomDataSet/json/data.json", encoding="utf-8") as file:
        return [point["pointAbbreviation"] for point in json.load(file)[0]["points"]]


def test_the_19_landmarks_of_isbi_and_20_of_aariz_are_found_among_the_52():
    known, isbi = fifty_two(), [abbreviation for _, abbreviation in LANDMARKS]
    assert {isbi[n]: known[m] for n, m in match_landmarks(isbi, known).items()} == {name: name for name in isbi}
    found = {AARIZ[n]: known[m] for n, m in match_landmarks(AARIZ, known).items()}
    same = "A ANS B Me N Or Pog PNS S Gn Go Li Ls Sn".split()
    others = {
        "Pn": "Ns", "Ar": "ar", "Co": "Cond", "Po": "P", "LIT": "Is1l", "UIT": "Is1u", "UIA": "Ap1u", "LIA": "Ap1l",
        "N`": "N’", "Pog`": "Pog’",
    }  # fmt: skip
    assert found == {name: name for name in same} | others
    back = {known[n]: AARIZ[m] for n, m in match_landmarks(known, AARIZ).items()}
    assert back == {other: name for name, other in found.items()}


def test_pairs_come_before_the_table_and_can_say_that_there_is_no_partner():
    assert match_landmarks(["Ar", "X"], ["ar", "Y"], ["X=Y"]) == {0: 0, 1: 1}
    assert match_landmarks(["Ar", "X"], ["ar", "Y"], ["Ar=Y"]) == {0: 1}
    assert match_landmarks(["Ar", "X"], ["ar", "Y"], ["Ar="]) == {}


def test_numbers_are_matched_only_between_equal_sets():
    assert match_landmarks(["1", "2", "S"], ["2", "1", "S"]) == {2: 2}
    assert match_landmarks(["1", "2"], ["1", "2"]) == {0: 0, 1: 1}


@pytest.mark.parametrize(
    "own, theirs, pairs, words",
    [
        (["A"], ["B"], ["A"], ["A", "OWN=THEIRS"]), (["A"], ["B"], ["C=B"], ["the data", "'C'"]),
        (["A"], ["B"], ["A=C"], ["the other network", "'C'"]), (["A"], ["B", "C"], ["A=B", "A=C"], ["two partners"]),
        (["A", "B"], ["B"], ["A=B"], ["A and B", "start_names"]), (["Ar", "ar"], ["Ar"], [], ["Ar and ar"]),
        (["Ns"], ["Pn", "Prn"], [], ["Ns", "Pn or Prn", "start_names"]),
    ],
)  # fmt: skip
def test_a_table_with_two_names_for_one_landmark_is_refused_in_one_line(own, theirs, pairs, words):
    assert mentions(refusal(match_landmarks, own, theirs, pairs), *words)


# --- Weights ---


def method_config(name: str, folder, **settings):
    plain = tiny_config(folder).to_dict() | NAMES[name]
    method = plain.get("method") if name == "refined" else name
    return build_config(method_class(method).Config, plain | {"method": method} | settings)


def saved(folder, name: str, landmarks, file="best.pt", **settings) -> dict:
    """A checkpoint of an untrained network whose norms have seen something."""
    torch.manual_seed(1)
    config = method_config(name, folder, num_landmarks=len(landmarks), **settings)
    detector = create_detector(config)
    for weight in detector.state_dict().values():
        if weight.is_floating_point():
            weight += 0.05 * torch.rand_like(weight)
    state = {
        "method": config.method, "settings": config.to_dict(), "abbreviations": list(landmarks),
        "names": list(landmarks), "images": {}, "model": detector.state_dict(), "epoch": 1,
    }  # fmt: skip
    save_checkpoint(folder / file, state)
    return {"config": config, "detector": detector.eval(), "path": folder / file}


def started(old, landmarks, **settings):
    config = old["config"].replace(start_from=str(old["path"]), num_landmarks=len(landmarks), **settings)
    torch.manual_seed(2)
    return start_detector(config, landmarks, read_start(config)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_landmarks_start_with_exactly_the_weights_of_the_other_run(name, tmp_path):
    old = saved(tmp_path, name, ABBREVIATIONS)
    weights = started(old, ABBREVIATIONS).state_dict()
    expected = old["detector"].state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in weights.items())


@pytest.mark.parametrize("name", NAMES)
def test_landmarks_in_another_order_are_found_as_before(name, tmp_path):
    old = saved(tmp_path, name, ABBREVIATIONS)
    order = [2, 0, 3, 1]
    detector = started(old, [ABBREVIATIONS[n] for n in order])
    size = old["config"].height, old["config"].width
    image = torch.rand(1, 3, *size)
    with torch.inference_mode():
        landmarks, score = detector.predict(image)
        expected, expected_score = old["detector"].predict(image)
        assert torch.allclose(landmarks, expected[:, order], atol=1e-3)
        assert torch.allclose(score, expected_score[:, order], atol=1e-4)
        if name == "posenet":
            maps = torch.rand(1, 8, 16, 24)  # pose, then occlusion
            both = [*order, *(4 + n for n in order)]
            for letter, judge in detector.discriminators.items():
                first = [torch.rand(1, 3, 16, 24)] if letter == "P" else []
                seen = judge(torch.cat([*first, maps[:, both]], 1))
                theirs = old["detector"].discriminators[letter](torch.cat([*first, maps], 1))
                assert torch.allclose(seen, theirs[:, order], atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "noothout"])
def test_shared_landmarks_are_found_as_before_beside_new_ones(name, tmp_path, caplog):
    old = saved(tmp_path, name, ABBREVIATIONS)
    with caplog.at_level("INFO", logger="farnet"):
        detector = started(old, ["X", "B", "R1"])
    image = torch.rand(1, 3, old["config"].height, old["config"].width)
    with torch.inference_mode():
        landmarks, expected = detector.predict(image)[0], old["detector"].predict(image)[0]
    assert torch.allclose(landmarks[:, 1:], expected[:, [3, 0]], atol=1e-3)
    text = caplog.text
    assert mentions(text, "2 landmarks kept: B, R1", "1 landmarks new: X", "2 landmarks left out: R2, A")


def test_the_fine_maps_of_farnet_take_what_belongs_to_no_landmark_and_the_shared_rows(tmp_path):
    old = saved(tmp_path, "farnet", ABBREVIATIONS)
    weights, theirs = started(old, ["B", "X"]).state_dict(), old["detector"].state_dict()
    name = "network.fine_head.spatial.weight"
    rest = theirs[name].shape[0] - 4
    assert torch.equal(weights[name][:rest, :rest], theirs[name][:rest, :rest])
    assert torch.equal(weights[name][rest, :rest], theirs[name][rest + 3, :rest])  # B
    assert torch.equal(weights[name][:rest, rest], theirs[name][:rest, rest + 3])
    assert not torch.isin(weights[name][rest + 1, :rest], theirs[name]).any()  # X is new
    assert torch.equal(weights["network.a5.0.0.weight"], theirs["network.a5.0.0.weight"])


def test_a_second_stage_is_added_to_a_network_without_one_and_left_out_where_none_is_wanted(tmp_path, caplog):
    plain, refined = saved(tmp_path, "farnet", ABBREVIATIONS), saved(tmp_path, "refined", ABBREVIATIONS, "refined.pt")
    with caplog.at_level("INFO", logger="farnet"):
        grown = started(plain, ABBREVIATIONS, refine=2, height=128, width=192).state_dict()
    assert torch.equal(grown["first.network.c5.0.weight"], plain["detector"].state_dict()["network.c5.0.weight"])
    assert mentions(caplog.text, "parts of the network new: second.network.beside")
    shrunk = started(refined, ABBREVIATIONS, refine=1, height=64, width=96).state_dict()
    assert torch.equal(shrunk["network.c5.0.weight"], refined["detector"].state_dict()["first.network.c5.0.weight"])


def test_noothout_goes_on_from_its_first_stage_and_its_local_networks_are_new(tmp_path):
    old = saved(tmp_path, "noothout", ABBREVIATIONS, stages="global")
    detector = started(old, ["A", "S"], stages="both")
    shared = "global_network.class_head.last.weight"
    assert torch.equal(detector.state_dict()[shared][0], old["detector"].state_dict()[shared][2])
    assert detector.local_networks is not None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"norm": "batch"}, ["norm instance, not batch"]), ({"backbone": "vgg16"}, ["backbone densenet121, not vgg16"]),
        ({"method": "unet"}, ["method farnet, not unet"]),
    ],
)  # fmt: skip
def test_another_backbone_norm_or_method_is_refused_in_one_line(changes, words, tmp_path):
    old = saved(tmp_path, "farnet", ABBREVIATIONS)
    config = old["config"].replace(start_from=str(old["path"]), **changes)
    with refuses("start_from", "best.pt", *words):
        start_detector(config, ABBREVIATIONS, read_start(config))


def test_a_file_that_is_no_checkpoint_and_a_folder_without_one_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("text", encoding="utf-8")
    for place in (tmp_path, tmp_path / "text.pt", tmp_path / "nothing.pt"):
        assert str(place) in refusal(read_start, tiny_config(tmp_path, start_from=str(place)))


# --- Runs ---


def test_no_epoch_at_all_tests_the_network_as_it_is(trained_run, tmp_path):
    settings = trained_run.parent / "settings.json"
    own = ["--config", str(settings), "--start_from", str(trained_run), "--epochs", "0", "--patience", "1"]
    main.run([*own, "--run_dir", str(tmp_path / "again")])
    theirs, again = ((run / "test" / "predictions.csv").read_bytes() for run in (trained_run, tmp_path / "again"))
    assert theirs == again
    assert json.loads((tmp_path / "again" / "split.json").read_text(encoding="utf-8"))
    with refuses("epochs", "at least 1"):
        tiny_config(tmp_path, epochs=0)


def test_images_of_the_other_run_stay_in_their_splits_and_only_new_ones_are_drawn(tmp_path):
    write_records(tmp_path, make_records(tmp_path, 10))
    config = tiny_config(tmp_path, val_fraction=0.2, test_fraction=0.2, seed=3)
    data = load_data(config)
    before = {r.fingerprint: split for split in data.splits for r in data.select(split)}
    more = make_records(tmp_path / "more", 10, seed=1)
    for number, record in enumerate(more):
        (tmp_path / "more" / "imgs" / record["imagePath"]).rename(tmp_path / "imgs" / f"new {number}.png")
        record["imagePath"] = f"new {number}.png"
    more[0]["patient"] = "P1"
    old = make_records(tmp_path, 10)
    place = next(n for n, record in enumerate(data.records) if record in data.select("test"))
    old[place]["patient"] = "P1"
    write_records(tmp_path, old + more)
    now = load_data(config.replace(seed=8), before=before)
    for split, count in (("train", 11), ("val", 4), ("test", 5)):  # 6 + 5, 2 + 2, 2 + 2 and the patient's new image
        records = now.select(split)
        assert len(records) == count and {before.get(r.fingerprint, split) for r in records} == {split}
    assert "new 0.png" in [r.name for r in now.select("test")]  # with its patient
    assert load_data(config.replace(test_fraction=0.0), before=before).test_sets == []


def test_a_test_image_that_the_other_network_was_trained_on_is_refused(tmp_path):
    records = make_records(tmp_path, 6)
    for record, split in zip(records, ["train"] * 3 + ["val", "test", "test"], strict=True):
        record["split"] = split
    write_records(tmp_path, records)
    first = tiny_config(tmp_path, method="tiny", epochs=1)
    (tmp_path / "first").mkdir()
    train(first, tmp_path / "first")
    records[0]["split"] = "test"
    write_records(tmp_path, records)
    (tmp_path / "second").mkdir()
    with refuses("initial weights", records[0]["imagePath"], "train", "test"):
        train(first.replace(start_from=str(tmp_path / "first")), tmp_path / "second")
    records[0]["split"] = "train"
    write_records(tmp_path, records)
    train(first.replace(start_from=str(tmp_path / "first")), tmp_path / "second")
    states = [read_checkpoint(tmp_path / name / "last.pt") for name in ("first", "second")]
    assert states[0]["images"] == states[1]["images"]


def patient(folder, **settings):
    own = dict(method="tiny", val_fraction=0.2, lr=0.03, epochs=12, patience=2, save_every=1)
    return tiny_config(folder, **own | settings)


def test_training_stops_when_the_validation_error_falls_no_more(dataset, tmp_path):
    config = patient(dataset)
    (tmp_path / "run").mkdir()
    train(config, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.csv", newline="", encoding="utf-8") as file:
        found = [float(row["val_MRE"]) for row in csv.DictReader(file)]
    assert 3 <= len(found) < 12 and int(np.argmin(found)) == len(found) - 3
    assert read_checkpoint(tmp_path / "run" / "last.pt")["epoch"] == len(found)
    with refuses("patience", "val_fraction"):
        train(config.replace(val_fraction=0.0), tmp_path / "other")


def test_resuming_a_fine_tuning_with_patience_equals_not_stopping(dataset, trained_run, tmp_path):
    config = patient(dataset, ema=0.9, start_from=str(trained_run), seed=0)
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    train(config, tmp_path / "straight")
    for epochs in (1, 2, 12):
        train(config.replace(epochs=epochs), tmp_path / "stopped")
    one, other = (read_checkpoint(tmp_path / name / "last.pt") for name in ("straight", "stopped"))
    assert one["epoch"] == other["epoch"] > 2
    for entry in ("model", "training_model"):
        assert all(torch.equal(weight, other[entry][key]) for key, weight in one[entry].items())
    train(config, tmp_path / "stopped")  # a run that has stopped stays as it is
    assert read_checkpoint(tmp_path / "stopped" / "last.pt")["epoch"] == one["epoch"]


def test_images_that_were_all_test_images_are_drawn_anew(tmp_path):
    write_records(tmp_path, make_records(tmp_path, 6))
    config = tiny_config(tmp_path)
    before = {record.fingerprint: "test1" for record in load_data(config).records}
    data = load_data(config, before=before)
    assert {split: len(members) for split, members in data.splits.items()} == {"train": 4, "val": 1, "test": 1}


@pytest.mark.parametrize("what", ["new images", "test images"])
def test_corrected_predictions_train_on_by_the_command_that_review_prints(what, trained_run, tmp_path, run_program):
    source = trained_run
    if what == "new images":
        make_records(tmp_path / "new", 8, seed=5)
        source = tmp_path / "found"
        words = (
            trained_run / "best.pt",
            tmp_path / "new" / "imgs",
            "--out",
            source,
            "--device",
            "cpu",
            "--workers",
            "0",
        )
        assert run_program(predict, *words)[0] == 0
    (shown,) = read_source(source, None, None)
    records = [image.record for image in shown.images]
    saved = tmp_path / "data.json"
    saved.write_text(json.dumps(records), encoding="utf-8")
    status, output = run_program(review, source, "--out", tmp_path / "review.html")
    line = next(line for line in output.splitlines() if line.startswith("train on the saved file with: "))
    command = shlex.split(line.partition(": ")[2].replace("SAVED/data.json", str(saved)))
    assert command[:2] == ["python", "main.py"] and str(trained_run / "best.pt") in command
    again = tmp_path / "again"
    main.run([*command[2:], "--run_dir", str(again), "--epochs", "1", "--val_fraction", "0", "--test_fraction", "0"])
    log = (again / "log.txt").read_text(encoding="utf-8")
    assert f"starting from {trained_run / 'best.pt'}" in log and "4 landmarks kept" in log
    assert read_checkpoint(again / "last.pt")["settings"]["method"] == "tiny"


def test_the_command_for_corrected_predictions_of_a_fold_starts_a_plain_run(dataset, tmp_path, run_program):
    (dataset / "settings.json").write_text(json.dumps(tiny_config(dataset, method="tiny", folds=2, epochs=1).to_dict()))
    main.run(["--config", str(dataset / "settings.json"), "--run_dir", str(tmp_path / "run")])
    fold, saved = tmp_path / "run" / "fold1", tmp_path / "data.json"
    (shown,) = read_source(fold, None, None)
    saved.write_text(json.dumps([image.record for image in shown.images]), encoding="utf-8")
    _, output = run_program(review, fold, "--out", tmp_path / "review.html")
    line = next(line for line in output.splitlines() if line.startswith("train on the saved file with: "))
    command = shlex.split(line.partition(": ")[2].replace("SAVED/data.json", str(saved)))
    main.run([*command[2:], "--run_dir", str(tmp_path / "again"), "--val_fraction", "0", "--test_fraction", "0"])
    assert "starting from" in (tmp_path / "again" / "log.txt").read_text(encoding="utf-8")
