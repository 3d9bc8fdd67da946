import builtins
import errno
import json
import logging
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import mentions, refusal, refuses, tiny_config

import main
import run_folder
import train
from machine import exit_status
from run_folder import (
    create_run_folder,
    discard_unstarted,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    start_log,
    write_provenance,
    write_text,
)
from settings import UserError, read_settings

LANDMARKS = {"abbreviations": ["A"], "names": ["point A"], "images": {}}
SETTINGS = {"method": "farnet", "num_landmarks": 1}
STATE = {"method": "farnet", "settings": SETTINGS, "epoch": 3, "model": {"weight": torch.arange(6.0)}} | LANDMARKS


def test_a_run_folder_that_exists_is_refused_and_untouched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_text("precious")
    with refuses(tmp_path / "run", "--resume"):
        create_run_folder(tiny_config(tmp_path, run_dir=str(tmp_path / "run")))
    assert (tmp_path / "run" / "last.pt").read_text() == "precious"
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with refuses(tmp_path / "file" / "run", "run_dir"):
        create_run_folder(tiny_config(tmp_path, run_dir=str(tmp_path / "file" / "run")))


def test_a_run_folder_in_a_forbidden_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with refuses(tmp_path / "run", "Permission denied", "run_dir"):
        create_run_folder(tiny_config(tmp_path, run_dir=str(tmp_path / "run")))


def test_without_a_name_the_run_folder_is_named_by_method_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = create_run_folder(tiny_config(tmp_path))
    assert folder.parent.name == "runs" and folder.name.startswith("farnet-20")


