"""Global-to-local regression and classification: its networks, its loss by hand, and what its stages change."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import METHOD_SETTINGS, noise_batch, refuses, tiny_config
from torch import nn

from data import Sample, network_affine
from methods.noothout import Noothout, NoothoutConfig, restart_factor
from methods.start import read_start, start_detector
from run_folder import read_checkpoint, save_checkpoint, seen_images
from settings import build_config, preset_settings, read_settings
from train import train


def noothout_config(folder, **settings) -> NoothoutConfig:
    plain = tiny_config(folder).to_dict() | METHOD_SETTINGS["noothout"] | {"method": "noothout"}
    return build_config(NoothoutConfig, plain | settings)


def make_batch(config, count=2) -> Sample:
    """Noise with landmarks somewhere."""
    landmarks = torch.rand(count, config.num_landmarks, 2) * (torch.tensor([config.width, config.height]) - 1)
    return noise_batch(landmarks, (config.height, config.width))


# --- Method --------------------------------------------------------------------------------------


def test_the_loss_of_both_stages_by_hand(tmp_path):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path, local_size=4))
    batch = make_batch(detector.config)
    for network in (detector.global_network, detector.local_networks):
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(network.class_head.last.bias, 0.3)
    terms = detector.loss(batch, 0)
    yes, no = math.log1p(math.exp(-0.3)), math.log1p(math.exp(0.3))
    patches = (64 // 8) * (96 // 8)
    assert terms["global_class"].item() == pytest.approx(20 * (yes + (patches - 1) * no) / patches, rel=1e-5)
    assert terms["local_class"].item() == pytest.approx((yes + 3 * no) / 4, rel=1e-5)  # each crop holds its landmark
    centres = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")[::-1], -1) * 8 + 3.5
    expected = (batch.landmarks[:, :, None, None] - centres).abs().log1p().mean() / math.log(10)
    assert terms["global_displacement"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_missing_landmark_contributes_nothing(tmp_path):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path))
    batch = make_batch(detector.config)
    batch.landmarks[:, 1] = float("nan")
    sum(detector.loss(batch, 0).values()).backward()
    for network in (detector.global_network, detector.local_networks):
        gradients = network.class_head.last.bias.grad, network.displacement_head.last.bias.grad.view(-1, 2)
        assert all((gradient[1] == 0).all() and (gradient[0] != 0).any() for gradient in gradients)
    assert not detector.predict_with_extras(batch, 0)[2]["global_error"][:, 1].isfinite().any()


def test_the_local_norms_see_no_crop_of_a_landmark_that_is_missing_or_outside(tmp_path):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path, local_size=8))
    batch = make_batch(detector.config)
    batch.landmarks[:, :] = torch.tensor([40.0, 30.0])
    batch.image[1] = 100.0  # what the second image shows would change the running mean
    statistics = []
    for where in (float("nan"), -1.0, 96.0):
        network = copy.deepcopy(detector)
        batch.landmarks[1, 2] = torch.tensor([where, 30.0])
        torch.manual_seed(1)
        network.loss(batch, 0)
        statistics.append(network.local_networks.trunk[1].running_mean.view(4, -1))
    assert all(torch.equal(one, statistics[0]) for one in statistics)
    assert (statistics[0][2].abs() < 1).all() and (statistics[0][:2].abs().amax(1) > 1).all()


def test_votes_are_not_rounded_to_bf16_however_the_rest_is_computed(tmp_path):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path, precision="bf16")).train()
    batch = make_batch(detector.config)
    with torch.no_grad():
        outputs = [*detector(batch.image), *detector.look_closer(batch.image, batch.landmarks.long())]
        detector.config = detector.config.replace(precision="fp32")
        assert not torch.equal(detector(batch.image)[1], outputs[1])  # the rest was in bf16
    for output in outputs:
        assert output.dtype == torch.float32 and not torch.equal(output, output.bfloat16().float())


def test_a_step_of_both_stages_is_that_of_the_global_stage_alone(tmp_path):
    states = []
    for stages in ("both", "global"):
        torch.manual_seed(0)
        detector = Noothout(noothout_config(tmp_path, stages=stages))
        torch.manual_seed(1)
        detector.train_step(make_batch(detector.config), 0, detector.configure_optimizers())
        states.append(detector.global_network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    "settings", [dict(precision="bf16"), dict(channels_last=True), dict(accumulate=2), dict(norm="instance"),
                 dict(optimizer="adamw", weight_decay=0.1), dict(chunk=64), dict(stages="global", chunk=64)],
)  # fmt: skip
def test_a_step_lowers_the_loss_under_every_setting_of_training(tmp_path, settings):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path, **settings)).train()
    batch, optimizers = make_batch(detector.config), detector.configure_optimizers()
    losses = [sum(detector.train_step(batch, 0, optimizers).values()) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    assert torch.isfinite(detector.eval().predict(batch.image)[0]).all()


@pytest.mark.parametrize("presets", [["faithful"], ["isbi2015", "faithful"], ["demo"], ["isbi2015", "modern", "cpu"]])
def test_every_preset_makes_a_recipe(presets):
    config = build_config(NoothoutConfig, preset_settings(NoothoutConfig, presets))
    assert config.method == "noothout" and (config.local_size == 16) == ("faithful" in presets)
    assert config.num_landmarks == (19 if "isbi2015" in presets else None)
    assert config.stages == "both" and config.height % config.patch_size == config.width % config.patch_size == 0


def test_the_faithful_recipe_sees_a_cephalogram_pixel_by_pixel():
    config = build_config(NoothoutConfig, preset_settings(NoothoutConfig, ["isbi2015", "faithful"]))
    affine = network_affine(config, (1935, 2400))
    assert affine[:, :2].tolist() == [[1, 0], [0, 1]] and affine[:, 2].tolist() == [-9, 0]
    images, steps = 150, 4
    assert config.epochs * math.ceil(images / steps) == 309_814  # 10,000 + 20,000 + ... + 160,000, but for rounding


def test_weights_have_seen_what_trained_and_what_chose_them():
    images = {"a": "train", "b": "val", "c": "test"}
    assert seen_images({"settings": {"split": "auto"}, "images": images}) == {"a": "train", "b": "val"}
    assert seen_images({"settings": {"split": "same"}, "images": {"a": "test"}}) == {"a": "train"}


WHOLE = """
import torch
from settings import build_config, preset_settings, read_settings
from machine import peak_memory
from methods.noothout import Noothout, NoothoutConfig
config = build_config(NoothoutConfig, preset_settings(NoothoutConfig, ["isbi2015", "faithful"]))
with torch.inference_mode():
    landmarks, _ = Noothout(config).eval().predict(torch.randn(1, 3, config.height, config.width))
