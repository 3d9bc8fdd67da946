"""The networks that ask patches: layers as published, one network per landmark, images and volumes."""

import torch
from torch import nn

from networks.patch_networks import GlobalNetwork, LocalNetworks


def test_the_local_networks_are_separate_networks_one_per_landmark():
    torch.manual_seed(0)
    together, crops = LocalNetworks(3).eval(), torch.randn(2, 3, 16, 16)
    logits, displacements = together(crops)
    for n in range(3):
        alone = LocalNetworks(1).eval()
        for name, own in alone.state_dict().items():
            all_of_them = together.state_dict()[name]
            own.copy_(all_of_them.chunk(3)[n] if all_of_them.ndim else all_of_them)
        one, two = alone(crops[:, n : n + 1])
        assert torch.allclose(one[:, 0], logits[:, n], atol=1e-5)
        assert torch.allclose(two[:, 0], displacements[:, n], atol=1e-5)


def test_the_networks_have_the_published_layers():
    network = GlobalNetwork(19, 32)
    convolutions = [module for module in network.trunk.modules() if isinstance(module, nn.Conv2d)]
    assert sum(conv.kernel_size == (3, 3) for conv in convolutions) == 2 * (3 + 4 + 6 + 3)
    assert sum(conv.kernel_size == (1, 1) for conv in convolutions) == 4  # the width changes in every stage
    assert network(torch.randn(1, 1, 64, 96))[0].shape == (1, 19, 2, 3)
    assert network(torch.randn(1, 1, 64, 96))[1].shape == (1, 19, 2, 2, 3)
    local = [module for module in LocalNetworks(19).trunk.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels // 19 for conv in local] == [32, 32, 32, 32, 64, 64]


def test_the_networks_take_volumes():
    assert [out.shape for out in GlobalNetwork(4, 8, dims=3)(torch.randn(2, 1, 16, 24, 32))] == [
        (2, 4, 2, 3, 4), (2, 4, 3, 2, 3, 4)
    ]  # fmt: skip
    assert [out.shape for out in LocalNetworks(4, dims=3)(torch.randn(2, 4, 8, 8, 8))] == [
        (2, 4, 4, 4, 4), (2, 4, 3, 4, 4, 4)
    ]  # fmt: skip
