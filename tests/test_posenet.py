import math

import pytest
import torch
from conftest import METHOD_SETTINGS, make_batch, make_records, refuses, tiny_config, write_records

from methods import create_detector
from methods.posenet import PoseNet, PoseNetConfig, maps_loss, masked_entropy, masked_mean
from run_folder import read_checkpoint, read_metrics
from settings import build_config, preset_settings
from train import train


def posenet_config(folder, **settings) -> PoseNetConfig:
    plain = tiny_config(folder).to_dict() | METHOD_SETTINGS["posenet"] | settings
    return build_config(PoseNetConfig, plain | {"method": "posenet"})


@pytest.mark.parametrize("presets", [[], ["legs"], ["demo"], ["isbi2015", "modern", "cpu"]])
def test_every_preset_makes_a_recipe(presets):
    config = build_config(PoseNetConfig, preset_settings(PoseNetConfig, presets))
    assert config.method == "posenet" and config.judges.keys() == {"P", "C"}
    assert config.pretrain_epochs < config.epochs and min(config.height, config.width) >= 4 << config.hourglass_depth


def test_the_recipe_for_legs_is_that_of_its_paper():
    config = build_config(PoseNetConfig, preset_settings(PoseNetConfig, ["legs"]))
    assert (config.num_landmarks, config.spacing, config.height, config.width) == (6, 0.143, 256, 256)
    assert (config.stacks, config.channels, config.optimizer, config.lr) == (8, 256, "rmsprop", 2.5e-4)
    assert config.keep_aspect and config.delta == 10 and {10.0, 20.0} < set(config.sdr_thresholds)
    assert config.judges == {"P": pytest.approx(1 / 180), "C": pytest.approx(1 / 220)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(adversarial="both"), "none pose pose+confidence"),
        (dict(objective="fool"), "minimax real"),
        (dict(hourglass_depth=6), "6 64 5"),
        (dict(channels=30), "4"),
        (dict(delta=0.0), "0"),
        (dict(pose_weight=-1.0), "0"),
    ],
)
def test_what_cannot_work_is_refused(settings, words):
    with refuses(*settings, *words.split()):
        PoseNetConfig(**settings)


# --- Labels and losses ---------------------------------------------------------------------------


def test_perfect_maps_decode_to_their_landmarks(dataset):
    detector, batch = PoseNet(posenet_config(dataset, sigma=4.0)), make_batch(posenet_config(dataset))
    landmarks, score = detector.decode([detector.labels(batch, 0)])
    assert (landmarks - batch.landmarks).norm(dim=-1).max() < 0.01
    assert score.min() > 0.7  # the peak lies between four px of the map


def test_occlusion_maps_are_those_of_occluded_landmarks_alone(tmp_path):
    records = make_records(tmp_path)
    records[0]["points"][2]["occluded"] = True
    write_records(tmp_path, records)
    config = posenet_config(tmp_path, occlusion=True)
    pose, occluded = PoseNet(config).labels(make_batch(config), 0).split(4, dim=1)
    assert torch.equal(occluded[0, 2], pose[0, 2]) and pose.flatten(2).sum(-1).all()
    occluded[0, 2] = 0
    assert not occluded.any()


def test_the_masked_entropy_is_the_papers_formula():
    torch.manual_seed(0)
    logits, real = torch.randn(5, 7), (torch.rand(5, 7) > 0.5).float()
    mask = torch.rand(5, 7) > 0.3
    paper = -torch.log(1 - (logits.sigmoid() - real).abs())
    assert masked_entropy(logits, real, mask).item() == pytest.approx(paper[mask].mean().item(), rel=1e-5)
    assert masked_mean(paper, mask & ~mask) == 0


def test_the_maps_loss_is_half_the_squared_error_of_a_landmark_over_stacks_and_images():
    torch.manual_seed(0)
    outputs, truth = [torch.randn(2, 6, 4, 5) for _ in range(3)], torch.randn(2, 6, 4, 5)
    everything = torch.ones(2, 3, dtype=torch.bool)
    pose_and_occlusion = sum(((maps - truth) ** 2).sum() for maps in outputs) / 2 / (3 * 2 * 3)
    assert maps_loss(outputs, truth, everything).item() == pytest.approx(pose_and_occlusion.item(), rel=1e-5)
    alone = torch.zeros(2, 3, dtype=torch.bool)
    alone[1, 2] = True
    own = sum(((maps - truth)[1, [2, 5]] ** 2).sum() for maps in outputs) / 2 / 3
    assert maps_loss(outputs, truth, alone).item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize("unit", ["mm", "px"])
