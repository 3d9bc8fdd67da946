"""What runs on a GPU: that it computes what a CPU computes, repeats, and gives memory back.

On a machine with a GPU: python -m pytest -m "" -n 4 --dist loadgroup tests/test_cuda.py
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import METHOD_SETTINGS, make_batch, make_records, tiny_config, whole_run, write_records
from PIL import Image

import main
from data import make_loader
from evaluate import evaluate, to_device
from machine import prepare_device
from methods import METHODS, create_detector, method_class
from methods.unet import decode_components, draw_diamonds
from model import ewc_loss
from networks.heads import ComposedHead, RefinementHead
from reading.splits import load_data
from reporting.predictions import read_predictions
from run_folder import read_checkpoint, read_metrics, save_checkpoint
from settings import build_config
from tools import export, predict
from tools.predict import Predictor
from train import checkpoint_state, train
from utils import decode_heatmaps, gaussian_heatmaps

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, before its first product


@pytest.fixture(autouse=True)
def full_precision():
    """fp32 without TF32, so that a difference from the CPU is rounding only."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def method_config(folder: Path, method: str, **settings):
    """A method's own settings for a folder of make_records."""
    plain = tiny_config(folder).to_dict() | METHOD_SETTINGS.get(method, {})
    return build_config(method_class(method).Config, plain | settings | {"method": method})


def landmarks_in(size: tuple[int, int], count: int = 8) -> torch.Tensor:
    """Random landmarks (2, count, 2) in maps of a size (h, w), one of them missing."""
    generator = torch.Generator().manual_seed(0)
    landmarks = 4 + torch.rand(2, count, 2, generator=generator) * (torch.tensor(size[::-1]) - 8)
    landmarks[1, 3] = torch.nan
    return landmarks


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The length of the difference of two tensors, relative to the second's."""
    return float((found.cpu().double() - expected.double()).norm() / expected.double().norm())


# --- The parts ---


