"""Normalisation by the statistics of each image instead of the batch (setting norm: instance)."""

from torch import nn


def use_image_statistics(module: nn.Module) -> None:
    """Replace every batch norm inside a module with a norm over each image's own statistics; keep its weights.

    FARNet's release computes the same: it trains and tests at batch size 1 and never leaves train mode. The tested
    function is then the trained one, and the result of an image depends on no other image.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.InstanceNorm2d(child.num_features, child.eps, affine=True)
            norm.weight, norm.bias = child.weight, child.bias
            setattr(module, name, norm)
        else:
            use_image_statistics(child)
