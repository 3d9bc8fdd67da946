"""Torchvision networks as extractors of feature maps, and the weights that they begin with.

Letters: data.py.
"""

import re

import torch
import torchvision
from torch import Tensor, nn

from settings import UserError

# Per torchvision network: the modules of its feature part after which a feature map is tapped, at strides
# 2, 4, 8, 16 and 32, and the channels there. DenseNet and VGG are counted in `features`.
DENSENET_TAPS = ("conv0", "denseblock1", "denseblock2", "denseblock3", "norm5")
RESNET_TAPS = ("relu", "layer1", "layer2", "layer3", "layer4")
BACKBONES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "densenet121": (DENSENET_TAPS, (64, 256, 512, 1024, 1024)),
    "densenet169": (DENSENET_TAPS, (64, 256, 512, 1280, 1664)),
    "resnet101": (RESNET_TAPS, (64, 256, 512, 1024, 2048)),
    "resnet152": (RESNET_TAPS, (64, 256, 512, 1024, 2048)),
    "vgg16": (("8", "15", "22", "29", "30"), (128, 256, 512, 512, 512)),
    "vgg19": (("8", "17", "26", "35", "36"), (128, 256, 512, 512, 512)),
    "efficientnet_v2_s": (("1", "2", "3", "5", "6"), (24, 48, 64, 160, 256)),
}


class Backbone(nn.Module):
    """The feature part of a torchvision network, up to its last tap.

    In: (B, 3, H, W). Out: five feature maps at strides 2, 4, 8, 16, 32 with `self.channels` channels.
    DenseNet as in the original: the first tap lies before the first norm and ReLU, the last one has no ReLU.
    """

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        if name not in BACKBONES:
            raise UserError(f"setting backbone: {name!r} is not known; choose one of {', '.join(BACKBONES)}")
        self.taps, self.channels = BACKBONES[name]
        network = torchvision.models.get_model(name, weights=None)
        if weights != "none":
            try:
                network.load_state_dict(read_backbone_weights(name, weights))
            except RuntimeError:
                raise UserError(
                    f"setting backbone_weights: the weights in {weights} do not fit {name}; give a torchvision state "
                    "dict of that network"
                ) from None
        features = getattr(network, "features", network)
        self.stages = nn.ModuleDict()
        for stage, module in features.named_children():
            self.stages[stage] = module
            if stage == self.taps[-1]:
                break

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, x = [], image
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.taps:
                maps.append(x)
        return maps


def read_backbone_weights(name: str, weights: str) -> dict[str, Tensor]:
    """A torchvision state dict: the published ImageNet one ("imagenet"), or that in a file.

    Raises UserError if the download fails or the file does not fit; it names the setting to change.
    """
    if weights == "imagenet":
        published = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        try:
            state = published.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, no room, or a broken download
            raise UserError(
                f"the ImageNet weights of {name} could not be downloaded ({error}): set backbone_weights to "
                f"none, or to a copy of {published.url}"
            ) from None
    else:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is none of its own
            reason = str(error).splitlines()[0]
            raise UserError(
                f"setting backbone_weights: cannot read {weights} ({reason}); allowed: imagenet, none, FILE"
            ) from None
    # The published DenseNet files are older than torchvision's present names: norm.1 is norm1 today.
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key): value for key, value in state.items()}
    return state
