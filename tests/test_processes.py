"""Two processes under torchrun do what one does: real processes, over gloo, on a CPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import METHOD_SETTINGS, make_records, tiny_config, write_records

from methods import create_detector, load_detector
from reporting.predictions import read_predictions
from run_folder import read_checkpoint, read_metrics
from utils import seed_everything

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SMALL = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from conftest import NarrowFARNet
import machine, main, methods, train
methods.METHODS["farnet"] = NarrowFARNet
"""
WATCHED = """
def refuse(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(arguments[0]).startswith({folder!r}):
        raise RuntimeError("process " + os.environ["RANK"] + " writes " + str(arguments[0]))

if os.environ.get("RANK", "0") != "0":
    sys.addaudithook(refuse)
sys.exit(main.main())
"""
COMPARED = """
evaluate = train.evaluate

def evaluate_then_compare(detector, *rest):
    predictions = evaluate(detector, *rest)
    shares = machine.gather_shares([buffer.double().sum().item() for buffer in detector.buffers()])
    assert len(shares) == 2 and shares[0] == shares[1], "running statistics differ"
    print("the running statistics agree")
    return predictions

train.evaluate = evaluate_then_compare
sys.exit(main.main())
"""


def launch(folder: Path, processes: int, *arguments: object, program: str = WATCHED) -> subprocess.CompletedProcess:
    """main.py with a narrow FARNet, plainly or under torchrun; all processes but the first may not write in folder."""
    script = folder / "program.py"
    text = (SMALL + program).format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder))
    script.write_text(text, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of two processes at batch size 1, and one of one process at batch size 2."""
    folder = tmp_path_factory.mktemp("processes")
    splits = ["train"] * 4 + ["val"] + ["test1"] * 3  # 3 test images: the shares differ in size
    write_records(folder, [r | {"split": s} for r, s in zip(make_records(folder, 8), splits, strict=True)])
    config = tiny_config(folder, norm="instance", epochs=2, lr=1e-4, rotation=5.0, intensity=0.2, overlays=1)
    (folder / "settings.json").write_text(json.dumps(config.to_dict()))
    for name, processes, batch_size in (("two", 2, 1), ("one", 1, 2)):
        new = ("--config", folder / "settings.json", "--run_dir", folder / name)
        done = launch(folder, processes, *new, "--batch_size", batch_size)
        assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_follow_one_process_with_twice_the_batch(runs):
    one, two = (read_metrics(runs / name / "metrics.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        for term in ("coarse", "fine", "loss"):
            assert b[term] == pytest.approx(a[term], rel=5e-3)
    # the same weights, up to rounding, which Adam magnifies: far closer to each other than to where they began
    detectors = [load_detector(read_checkpoint(runs / name / "last.pt")) for name in ("one", "two")]
    seed_everything(0)
    first, *ends = (detector.state_dict() for detector in (create_detector(detectors[0].config), *detectors))
    moved, apart = (
        sum((a[name].double() - b[name].double()).square().sum().item() for name in first) ** 0.5
        for a, b in ((ends[0], first), ends)
    )
    assert apart < 0.2 * moved


def test_two_processes_predict_every_image_once_and_in_order(runs):
    one, two = (read_predictions(runs / name / "test1" / "predictions.csv") for name in ("one", "two"))
    assert two[0] == one[0] and len(two[0]) == 3 and two[1] == one[1]
    assert abs(one[2]["score"] - two[2]["score"]).max() < 0.05


def test_the_first_process_alone_writes_and_it_writes_what_a_single_one_does(runs):
    # that another one writes nothing was watched while it ran (WATCHED)
    def files(name: str) -> list[str]:
        return sorted(str(path.relative_to(runs / name)) for path in (runs / name).rglob("*") if path.is_file())

    def without_names(name: str) -> list[str]:
        return [file for file in files(name) if "overlays" not in file]

    assert without_names("one") == without_names("two")
    log = (runs / "two" / "log.txt").read_text(encoding="utf-8")
    assert log.count("epoch 1/2") == 1 and "2 processes" in log


def test_a_run_of_two_processes_goes_on_and_its_folder_is_protected(runs):
    again = launch(runs, 2, "--config", runs / "settings.json", "--run_dir", runs / "two")
    assert again.returncode != 0 and f"{runs / 'two'}" in again.stderr
    done = launch(runs, 2, "--resume", runs / "two", "--epochs", 3)
    assert done.returncode == 0, done.stderr
    alone = launch(runs, 1, "--resume", runs / "two", "--epochs", 4)
    warning = re.compile(r"had 2 processes.* with 1\b")
    assert warning.search(alone.stdout) and not warning.search(done.stdout)
    assert [row["epoch"] for row in read_metrics(runs / "two" / "metrics.csv")] == [1, 2, 3, 4]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_all_processes_evaluate_with_the_same_running_statistics(runs, ema):
    settings = ("--config", runs / "settings.json", "--norm", "batch", "--epochs", 1, "--ema", ema, "--overlays", 0)
    done = launch(runs, 2, *settings, "--run_dir", runs / f"ema {ema}", program=COMPARED)
    assert done.returncode == 0 and "the running statistics agree" in done.stdout, done.stderr


def test_two_processes_play_the_adversarial_game_of_one(runs):
    """It has several optimisers and averages their gradients itself, not by DistributedDataParallel."""
    plain = tiny_config(runs, norm="instance", epochs=1, overlays=0).to_dict()
    settings = plain | METHOD_SETTINGS["posenet"] | {"method": "posenet", "norm": "instance", "lr": 1e-4}
    (runs / "game.json").write_text(json.dumps(settings))
    for name, processes, batch_size in (("game two", 2, 1), ("game one", 1, 2)):
        new = ("--config", runs / "game.json", "--run_dir", runs / name, "--batch_size", batch_size)
        done = launch(runs, processes, *new)
        assert done.returncode == 0, done.stderr
    (one,), (two,) = (read_metrics(runs / name / "metrics.csv") for name in ("game one", "game two"))
    terms = ("maps", "maps_again", "discriminator_P_fake", "discriminator_C_true", "adversarial_P", "adversarial_C")
    for term in terms:
        assert two[term] == pytest.approx(one[term], rel=0.01)
    seed_everything(0)
    first = create_detector(load_detector(read_checkpoint(runs / "game one" / "last.pt")).config).state_dict()
    ends = [load_detector(read_checkpoint(runs / name / "last.pt")).state_dict() for name in ("game one", "game two")]
    for network in ("generator.", "discriminators.P.", "discriminators.C."):
        own = [name for name in first if name.startswith(network)]
        moved, apart = (
            sum((a[name].double() - b[name].double()).square().sum().item() for name in own) ** 0.5
            for a, b in ((ends[0], first), ends)
        )
        assert apart < 0.2 * moved
