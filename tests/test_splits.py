import json
import logging
import shutil

import numpy as np
import pytest
from conftest import data_refusal, make_records, mentions, refuses, tiny_config, write_records
from foreign_files import write_dicom

from reading.splits import load_data, read_split_file


def fingerprints(folder) -> dict[str, str]:
    """The split of each image by its fingerprint, as a checkpoint keeps it."""
    data = load_data(tiny_config(folder))
    return {record.fingerprint: split for split in data.splits for record in data.select(split)}


def test_the_records_own_splits_are_kept(dataset):
    records = make_records(dataset)
    for record, split in zip(records, ["train", "train", "val", "test1", "test2", "train"], strict=True):
        record["split"] = split
    write_records(dataset, records)
    data = load_data(tiny_config(dataset))
    assert data.splits == {"train": (0, 1, 5), "val": (2,), "test1": (3,), "test2": (4,)}
    assert data.test_sets == ["test1", "test2"]


def test_records_that_name_train_but_no_val_lend_some_of_train_to_val(dataset):
    splits = ["train"] * 4 + ["test1"] * 2
    write_records(dataset, [r | {"split": s} for r, s in zip(make_records(dataset), splits, strict=True)])
    data = load_data(tiny_config(dataset, val_fraction=0.25))
    assert {name: len(members) for name, members in data.splits.items()} == {"train": 3, "val": 1, "test1": 2}
    assert data.splits["test1"] == (4, 5)
    assert load_data(tiny_config(dataset, val_fraction=0.0)).splits == {"train": (0, 1, 2, 3), "test1": (4, 5)}


def test_a_split_in_some_records_only_is_refused(dataset):
    records = make_records(dataset)
    records[0]["split"] = "train"
    assert mentions(data_refusal(dataset, records), "image 1 (ä).png", "split")


def test_a_split_without_training_images_is_refused(dataset):
    assert "train" in data_refusal(dataset, [record | {"split": "test"} for record in make_records(dataset)])
    assert "train" in data_refusal(dataset, make_records(dataset, count=2))


