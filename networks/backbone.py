"""Networks as extractors of feature maps: torchvision's, efficientnet.py's, timm's; weights. Letters: data.py."""

import copy
import difflib
import re

import timm
import torch
import torchvision
from torch import Tensor, nn

from networks.efficientnet import LITE, EfficientNetLite, find_lite_weights
from settings import UserError, check_names

# Per torchvision network: the modules of its feature part after which feature maps of stride 2, 4, 8, 16 and 32 are
# taken, and their channels. Names of DenseNet, VGG and EfficientNet are those in `features`.
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


TIMM = "timm:"  # begins the name of a network of timm
STEM_CHANNELS = 64  # of the map of stride 2 where a network of timm has none
CLASSIFIERS = ("classifier.", "fc.", "_conv_head.", "_bn1.", "_fc.")  # begin the names of what follows the feature part


def create_backbone(name: str, weights: str) -> "Backbone | EfficientNetLite | TimmBackbone":
    """Return a network (B, 3, H, W) -> five maps of stride 2 to 32 with its `channels`, with its initial weights.

    Raises UserError for an unknown name, or for weights that cannot be read or do not fit.
    """
    if name.startswith(TIMM):
        return TimmBackbone(name, weights)
    check_names([name], [*BACKBONES, *LITE], "backbone", "setting backbone: ")
    if name not in LITE:
        return Backbone(name, weights)
    network = EfficientNetLite(name)
    load_backbone_weights(network, name, weights)
    return network


class Backbone(nn.Module):
    """The feature part of a torchvision network: (B, 3, H, W) -> five maps of stride 2 to 32 with self.channels.

    DenseNet as in FARNet's release: the first map is taken before the first norm and ReLU, the last has no ReLU.
    """

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        self.taps, self.channels = BACKBONES[name]
        network = torchvision.models.get_model(name, weights=None)
        load_backbone_weights(network, name, weights)
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


class TimmBackbone(nn.Module):
    """A network of timm, "timm:NAME": (B, 3, H, W) -> five maps of stride 2 to 32 with self.channels.

    A network that begins with stride 4 gets a convolution of its own for the map of stride 2.
    """

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        model = name.removeprefix(TIMM)
        if model.partition(".")[0] not in timm.list_models():
            near = ", ".join(difflib.get_close_matches(model, timm.list_models(), 3)) or "see timm.list_models()"
            raise UserError(f"setting backbone: timm has no network {model!r}; nearest: {near}")
        try:
            self.network = timm.create_model(model, pretrained=False, features_only=True)
            with torch.no_grad():
                maps = copy.deepcopy(self.network).eval()(torch.zeros(1, 3, 64, 96))[-5:]
        except Exception as error:  # networks of timm raise all kinds of errors
            reason = (str(error) or repr(error)).splitlines()[0]
            raise UserError(f"setting backbone: {name} cannot be used ({reason}); choose one of convolutions") from None
        channels = self.network.feature_info.channels()[-5:]  # type: ignore[operator, union-attr]
        strides = [2, 4, 8, 16, 32][-len(maps) :]
        expected = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=False)]
        if len(maps) < 4 or [tuple(each.shape) for each in maps] != expected:
            found = ", ".join(str(tuple(each.shape[1:])) for each in maps)
            raise UserError(f"setting backbone: {name} makes maps {found} of 64 x 96 px; expected strides 4, 8, 16, 32")
        if weights != "none":
            self.load(model, weights)
        self.stem = nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1) if len(maps) == 4 else None
        self.channels = channels if self.stem is None else [STEM_CHANNELS, *channels]

    def load(self, model: str, weights: str) -> None:
        """Load timm's own weights ("imagenet"), or those in a file of timm, whose classifier is not needed.

        timm would only log which weights of a file it cannot use. Raises UserError.
        """
        own = self.network.state_dict()
        try:
            if weights == "imagenet":
                state = timm.create_model(model, pretrained=True).state_dict()
            else:
                state = timm.models.load_state_dict(weights)
            plain = {key.replace(".", "_"): value for key, value in state.items()}  # stages.0.x is stages_0.x here
            self.network.load_state_dict({key: plain[key.replace(".", "_")] for key in own})
        except Exception as error:  # of the file or of the download, as many as there are
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"setting backbone_weights: {weights} cannot be used for {TIMM}{model} ({reason}); give a file of "
                "timm's weights for it, or none"
            ) from None

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = list(self.network(image))[-5:]
        return maps if self.stem is None else [self.stem(image), *maps]


def load_backbone_weights(network: nn.Module, name: str, weights: str) -> None:
    """Load the weights of setting backbone_weights into a network; a classifier may lack. Raises UserError.

    network: of torchvision, of segmentation-models-pytorch with torchvision's names, or an EfficientNetLite.
    """
    if weights == "none":
        return
    state = read_backbone_weights(name, weights)
    try:
        own = network.state_dict()
        # older files lack the counters of batch norms
        needed = {key for key in own if not key.startswith(CLASSIFIERS) and not key.endswith("num_batches_tracked")}
        fits = needed <= state.keys() and all(key in own or key.startswith(CLASSIFIERS) for key in state)
        if fits:
            network.load_state_dict(own | state, strict=False)
    except RuntimeError:  # another shape
        fits = False
    if not fits:
        raise UserError(
            f"setting backbone_weights: the weights in {weights} do not fit {name}; give a state dict of that network "
            "with torchvision's names, with or without its classifier"
        )


def read_backbone_weights(name: str, weights: str) -> dict[str, Tensor]:
    """Read a state dict: the published ImageNet one ("imagenet"), or the one in a file.

    Raises UserError, naming the setting to change, if the weights are not to be had or the file cannot be read.
    """
    if weights == "imagenet" and name in LITE:
        weights = str(find_lite_weights(name))
    if weights == "imagenet":
        published = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        try:
            state = published.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, no disk space, or a broken download
            raise UserError(
                f"the ImageNet weights of {name} could not be downloaded ({error}): set backbone_weights to "
                f"none, or to a copy of {published.url}"
            ) from None
    else:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a file that is not one of its own
            reason = str(error).splitlines()[0]
            raise UserError(
                f"setting backbone_weights: cannot read {weights} ({reason}); allowed: imagenet, none, FILE"
            ) from None
    # the published DenseNet files are older than torchvision's current names: norm.1 is norm1 today
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key): value for key, value in state.items()}
