from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import make_records, tiny_config, write_records
from torch.utils.data import DataLoader

import data
from config import Config
from data import (
    EpochSampler,
    LandmarkDataset,
    View,
    crop_to_landmarks,
    crops_of_truth,
    draw_affine,
    draw_crop,
    draw_displacement,
    make_loader,
    make_sample,
    network_affine,
    read_for_network,
    undo_displacement,
    view_affine,
)  # fmt: skip
from reading.annotation import Record
from reading.images import warp_image
from reading.splits import load_data
from utils import apply_affine, compose_affines, invert_affine, resize_affine

AUGMENTED = dict(rotation=15.0, scaling=0.2, shift=0.1, intensity=0.5, elastic=0.01, blur=1.0, cutout=0.3)


def blob_centre(image: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y) of a dark picture with one blob."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(image * x).sum(), (image * y).sum()]) / image.sum()


def blob(size, centre, sigma=9.0) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return (255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))).astype(np.float32)


@pytest.mark.parametrize("size", [(640, 800), (160, 192), (1000, 900), (500, 512)])
def test_a_resized_image_and_its_landmark_stay_together(size):
    original, centre = (600, 720), np.array([301.3, 417.8])
    to_original = resize_affine(size, original)
    image = warp_image(blob(original, centre), to_original, size)
    assert np.abs(blob_centre(image) - apply_affine(invert_affine(to_original), centre[None])[0]).max() < 0.02


def test_an_augmented_image_and_its_landmark_stay_together(tmp_path):
    config, original, size = tiny_config(tmp_path, **AUGMENTED), (600, 720), (320, 384)
    generator, centre = np.random.default_rng(0), np.array([301.3, 417.8])
    for _ in range(10):
        to_original = compose_affines(resize_affine(size, original), draw_affine(config, original, generator))
        image = warp_image(blob(original, centre), to_original, size)
        # 0.03 px: bilinear resampling works on a 32nd-pixel grid
        assert np.abs(blob_centre(image) - apply_affine(invert_affine(to_original), centre[None])[0]).max() < 0.03


def test_augmentation_stays_within_its_settings_and_never_flips(tmp_path):
    config, generator = tiny_config(tmp_path, **AUGMENTED), np.random.default_rng(0)
    for _ in range(200):
        affine = draw_affine(config, (600, 720), generator)
        scale = np.sqrt(np.linalg.det(affine[:, :2]))
        angle = np.degrees(np.arctan2(affine[1, 0], affine[0, 0]))
        moved = apply_affine(affine, np.array([[299.5, 359.5]]))[0] - (299.5, 359.5)
        assert np.linalg.det(affine[:, :2]) > 0
        assert 1 / 1.2 - 1e-9 <= scale <= 1.2 + 1e-9 and abs(angle) <= 15
        assert abs(moved[0]) <= 60 and abs(moved[1]) <= 72


@pytest.mark.parametrize("augmented", [False, True])
def test_a_cropped_image_and_its_landmark_stay_together(tmp_path, augmented):
    config = tiny_config(tmp_path, crop=(0.2, 0.25, 0.95, 1.05), height=192, width=160, **AUGMENTED | {"shift": 0.02})
    original, centre, size = (600, 720), np.array([301.3, 417.8]), (160, 192)
    to_original = network_affine(config, original)
    # the corners of the network's first and last pixels are those of the crop
    corners = apply_affine(to_original, np.array([[-0.5, -0.5], [159.5, 191.5]]))
    assert np.allclose(corners, [[0.2 * 600 - 0.5, 0.25 * 720 - 0.5], [0.95 * 600 - 0.5, 1.05 * 720 - 0.5]])
    if augmented:
        to_original = compose_affines(to_original, draw_affine(config, original, np.random.default_rng(0)))
    image = warp_image(blob(original, centre), to_original, size)
    assert np.abs(blob_centre(image) - apply_affine(invert_affine(to_original), centre[None])[0]).max() < 0.03


def test_an_image_that_needs_no_scaling_is_shown_pixel_by_pixel(tmp_path):
    config = tiny_config(tmp_path, keep_aspect=True, height=192, width=160)
    for original in ((160, 192), (151, 192), (160, 101)):  # odd margins, too
        affine = network_affine(config, original)
        assert np.allclose(affine[:, :2], np.eye(2)) and np.allclose(affine[:, 2], np.round(affine[:, 2]), atol=1e-9)
        image = np.random.default_rng(0).random(original[::-1]).astype(np.float32)
        shown = warp_image(image, affine, (160, 192))
        left, top = np.round(-affine[:, 2]).astype(int)
        assert np.allclose(shown[top : top + original[1], left : left + original[0]], image, atol=1e-6)
        assert np.isclose(shown.sum(), image.sum(), rtol=1e-5)


