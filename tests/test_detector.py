import pytest
import torch
from conftest import NarrowFARNet, mentions, noise_batch, tiny_config

from detector import NonFiniteLoss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path, precision):
    config = tiny_config(tmp_path, height=64, width=64, precision=precision)
    detector = NarrowFARNet(config)
    before = {name: value.clone() for name, value in detector.named_parameters()}
    batch = noise_batch(torch.zeros(3, 4, 2), (64, 64))
    batch.image[1] = float("nan")
    with pytest.raises(NonFiniteLoss) as error:
        detector.train_step(batch, 0, detector.configure_optimizers())
    assert mentions(str(error.value), "epoch 1", "coarse is nan", "fine is nan", "1.png", "lr", "precision")
    assert all(torch.equal(value, before[name]) for name, value in detector.named_parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_computed_in_parts_takes_the_same_step(tmp_path, precision):
    batch = noise_batch(torch.rand(3, 4, 2) * 60, (64, 64))
    gradients, losses = [], []
    for parts in (1, 2, 3):
        torch.manual_seed(0)
        detector = NarrowFARNet(tiny_config(tmp_path, height=64, width=64, accumulate=parts, precision=precision))
        losses.append(sum(detector.train_step(batch, 0, {}).values()))
        gradients.append(detector.network.fine_head.spatial.weight.grad)
    tolerance = 0.05 if precision == "bf16" else 1e-4
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=tolerance)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < tolerance * gradients[0].norm()


@pytest.mark.slow
def test_the_loss_of_farnet_is_one_graph_that_can_be_compiled(tmp_path):
    detector = NarrowFARNet(tiny_config(tmp_path, height=64, width=64))
    found = torch._dynamo.explain(detector.loss)(noise_batch(torch.rand(2, 4, 2) * 60, (64, 64)), 0)
    assert (found.graph_count, found.graph_break_count) == (1, 0)
