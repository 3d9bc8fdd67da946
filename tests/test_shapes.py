import math

import numpy as np
import pytest

from reading.shapes import (
    FREEDOM,
    RIDGE,
    ShapeModel,
    align_shape,
    apart_from_others,
    doubts,
    fit_shapes,
    mean_shape,
    shape_deviation,
    shape_size,
    standard_shape,
)


def turned(points: np.ndarray, degrees: float, scale: float, shift) -> np.ndarray:
    """Points (N, 2) turned, scaled and moved."""
    a = math.radians(degrees)
    return scale * points @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) + shift


def heads(count: int = 60, landmarks: int = 12, seed: int = 0) -> np.ndarray:
    """Points (I, N, 2) in mm of heads that differ in three ways, each somewhere else and turned a little."""
    generator = np.random.default_rng(seed)
    mean = generator.uniform(0, 100, (landmarks, 2))
    ways = generator.normal(0, 1, (3, landmarks, 2))
    images = []
    for _ in range(count):
        own = mean + np.tensordot(generator.normal(0, 3, 3), ways, 1)
        own = turned(own, generator.normal(0, 3), generator.normal(1, 0.05), generator.normal(0, 8, 2))
        images.append(own + generator.normal(0, 0.7, (landmarks, 2)))
    return np.stack(images)


SHAPE = np.array([[0.0, 0], [10, 0], [10, 20], [0, 25], [3, 7]])


def test_a_shape_is_aligned_wherever_it_lies_and_however_it_is_turned():
    moved = turned(SHAPE, 130, 0.3, (500, -40))
    assert np.allclose(align_shape(moved, SHAPE), SHAPE)
    assert shape_deviation(moved, SHAPE) == pytest.approx(0, abs=1e-9)


def test_a_mirrored_shape_deviates_and_a_missing_landmark_does_not():
    assert shape_deviation(SHAPE * (-1, 1), SHAPE) > 0.4
    part = turned(SHAPE, 20, 2, (3, 4))
    part[1] = math.nan
    assert shape_deviation(part, SHAPE) == pytest.approx(0, abs=1e-9)
    assert np.isnan(align_shape(part, SHAPE)[1]).all()
    part[2:4] = math.nan
    assert math.isnan(shape_deviation(part, SHAPE))  # any two points fit


def test_the_deviation_of_a_moved_point_by_hand():
    square = np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])
    moved = square.copy()
    moved[0] += (0.4, 0.4)  # centre (0.1, 0.1); the best scale is 9 / (8 + 8 * 0.2 + 0.32 - 0.08), times the points
    centred = moved - 0.1
    best = (centred * square).sum() / (centred**2).sum()
    expected = math.sqrt(((best * centred - square) ** 2).sum() / 8)
    assert shape_deviation(moved, square) == pytest.approx(expected)


def test_the_mean_shape_is_that_of_the_images_and_has_size_1():
    images = np.stack([turned(SHAPE, angle, 1 + angle / 90, (angle, 5)) for angle in range(0, 90, 10)])
    images[0, 2] = math.nan
    images[:, 4] = math.nan
    mean = mean_shape(images)
    assert np.isnan(mean[4]).all() and np.nanmean(mean[:4], 0) == pytest.approx(0, abs=1e-12)
    assert shape_size(mean) == pytest.approx(1) and shape_size(np.array([[3.0, 0], [-3, 0]])) == 3
    assert shape_deviation(SHAPE[:4], mean[:4]) == pytest.approx(0, abs=1e-9)


def test_the_others_put_a_landmark_where_regression_on_them_does():
    generator = np.random.default_rng(0)
    spread = generator.normal(0, 1, (10, 10))
    covariance = spread @ spread.T / 1000
    model = ShapeModel(standard_shape(SHAPE), covariance)
    apart = generator.normal(0, 0.05, 10)
    left = apart_from_others(apart, covariance, model.mean)
    # the same with the noise and the freedom of place, turn and size as further random variables
    m = model.mean
    free = np.stack([np.tile([1, 0], 5), np.tile([0, 1], 5), m.ravel(), (m[:, ::-1] * (-1, 1)).ravel()])
    free /= np.linalg.norm(free, axis=1, keepdims=True)
    whole = covariance + RIDGE * covariance.trace() / 10 * np.eye(10) + FREEDOM * covariance.trace() * free.T @ free
    own, others = [4, 5], [0, 1, 2, 3, 6, 7, 8, 9]
    expected = whole[np.ix_(own, others)] @ np.linalg.solve(whole[np.ix_(others, others)], apart[others])
    assert apart[own] - left[own] == pytest.approx(expected)
    known = apart.copy()
    known[own] = math.nan
    assert -apart_from_others(known, covariance, model.mean)[own] == pytest.approx(expected)  # a missing landmark