print(landmarks.shape[1], peak_memory() / 2**30)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux reports the peak memory of a process")
def test_a_whole_cephalogram_takes_less_than_2_gb():
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", WHOLE], cwd=root, capture_output=True, text=True, check=True)
    num_landmarks, gigabytes = done.stdout.split()
    assert int(num_landmarks) == 19 and float(gigabytes) < 2


def test_global_weights_that_have_seen_a_test_image_are_refused(dataset, tmp_path):
    settings = dict(img_dir=str(dataset / "imgs"), json_path=str(dataset / "json" / "data.json"), epochs=1)
    first = noothout_config(dataset, **settings, stages="global")
    (tmp_path / "first").mkdir()
    train(first, tmp_path / "first")
    checkpoint = str(tmp_path / "first" / "last.pt")
    local = first.replace(stages="local", start_from=checkpoint, local_size=16, save_every=1)
    (tmp_path / "other").mkdir()
    state = read_checkpoint(checkpoint)
    other = {"images": {}, "abbreviations": ["X", *state["abbreviations"][1:]]}
    save_checkpoint(tmp_path / "other.pt", state | other)
    with refuses("start_from", "does not find", state["abbreviations"][0]):
        train(local.replace(start_from=str(tmp_path / "other.pt")), tmp_path / "other")
    with refuses("start_from", "height 64", "96"):
        train(local.replace(height=96), tmp_path / "other")
    with refuses("start_from", "log_base 10.0", "2.0"):
        train(local.replace(log_base=2.0), tmp_path / "other")
    for name, all_epochs in (("straight", [2]), ("stopped", [1, 2])):
        (tmp_path / name).mkdir()
        for epochs in all_epochs:
            train(local.replace(epochs=epochs), tmp_path / name)
            if epochs == 1:  # what was read from it is in the run's own checkpoint
                (tmp_path / "first").rename(tmp_path / "gone")
            elif name == "straight":
                before = read_checkpoint(checkpoint)["model"]
    states = [read_checkpoint(tmp_path / name / "last.pt") for name in ("straight", "stopped")]
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())
    for name, value in before.items():
        if name.startswith("global_network"):
            assert torch.equal(value, states[0]["model"][name])
    assert states[0]["images"] == states[1]["images"]


def test_the_global_landmarks_of_both_stages_can_be_tested_on_their_own(tmp_path):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path)).eval()
    batch = make_batch(detector.config)
    with torch.inference_mode():
        first = detector.localise(batch.image)[0]
        detector.config = detector.config.replace(stages="global")
        assert torch.equal(detector.predict(batch.image)[0], first)
        landmarks, _, extras = detector.predict_with_extras(batch, 0)
    errors = (landmarks - batch.landmarks).norm(dim=-1).double() * 0.2
    assert torch.allclose(extras["global_error"], errors, rtol=1e-5)


