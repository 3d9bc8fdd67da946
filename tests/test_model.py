import math

import pytest
import torch
from conftest import refuses, tiny_config
from torch import nn

from config import Config
from data import Sample
from experiments.textbook import TextbookFARNet
from model import FARNet, FARNetNetwork, UpConvNormReLU, ewc_loss, fold_network
from networks.normalisation import use_image_statistics
from settings import build_config, preset_settings


@pytest.mark.parametrize(("num_landmarks", "count"), [(19, 61_218_963), (52, 61_304_796)])
def test_the_number_of_parameters_is_the_published_networks(num_landmarks, count):
    network = FARNetNetwork(num_landmarks, "densenet121", "none")
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("num_landmarks", [1, 19, 52, 68])
def test_the_heatmaps_have_half_and_full_size(num_landmarks):
    network = FARNetNetwork(num_landmarks, "densenet121", "none").eval()
    for height, width in ((32, 64), (96, 32)):
        with torch.inference_mode():
            coarse, fine = network(torch.randn(1, 3, height, width))
        assert coarse.shape == (1, num_landmarks, height // 2, width // 2)
        assert fine.shape == (1, num_landmarks, height, width)


def test_convolving_before_upsampling_equals_convolving_after_it_in_output_and_gradients():
    torch.manual_seed(0)
    block = UpConvNormReLU(6, 4, 5)
    below, beside = torch.randn(2, 6, 5, 7, requires_grad=True), torch.randn(2, 4, 10, 14)
    results = []
    for block.compose in (True, False):
        block.zero_grad()
        below.grad = None
        output = block(below, beside)
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        results.append([output, below.grad, block[0].weight.grad, block[1].weight.grad])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 1e-4


def test_ewc_by_hand():
    # one landmark, two pixels: 40^1 * (1 - 0.5)^2 = 10 and 40^0 * (0 - 0.5)^2 = 0.25
    heatmaps = torch.full((1, 1, 1, 2), 0.5, requires_grad=True)
    loss = ewc_loss(heatmaps, torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[True]]), 40)
    assert loss.item() == pytest.approx((10 + 0.25) / 2)
    loss.backward()
    # d/dp of w (t - p)^2 / 2 pixels: -2 * 40 * 0.5 / 2 and +2 * 1 * 0.5 / 2
    assert heatmaps.grad.flatten().tolist() == pytest.approx([-20, 0.5])


def test_ewc_weighs_by_the_target_not_by_the_prediction():
    target = torch.tensor([[[[math.exp(-0.5)]]]])  # one sigma away: weight 40**0.6065 = 9.37
    loss = ewc_loss(torch.zeros(1, 1, 1, 1), target, torch.tensor([[True]]), 40)
    assert loss.item() == pytest.approx(40 ** math.exp(-0.5) * math.exp(-0.5) ** 2, rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_the_gradient_of_ewc_is_that_of_its_formula(layout, dtype, rounding):
    torch.manual_seed(0)
    heatmaps = torch.rand(2, 3, 6, 5).to(dtype).contiguous(memory_format=layout).requires_grad_()
    target, annotated = torch.rand(2, 3, 6, 5), torch.tensor([[True, False, True], [True, True, False]])
    (ours,) = torch.autograd.grad(3 * ewc_loss(heatmaps, target, annotated, 40), heatmaps)
    assert ours.dtype == dtype and ours.is_contiguous(memory_format=layout)
    heatmaps = heatmaps.detach().float().requires_grad_()
    per_landmark = (40**target * (target - heatmaps) ** 2).mean((-2, -1))
    (3 * per_landmark[annotated].mean()).backward()
    assert (ours - heatmaps.grad).abs().max() < rounding * heatmaps.grad.abs().max()


def test_ewc_with_alpha_1_is_the_mean_squared_error():
    a, b = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    assert ewc_loss(a, b, torch.ones(2, 3, dtype=bool), 1).item() == pytest.approx(((a - b) ** 2).mean().item())


def test_ewc_is_computed_in_float32_whatever_the_maps_are():
    loss = ewc_loss(torch.rand(1, 1, 4, 4).bfloat16(), torch.rand(1, 1, 4, 4), torch.tensor([[True]]), 40)
    assert loss.dtype == torch.float32


def test_a_missing_landmark_adds_nothing_to_loss_or_gradient():
    torch.manual_seed(0)
    heatmaps, target = torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4)
    annotated = torch.tensor([[True, False, True], [True, True, False]])
    loss = ewc_loss(heatmaps, target, annotated, 40)
    loss.backward()
    alone = torch.stack([ewc_loss(heatmaps[b, n][None, None], target[b, n][None, None], torch.tensor([[True]]), 40)
                         for b, n in annotated.nonzero()]).mean()  # fmt: skip
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    assert heatmaps.grad[0, 1].abs().max() == 0 and heatmaps.grad[1, 2].abs().max() == 0


def test_the_loss_of_an_image_without_annotation_is_zero():
    assert ewc_loss(torch.rand(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, dtype=bool), 40).item() == 0


@pytest.mark.parametrize("device_targets", [True, False])
def test_both_targets_have_the_same_sigma_and_agree_on_where_the_landmark_is(device_targets):
    config = Config(num_landmarks=1, height=64, width=96, sigma=2.0, backbone_weights="none")
    batch = Sample(torch.randn(1, 3, 64, 96), torch.tensor([[[10.5, 20.5]]]), None, None, ["image"])
    targets = (FARNet if device_targets else TextbookFARNet)(config).labels(batch, 0)
    for target, (height, width), (x, y) in zip(targets, [(32, 48), (64, 96)], [(5, 10), (10.5, 20.5)], strict=True):
        columns, rows = torch.arange(width), torch.arange(height)[:, None]
        expected = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2))
        assert (target[0, 0] - expected).abs().max() < 1e-6


