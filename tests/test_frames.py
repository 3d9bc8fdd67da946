import json

import cv2
import numpy as np
import pytest
from conftest import make_records, tiny_config, write_records

from experiments.frames import FRAMES, frame_image, write_frames
from reading.splits import load_data


@pytest.mark.parametrize("frame", FRAMES)
def test_a_landmark_stays_on_the_pixel_that_it_marks(frame):
    image, points = np.full((240, 200), 90, np.uint8), np.array([[60.0, 80.0], [130.0, 150.0]])
    cv2.circle(image, (60, 80), 4, 255, -1)
    framed, moved = frame_image(image, points, frame)
    sides, grey, scale = FRAMES[frame]
    rows, columns = np.nonzero(framed > 200)
    assert np.abs([columns.mean(), rows.mean()] - moved[0]).max() < 0.3
    if grey is None and any(sides):
        assert framed.shape[0] < 240 and framed.shape[1] < 200
        assert (moved > 0).all() and (moved < framed.shape[::-1]).all()
    elif grey is None:
        assert framed.shape == (240 * scale, 200 * scale)
    else:
        assert framed.shape == (240 + 48 * (sides[1] + sides[3]), 200 + 40 * (sides[0] + sides[2]))
        assert (framed == grey).sum() == framed.size - image.size


def test_every_frame_becomes_a_test_set_with_the_spacing_of_its_scale(tmp_path):
    records = make_records(tmp_path, count=2)
    records[1]["points"][2] |= {"X": None, "Y": None}
    write_records(tmp_path, [record | {"split": "test1", "spacing": 0.3} for record in records])
    assert write_frames(tmp_path, tmp_path / "out", "test1") == 2 * len(FRAMES)
    data = load_data(tiny_config(tmp_path / "out", spacing=None, val_fraction=0.0), for_training=False)
    assert sorted(data.test_sets) == sorted(FRAMES)
    (plain, *_), (large, *_) = data.select("untouched"), data.select("larger")
    assert large.size == tuple(1.5 * side for side in plain.size)
    assert large.spacing == pytest.approx(0.2) and plain.spacing == pytest.approx(0.3)
    assert np.isnan(data.select("black-left")[1].landmarks[2]).all()
    first = json.loads((tmp_path / "out" / "json" / "data.json").read_text(encoding="utf-8"))[0]
    assert [(point["X"], point["Y"]) for point in first["points"]] == [
        (point["X"], point["Y"]) for point in records[0]["points"]
    ]
