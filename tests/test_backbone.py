import pytest
import torch
import torchvision
from conftest import refuses

from networks.backbone import BACKBONES, Backbone, read_backbone_weights


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_taps_strides_2_to_32(name):
    backbone = Backbone(name, "none").eval()
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
    with refuses("backbone", "resnet18", "densenet121", "efficientnet_v2_s"):
        Backbone("resnet18", "none")


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
