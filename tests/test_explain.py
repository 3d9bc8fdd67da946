import numpy as np
import pytest
import torch
from conftest import TinyDetector, make_batch, make_records, refuses, tiny_config, write_records
from PIL import Image
from test_methods import method, method_config  # noqa: F401  (a fixture)
from torch import nn

import main
from detector import LandmarkDetector
from methods import create_detector
from reporting.explain import activation_maps
from utils import decode_heatmaps


class TwoFeatures(LandmarkDetector):
    """Features that are the image's channels 0 and 1, and two landmarks: their sum, and the first less the second."""

    def __init__(self, config):
        super().__init__(config)
        self.features = nn.Conv2d(3, 2, 1, bias=False)
        self.features.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[..., None, None]
        self.head = nn.Conv2d(2, 4, 1, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0, 0], [0, 0]])[..., None, None]

    def forward(self, image):
        return self.head(self.features(image))

    def decode(self, outputs):
        return decode_heatmaps(outputs, "argmax", 1.0)


def test_an_activation_map_is_the_features_weighted_by_the_scores_mean_gradient(tmp_path):
    detector = TwoFeatures(tiny_config(tmp_path)).eval()
    assert detector.last_layer() is detector.head
    image = torch.rand(1, 3, 6, 8)
    maps = activation_maps(detector, image, [1, 0, 2])
    both, first_alone = image[0, 0] + image[0, 1], (image[0, 0] - image[0, 1]).clamp(min=0)
    assert torch.allclose(maps[0], first_alone / first_alone.max(), atol=1e-6)
    assert torch.allclose(maps[1], both / both.max(), atol=1e-6)
    assert not maps[2].any()  # nothing speaks for a landmark that has no weights
    assert all(parameter.requires_grad and parameter.grad is None for parameter in detector.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_every_method_can_be_explained(dataset, method, norm):  # noqa: F811
    torch.manual_seed(0)
    config = method_config(dataset, method, norm=norm)
    detector, batch = create_detector(config).eval(), make_batch(config)
    kept = []
    detector.last_layer().register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    maps = activation_maps(detector, batch.image[:1], range(4))
    assert maps.shape == (4, *kept[0].shape[2:]) and maps.isfinite().all() and maps.min() >= 0
    assert maps.amax((-2, -1)).max() == 1
    another = activation_maps(detector, batch.image[1:], range(4))
    assert another.shape == maps.shape and not torch.equal(another, maps)
    # the mean gradient is no rounding noise, as before a norm of each image
    features = kept[0].detach().requires_grad_()
    hook = detector.last_layer().register_forward_pre_hook(lambda module, inputs: (features, *inputs[1:]))
    (gradient,) = torch.autograd.grad(detector.explained_value(detector(batch.image[:1]))[0, 0], features)
    hook.remove()
    assert gradient.mean((-2, -1)).abs().max() > 1e-4 * gradient.abs().mean()


def test_a_frozen_network_can_be_explained(dataset):
    torch.manual_seed(0)
    detector, batch = create_detector(method_config(dataset, "noothout")).eval(), make_batch(tiny_config(dataset))
    detector.requires_grad_(False)
    assert activation_maps(detector, batch.image[:1], [0, 3]).amax() == 1


def test_a_landmark_that_is_as_sure_as_can_be_is_explained(dataset):
    detector, batch = create_detector(method_config(dataset, "unet")).eval(), make_batch(tiny_config(dataset))
    detector.network.segmentation_head[0].bias.data += 1000.0  # the sigmoid is 1 and has no gradient
    assert detector.predict(batch.image[:1])[1].min() == 1
    assert activation_maps(detector, batch.image[:1], [0]).amax() == 1


def test_a_run_explains_the_images_and_landmarks_asked_for(tmp_path):
    write_records(tmp_path, make_records(tmp_path))
    folder = tmp_path / "run"
    settings = tiny_config(tmp_path).replace(method="unet", backbone="resnet18", epochs=1).to_dict()
    names = (
        "img_dir",
        "json_path",
        "num_landmarks",
        "height",
        "width",
        "backbone",
        "backbone_weights",
        "workers",
        "device",
    )
    arguments = [word for name in names for word in (f"--{name}", str(settings[name]))]
    more = "--method unet --epochs 1 --batch_size 2 --split same --explain 2 --explain_landmarks A,R1".split()
    main.run([*arguments, *more, "--run_dir", str(folder)])
    pictures = sorted((folder / "test" / "explanations").iterdir())
    assert [path.name[:4] for path in pictures] == ["001_", "006_"]
    with Image.open(pictures[0]) as sheet:
        assert np.asarray(sheet).shape == (250 + 20, 2 * 300, 3)
    assert (folder / "test" / "rates.png").exists()


def test_a_landmark_to_explain_that_is_none_is_refused_before_training(tmp_path, capsys):
    write_records(tmp_path, make_records(tmp_path))
    config = tiny_config(tmp_path, explain=1, explain_landmarks=("Q",))
    with refuses("'Q'", "R1, R2, A, B"):
        main.load_data(config)


def test_a_plain_methods_last_layer_is_the_convolution_that_gives_its_maps(tmp_path):
    detector = TinyDetector(tiny_config(tmp_path))
    assert detector.last_layer() is detector.network[-1]
