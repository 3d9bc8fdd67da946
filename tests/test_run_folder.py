import builtins
import errno
import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import refusal, refuses, tiny_config

import run_folder
from run_folder import (
    create_run_folder,
    discard_unstarted,
    read_checkpoint,
    save_checkpoint,
    start_log,
    write_provenance,
    write_text,
)
from settings import read_settings

STATE = {"method": "farnet", "settings": {}, "epoch": 3, "model": {"weight": torch.arange(6.0)}}


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
