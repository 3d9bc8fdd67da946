import pytest
import torch
from conftest import tiny_config

from data import Sample
from detector import NonFiniteLoss
from model import FARNet


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path, precision):
    config = tiny_config(tmp_path, height=64, width=64, precision=precision)
    detector = FARNet(config)
    before = {name: value.clone() for name, value in detector.named_parameters()}
    image = torch.randn(3, 3, 64, 64)
    image[1] = float("nan")
    batch = Sample(image, torch.zeros(3, 4, 2), None, None, ["a", "b", "c"])
    with pytest.raises(NonFiniteLoss, match=r"epoch 1 \(coarse is nan, fine is nan; at b\): lower lr"):
        detector.train_step(batch, 0, detector.configure_optimizers())
    assert all(torch.equal(value, before[name]) for name, value in detector.named_parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_computed_in_parts_takes_the_same_step(tmp_path, precision):
    batch = Sample(torch.randn(3, 3, 64, 64), torch.rand(3, 4, 2) * 60, None, None, ["a", "b", "c"])
    gradients, losses = [], []
    for parts in (1, 2, 3):
        torch.manual_seed(0)
        detector = FARNet(tiny_config(tmp_path, height=64, width=64, accumulate=parts, precision=precision))
        losses.append(sum(detector.train_step(batch, 0, {}).values()))
        gradients.append(detector.network.fine_head.spatial.weight.grad)
    tolerance = 0.05 if precision == "bf16" else 1e-4
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=tolerance)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < tolerance * gradients[0].norm()