def test_p_is_to_call_real_what_is_nearer_than_delta_in_the_image_file(dataset, unit):
    config = posenet_config(dataset, delta=4.0, sigma=4.0, width=64)
    detector, batch = PoseNet(config), make_batch(config)
    if unit == "px":
        batch = batch._replace(spacing=torch.full((2,), math.nan, dtype=torch.float64))
    scale = batch.to_original[0].diagonal()[:2].tolist()  # px of the file per network px
    assert scale == [96 / 64, 80 / 64] and make_batch(config).spacing.tolist() == [0.5, 0.5]
    middle = torch.tensor([32.0, 32.0]).expand(2, 4, 2)
    batch = batch._replace(landmarks=middle)
    for axis in (0, 1):
        step = scale[axis] * (0.5 if unit == "mm" else 1.0)
        shift = torch.zeros(4, 2)
        shift[:, axis] = torch.tensor([3.9, 4.1, -3.9, -4.1]) / step
        maps = detector.labels(batch._replace(landmarks=middle + shift), 0)
        assert detector.fake_labels("P", batch, maps, detector.labels(batch, 0)).tolist() == [[1, 0, 1, 0]] * 2


def test_c_is_to_call_real_what_differs_by_less_than_epsilon(dataset):
    config = posenet_config(dataset, epsilon=1.0)
    detector, batch = PoseNet(config), make_batch(config)
    truth = detector.labels(batch, 0)
    maps = truth.clone()
    maps[:, :, 0, 0] += torch.tensor([0.0, 0.99, 1.01, -0.99])
    assert detector.fake_labels("C", batch, maps, truth).tolist() == [[1, 1, 0, 1]] * 2


def test_a_missing_landmark_is_blank_to_the_discriminators_and_counts_nowhere(dataset):
    torch.manual_seed(0)
    config = posenet_config(dataset)
    detector, batch = PoseNet(config).eval(), make_batch(config)
    batch.landmarks[0, 1] = float("nan")
    one, other = torch.rand(2, 2, 4, 16, 24)
    other = torch.where(torch.arange(4)[:, None, None] == 1, other, one)
    with torch.no_grad():
        for letter in "PC":
            answers = [detector.judge(letter, batch, maps) for maps in (one, other)]
            assert torch.equal(answers[0][0], answers[1][0]) and not torch.equal(answers[0][1], answers[1][1])


# --- The game ------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", "PC")
@pytest.mark.parametrize("objective", ["minimax", "real"])
def test_the_generators_weights_feel_each_discriminator_by_itself(dataset, letter, objective):
    torch.manual_seed(0)
    config = posenet_config(dataset, objective=objective)
    detector, batch = create_detector(config).train(), make_batch(config)
    terms = detector.adversarial_terms(batch, detector(batch.image)[-1], detector.labels(batch, 0))
    assert terms[f"gradient_{letter}"] > 0
    terms[f"adversarial_{letter}"].backward()
    felt = {name for name, p in detector.generator.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name for name in felt if name.startswith("poses")} >= {"poses.0.features.3.weight", "poses.1.maps.0.weight"}
    assert detector.generator.stem[0].weight.grad.abs().sum() > 0  # down to the first layer


