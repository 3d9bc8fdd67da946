from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import make_records, tiny_config, write_records

from data import make_loader, make_sample
from detector import LandmarkDetector
from evaluate import evaluate
from methods import create_detector
from reading.images import read_image
from reading.splits import load_data
from utils import apply_affine, decode_heatmaps

CPU = torch.device("cpu")


def test_evaluation_changes_no_batch_norm_statistic_and_batches_do_not_matter(dataset):
    torch.manual_seed(0)
    config = tiny_config(dataset, method="tiny")
    records, detector = load_data(config).records, create_detector(config)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    first, second = (
        evaluate(detector.train(), make_loader(config.replace(batch_size=size), records, train=False), CPU)
        for size in (2, 1)
    )
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert abs(first.landmarks - second.landmarks).max() < 1e-2


class Tracker(LandmarkDetector):
    """Finds the brightest spots of a picture: its views are seen as turned and shifted as the affines say."""

    def predict(self, image):
        spot = decode_heatmaps(image[:, :1] - image.amin(), "subpixel", self.config.sigma)
        return spot[0].expand(-1, self.config.num_landmarks, -1), spot[1].expand(-1, self.config.num_landmarks)


class Measurer(Tracker):
    """Measures the mean of an image, at the first landmark alone."""

    def predict_with_extras(self, batch, epoch):
        landmarks, score = self.predict(batch.image)
        mean = torch.full_like(score, float("nan"))
        mean[:, 0] = batch.image.mean((1, 2, 3)) + epoch
        return landmarks, score, {"mean": mean}


@pytest.mark.parametrize("views", [1, 3])
def test_what_a_method_measures_is_averaged_over_views_and_kept_by_name(dataset, views):
    config = tiny_config(dataset, views=views)
    records = load_data(config).records[:3]
    predictions = evaluate(Measurer(config), make_loader(config, records, train=False), CPU, 100, views)
    assert list(predictions.extras) == ["mean"] + (["view_spread"] if views > 1 else [])
    means = [
        np.mean([make_sample(config, record, view=view).image.mean() for view in range(views)]) for record in records
    ]
    assert np.allclose(predictions.extras["mean"][:, 0], np.array(means) + 100, atol=1e-4)
    assert np.isnan(predictions.extras["mean"][:, 1:]).all()


def test_every_view_of_an_image_finds_the_same_place_and_their_mean_is_given(tmp_path):
    write_records(tmp_path, make_records(tmp_path, count=2))
    config = tiny_config(tmp_path, views=5, crop=(0.05, 0.0, 1.0, 0.95), val_fraction=0.0, test_fraction=0.0)
    data = load_data(config)
    detector = Tracker(config)
    for record in data.records:  # each view alone shows the spot elsewhere, and says where that is in the original
        samples = [make_sample(config, record, view=view) for view in range(5)]
        spots = torch.stack([detector.predict(sample.image[None])[0][0, :1] for sample in samples]).double()
        places = apply_affine(torch.stack([sample.to_original for sample in samples]), spots)
        assert (spots[1:] - spots[0]).norm(dim=-1).min() > 0.5
        assert (places - places[0]).norm(dim=-1).max() < 0.4
    one = evaluate(detector, make_loader(config, data.records, train=False), CPU)
    five = evaluate(detector, make_loader(config, data.records, train=False), CPU, views=5)
    assert one.names == five.names and five.landmarks.shape == one.landmarks.shape
    assert 0 < abs(one.landmarks - five.landmarks).max() < 0.5


def test_the_crop_follows_the_landmarks_wherever_the_frame_puts_them(tmp_path):
    write_records(tmp_path, make_records(tmp_path, count=2, size=(480, 400)))
    config = tiny_config(tmp_path, crop_follows=True, crop_margin=0.1, views=3, val_fraction=0.0, test_fraction=0.0)
    records, offset = load_data(config).records, np.array([900.0, 300.0])
    bordered = []
    for record in records:  # the same images in a corner of large grey ones
        image = read_image(record.path)
        framed = np.full((1000, 2000), int(np.median(image)), np.uint8)
        framed[300:700, 900:1380] = image
        path = tmp_path / f"framed {record.name}"
        cv2.imwrite(str(path), framed)
        bordered.append(replace(record, path=path, size=(2000, 1000), landmarks=record.landmarks + offset))
    detector = Tracker(config)

    def found(records, **settings):
        detector.config = config.replace(**settings)
        return evaluate(detector, make_loader(detector.config, records, train=False), CPU, views=3)

    plain, framed = found(records), found(bordered)
    fixed = found(bordered, crop_follows=False)
    assert plain.landmarks.shape == (2, 4, 2)
    assert np.abs(framed.landmarks - offset - plain.landmarks).max() < 1.0  # px; a network px has 20 without it
    assert np.abs(fixed.landmarks - offset - plain.landmarks).max() > 1.5