def test_place_turn_and_size_of_an_image_do_not_matter():
    model, places, _ = fit_shapes(heads())
    own = heads()[4]
    own[2] += (5, 5)
    moved = turned(own, 77, 3, (100, -50))
    assert model.places(moved) == pytest.approx(turned(model.places(own), 77, 3, (100, -50)), abs=0.05)
    missing = own.copy()
    missing[2] = math.nan
    assert model.places(missing)[2] == pytest.approx(model.places(own)[2], abs=0.1)
    elsewhere = np.stack([turned(points, 10 * i, 1 + i, (i, 5)) for i, points in enumerate(heads())])
    again = fit_shapes(elsewhere)[1]
    assert again[7] == pytest.approx(turned(places[7], 70, 8, (7, 5)), abs=1.5)


def most_doubtful(points: np.ndarray) -> tuple[int, int]:
    """Image and landmark of the most doubtful point."""
    doubt = doubts(points - fit_shapes(points)[1])
    assert np.array_equal(np.isnan(doubt), np.isnan(points[..., 0]))
    return tuple(map(int, np.unravel_index(np.nanargmax(doubt), doubt.shape)))


def test_a_point_that_was_moved_is_the_most_doubtful_one():
    points = heads()
    points[5, 2] += (9, -6)
    assert most_doubtful(points) == (5, 2)
    assert fit_shapes(points)[1][5, 2] == pytest.approx(points[5, 2] - (9, -6), abs=2.5)


def test_mirrored_images_are_found_and_do_not_spoil_the_others():
    points = heads()
    straight = fit_shapes(points)[1]
    points[[3, 30]] = points[[3, 30]] * (-1, 1) + (120, 0)
    _, places, mirrored = fit_shapes(points)
    assert np.flatnonzero(mirrored).tolist() == [3, 30]
    assert np.linalg.norm(places[3] - points[3], axis=-1).mean() < 3
    assert np.linalg.norm(places - straight, axis=-1)[~mirrored].mean() < 0.3


def test_symmetric_shapes_are_not_called_mirrored():
    generator = np.random.default_rng(0)
    half = generator.uniform((5, 0), (50, 100), (6, 2))
    whole = np.concatenate([half, half * (-1, 1)])
    points = whole + generator.normal(0, 2, (40, 12, 2))
    points[::2] = np.roll(points[::2] * (-1, 1), 6, 1)  # half of them bend to the other side
    assert not fit_shapes(points)[2].any()


def test_missing_landmarks_are_put_where_they_would_be_and_are_not_in_the_way():
    points, complete = heads(), heads()
    points[::3, 4] = math.nan
    points[1::4, 7] = math.nan
    points[9, 0] += (8, 8)
    assert most_doubtful(points) == (9, 0)
    assert np.linalg.norm(fit_shapes(points)[1][::3, 4] - complete[::3, 4], axis=-1).mean() < 3
    points[11, 1:] = math.nan  # one point says nothing
    assert np.isnan(fit_shapes(points)[1][11]).all()


def test_equal_images_are_not_doubtful():
    points = np.repeat(heads(1), 20, 0)
    model, places, _ = fit_shapes(points)
    assert places == pytest.approx(points, abs=1e-6) and model.places(points[0]) == pytest.approx(points[0], abs=1e-6)


def test_a_point_is_as_doubtful_as_its_distance_is_unusual():
    apart = np.zeros((3, 2, 2))
    apart[..., 0] = [[1, 2], [1, 6], [4, math.nan]]
    # medians: 1 and 4 by landmark, 2 over all
    assert np.allclose(doubts(apart), [[1 / 3, 2 / 6], [1 / 3, 6 / 6], [4 / 3, math.nan]], equal_nan=True)