@pytest.mark.parametrize("label", [0, 1])
def test_minimax_pushes_a_discriminator_away_from_its_label_and_real_towards_one(dataset, monkeypatch, label):
    directions = {}
    for objective in ("minimax", "real"):
        torch.manual_seed(0)
        config = posenet_config(dataset, objective=objective, adversarial="pose")
        detector, batch = create_detector(config), make_batch(config)
        logits = torch.zeros(2, 4, requires_grad=True)
        monkeypatch.setattr(detector, "judge", lambda letter, batch, maps, logits=logits: logits + 0 * maps.sum())
        monkeypatch.setattr(detector, "fake_labels", lambda *rest: torch.full((2, 4), float(label)))
        maps = torch.zeros(2, 4, 16, 24, requires_grad=True)
        detector.adversarial_terms(batch, maps, maps.detach())["adversarial_P"].backward()
        directions[objective] = -logits.grad.sign().mean().item()  # which way descending moves the logits
    assert directions == {"minimax": 1.0 if label == 0 else -1.0, "real": 1.0}


def test_a_step_moves_each_network_by_its_own_optimiser_alone(dataset):
    config = posenet_config(dataset)
    detector, batch = create_detector(config).train(), make_batch(config)
    for frozen in ("generator", "P", "C"):
        optimizers = detector.configure_optimizers()
        for group in optimizers[frozen].param_groups:
            group["lr"] = 0.0
        before = {name: parameter.clone() for name, parameter in detector.named_parameters()}
        values = detector.train_step(batch, 0, optimizers)
        moved = {name.removeprefix("discriminators.").split(".")[0] for name, parameter in detector.named_parameters()
                 if not torch.equal(parameter, before[name])}  # fmt: skip
        assert moved == {"generator", "P", "C"} - {frozen}
    assert [name for name in values if not name.startswith("accuracy")] == [
        "maps", "discriminator_P_fake", "discriminator_P_true", "discriminator_C_fake", "discriminator_C_true",
        "maps_again", "gradient_truth", "adversarial_P", "adversarial_C", "gradient_P", "gradient_C",
    ]  # fmt: skip
    assert all(0 <= value <= 1 for name, value in values.items() if name.startswith("accuracy"))


@pytest.mark.parametrize("adversarial", ["pose", "pose+confidence"])
def test_with_weights_0_a_run_equals_the_supervised_one_bit_for_bit(dataset, tmp_path_factory, adversarial):
    runs = tmp_path_factory.mktemp("runs")
    nothing = dict(pose_weight=0.0, confidence_weight=0.0)
    for name, settings in (("none", dict(adversarial="none")), ("zero", dict(adversarial=adversarial, **nothing)),
                           ("some", dict(adversarial=adversarial))):  # fmt: skip
        (runs / name).mkdir()
        train(
            posenet_config(dataset, epochs=2, pretrain_epochs=1, rotation=10.0, val_fraction=0.2, **settings),
            runs / name,
        )
    none, zero, some = (read_checkpoint(runs / name / "last.pt")["model"] for name in ("none", "zero", "some"))
    own = [name for name in none if name.startswith("generator.")]
    assert own == list(none) and all(torch.equal(none[name], zero[name]) for name in own)
    assert not all(torch.equal(none[name], some[name]) for name in own)
    rows = [read_metrics(runs / name / "metrics.csv") for name in ("none", "zero", "some")]
    assert [row["val_MRE"] for row in rows[0]] == [row["val_MRE"] for row in rows[1]]
    assert rows[1][-1]["gradient_P"] == 0 < rows[2][-1]["gradient_P"]
    assert math.isnan(rows[2][0]["gradient_P"])  # while the generator is pretrained


def test_a_batch_in_parts_plays_the_same_game(dataset, monkeypatch):
    """Each network's gradients are those of the whole batch, step by step: seen before its optimiser moves it."""
    games = []
    for parts in (1, 2):
        torch.manual_seed(0)
        config = posenet_config(dataset, accumulate=parts, norm="instance")
        detector, gradients = create_detector(config).train(), []
        optimizers = detector.configure_optimizers()
        for name, optimizer in optimizers.items():
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]

            def remember(name=name, own=own, gradients=gradients):  # and stay: all steps see the same weights
                gradients.append((name, torch.cat([parameter.grad.flatten() for parameter in own])))

            monkeypatch.setattr(optimizer, "step", remember)
        detector.train_step(make_batch(config), 0, optimizers)
        games.append(gradients)
    assert [name for name, _ in games[0]] == ["generator", "P", "P", "C", "C", "generator"]  # the paper's order
    for (name, whole), (other, in_parts) in zip(*games, strict=True):
        assert name == other and (whole - in_parts).norm() < 0.01 * whole.norm()  # a norm of few px magnifies rounding


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_loss_that_is_not_finite_stops_with_the_image_named(dataset, norm):
    config = posenet_config(dataset, norm=norm)
    detector, batch = create_detector(config).train(), make_batch(config)
    batch.image[1] = float("nan")
    with refuses("epoch 1", "maps is nan", "image 1 (ä).png"):
        detector.train_step(batch, 0, detector.configure_optimizers())