def test_bf16_and_float32_give_about_the_same_loss(tmp_path):
    torch.manual_seed(0)
    config = tiny_config(tmp_path, height=64, width=64)
    detector = FARNet(config)
    batch = Sample(torch.randn(2, 3, 64, 64), torch.rand(2, 4, 2) * 64, None, None, ["a", "b"])
    losses = []
    for precision in ("fp32", "bf16"):
        detector.config = config.replace(precision=precision)
        losses.append(sum(detector.loss(batch, 0).values()).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


def test_predictions_do_not_depend_on_what_else_is_in_the_batch(tmp_path):
    torch.manual_seed(0)
    detector = FARNet(tiny_config(tmp_path, height=64, width=64)).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        together, _ = detector.predict(images)
        alone, _ = detector.predict(images[1:2])
    assert (together[1] - alone[0]).abs().max() < 1e-2


def test_no_module_is_a_relu_on_the_way_from_head_to_heatmap():
    assert not [m for m in FARNetNetwork(4, "densenet121", "none").fine_head.modules() if isinstance(m, nn.ReLU)]


def test_with_image_statistics_eval_mode_is_what_the_release_computes_at_batch_size_1():
    torch.manual_seed(0)
    network = FARNetNetwork(4, "densenet121", "none")
    count = sum(parameter.numel() for parameter in network.parameters())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        released = [network.train()(image[i : i + 1]) for i in range(2)]
        use_image_statistics(network)
        ours = network.eval()(image)
    for head in range(2):
        for i in range(2):
            assert (ours[head][i] - released[i][head][0]).abs().max() < 1e-4 * released[i][head].abs().max()
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_recipe_normalises_by_image_and_larger_batches_by_batch():
    assert Config().norm == "instance" and Config().batch_size == 1
    for preset in ("demo", "modern"):
        config = build_config(Config, preset_settings(Config, [preset]))
        assert config.norm == "batch" and config.batch_size > 1


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_folded_network_predicts_the_same(tmp_path, norm):
    torch.manual_seed(0)
    detector = FARNet(tiny_config(tmp_path, norm=norm, channels_last=True))
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics and weights of a trained network are not 0 and 1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    image = torch.randn(2, 3, 64, 96)
    folded = detector.for_inference()
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in one.modules()) for one in (detector, folded)]
    assert norms[1] == 0 if norm == "instance" else 0 < norms[1] < norms[0] - 60
    assert not [node for node in folded.network.graph.nodes if "einsum" in str(node.target)]  # of a head's factors
    with torch.inference_mode():
        for a, b in zip(detector.eval()(image), folded(image), strict=True):
            assert (a - b).abs().max() < 1e-4 * a.abs().max()
        assert (detector.predict(image)[0] - folded.predict(image)[0]).abs().max() < 0.05


def test_weights_rounded_once_predict_what_weights_rounded_in_every_pass_predict(tmp_path):
    torch.manual_seed(0)
    detector, image = FARNet(tiny_config(tmp_path, test_precision="bf16")), torch.randn(2, 3, 64, 96)
    rounded = detector.for_inference()
    weights = [module.weight for module in rounded.modules() if isinstance(module, nn.Conv2d)]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        heatmaps = fold_network(detector.network)(image)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(rounded(image), heatmaps, strict=True))


@pytest.mark.parametrize("other", ["textbook", "channels_last"])
def test_computing_it_another_way_changes_no_more_than_rounding(tmp_path, other):
    batch = Sample(torch.randn(2, 3, 64, 64), torch.rand(2, 4, 2) * 64, None, None, ["a", "b"])
    losses, gradients = [], []
    for changed in (False, True):
        torch.manual_seed(0)
        channels_last = changed and other == "channels_last"
        config = tiny_config(tmp_path, height=64, width=64, channels_last=channels_last)
        detector = (TextbookFARNet if changed and other == "textbook" else FARNet)(config)
        if channels_last:
            detector.to(memory_format=torch.channels_last)
        loss = sum(detector.loss(batch, 0).values())
        loss.backward()
        losses.append(loss.item())
        gradients.append(detector.network.fine_head.spatial.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (gradients[1] - gradients[0]).norm() < 1e-3 * gradients[0].norm()


def test_a_test_in_bf16_finds_about_the_same_landmarks(tmp_path):
    torch.manual_seed(0)
    detector = FARNet(tiny_config(tmp_path)).eval()
    image, scores = torch.randn(1, 3, 64, 96), []
    for precision in ("fp32", "bf16"):
        detector.config = detector.config.replace(test_precision=precision)
        with torch.inference_mode():
            scores.append(detector.predict(image)[1])
    assert (scores[0] - scores[1]).abs().max() < 0.05 and not torch.equal(*scores)


def test_decoder_channels_scale_the_whole_decoder_and_an_odd_number_is_refused(tmp_path):
    sizes = []
    for channels in (64, 128):
        config = tiny_config(tmp_path, num_landmarks=19, backbone="efficientnet_lite0", decoder_channels=channels)
        sizes.append(FARNet(config).num_parameters)
    assert sizes == [6_421_827, 16_008_371]
    with refuses("decoder_channels", "100", "multiple of 8"):
        tiny_config(tmp_path, decoder_channels=100)