@pytest.mark.parametrize("decode", ["argmax", "subpixel"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_targets_and_their_decoding_agree_with_the_cpus(decode, channels_last):
    landmarks = landmarks_in((80, 64)).nan_to_num(20.0)
    results = []
    for device in (CPU, CUDA):
        heatmaps = gaussian_heatmaps(landmarks.to(device), (80, 64), 3.0, channels_last)
        results.append((heatmaps, *decode_heatmaps(heatmaps, decode, 3.0)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    if decode == "subpixel":
        assert (results[1][1].cpu() - landmarks).abs().max() < 0.05


def test_masks_and_their_decoding_agree_with_the_cpus():
    landmarks = landmarks_in((80, 64))
    masks, found = draw_diamonds(landmarks, (80, 64), 5), draw_diamonds(landmarks.to(CUDA), (80, 64), 5)
    assert torch.equal(found.cpu(), masks)
    for expected, own in zip(decode_components(masks.float()), decode_components(found.float()), strict=True):
        torch.testing.assert_close(own.cpu(), expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_ewc_loss_and_its_gradient_agree_with_the_cpus(dtype, tolerance, channels_last):
    landmarks, size = landmarks_in((80, 64)), (80, 64)
    noise = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1)) / 5
    results = []
    for device, own in ((CPU, torch.float32), (CUDA, dtype)):
        target = gaussian_heatmaps(landmarks.to(device), size, 3.0, channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        heatmaps = noise.to(device, own, copy=True, memory_format=layout).requires_grad_()
        loss = ewc_loss(heatmaps, target, landmarks.to(device).isfinite().all(-1), 40.0)
        loss.backward()
        results.append((loss.detach(), heatmaps.grad))
    assert results[1][1].is_contiguous(memory_format=layout) and not results[1][1][1, 3].any()
    for expected, found in zip(*results, strict=True):
        assert distance(found, expected) < tolerance


@pytest.mark.parametrize("channels_last", [False, True])
def test_composed_heads_compute_two_convolutions_on_cuda_too(channels_last):
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    half, full, coarse = torch.randn(2, 16, 24, 20), torch.randn(2, 8, 48, 40), torch.randn(2, 5, 24, 20)
    for head, maps in ((ComposedHead(16, 5), (half,)), (RefinementHead(16, 8, 5), (half, full, coarse))):
        head, own = head.to(CUDA, memory_format=layout), [x.to(CUDA, memory_format=layout) for x in maps]
        results = []
        for compose in (False, True):
            head.compose = compose
            head.zero_grad()
            output = head(*own)
            output.square().mean().backward()
            results.append([output.detach(), *(parameter.grad.clone() for parameter in head.parameters())])
        for expected, found in zip(*results, strict=True):
            assert distance(found, expected.cpu()) < 1e-4


# --- A step ---


@pytest.mark.xdist_group("steps")
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.1)])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_agrees_with_the_cpus(tmp_path, method, precision, tolerance):
    write_records(tmp_path, make_records(tmp_path))
    config = method_config(tmp_path, method, channels_last=True)
    torch.manual_seed(0)
    first, batch, results = create_detector(config).train(), make_batch(config), []
    for device, own in ((CPU, "fp32"), (CUDA, precision)):
        detector = copy.deepcopy(first).to(device, memory_format=torch.channels_last)
        detector.config = config.replace(precision=own)
        moved = to_device(batch, device, channels_last=True)
        torch.manual_seed(1)  # for what a loss draws at random
        terms = detector.loss(moved, 0)
        sum(terms.values()).backward()
        # of the last layer: rounding grows by four orders of magnitude on the way to the first ones
        gradient = torch.cat([parameter.grad.flatten().cpu() for parameter in detector.last_layer().parameters()])
        torch.manual_seed(1)
        values = detector.train_step(moved, 0, detector.configure_optimizers())
        results.append(({name: term.item() for name, term in terms.items()}, gradient, values))
        weights = torch.cat([p.detach().flatten().cpu() for p in detector.parameters()])
        assert weights.isfinite().all()
    (expected, slope, values), (found, own_slope, own_values) = results
    assert found == pytest.approx(expected, rel=tolerance) and own_values.keys() == values.keys()
    assert distance(own_slope, slope) < 3 * tolerance


# --- Whole runs ---


@pytest.fixture(scope="module")
def cuda_run(tmp_path_factory) -> Path:
    """A run of a narrow FARNet on the GPU in bf16, with loader processes and a moving average, beside its data."""
    settings = dict(device="cuda", workers=2, precision="bf16", channels_last=True, ema=0.9, cache_gb=0.1)
    settings |= dict(epochs=30, save_every=30, lr=1e-3, val_fraction=0.0)  # long enough for distinct peaks
    settings |= dict(deterministic=True)  # or cuDNN would time its kernels, which takes longer than the run
    return whole_run(tmp_path_factory.mktemp("cuda"), **settings)


@pytest.mark.xdist_group("runs")
def test_a_run_on_cuda_resumes_bit_for_bit_with_deterministic(tmp_path):
    write_records(tmp_path, make_records(tmp_path))
    settings = dict(device="cuda", deterministic=True, save_every=1, val_fraction=0.0, precision="bf16", rotation=10.0)
    for name, all_epochs in (("straight", [2]), ("stopped", [1, 2])):
        for epochs in all_epochs:
            config = method_config(tmp_path, "farnet", epochs=epochs, run_dir=str(tmp_path / name), **settings)
            (tmp_path / name).mkdir(exist_ok=True)
            train(config, tmp_path / name)
    prepare_device(tiny_config(tmp_path))  # deterministic off
    straight, stopped = (read_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("straight", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in straight.items())


@pytest.mark.xdist_group("trained")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_checkpoint_of_cuda_finds_the_same_on_either_device(cuda_run, tmp_path, device):
    words = ["--test", str(cuda_run / "last.pt"), "--device", device, "--test_precision", "fp32"]
    main.run([*words, "--precision", "fp32", "--run_dir", str(tmp_path / device)])
    found, expected = (read_predictions(run / "test" / "predictions.csv") for run in (tmp_path / device, cuda_run))
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=0.1)  # original px


@pytest.mark.xdist_group("runs")
def test_a_checkpoint_of_a_cpu_is_resumed_and_tested_on_cuda(farnet_run, tmp_path):
    words = ["--test", str(farnet_run / "best.pt"), "--device", "cuda", "--deterministic", "true"]
    main.run([*words, "--run_dir", str(tmp_path / "run")])
    found, expected = (read_predictions(run / "test" / "predictions.csv") for run in (tmp_path / "run", farnet_run))
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=0.05)
    copied = tmp_path / "copy"
    copied.mkdir()
    for name in ("config.json", "split.json", "metrics.csv", "last.pt"):
        (copied / name).write_bytes((farnet_run / name).read_bytes())
    main.run(["--resume", str(copied), "--device", "cuda", "--epochs", "3"])
    assert read_checkpoint(copied / "last.pt")["epoch"] == 3