def test_fine_stripes_of_an_elongated_image_are_averaged_not_sampled(dataset):
    write_records(dataset, make_records(dataset, size=(400, 1600)))
    record = load_data(tiny_config(dataset)).records[0]
    stripes = (np.arange(1600)[:, None] // 3 + np.arange(400) // 3) % 2 * 255
    cv2.imwrite(str(record.path), stripes.astype(np.uint8))
    config = tiny_config(dataset, keep_aspect=True, height=192, width=160)  # 8.3 px become one
    sample = make_sample(config, record)
    inside = sample.image[0, 10:-10, 60:100]
    assert inside.std() < 0.1 * 0.5 / 0.229  # a tenth of the stripes' own, in normalised intensities


@pytest.mark.parametrize("original", [(600, 720), (720, 300), (150, 150)])
def test_an_image_that_keeps_its_aspect_lies_in_the_middle_and_its_landmark_with_it(tmp_path, original):
    config, size = tiny_config(tmp_path, keep_aspect=True, height=192, width=160), np.array([160, 192])
    to_original, centre = network_affine(config, original), np.array(original) * (0.41, 0.55)
    scale = max(np.divide(original, size))
    assert np.allclose(to_original[:, :2], scale * np.eye(2))
    assert np.allclose(apply_affine(to_original, (size[None] - 1) / 2), np.subtract(original, 1) / 2)
    corners = apply_affine(invert_affine(to_original), np.array([[-0.5, -0.5], np.subtract(original, 0.5)]))
    assert np.allclose(corners[1] - corners[0], np.divide(original, scale)) and np.isclose(corners[0], -0.5).any()
    image = warp_image(blob(original, centre), to_original, tuple(size))
    assert np.abs(blob_centre(image) - apply_affine(invert_affine(to_original), centre[None])[0]).max() < 0.05


def test_an_image_kept_for_a_crop_has_twice_the_networks_resolution_there(dataset):
    write_records(dataset, make_records(dataset, size=(600, 720)))
    record = load_data(tiny_config(dataset)).records[0]
    config = tiny_config(dataset, crop=(0.0, 0.0, 0.5, 0.5), height=64, width=64)
    assert read_for_network(config, record).shape == (256, 256)
    assert read_for_network(config.replace(crop=(0.0, 0.0, 1.0, 1.0)), record).shape == (128, 128)


def test_the_first_view_is_plain_and_the_others_are_small_changes_around_it(tmp_path):
    config = tiny_config(tmp_path, views=9, crop=(0.2, 0.2, 0.9, 1.0))
    affines = np.stack([view_affine(config, (1000, 800), view) for view in range(9)])
    assert np.array_equal(affines[0], np.eye(2, 3))
    scales = np.sqrt(np.linalg.det(affines[:, :, :2]))
    angles = np.degrees(np.arctan2(affines[:, 1, 0], affines[:, 0, 0]))
    assert scales.max() == pytest.approx(1.05) and angles.max() == pytest.approx(3, abs=1e-6)
    assert abs(np.log(scales).mean()) < 1e-9 and abs(angles.mean()) < 1e-9  # on average nothing moves
    centre = np.array([[549.5, 479.5]])
    assert np.linalg.norm(apply_affine(affines, centre) - centre, axis=-1).max() < 0.011 * 700


@pytest.mark.parametrize("length", [11, 12])
def test_two_processes_share_the_batches_of_one(tmp_path, monkeypatch, length):
    config = tiny_config(tmp_path, batch_size=2)

    def batches(rank, count, size):
        monkeypatch.setattr(data, "process_rank", lambda: rank)
        monkeypatch.setattr(data, "process_count", lambda: count)
        sampler = EpochSampler(config.replace(batch_size=size), length)
        sampler.epoch = 3
        keys = list(sampler)
        assert len(keys) == len(sampler)
        return [keys[start : start + size] for start in range(0, len(keys), size)]

    alone = batches(0, 1, 4)
    together = [a + b for a, b in zip(batches(0, 2, 2), batches(1, 2, 2), strict=True)]
    if length == 11:  # the first key once more
        alone[-1] = alone[-1] + [alone[0][0]]
    assert [sorted(batch) for batch in together] == [sorted(batch) for batch in alone]


def test_an_elastically_warped_image_and_its_landmark_stay_together(tmp_path):
    config = tiny_config(tmp_path, elastic=0.01, height=192, width=160)
    generator, size = np.random.default_rng(0), (160, 192)
    for centre in np.array([[80.3, 95.8], [50.2, 130.6], [110.7, 60.1]]):
        displacement = draw_displacement(config, generator)
        image = warp_image(blob((320, 384), 2 * centre + 0.5, 3.0), resize_affine(size, (320, 384)), size, displacement)
        landmark = undo_displacement(centre[None], displacement)[0]
        assert np.linalg.norm(landmark - centre) > 0.3
        # the field also stretches the blob, which moves its centre of mass a little
        assert np.abs(blob_centre(image) - landmark).max() < 0.05


def test_a_displacement_is_undone_exactly():
    config = Config(elastic=0.02, height=192, width=160)
    displacement = draw_displacement(config, np.random.default_rng(0))
    points = np.random.default_rng(1).uniform(20, 140, (40, 2))
    points[3] = np.nan
    found = undo_displacement(points, displacement)
    at = cv2.remap(displacement, np.nan_to_num(found)[None], None, cv2.INTER_LINEAR)[0]
    assert np.nanmax(np.abs(found + at - points)) < 0.02 and np.isnan(found[3]).all()


def test_kept_images_give_the_same_samples_and_stay_within_their_limit(dataset, caplog):
    config = tiny_config(dataset, height=64, width=64)
    records = load_data(config).records
    plain, kept, some = (LandmarkDataset(config, records) for _ in range(3))
    kept.keep_images(1.0)
    some.keep_images(3.5 * 96 * 80 / 1e9)
    assert len(kept.images) == 6 and len(some.images) == 3
    for key in (0, 5, (2, 4)):
        assert torch.equal(plain[key].image, kept[key].image) and torch.equal(plain[key].image, some[key].image)


def test_a_crop_to_landmarks_is_their_box_plus_a_margin_by_hand():
    config, size = Config(crop_follows=True, crop_margin=0.1), (1000, 800)
    points = np.array([[100.0, 200.0], [np.nan, np.nan], [500.0, 260.0]])
    # areas of their pixels: 100 to 501 and 200 to 261; margin 40.1; fractions outwards to multiples of 0.005
    assert crop_to_landmarks(config, points, size) == pytest.approx((0.055, 0.195, 0.545, 0.38))
    # one landmark: a quarter of the longer side, 250 px around 100.5, 200.5
    assert crop_to_landmarks(config, points[:1], size) == pytest.approx((-0.025, 0.09, 0.23, 0.41))


def test_a_missing_landmark_does_not_narrow_the_crop_of_an_image():
    shape = np.array([[0.3, 0.3], [0.7, 0.4], [0.4, 0.8], [0.6, 0.6]])
    config = Config(crop_follows=True, crop_margin=0.05)
    records = [
        Record(str(n), Path(), (scale * shape + move) * 1000 - 0.5, np.zeros(4, bool), size=(1000, 1000))
        for n, (scale, move) in enumerate([(1, 0), (0.6, 0.1), (0.8, 0.15)])
    ]
    whole = crops_of_truth(config, records)
    records[1].landmarks[2] = np.nan
    filled = crops_of_truth(config, records)
    assert filled[0] == whole[0] and filled[2] == whole[2]
    assert np.abs(np.subtract(filled[1], whole[1])).max() < 0.06  # filled in from two other images, not from this one
    assert filled[1][3] > np.nanmax(records[1].landmarks[:, 1]) / 1000 + 0.1
    records[1].landmarks[1:] = np.nan
    assert crops_of_truth(config, records)[1] == config.crop


def test_a_fifth_of_the_drawn_crops_are_wider_and_all_hold_the_one_around_the_landmarks():
    generator, crop = np.random.default_rng(0), (0.3, 0.2, 0.8, 0.9)
    drawn = np.array([draw_crop(crop, generator) for _ in range(2000)])
    assert np.mean(drawn[:, 0] < crop[0]) == pytest.approx(0.2, abs=0.03)
    assert (drawn[:, :2] <= crop[:2]).all() and (drawn[:, 2:] >= crop[2:]).all()
    assert -0.25 <= drawn.min() < -0.2 and 1.2 < drawn.max() <= 1.25


def test_every_image_is_seen_in_its_own_crop_undistorted_with_its_landmarks_inside(dataset):
    config = tiny_config(dataset, crop_follows=True, crop_margin=0.1, cache_gb=1.0)
    records = load_data(config).records
    training, kept = LandmarkDataset(config, records, train=True), LandmarkDataset(config, records, train=True)
    kept.keep_images(1.0)
    for index, (record, crop) in enumerate(zip(records, training.crops, strict=True)):
        sample = training[View(index, crop=crop)]
        linear = sample.to_original[:, :2].numpy()
        assert np.allclose(linear, linear[0, 0] * np.eye(2))
        inside = (sample.landmarks > 0) & (sample.landmarks < torch.tensor([config.width, config.height]) - 1)
        assert inside.all()
        for epoch in range(10):
            drawn, same = training[epoch, index], kept[epoch, index]
            back = apply_affine(drawn.to_original, drawn.landmarks.double())
            assert np.abs(back.numpy() - record.landmarks).max() < 1e-3
            assert torch.equal(drawn.landmarks, same.landmarks)


def test_the_affine_of_a_sample_is_the_inverse_of_what_moved_its_landmarks(dataset):
    config = tiny_config(dataset, **AUGMENTED | {"elastic": 0.0})
    for record in load_data(config).records:
        sample = make_sample(config, record, np.random.default_rng(3))
        back = apply_affine(sample.to_original, sample.landmarks.double())
        assert np.abs(back.numpy() - record.landmarks).max() < 1e-4


def test_a_sample_has_the_shapes_and_types_of_the_contract(dataset):
    config = tiny_config(dataset)
    sample = make_sample(config, load_data(config).records[0])
    assert sample.image.shape == (3, 64, 96) and sample.image.dtype == torch.float32
    assert sample.landmarks.shape == (4, 2) and sample.landmarks.dtype == torch.float32
    assert sample.to_original.shape == (2, 3) and sample.spacing.item() == 0.5


def test_augmentation_does_not_depend_on_the_number_of_workers_or_how_they_start(dataset):
    config = tiny_config(dataset, **AUGMENTED)
    records = load_data(config).records
    batches = []
    for workers in (0, 2):
        loader = make_loader(config.replace(workers=workers), records, train=True)
        if workers:  # as on Windows and macOS
            loader.multiprocessing_context = "spawn"
        loader.sampler.epoch = 5
        batches.append(list(loader))
    for a, b in zip(*batches, strict=True):
        assert a.name == b.name and torch.equal(a.image, b.image) and torch.equal(a.landmarks, b.landmarks)


def test_epochs_differ_in_order_and_augmentation_and_repeat_with_the_seed(dataset):
    config = tiny_config(dataset, **AUGMENTED)
    records = load_data(config).records

    def epoch(number: int, seed: int = 0) -> tuple[list[str], torch.Tensor]:
        loader = make_loader(config.replace(seed=seed, batch_size=6), records, train=True)
        loader.sampler.epoch = number
        batch = next(iter(loader))
        order = np.argsort(batch.name)
        return batch.name, batch.landmarks[order]

    assert epoch(1)[0] == epoch(1)[0] and torch.equal(epoch(1)[1], epoch(1)[1])
    assert not torch.equal(epoch(1)[1], epoch(2)[1]) and not torch.equal(epoch(1)[1], epoch(1, seed=1)[1])
    assert epoch(1)[0] != epoch(2)[0] or epoch(2)[0] != epoch(3)[0]


def test_evaluation_is_in_order_and_never_augmented(dataset):
    config = tiny_config(dataset, **AUGMENTED)
    records = load_data(config).records
    names = [name for batch in make_loader(config, records, train=False) for name in batch.name]
    assert names == [record.name for record in records]
    plain = make_sample(config.replace(**dict.fromkeys(AUGMENTED, 0.0)), records[0])
    assert torch.equal(LandmarkDataset(config, records)[0].image, plain.image)


def test_a_collated_batch_is_a_sample_with_a_leading_batch(dataset):
    config = tiny_config(dataset)
    loader: DataLoader = make_loader(config, load_data(config).records, train=False)
    batch = next(iter(loader))
    assert type(batch).__name__ == "Sample"
    assert batch.image.shape == (2, 3, 64, 96) and batch.spacing.shape == (2,) and len(batch.name) == 2