def test_drawn_splits_depend_on_the_seed_alone(dataset):
    splits = [load_data(tiny_config(dataset, seed=seed)).splits for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert any(other != splits[0] for other in splits[2:])
    assert sorted(sum(splits[0].values(), ())) == list(range(6))
    assert {name: len(members) for name, members in splits[0].items()} == {"train": 4, "val": 1, "test": 1}


def test_the_images_of_a_patient_and_equal_images_stay_together(dataset):
    records = make_records(dataset, count=10)
    for number, record in enumerate(records):
        record["patient"] = number // 3
    shutil.copy(dataset / "imgs" / records[0]["imagePath"], dataset / "imgs" / records[5]["imagePath"])
    records[5]["points"] = records[0]["points"]
    write_records(dataset, records)
    for seed in range(10):
        data = load_data(tiny_config(dataset, seed=seed))
        sides = [
            {split for split, m in data.splits.items() if set(m) & group} for group in ({0, 1, 2, 3, 4, 5}, {6, 7, 8})
        ]
        assert all(len(side) == 1 for side in sides)


def test_equal_images_on_both_sides_of_a_split_are_named(dataset, caplog):
    records = make_records(dataset)
    for record, split in zip(records, ["train"] * 4 + ["test"] * 2, strict=True):
        record["split"] = split
    shutil.copy(dataset / "imgs" / records[0]["imagePath"], dataset / "imgs" / records[5]["imagePath"])
    records[5]["points"] = records[0]["points"]
    write_records(dataset, records)
    logging.getLogger("farnet").propagate = True
    load_data(tiny_config(dataset))
    assert mentions(caplog.text, "image 0 (ä).png (train)", "image 5 (ä).png (test)")


def test_split_same_trains_and_tests_on_every_image_and_says_so(dataset, caplog):
    logging.getLogger("farnet").propagate = True
    data = load_data(tiny_config(dataset, split="same"))
    assert data.splits == {"train": tuple(range(6)), "test": tuple(range(6))}
    assert any("same" in r.message and r.levelno == logging.WARNING for r in caplog.records)


def test_a_run_keeps_its_split_and_refuses_records_that_it_does_not_know(dataset):
    before = load_data(tiny_config(dataset))
    splits = {split: [record.name for record in before.select(split)] for split in before.splits}
    assert load_data(tiny_config(dataset, seed=8), splits=splits).splits == before.splits
    write_records(dataset, make_records(dataset, count=8))
    with refuses("2 records", "image 6 (ä).png, image 7 (ä).png", "start_from"):
        load_data(tiny_config(dataset), splits=splits)


def test_a_run_whose_image_is_gone_from_the_json_is_refused(dataset):
    with refuses("gone.png", "split.json"):
        load_data(tiny_config(dataset), splits={"train": ["gone.png"]})


def test_a_checkpoint_is_tested_on_the_test_images_of_its_run_whatever_the_fractions_say(dataset):
    straight = load_data(tiny_config(dataset))
    config = tiny_config(dataset, test_fraction=0.5, seed=7)
    assert load_data(config, seen=fingerprints(dataset), for_training=False).splits == {
        split: straight.splits[split] for split in straight.splits
    }


def test_a_checkpoint_is_tested_on_every_image_that_it_has_not_seen(dataset, tmp_path):
    seen = fingerprints(dataset)
    write_records(dataset, make_records(dataset, seed=9))
    assert load_data(tiny_config(dataset), seen=seen, for_training=False).splits == {"test": tuple(range(6))}


def test_a_test_set_with_images_that_the_checkpoint_was_trained_on_is_named(dataset, caplog):
    seen = fingerprints(dataset)
    write_records(dataset, [record | {"split": "test1"} for record in make_records(dataset)])
    logging.getLogger("farnet").propagate = True
    load_data(tiny_config(dataset), seen=seen, for_training=False)
    assert any(mentions(message, "5 images", "test1") for message in caplog.messages)


@pytest.mark.parametrize("named", [False, True])
def test_every_image_is_tested_in_one_fold_and_patients_are_never_split(tmp_path, named):
    records = make_records(tmp_path, count=10)
    for number, record in enumerate(records):
        record["patient"] = f"p{number // 2}"
        if named:
            record["split"] = "test1" if number >= 8 else "train"
    write_records(tmp_path, records)
    dealt = set(range(8 if named else 10))
    tested: list[int] = []
    for fold in (1, 2, 3):
        splits = load_data(tiny_config(tmp_path, folds=3, fold=fold, val_fraction=0.3)).splits
        assert set(splits) == {"train", "val", "test"}
        sides = [set(members) for members in splits.values()]
        assert set.union(*sides) == dealt and sum(map(len, sides)) == len(dealt)
        assert not any({i // 2 for i in a} & {i // 2 for i in b} for a in sides for b in sides if a is not b)
        tested += splits["test"]
    assert sorted(tested) == sorted(dealt)


def test_more_folds_than_patients_are_refused(dataset):
    records = [record | {"patient": "one"} for record in make_records(dataset)]
    assert mentions(data_refusal(dataset, records, folds=2, fold=1), "1 patient", "2 folds")


def test_a_checkpoint_of_a_fold_is_tested_on_its_own_fold(dataset):
    splits, records = ["train"] * 4 + ["test1"] * 2, make_records(dataset)
    # the same picture on both sides, as in ISBI 2015: in test1 it is still no image of a fold
    shutil.copy(*(dataset / "imgs" / records[number]["imagePath"] for number in (0, 5)))
    write_records(dataset, [r | {"split": s} for r, s in zip(records, splits, strict=True)])
    config = tiny_config(dataset, folds=2, fold=2)
    data = load_data(config)
    assert set(data.splits) == {"train", "val", "test"}  # test1 is left alone
    seen = {record.fingerprint: split for split in data.splits for record in data.select(split)}
    assert load_data(config, seen=seen, for_training=False).splits == data.splits


def test_other_words_for_our_splits_are_understood(dataset):
    records = make_records(dataset)
    for record, split in zip(records, ["Train", "training", "valid", "Validation", "VAL", "test1"], strict=True):
        record["split"] = split
    write_records(dataset, records)
    assert load_data(tiny_config(dataset)).splits == {"train": (0, 1), "val": (2, 3, 4), "test1": (5,)}


def test_a_landmark_without_a_training_point_is_reported_and_nothing_to_train_on_is_refused(dataset, caplog):
    logging.getLogger("farnet").propagate = True
    records = make_records(dataset)
    for record, split in zip(records, ["train"] * 3 + ["val", "test", "test"], strict=True):
        record |= {"split": split, "spacing": 0.5}
    for record in records[:3]:
        record["points"][2] |= {"X": None, "Y": None}
    for point in records[3]["points"]:
        point["visible"] = False
    write_records(dataset, records)
    load_data(tiny_config(dataset))
    assert "no training image has the landmark A:" in caplog.text and "no image of val has a point" in caplog.text
    for record in records[:3]:
        for point in record["points"]:
            point["visible"] = False
    assert mentions(data_refusal(dataset, records), "data.json", "no training image has a point")


def test_what_a_dicom_file_states_and_what_is_odd_about_it_is_logged_where_another_spacing_is_used(dataset, caplog):
    write_dicom(dataset / "imgs" / "film.dcm", np.zeros((80, 96)), PixelSpacing=[0.2, 0.2], RescaleSlope=0)
    records = make_records(dataset)
    records[1]["imagePath"] = "film.dcm"
    write_records(dataset, records)
    logging.getLogger("farnet").propagate = True
    load_data(tiny_config(dataset, spacing=0.1))
    assert mentions(caplog.text, "film.dcm", "RescaleSlope", "1 images state another spacing", "0.2 mm", "0.1 is used")
    caplog.clear()
    load_data(tiny_config(dataset, spacing=0.2))
    assert "another spacing" not in caplog.text
    load_data(tiny_config(dataset, spacing=None))
    assert mentions(caplog.text, "0.2 mm", "errors are in px")


@pytest.mark.parametrize("split", ["../x", "a\nb", "x" * 100, "pooled"])
def test_a_split_json_whose_split_cannot_be_a_folder_is_refused(tmp_path, split):
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a.png"], split: ["b.png"]}))
    with refuses("split.json", "split"):
        read_split_file(tmp_path / "split.json")
