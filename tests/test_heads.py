import pytest
import torch
from torch.nn import functional as F

from networks import heads
from networks.heads import ComposedHead, RefinementHead, upsample


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def way(request, monkeypatch) -> str:
    """Both ways to compute the same, here on the CPU."""
    monkeypatch.setattr(heads, "is_gpu", lambda x: request.param == "as on a GPU")
    return request.param


def test_a_composed_head_equals_its_two_convolutions_in_output_and_in_both_factors_gradients():
    torch.manual_seed(0)
    head, x = ComposedHead(148, 52), torch.randn(2, 148, 24, 20)
    target = torch.randn(2, 52, 24, 20)
    outputs, gradients = [], []
    for function in (head, lambda x: head.pointwise(head.spatial(x))):
        head.zero_grad()
        outputs.append(function(x))
        ((outputs[-1] - target) ** 2).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in head.parameters()])
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < 1e-5 and b.abs().max() > 0


@pytest.mark.parametrize(("num_landmarks", "height", "width"), [(52, 8, 6), (1, 3, 2), (5, 1, 1)])
def test_a_head_that_convolves_before_upsampling_equals_one_over_joined_maps(way, num_landmarks, height, width):
    torch.manual_seed(0)
    head = RefinementHead(64, 32, num_landmarks)
    sizes = ((64, height, width), (32, 2 * height, 2 * width), (num_landmarks, height, width))
    maps = [torch.randn(2, *size, requires_grad=True) for size in sizes]
    results = []
    for head.compose in (True, False):
        for tensor in (*maps, *head.parameters()):
            tensor.grad = None
        output = head(*maps)
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        results.append([output, *(tensor.grad for tensor in (*maps, *head.parameters()))])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max())


@pytest.mark.parametrize("factors", [(2, 2), (2, 1), (1, 2)])
def test_upsampling_and_its_gradient_are_those_of_torch(way, factors):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    found, expected = upsample(x, factors), F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
    weights = torch.randn_like(expected)
    slopes = [torch.autograd.grad((maps * weights).sum(), x)[0] for maps in (found, expected)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*slopes)


def test_upsampling_obeys_the_half_pixel_rule(way):
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    inner = upsample(ramp)[0, 0, 4, 1:-1]
    assert torch.allclose(inner, (torch.arange(16.0)[1:-1] + 0.5) / 2 - 0.5)
