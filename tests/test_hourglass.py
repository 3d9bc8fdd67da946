import pytest
import torch

from networks.hourglass import Discriminator, Generator, Hourglass


@pytest.mark.parametrize("size", [(16, 24), (17, 23)])
def test_an_hourglass_keeps_the_size_also_where_it_does_not_halve_evenly(size):
    assert Hourglass(3, 8)(torch.randn(2, 8, *size)).shape == (2, 8, *size)


@pytest.mark.parametrize("occlusion", [False, True])
def test_every_stack_gives_maps_of_a_quarter_of_the_size(occlusion):
    network = Generator(5, stacks=3, depth=2, channels=16, occlusion=occlusion)
    outputs = network(torch.randn(2, 3, 64, 96))
    assert [maps.shape for maps in outputs] == [(2, 10 if occlusion else 5, 16, 24)] * 3
    assert len(network.occlusions) == (3 if occlusion else 0)


def test_a_stack_sees_the_stem_and_the_stack_before_and_occlusion_maps_see_the_pose():
    torch.manual_seed(0)
    network = Generator(2, stacks=2, depth=2, channels=16, occlusion=True)
    image = torch.randn(2, 3, 64, 64)
    first, second = network(image)

    def weights_reached(maps: torch.Tensor) -> set[str]:
        network.zero_grad()
        maps.square().sum().backward(retain_graph=True)
        return {
            name
            for name, parameter in network.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }

    assert {name.split(".")[0] for name in weights_reached(first[:, :2])} == {"stem", "poses"}
    assert not any(name.startswith("poses.1") for name in weights_reached(first))
    assert any(name.startswith("poses.0") for name in weights_reached(first[:, 2:]))
    second_pose = weights_reached(second[:, :2])
    assert any(n.startswith("poses.0") for n in second_pose) and any(n.startswith("occlusions.0") for n in second_pose)
    assert not any(name.startswith("occlusions.1") for name in second_pose)


def test_the_papers_generator_has_four_stacks_of_two_hourglasses_with_512_maps():
    network = Generator(16, stacks=4, depth=4, channels=512, occlusion=True)
    hourglasses = [module for module in network.modules() if isinstance(module, Hourglass)]
    assert len(hourglasses) == 4 * 2 * 4  # an hourglass holds those below it
    widths = {module.convolutions[-1].out_channels for head in network.poses for module in head.features[:1].modules()
              if hasattr(module, "convolutions")}  # fmt: skip
    assert widths == {512}


@pytest.mark.parametrize("size", [(16, 24), (40, 32)])
def test_a_discriminator_fits_maps_of_any_size_and_says_one_number_per_landmark(size):
    torch.manual_seed(0)
    judge = Discriminator(3 + 5, 5, depth=2, channels=16)
    maps = torch.randn(2, 8, *size, requires_grad=True)
    logits = judge(maps)
    assert logits.shape == (2, 5)
    logits[:, 0].sum().backward()
    assert maps.grad.flatten(2).abs().sum(-1).all()  # of each channel
