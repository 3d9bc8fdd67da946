"""What the graph does to an image, held against data.make_sample, which uses OpenCV."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from config import Config
from data import crop_to_landmarks, make_sample, own_config, shrink_for_network
from reading.annotation import Record
from reading.images import IMAGENET_MEAN, IMAGENET_SD
from tools.export_graph import ImageToLandmarks
from utils import apply_affine

pytestmark = pytest.mark.skipif(cv2.__version__ < "5", reason="needs OpenCV 5: OpenCV 4 warps in 32nds of a px")
PLAIN = dict(height=128, width=96)
SETTINGS = {
    "plain": PLAIN,
    "crop": PLAIN | dict(crop=(0.1, 0.05, 0.93, 0.97)),
    "beyond": PLAIN | dict(crop=(-0.1, -0.2, 1.1, 1.05)),
    "aspect": PLAIN | dict(keep_aspect=True),
    "aspect of a crop": PLAIN | dict(keep_aspect=True, crop=(0.1, 0.05, 0.93, 0.97)),
}
SIZES = {
    "much larger": (611, 807), "twice as large": (192, 256), "four times as large": (384, 512), "larger": (150, 200),
    "as large": (96, 128), "smaller": (60, 70), "wider": (400, 100), "taller": (90, 300), "square": (333, 333),
}  # fmt: skip


class Listener(torch.nn.Module):
    """A method that keeps what it is shown, and finds every landmark at network px (1, 2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def predict(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.image = image
        return torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 1)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_network_sees_what_it_sees_in_a_test_and_landmarks_come_back_in_px_of_the_image(settings, size):
    config, (width, height) = Config(**settings), size
    image = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 1.0)
    record = Record("", Path(), np.zeros((1, 2)), np.zeros(1, bool), size=size)
    sample = make_sample(config, record, image=shrink_for_network(config, image))
    listener = Listener(config)
    landmarks, _ = ImageToLandmarks(listener)(torch.from_numpy(image)[None])
    sd, mean = (torch.tensor(values)[:, None, None] for values in (IMAGENET_SD, IMAGENET_MEAN))
    seen, expected = ((each * sd + mean) * 255 for each in (listener.image[0], sample.image))
    off = (seen - expected).abs().round()
    assert off.max() <= 1  # sums in another order: some halves fall to the other side
    assert (off > 0).float().mean() < 0.005
    found = sample.to_original.numpy() @ (1, 2, 1)
    assert np.abs(landmarks[0, 0].numpy() - found).max() < 1e-3


def test_halves_of_grey_levels_are_rounded_as_opencv_does():
    for size in ((192, 256), (384, 512)):  # by areas of 2 x 2 px, and of 4 x 4
        config = Config(**PLAIN)
        image = np.random.default_rng(1).integers(0, 4, (size[1], size[0])).astype(np.uint8)
        record = Record("", Path(), np.zeros((1, 2)), np.zeros(1, bool), size=size)
        sample = make_sample(config, record, image=shrink_for_network(config, image))
        listener = Listener(config)
        ImageToLandmarks(listener)(torch.from_numpy(image)[None])
        assert torch.allclose(listener.image[0], sample.image, atol=1e-6)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_each_image_of_a_batch_is_seen_again_in_the_crop_to_what_was_found_in_it(size):
    config = Config(**PLAIN, crop_follows=True, crop_margin=0.1)
    places = torch.tensor([[[20.0, 30.0], [50.0, 100.0]], [[40.0, 10.0], [90.0, 60.0]], [[0.0, 0.0], [95.0, 127.0]]])
    seen = []

    class Finder(torch.nn.Module):
        """Finds landmarks at given network px."""

        def __init__(self) -> None:
            super().__init__()
            self.config = config

        def predict(self, image):
            seen.append(image)
            return places, torch.ones(3, 2)

    images = np.random.default_rng(0).integers(0, 256, (3, size[1], size[0])).astype(np.uint8)
    images = np.stack([cv2.GaussianBlur(image, (0, 0), 1.0) for image in images])
    landmarks, _ = ImageToLandmarks(Finder())(torch.from_numpy(images))
    sd, mean = (torch.tensor(values)[:, None, None] for values in (IMAGENET_SD, IMAGENET_MEAN))
    for index, image in enumerate(images):
        record, crop = Record("", Path(), np.zeros((1, 2)), np.zeros(1, bool), size=size), None
        for look in range(2):
            sample = make_sample(config, record, image=shrink_for_network(own_config(config, crop), image), crop=crop)
            shown, expected = ((each * sd + mean) * 255 for each in (seen[look][index], sample.image))
            off = (shown - expected).abs().round()
            assert off.max() <= 1 and (off > 0).float().mean() < 0.005
            found = apply_affine(sample.to_original.numpy(), places[index].double().numpy())
            crop = crop_to_landmarks(config, found, size)
        assert np.abs(landmarks[index].numpy() - found).max() < 1e-3