def test_a_run_folder_that_holds_more_than_its_log_is_never_removed(tmp_path):
    for name in ("empty", "used"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.txt").touch()
    (tmp_path / "used" / "config.json").touch()
    for name in ("empty", "used"):
        discard_unstarted(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_the_log_of_one_run_holds_nothing_of_another(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        start_log(tmp_path / name)
        logging.getLogger("farnet").info("line of %s", name)
    run_folder.close_log()
    assert "line of b" not in (tmp_path / "a" / "log.txt").read_text()
    assert "line of b" in (tmp_path / "b" / "log.txt").read_text()


def test_a_runs_config_json_holds_settings_and_provenance_and_can_be_read_as_settings(tmp_path):
    config = tiny_config(tmp_path)
    write_provenance(tmp_path, config, 61, torch.device("cpu"))
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert read_settings(tmp_path / "config.json") == config.to_dict()
    assert content["parameters"] == 61 and content["versions"]["torch"] == torch.__version__
    assert {"argv", "commit", "started", "hardware"} <= content.keys()


def test_a_checkpoint_survives_a_round_trip(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    state = read_checkpoint(tmp_path / "last.pt")
    assert state["epoch"] == 3 and torch.equal(state["model"]["weight"], torch.arange(6.0))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", STATE)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refuses("last.pt", "No space left", "--resume"):
        save_checkpoint(tmp_path / "last.pt", STATE | {"epoch": 4})
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the size of a file like this")
@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_whole(tmp_path, size):
    import resource

    save_checkpoint(tmp_path / "last.pt", STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with refuses("last.pt", "cannot be written", "--resume"):
            save_checkpoint(tmp_path / "last.pt", STATE | {"model": {"weight": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "split.json", "old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with refuses("split.json", "I/O error"):
        write_text(tmp_path / "split.json", "new")
    assert (tmp_path / "split.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_pickle_that_is_not_a_checkpoint_is_refused_and_not_executed(tmp_path, monkeypatch):
    class Malicious:
        def __reduce__(self):
            return (builtins.open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"model": Malicious()}, tmp_path / "inside.pt")
    for name in ("plain.pt", "inside.pt"):
        assert name in refusal(read_checkpoint, tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    save_checkpoint(tmp_path / "last.pt", STATE)
    content = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(content[: int(share * len(content))])
    assert "last.pt" in refusal(read_checkpoint, tmp_path / "last.pt")


def test_other_files_folders_and_nothing_are_refused_as_checkpoints(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    for name in ("weights.pt", "list.pt", "text.pt"):
        assert name in refusal(read_checkpoint, tmp_path / name)
    assert f"{tmp_path} " in refusal(read_checkpoint, tmp_path)
    assert "none.pt" in refusal(read_checkpoint, tmp_path / "none.pt")


# --- Damaged checkpoints ---


def test_a_flipped_bit_anywhere_in_a_checkpoints_content_is_refused(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    whole = read_checkpoint(tmp_path / "last.pt")
    del whole["path"]
    content = (tmp_path / "last.pt").read_bytes()
    weight = content.index(torch.arange(6.0).numpy().tobytes())
    for place in {weight + 7, *range(0, len(content), 29)}:
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        (tmp_path / "flipped.pt").write_bytes(damaged)
        try:
            state = read_checkpoint(tmp_path / "flipped.pt")
        except UserError as error:
            assert "flipped.pt" in str(error) and "\n" not in str(error)
        else:  # the bit is padding
            assert state.pop("path").endswith("flipped.pt")
            assert place != weight + 7 and torch.equal(state["model"]["weight"], whole["model"]["weight"])
            assert {k: v for k, v in state.items() if k != "model"} == {k: v for k, v in whole.items() if k != "model"}


def test_a_checkpoint_that_claims_more_bytes_than_it_has_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with refuses("bomb.pt", "claims"):
        read_checkpoint(tmp_path / "bomb.pt")


@pytest.mark.parametrize("name", ["method", "settings", "abbreviations", "images", "model", "epoch"])
def test_a_checkpoint_without_an_entry_or_with_another_type_there_is_refused(tmp_path, name):
    path = tmp_path / "last.pt"
    states = [{key: value for key, value in STATE.items() if key != name}]
    states += [STATE | {name: value} for value in (None, 3.5, True, [1, 2], {"a": [], 3: "b"}, -1, torch.zeros(1))]
    for state in states:
        save_checkpoint(path, state)
        with refuses(path, "checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": 10**30},
        {"best_MRE": "1"}, {"best_MRE": float("nan")}, {"processes": -1}, {"averaged_steps": "2"}, {"optimizers": [1]},
        {"training_model": {"weight": 1}}, {"abbreviations": ["A", "B"]}, {"names": []},
        {"images": {"a": "../x"}}, {"names": ["a\nb"]}, {"settings": SETTINGS | {"seed": torch.zeros(2)}},
    ],
)  # fmt: skip
def test_a_checkpoint_with_an_entry_out_of_range_is_refused(tmp_path, wrong):
    save_checkpoint(tmp_path / "last.pt", STATE | wrong)
    with refuses("last.pt", "checkpoint"):
        read_checkpoint(tmp_path / "last.pt")


def test_only_the_very_weights_of_a_checkpoint_are_loaded():
    network = torch.nn.BatchNorm1d(2)
    whole = {name: weight.clone() for name, weight in network.state_dict().items()}
    load_weights("last.pt", network, whole)
    bias, wrong = whole["bias"], [whole["num_batches_tracked"].float()]
    wrong += [bias.to(torch.complex64), bias.long(), bias.half(), bias.double(), bias / 0, bias[:1], bias.to_sparse()]
    states = [whole | {"bias" if tensor.ndim else "num_batches_tracked": tensor} for tensor in wrong]
    states += [{name: whole[name] for name in whole if name != left_out} for left_out in whole]
    for state in (*states, whole | {"other": bias}):
        with refuses("last.pt", "weights"):
            load_weights("last.pt", network, state)


# --- Writing ---


def test_a_run_that_was_killed_before_it_started_leaves_its_folder_free(tmp_path):
    config = tiny_config(tmp_path, run_dir=str(tmp_path / "run"))
    create_run_folder(config)  # which holds a log alone
    assert create_run_folder(config) == tmp_path / "run"
    (tmp_path / "run" / "config.json").touch()
    with refuses("run", "--resume"):
        create_run_folder(config)


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    start_log(tmp_path)
    handler = next(handler for handler in logging.getLogger("farnet").handlers if hasattr(handler, "baseFilename"))
    with open("/dev/full", "w") as full:
        handler.setStream(full)
        with refuses("log.txt", "No space left", "--resume"):
            logging.getLogger("farnet").info("a line")
        run_folder.close_log()


def bytes_of(run: Path) -> dict[str, bytes]:
    """The files of a run that do not hold a time or a path."""
    names = ("best.pt", "last.pt", "split.json", "predictions.csv", "summary.json", "*.png")
    paths = [path for name in names for path in run.rglob(name) if path.name != "curves.png"]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths if path.suffix != ".pt"} | {
        path.name: pickle.dumps([w.tolist() for w in read_checkpoint(path)["model"].values()])
        for path in paths if path.suffix == ".pt"
    }  # fmt: skip


@pytest.fixture
def full_disk(monkeypatch):
    """main.py with these arguments, where the n-th write fails (0: none), in fsync or in replace; its exit status."""
    replace, fsync = os.replace, os.fsync

    def run(arguments: list, fail_at: int = 0) -> int:
        run.left, at = fail_at, "fsync" if fail_at % 2 else "replace"

        def failing(real, name):
            def call(*paths):
                if name == at:
                    run.left -= 1
                if name == at and run.left == 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*paths)

            return call

        monkeypatch.setattr(os, "replace", failing(replace, "replace"))
        monkeypatch.setattr(os, "fsync", failing(fsync, "fsync"))
        return exit_status(lambda: main.run(list(map(str, arguments))))

    return run


@pytest.mark.slow
def test_every_write_of_a_run_may_fail_and_the_run_can_be_resumed(dataset, full_disk, capsys):
    (dataset / "settings.json").write_text(json.dumps(tiny_config(dataset, method="tiny").to_dict()))
    start = ["--config", dataset / "settings.json", "--run_dir"]
    assert full_disk([*start, dataset / "whole"]) == 0
    writes, expected = -full_disk.left, bytes_of(dataset / "whole")
    assert writes > 10
    for n in range(1, writes + 1):
        folder = dataset / f"run{n}"
        capsys.readouterr()
        assert full_disk([*start, folder], n) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error and mentions(error, folder, "No space left", "resume")
        assert not list(folder.rglob("*.partial"))
        again = ["--resume", folder] if folder.exists() else [*start, folder]
        assert full_disk(again) == 0
        assert bytes_of(folder) == expected, n


@pytest.mark.slow
def test_every_write_of_a_test_may_fail_and_the_same_command_works_afterwards(trained_run, tmp_path, full_disk, capsys):
    arguments = ["--test", trained_run / "best.pt", "--run_dir"]
    assert full_disk([*arguments, tmp_path / "whole"]) == 0
    writes, expected = -full_disk.left, bytes_of(tmp_path / "whole")
    assert writes > 5 and expected
    for n in range(1, writes + 1):
        capsys.readouterr()
        assert full_disk([*arguments, tmp_path / f"test{n}"], n) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error and mentions(error, tmp_path / f"test{n}", "repeat")
        assert full_disk([*arguments, tmp_path / f"test{n}"]) == 0
        assert bytes_of(tmp_path / f"test{n}") == expected, n


def test_the_folder_of_a_run_vanishes_and_the_program_says_so(dataset, monkeypatch, capsys):
    (dataset / "settings.json").write_text(json.dumps(tiny_config(dataset, method="tiny").to_dict()))
    save = train.save_epoch

    def remove_and_save(*arguments, **more):
        shutil.rmtree(dataset / "run")
        save(*arguments, **more)

    monkeypatch.setattr(train, "save_epoch", remove_and_save)
    arguments = ["--config", str(dataset / "settings.json"), "--run_dir", str(dataset / "run")]
    assert exit_status(lambda: main.run(arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and mentions(error, dataset / "run" / "best.pt", "No such file")