def test_the_local_stage_leaves_its_frozen_global_network_as_it_was(tmp_path):
    torch.manual_seed(0)
    first = Noothout(noothout_config(tmp_path, stages="global"))
    config = first.config
    state = {
        "method": "noothout",
        "settings": config.to_dict(),
        "images": {},
        "abbreviations": [f"L{n}" for n in range(config.num_landmarks)],
        "epoch": 1,
        "model": first.state_dict(),
    }
    save_checkpoint(tmp_path / "best.pt", state)
    local = noothout_config(tmp_path, stages="local", start_from=str(tmp_path / "best.pt"))
    detector = start_detector(local, state["abbreviations"], read_start(local)).train()
    for name, value in first.state_dict().items():
        assert torch.equal(detector.state_dict()[name], value)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    terms = detector.train_step(make_batch(config), 0, detector.configure_optimizers())
    assert terms.keys() == {"local_displacement", "local_class"}
    for name, value in detector.state_dict().items():
        if name.startswith("global_network"):
            assert torch.equal(value, first.state_dict()[name])
    after = detector.state_dict()
    assert not all(torch.equal(value, after[name]) for name, value in before.items())
    with refuses("start_from", "patch_size", "8", "16"):
        start_detector(local.replace(patch_size=16), state["abbreviations"], read_start(local))
    with refuses("start_from", "local"):
        Noothout(local.replace(start_from=None)).configure_optimizers()


def test_a_run_folder_that_names_a_global_checkpoint_is_read(tmp_path):
    settings = noothout_config(tmp_path, stages="local").to_dict()
    del settings["start_from"]
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings | {"global_checkpoint": "runs/a/best.pt"}}))
    assert build_config(NoothoutConfig, read_settings(tmp_path / "config.json")).start_from == "runs/a/best.pt"


def test_the_error_of_the_global_stage_and_the_spread_are_in_mm_of_the_image_file(tmp_path):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path)).eval()
    batch = make_batch(detector.config)
    with torch.inference_mode():
        first, final, _, spread = detector.localise(batch.image)
        landmarks, _, extras = detector.predict_with_extras(batch, 0)
    assert torch.equal(landmarks, final)
    distance = (first - batch.landmarks).norm(dim=-1).double()
    assert torch.allclose(extras["global_error"], 0.2 * distance, rtol=1e-5)
    assert torch.allclose(extras["vote_spread"], 0.2 * spread.double().norm(dim=-1), rtol=1e-5)


def test_the_local_stage_looks_around_the_global_landmark(tmp_path):
    torch.manual_seed(0)
    detector = Noothout(noothout_config(tmp_path)).eval()
    with torch.inference_mode():
        first, final, _, _ = detector.localise(torch.randn(2, 3, 64, 96))
        for parameter in detector.local_networks.parameters():
            nn.init.zeros_(parameter)  # every patch of a crop votes for itself: their mean is the crop's middle
        again, middle, _, _ = detector.localise(torch.randn(2, 3, 64, 96))
    assert not torch.equal(first, final)
    assert (middle - again).abs().max() <= 0.5  # crops begin at whole px


def test_the_local_rate_restarts_in_ever_longer_cosines():
    factors = [restart_factor(epoch, 10) for epoch in (0, 5, 9, 10, 20, 29, 30, 50, 70)]
    last = 0.5 * (1 + math.cos(math.pi * 0.9)), 0.5 * (1 + math.cos(math.pi * 0.95))
    assert factors == pytest.approx([1, 0.5, last[0], 1, 0.5, last[1], 1, 0.5, 1])


def test_the_local_rate_is_set_in_training(tmp_path):
    detector = Noothout(noothout_config(tmp_path, local_restart_epochs=2, lr_milestones=[]))
    optimizers, rates = detector.configure_optimizers(), []
    for epoch in (0, 1, 2):
        detector.train_step(make_batch(detector.config), epoch, optimizers)
        rates.append(optimizers["local"].param_groups[0]["lr"] / detector.config.lr)
    assert rates == pytest.approx([1, 0.5, 1])
    assert optimizers["global"].param_groups[0]["lr"] == detector.config.lr


@pytest.mark.parametrize(
    ("setting", "value"), [("stages", "first"), ("decode", "argmax"), ("patch_size", 12), ("log_base", 1.0),
                           ("class_weight", 0.0), ("local_restart_epochs", -1), ("local_size", 15), ("chunk", 48),
                           ("chunk", 2048)],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(setting, value):
    with refuses(setting):
        NoothoutConfig(**{setting: value})
    with refuses("local_restart_epochs", "3"):
        NoothoutConfig(local_restart_epochs=3, lr_schedule="cosine")
