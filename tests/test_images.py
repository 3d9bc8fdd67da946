import cv2
import numpy as np
import pytest
from foreign_files import write_dicom
from PIL import Image

from reading import dicom
from reading.images import (
    IMAGENET_MEAN,
    IMAGENET_SD,
    blur_image,
    cut_out,
    normalise_image,
    read_image,
    shrink_image,
    vary_intensities,
    warp_image,
)  # fmt: skip
from utils import resize_affine


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_grey_and_colour_images_are_read(tmp_path, ending):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(grey).save(tmp_path / f"grey.{ending}", **({"quality": 100} if ending == "jpg" else {}))
    Image.fromarray(np.stack([grey, grey, grey], -1)).save(tmp_path / f"colour.{ending}")
    assert read_image(tmp_path / f"grey.{ending}").shape == (6, 8)
    assert read_image(tmp_path / f"colour.{ending}").shape == (6, 8, 3)
    assert np.abs(read_image(tmp_path / f"grey.{ending}").astype(int) - grey).max() <= 2


def test_colours_are_red_green_blue(tmp_path):
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png")[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("maximum", [4095, 65535])
def test_sixteen_bit_images_are_stretched_whatever_their_depth(tmp_path, maximum):
    deep = np.linspace(0, maximum, 48).reshape(6, 8).astype(np.uint16)
    for ending in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"deep.{ending}")
        image = read_image(tmp_path / f"deep.{ending}")
        assert image.dtype == np.float32 and np.abs(image - deep * (255 / maximum)).max() < 1e-3


def test_sixteen_bit_colour_images_are_read(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65535, (6, 8, 3), dtype=np.uint16)
    for ending in ("png", "tif"):
        (tmp_path / f"deep.{ending}").write_bytes(cv2.imencode(f".{ending}", deep)[1].tobytes())
        image = read_image(tmp_path / f"deep.{ending}").astype(float)
        assert image.shape == (6, 8, 3)
        assert np.corrcoef(image.ravel(), deep[..., ::-1].ravel())[0, 1] > 0.999


def test_without_augmentation_an_image_is_exactly_the_area_resize():
    image = np.random.default_rng(0).integers(0, 255, (72, 60), dtype=np.uint8)
    warped = warp_image(image, resize_affine((30, 36), (60, 72)), (30, 36))
    assert np.array_equal(warped, cv2.resize(image, (30, 36), interpolation=cv2.INTER_AREA))
    assert np.abs(warped - image.reshape(36, 2, 30, 2).mean((1, 3))).max() <= 0.5


def test_intensities_are_scaled_to_one_and_normalised_by_imagenet():
    image = np.array([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]], np.float32)
    assert np.allclose(normalise_image(image)[:, 0, 0], -IMAGENET_MEAN / IMAGENET_SD)
    assert np.allclose(normalise_image(image)[:, 0, 1], (1 - IMAGENET_MEAN) / IMAGENET_SD)
    assert np.array_equal(normalise_image(image[..., 0]), normalise_image(image))


def test_varied_intensities_stay_in_range_and_no_strength_changes_nothing():
    image = np.random.default_rng(0).random((40, 30)).astype(np.float32)
    for seed in range(20):
        varied = vary_intensities(image, 1.0, np.random.default_rng(seed))
        assert varied.dtype == np.float32 and 0 <= varied.min() and varied.max() <= 1
    assert np.allclose(vary_intensities(image, 0.0, np.random.default_rng(0)), image, atol=1e-6)


def test_an_image_is_shrunk_to_twice_the_network_size_and_no_further():
    image = np.random.default_rng(0).integers(0, 255, (240, 200), dtype=np.uint8)
    assert shrink_image(image, (50, 60)).shape == (120, 100)
    assert shrink_image(image, (100, 120)) is image
    twice = warp_image(shrink_image(image, (25, 30)), resize_affine((25, 30), (50, 60)), (25, 30))
    straight = warp_image(image, resize_affine((25, 30), (200, 240)), (25, 30))
    assert np.abs(twice.astype(int) - straight).max() <= 1  # by rounding alone


def test_a_cut_out_hides_at_most_its_share_and_leaves_the_rest():
    image = np.random.default_rng(0).random((50, 40)).astype(np.float32)
    before, hidden = image.copy(), []
    for seed in range(50):
        changed = cut_out(image, 0.4, np.random.default_rng(seed)) != image
        hidden.append(changed.any(1).sum() <= 20 and changed.any(0).sum() <= 16)
    assert all(hidden) and np.array_equal(image, before)


def test_blur_keeps_the_mean_and_lowers_the_contrast():
    image = np.random.default_rng(0).random((50, 40)).astype(np.float32)
    blurred = blur_image(image, 2.0, np.random.default_rng(1))
    assert abs(blurred.mean() - image.mean()) < 0.01 and blurred.std() < 0.8 * image.std()


@pytest.mark.parametrize("name", ["film.dcm", "film"])  # scanners often leave the ending out
def test_a_dicom_file_is_read_as_its_converted_png_is(tmp_path, name):
    pixels = np.arange(48).reshape(6, 8) * 40 + 100
    file = write_dicom(tmp_path / name, pixels)
    Image.fromarray(dicom.read(file).image).save(tmp_path / "film.png")
    image = read_image(file)
    assert image.dtype == np.float32 and (image.min(), image.max()) == (0, 255)
    assert np.array_equal(image, read_image(tmp_path / "film.png"))