def test_no_memory_of_the_gpu_is_kept_between_test_sets(dataset):
    config = method_config(dataset, "farnet", device="cuda")
    records, detector = load_data(config).records, create_detector(config).to(CUDA)
    held = []
    for _ in range(3):
        evaluate(detector, make_loader(config, records, train=False), CUDA)
        held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1] == held[2]


@pytest.mark.xdist_group("processes")
def test_two_runs_share_one_gpu(dataset):
    settings = method_config(dataset, "unet", device="cuda", deterministic=True).to_dict()
    (dataset / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "main.py", "--config", str(dataset / "settings.json"), "--run_dir"]
    places = [dataset / "one", dataset / "two"]
    root = Path(main.__file__).parent
    runs = [subprocess.Popen([*command, str(place)], cwd=root, stderr=subprocess.PIPE) for place in places]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors.decode()
    first, second = (read_metrics(place / "metrics.csv")[0]["loss"] for place in places)
    assert first == pytest.approx(second, rel=0.02)


@pytest.mark.xdist_group("processes")
def test_too_little_memory_on_the_gpu_is_one_line(dataset, monkeypatch, capsys):
    (dataset / "settings.json").write_text(json.dumps(tiny_config(dataset, device="cuda").to_dict()))
    monkeypatch.setattr(sys, "argv", ["main.py", "--config", str(dataset / "settings.json"), "--method", "farnet"])
    sys.argv += ["--height", "640", "--run_dir", str(dataset / "run")]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        assert main.main() == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error:") and "out of memory" in last and "batch_size" in last


# --- Tools ---


@pytest.mark.xdist_group("trained")
def test_predict_finds_on_cuda_what_it_finds_on_a_cpu(cuda_run, tmp_path, monkeypatch):
    images = str(cuda_run.parent / "imgs")
    settings = ["--device", "cuda", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["predict", str(cuda_run / "last.pt"), images, *settings])
    assert predict.main() == 0
    found = read_predictions(tmp_path / "out" / "predictions.csv")
    finder = Predictor(cuda_run / "last.pt", device="cpu")
    for name, landmarks in zip(found.names, found.landmarks, strict=True):
        np.testing.assert_allclose(landmarks, finder.find(cuda_run.parent / "imgs" / name)[0], atol=0.1)


@pytest.fixture(scope="module")
def exported_checkpoint(tmp_path_factory) -> Path:
    """The checkpoint of a small PoseNet that was trained on the GPU, beside its data."""
    folder = tmp_path_factory.mktemp("exported")
    write_records(folder, make_records(folder))
    config = method_config(folder, "posenet", device="cuda")
    torch.manual_seed(0)
    data, detector = load_data(config), create_detector(config).to(CUDA).train()
    batch, optimizers = to_device(make_batch(config), CUDA), detector.configure_optimizers()
    for _ in range(40):
        detector.train_step(batch, 0, optimizers)
    save_checkpoint(folder / "best.pt", checkpoint_state(config, data, detector, {"epoch": 1, "best_MRE": 9.0}))
    return folder / "best.pt"


@pytest.mark.xdist_group("export")
@pytest.mark.skipif(cv2.__version__ < "5", reason="needs OpenCV 5, which the graph repeats")
def test_a_checkpoint_of_cuda_is_exported_to_onnx_and_passes_its_check(exported_checkpoint, tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -r requirements-dev.txt")
    images = str(exported_checkpoint.parent / "imgs")
    assert "3 images" in export.export(str(exported_checkpoint), "onnx", tmp_path / "graph", [images], 3)


@pytest.mark.xdist_group("export")
def test_an_exported_torchscript_file_runs_on_cuda(exported_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "__version__", "5")  # an older one warps a little differently
    monkeypatch.setattr(export, "TOLERANCE", 1.0)
    images = sorted((exported_checkpoint.parent / "imgs").iterdir())
    export.export(str(exported_checkpoint), "torchscript", tmp_path / "graph", [str(images[0].parent)], 2)
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(image).convert("L")) for image in images]))
    graphs = {device: torch.jit.load(tmp_path / "graph", map_location=device) for device in (CPU, CUDA)}
    with torch.inference_mode():
        expected, found = (graphs[device](pixels.to(device)) for device in (CPU, CUDA))
    assert all(values.device.type == "cuda" for values in found)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=0, atol=0.1)
