import itertools
import math
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refuses
from foreign_files import write_dicom
from PIL import Image, ImageCms, ImageOps

from reading import dicom
from reading.images import (
    IMAGENET_MEAN,
    IMAGENET_SD,
    blur_image,
    cut_out,
    image_size,
    is_image_file,
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


FILM = np.random.default_rng(1).integers(100, 4000, (6, 8)).astype(np.uint16)  # 12 of 16 bits are used
SHOWN = (FILM - FILM.min()) * (255 / np.ptp(FILM))


def write_tiff(path, pixels, photometric, orientation=1, deflate=False, order="<", extra=(), stated=None):
    """Write a TIFF of pixels (h, w[, channels]); extra: kinds of the channels beyond grey or RGB; stated: its size."""
    channels, size = math.prod(pixels.shape[2:]), stated or (pixels.shape[1], pixels.shape[0])
    data = pixels.astype(pixels.dtype.newbyteorder("=" if deflate else order))
    data = zlib.compress(data.astype(data.dtype.newbyteorder(order)).tobytes()) if deflate else data.tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = [
        (256, size[0]), (257, size[1]), (258, *[8 * pixels.itemsize] * channels), (259, 8 if deflate else 1),
        (262, photometric), (273, 0), (274, orientation), (277, channels), (278, size[1]), (279, len(data)),
        *([(338, *extra)] if extra else []), (339, *[kind] * channels),
    ]  # fmt: skip
    directory, beyond = struct.pack(order + "H", len(entries)), b""
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, *values in entries:
        letter, number = ("I", 4) if tag in (256, 257, 273, 278, 279) else ("H", 3)
        values = [start + 200] if tag == 273 else values
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            packed, beyond = struct.pack(order + "I", start + len(beyond)), beyond + packed
        directory += struct.pack(order + "HHI", tag, number, len(values)) + packed.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    path.write_bytes(head + directory + bytes(4) + beyond.ljust(200, b"\0") + data)
    return path


def write_deep_png(path, pixels, orientation=1):
    """Write a 16-bit PNG of 1 to 4 channels, with a gamma and an EXIF orientation."""

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[math.prod(pixels.shape[2:])]
    exif = b"MM" + struct.pack(">HIHHHIHHI", 42, 8, 1, 274, 3, 1, orientation, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    parts = [(b"IHDR", head), (b"gAMA", struct.pack(">I", 100000)), (b"eXIf", exif), (b"IDAT", zlib.compress(rows))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")]))
    return path


def channels_of(film, number):
    """Return a film as so many channels: grey, or grey three times, and an alpha that varies."""
    alpha = np.arange(film.size, dtype=film.dtype).reshape(film.shape) * 50
    return {1: film, 2: np.stack([film, alpha], -1), 3: np.stack([film] * 3, -1), 4: np.dstack([film] * 3 + [alpha])}[
        number
    ]


def shown_as(film, orientation):
    """Return a film as Pillow turns it."""
    image = Image.fromarray(film.astype(np.float32))
    image.getexif()[274] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def assert_reads(path, expected, tolerance=1e-3):
    image = read_image(path)
    assert image_size(path) == image.shape[1::-1] == expected.shape[::-1]
    for grey in [image] if image.ndim == 2 else np.moveaxis(image, -1, 0):
        assert np.abs(grey - expected).max() <= tolerance, path


def write_planes(path, planes, photometric, orientation, order, big, deflate=False, tile=None):
    """Write a TIFF, or a BigTIFF, of planes (c, h, w), each in a strip, or in one tile of tile x tile px."""
    data = [np.pad(each, [(0, (tile or n) - n) for n in each.shape]) for each in planes]
    data = [each.astype(each.dtype.newbyteorder(order)).tobytes() for each in data]
    data = [zlib.compress(each) if deflate else each for each in data]
    height, width = planes[0].shape
    lengths = [len(each) for each in data]
    starts = [16 + sum(lengths[:n]) for n in range(len(data))]
    kind = {"u": 1, "f": 3}[planes.dtype.kind]
    entries = {
        256: [width], 257: [height], 258: [8 * planes.itemsize] * len(data), 259: [8 if deflate else 1],
        262: [photometric], 274: [orientation], 277: [len(data)], 284: [2 if len(data) > 1 else 1],
        339: [kind] * len(data),
    }  # fmt: skip
    entries |= {322: [tile], 323: [tile], 324: starts, 325: lengths} if tile else {278: [height]}
    entries |= {} if tile else {273: starts, 279: lengths}
    entries |= {338: [2]} if len(data) in (2, 4) else {}
    kind, letter, word = (16, "Q", "Q") if big else (4, "I", "H")
    start = 16 + sum(lengths)
    directory, beyond = struct.pack(order + word, len(entries)), b""
    place = start + len(directory) + len(entries) * (20 if big else 12) + struct.calcsize(order + letter)
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(values) > 1:
            packed, beyond = struct.pack(order + letter, place + len(beyond)), beyond + packed
        directory += struct.pack(order + "HH" + letter, tag, kind, len(values)) + packed
    head = {"<": b"II", ">": b"MM"}[order]
    head += struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HIQ", 42, start, 0)
    path.write_bytes(head.ljust(16, b"\0") + b"".join(data) + directory + struct.pack(order + letter, 0) + beyond)
    return path


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_tiff_may_be_large_big_endian_and_hold_each_channel_in_a_plane(tmp_path, channels, order, big):
    planes = np.moveaxis(np.atleast_3d(channels_of(FILM, channels)), -1, 0)
    for orientation, deflate, tile in itertools.product((1, 3, 6), (False, True), (None, 16)):
        photometric = 2 if channels > 2 else orientation % 2  # white is zero in a turned one
        own = planes if photometric else FILM.max() - planes + FILM.min()
        file = write_planes(tmp_path / "film.tif", own, photometric, orientation, order, big, deflate, tile)
        assert_reads(file, shown_as(SHOWN, orientation))


def test_a_compressed_big_endian_tiff_of_fractions_is_read_as_it_is(tmp_path):
    fractions = (FILM / 4000).astype(np.float32)[None]
    for order, deflate in itertools.product("<>", (False, True)):
        assert_reads(write_planes(tmp_path / "film.tif", fractions, 1, 1, order, False, deflate), SHOWN)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_sixteen_bit_film_is_the_same_picture_in_any_number_of_channels(tmp_path, channels, orientation):
    pixels, expected = channels_of(FILM, channels), shown_as(SHOWN, orientation)
    assert_reads(write_deep_png(tmp_path / "film.png", pixels, orientation), expected)
    photometric, extra = (2 if channels > 2 else 1), (2,) if channels in (2, 4) else ()
    for deflate, order in itertools.product((False, True), "<>"):
        file = tmp_path / f"film{deflate}{ord(order)}.tif"
        assert_reads(write_tiff(file, pixels, photometric, orientation, deflate, order, extra), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_a_tiff_of_any_depth_is_turned_and_white_is_zero_is_inverted(tmp_path, kind, orientation):
    film = (FILM // 16).astype(kind) if kind == "u1" else FILM.astype(kind)
    film = film * np.array(1000000, kind) if kind == "u4" else film - np.array(2000, kind) if kind[0] == "i" else film
    shown = film if kind == "u1" else SHOWN
    for photometric, deflate in itertools.product((0, 1), (False, True)):
        expected = shown_as(shown if photometric else 255 - shown, orientation)
        file = tmp_path / f"film{photometric}{deflate}.tif"
        assert_reads(write_tiff(file, film, photometric, orientation, deflate), expected)


def test_eight_bit_files_keep_their_pixels_and_profiles_are_ignored(tmp_path):
    grey = (FILM // 16).astype(np.uint8)
    for ending, mode in itertools.product(("png", "bmp", "tif"), ("L", "RGB")):
        options = (
            {}
            if ending == "bmp"
            else {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
        )
        Image.fromarray(grey).convert(mode).save(tmp_path / f"a.{ending}", **options)
        image = read_image(tmp_path / f"a.{ending}")
        assert image.dtype == np.uint8 and np.array_equal(image if mode == "L" else image[..., 1], grey)


def test_what_is_not_a_raster_image_is_not_given_to_other_programs(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    for function in (read_image, image_size):
        with refuses("a.png", "not an image"):
            function(tmp_path / "a.png")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["pipe.png", "pipe.dcm", "pipe"])
def test_pipes_devices_and_folders_are_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for function in (read_image, image_size):
        with refuses(name, "pipe"):
            function(tmp_path / name)
        with refuses("null", "device"):
            function(Path(os.devnull))
        with refuses("folder"):
            function(tmp_path)
    assert not is_image_file(tmp_path / "pipe")


def test_an_absurd_size_is_refused_before_its_memory_is_taken(tmp_path):
    for kind in ("u1", "u2", "f8"):
        file = write_tiff(tmp_path / f"{kind}.tif", FILM.astype(kind), 1, stated=(60000, 60000))
        for function in (read_image, image_size):
            with refuses(file.name, "178,956,970 px"):
                function(file)


@pytest.mark.filterwarnings("ignore")  # Pillow: corrupt EXIF data
def test_a_file_that_is_cut_off_is_refused(tmp_path):
    film = np.random.default_rng(0).integers(0, 65535, (60, 50, 3)).astype(np.uint16)
    for file in (write_deep_png(tmp_path / "a.png", film), write_tiff(tmp_path / "a.tif", film, 2)):
        whole = file.read_bytes()
        for length in (*range(1, 20), -9000):
            file.write_bytes(whole[:length])
            with refuses(file.name, *(["damaged"] if length < 0 else [])):
                read_image(file)


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