def test_a_px_of_the_maps_is_four_of_the_network(tmp_path):
    detector = PoseNet(PoseNetConfig(num_landmarks=3, channels=32, stacks=1, decode="argmax")).eval()
    with torch.inference_mode():
        outputs = detector(torch.randn(1, 3, 256, 256))
    assert outputs[0].shape == (1, 3, 64, 64)
    maps = torch.zeros(1, 3, 64, 64)
    maps[:, :, 10, 20] = 1.0
    assert detector.decode([maps])[0][0, 0].tolist() == [81.5, 41.5]  # the middle of px 80 to 83, and 40 to 43


def test_landmarks_that_augmentation_moved_out_count_for_the_generator_alone(dataset):
    torch.manual_seed(0)
    config = posenet_config(dataset)
    detector, batch = create_detector(config).eval(), make_batch(config)
    batch.landmarks[:, 3] = torch.tensor([config.width + 5.0, 20.0])
    truth, fake = detector.labels(batch, 0), torch.rand(2, 4, 16, 24)
    without = batch._replace(landmarks=batch.landmarks.clone())
    without.landmarks[:, 3] = float("nan")
    with torch.no_grad():
        for letter in "PC":
            for name, value in detector.judge_fake(letter, batch, fake, truth).items():
                assert value == detector.judge_fake(letter, without, fake, truth)[name]
            for name, value in detector.judge_true(letter, batch, truth).items():
                assert value == detector.judge_true(letter, without, truth)[name]


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_the_whole_game_is_played_with_occlusion_maps_in_bf16(tmp_path, optimizer):
    torch.manual_seed(0)
    records = make_records(tmp_path)
    for record in records:
        record["points"][3]["occluded"] = True
    write_records(tmp_path, records)
    config = posenet_config(tmp_path, occlusion=True, precision="bf16", optimizer=optimizer, lr=1e-3)
    detector, batch = create_detector(config).train(), make_batch(config)
    optimizers = detector.configure_optimizers()
    steps = [detector.train_step(batch, 0, optimizers) for _ in range(60)]
    assert steps[-1]["maps"] < steps[0]["maps"] / 3 and all(math.isfinite(v) for step in steps for v in step.values())
    with torch.no_grad():
        pose, occluded = detector.eval()(batch.image)[-1].split(4, dim=1)
    peaks = occluded.amax((-2, -1)).mean(0)
    assert peaks[3] > 0.5 > 2 * peaks[:3].max() and pose.amax((-2, -1)).min() > 0.5


def test_a_run_that_stopped_before_the_game_began_goes_on_as_if_it_had_not(dataset, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    config = posenet_config(dataset, save_every=1, val_fraction=0.0, pretrain_epochs=1, optimizer="rmsprop", ema=0.9)
    for name, all_epochs in (("straight", [3]), ("stopped", [2, 3])):
        (runs / name).mkdir()
        for epochs in all_epochs:
            train(config.replace(epochs=epochs), runs / name)
    (runs / "early").mkdir()
    train(config.replace(epochs=1, adversarial="none"), runs / "early")  # one epoch alone is the generator's
    straight, stopped = (read_checkpoint(runs / name / "last.pt") for name in ("straight", "stopped"))
    assert straight["optimizers"].keys() == {"generator", "P", "C"}
    for part in ("model", "training_model"):
        assert all(torch.equal(value, stopped[part][name]) for name, value in straight[part].items())


def test_a_game_that_would_never_begin_is_refused():
    with refuses("pretrain_epochs", "20", "5"):
        PoseNetConfig(epochs=5)
    assert PoseNetConfig(epochs=5, adversarial="none").judges == {}
