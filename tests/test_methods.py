"""What every method must fulfil, whatever it does inside: one line in METHODS and all this runs on it."""

import re
from pathlib import Path

import pytest
import torch
from conftest import ABBREVIATIONS, METHOD_SETTINGS, make_batch, make_records, refuses, tiny_config, write_records
from torch.utils.data import default_collate

from data import make_sample
from detector import split_batch
from experiments.benchmark import measure_here
from methods import METHODS, create_detector, load_detector, method_class
from reading.annotation import read_annotation
from reading.splits import load_data
from run_folder import read_checkpoint, read_metrics, save_checkpoint
from settings import build_config
from train import checkpoint_state, train
from utils import is_loss_term

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
CPU = torch.device("cpu")


@pytest.fixture(params=[*METHODS, "readme", "refined"])
def method(request, monkeypatch) -> str:
    """The name of each method in turn, of the one that docs/methods.md adds in 20 lines, and of it with refine 2."""
    if request.param in ("readme", "refined"):
        text = (Path(__file__).resolve().parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
        code = re.search(r"## Add a method.*?```python\n(.*?)```", text, re.S).group(1)
        names = {}
        exec(compile(code, "docs/methods.md", "exec"), names)
        monkeypatch.setitem(METHODS, request.param, names["HeatmapUNet"])
    return request.param


def method_config(folder, method, **settings):
    """A method's own settings for a folder of make_records."""
    plain = tiny_config(folder).to_dict() | METHOD_SETTINGS.get(method, {})
    return build_config(method_class(method).Config, plain | settings | {"method": method})


@pytest.mark.slow
def test_a_method_learns_one_image_to_less_than_a_pixel(dataset, method):
    torch.manual_seed(0)
    config = method_config(dataset, method)
    detector, sample = create_detector(config).train(), make_sample(config, load_data(config).records[0])
    batch = default_collate([sample, sample])
    optimizers = detector.configure_optimizers()
    steps = [detector.train_step(batch, 0, optimizers) for _ in range(80)]
    game = ("adversarial_", "discriminator_")  # what one network wins here another loses
    terms = [name for name in steps[0] if is_loss_term(name) and not name.startswith((*game, "refinement"))]
    losses = [sum(step[name] for name in terms) for step in steps]
    landmarks, _ = detector.eval().predict(batch.image)
    assert losses[-1] < losses[0] / 10
    assert (landmarks - batch.landmarks).norm(dim=-1).max() < 1


def test_the_loss_reaches_every_parameter(dataset, method):
    config = method_config(dataset, method)
    detector = create_detector(config).train()
    terms = detector.loss(make_batch(config), 0)
    sum(terms.values()).backward()
    assert all(term.ndim == 0 and term.dtype == torch.float32 for term in terms.values())
    reached = {name for name, parameter in detector.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in detector.named_parameters()}
    assert all(parameter.grad.any() for parameter in detector.parameters())


def test_missing_landmarks_leave_loss_and_gradient_finite(dataset, method):
    config = method_config(dataset, method)
    detector, batch = create_detector(config).train(), make_batch(config)
    batch.landmarks[0, 2] = batch.landmarks[1] = float("nan")
    loss = sum(detector.loss(batch, 0).values())
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


def test_an_image_without_landmarks_adds_nothing_to_the_loss(dataset, method):
    config = method_config(dataset, method)
    torch.manual_seed(0)
    detector, batch = create_detector(config).eval(), make_batch(config)  # eval: norms do not mix the images
    batch.landmarks[1] = float("nan")
    losses = []
    for part in (batch, split_batch(batch, 2)[0]):
        torch.manual_seed(1)  # what a loss draws at random is drawn image by image
        with torch.no_grad():
            losses.append(detector.loss(part, 0))
    both, alone = losses
    assert alone.keys() == both.keys()
    assert all(both[name].item() == pytest.approx(term.item(), rel=1e-5) for name, term in alone.items())


def test_both_precisions_are_those_of_the_settings(dataset, method):
    torch.manual_seed(0)
    config = method_config(dataset, method)
    detector, image = create_detector(config), make_batch(config).image
    with torch.no_grad():
        plain = detector.eval().predict(image)[1]
        detector.config = config.replace(test_precision="bf16")
        assert not torch.equal(detector.predict(image)[1], plain)
        detector.config = config.replace(precision="bf16")
        assert torch.equal(detector.predict(image)[1], plain)
        losses = []
        for precision in ("fp32", "bf16"):
            detector.train().config = config.replace(precision=precision)
            torch.manual_seed(1)
            losses.append(sum(detector.loss(make_batch(config), 0).values()).item())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_landmarks_are_predicted_in_the_network_frame_for_any_count_and_size(tmp_path, method, size):
    size = tuple(METHOD_SETTINGS.get(method, {}).get("refine", 1) * side for side in size)
    config = method_config(tmp_path, method, num_landmarks=7, height=size[0], width=size[1])
    torch.manual_seed(0)
    detector = create_detector(config).eval()
    with torch.inference_mode():
        landmarks, score = detector.predict(torch.randn(3, 3, *size))
    assert landmarks.shape == (3, 7, 2) and score.shape == (3, 7)
    assert landmarks.dtype == score.dtype == torch.float32
    assert (landmarks >= -0.5).all() and (landmarks <= torch.tensor([size[1] - 0.5, size[0] - 0.5])).all()


def test_a_loaded_checkpoint_predicts_what_was_saved(dataset, method):
    config = method_config(dataset, method)
    detector, data = create_detector(config).eval(), load_data(config)
    image = make_batch(config).image
    path = dataset / "best.pt"
    save_checkpoint(path, checkpoint_state(config, data, detector, {"epoch": 1, "best_MRE": 2.0}))
    state = read_checkpoint(path)
    loaded = load_detector(state)
    with torch.inference_mode():
        for a, b in zip(detector.predict(image), loaded.predict(image), strict=True):
            assert torch.equal(a, b)
    assert state["method"] == method and tuple(state["abbreviations"]) == ABBREVIATIONS
    assert loaded.config == config and not loaded.training


@pytest.mark.slow
def test_a_method_resumes_as_if_it_had_not_stopped(dataset, method, tmp_path_factory):
    config = method_config(dataset, method, save_every=1, val_fraction=0.0, rotation=10.0)
    runs = tmp_path_factory.mktemp("runs")
    for name, all_epochs in (("straight", [2]), ("stopped", [1, 2])):
        (runs / name).mkdir()
        for epochs in all_epochs:
            train(config.replace(epochs=epochs), runs / name)
    straight, stopped = (read_checkpoint(runs / name / "last.pt")["model"] for name in ("straight", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in straight.items())
    losses = [[row["loss"] for row in read_metrics(runs / name / "metrics.csv")] for name in ("straight", "stopped")]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_an_unknown_method_is_refused_with_the_list():
    with refuses("farnett", "farnet"):
        method_class("farnett")


def test_weights_that_do_not_fit_their_settings_are_refused(dataset, method):
    config = method_config(dataset, method)
    state = checkpoint_state(config, load_data(config), create_detector(config), {"epoch": 1, "best_MRE": 2.0})
    with refuses("last.pt", "weights"):
        load_detector(state | {"settings": config.replace(num_landmarks=5).to_dict(), "path": "last.pt"})


def test_a_checkpoint_tells_the_landmarks_of_other_data_apart(dataset, tmp_path):
    records = make_records(dataset)
    for record in records:
        record["points"][3]["pointAbbreviation"] = "C"
    write_records(dataset, records)
    with refuses("C", "B"):
        read_annotation(dataset / "json" / "data.json", dataset / "imgs", abbreviations=ABBREVIATIONS)


@pytest.mark.slow
def test_a_method_can_be_timed_stage_by_stage(dataset, method):
    row = measure_here(method_config(dataset, method), CPU, repeats=1, shares=False)
    assert all(row[stage] > 0 for stage in ("targets", "forward", "step", "decoding", "inference"))
