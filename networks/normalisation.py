"""Normalisation by the statistics of each image instead of the batch (setting norm: instance)."""

from torch import nn


def use_image_statistics(module: nn.Module) -> None:
    """Replace every batch norm inside a module with a norm over each image's own statistics; keep its weights.

    FARNet's release trains and tests at batch size 1 and never leaves train mode, which computes the same. With this
    norm the tested function is the trained one, and an image's result depends neither on other images nor on the batch
    size.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.InstanceNorm2d(child.num_features, child.eps, affine=True)
            norm.weight, norm.bias = child.weight, child.bias
            setattr(module, name, norm)
        else:
            use_image_statistics(child)
