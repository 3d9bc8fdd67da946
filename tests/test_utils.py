import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.textbook import dense_heatmaps
from utils import (
    apply_affine,
    compose_affines,
    decode_heatmaps,
    error_figures,
    gaussian_heatmaps,
    invert_affine,
    radial_errors,
    resize_affine,
    scale_landmarks,
    seed_everything,
    solve_positive,
    summarise_errors,
)  # fmt: skip


def test_a_resize_maps_pixel_areas_onto_each_other():
    affine = resize_affine((640, 800), (1935, 2400))
    corners = np.array([[-0.5, -0.5], [639.5, 799.5], [319.5, 399.5]])
    assert np.allclose(apply_affine(affine, corners), [[-0.5, -0.5], [1934.5, 2399.5], [967, 1199.5]])


def test_the_centre_of_the_first_pixel_is_not_the_corner_of_the_image():
    assert np.allclose(apply_affine(resize_affine((10, 10), (30, 30)), np.zeros((1, 2))), [[1, 1]])


@settings(max_examples=50, deadline=None)
@given(st.floats(-30, 30), st.floats(0.5, 2), st.floats(-50, 50), st.floats(-50, 50))
def test_an_affine_and_its_inverse_cancel(degrees, scale, shift_x, shift_y):
    angle = np.radians(degrees)
    affine = np.array(
        [[np.cos(angle) * scale, -np.sin(angle), shift_x], [np.sin(angle), np.cos(angle) * scale, shift_y]]
    )
    points = np.array([[0.0, 0.0], [123.4, 567.8]])
    assert np.allclose(apply_affine(invert_affine(affine), apply_affine(affine, points)), points, atol=1e-8)
    assert np.allclose(compose_affines(affine, invert_affine(affine)), np.eye(2, 3), atol=1e-9)


def test_composing_applies_the_first_affine_first():
    double, right = np.array([[2.0, 0, 0], [0, 2, 0]]), np.array([[1.0, 0, 5], [0, 1, 0]])
    assert np.allclose(apply_affine(compose_affines(double, right), np.array([[1.0, 1.0]])), [[7, 2]])


def test_a_missing_landmark_stays_missing_through_an_affine():
    assert np.isnan(apply_affine(resize_affine((10, 10), (30, 30)), np.array([[np.nan, np.nan]]))).all()


def test_heatmaps_equal_the_gaussian_written_out():
    landmarks = torch.tensor([[[3.25, 7.5], [0.0, 0.0]]], dtype=torch.float64)
    heatmaps = gaussian_heatmaps(landmarks, (12, 9), 2.0)
    for n in range(2):
        for y in range(12):
            for x in range(9):
                distance = (x - landmarks[0, n, 0]) ** 2 + (y - landmarks[0, n, 1]) ** 2
                assert heatmaps[0, n, y, x] == pytest.approx(float(torch.exp(-distance / 8)), abs=1e-12)


def test_heatmaps_from_dense_grids_are_the_same():
    landmarks = torch.tensor([[[20.3, 30.8], [float("nan"), 6.0]]])
    dense = dense_heatmaps(landmarks, (48, 40), 3.0)
    assert (dense - gaussian_heatmaps(landmarks, (48, 40), 3.0)).abs().max() < 1e-6 and dense.dtype == torch.float32


def test_heatmaps_in_channels_last_layout_are_the_same():
    landmarks = 40 * torch.rand(2, 5, 2)
    heatmaps = gaussian_heatmaps(landmarks, (48, 40), 3.0, channels_last=True)
    assert heatmaps.is_contiguous(memory_format=torch.channels_last)
    assert (heatmaps == gaussian_heatmaps(landmarks, (48, 40), 3.0)).all()


def test_a_missing_landmark_has_an_empty_heatmap():
    heatmaps = gaussian_heatmaps(torch.tensor([[[float("nan")] * 2, [4.0, 4.0]]]), (8, 8), 2.0)
    assert heatmaps[0, 0].abs().max() == 0 and heatmaps[0, 1].max() == 1


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 63), st.floats(0, 47), st.sampled_from([1.0, 2.0, 3.0, 5.0, 10.0]))
def test_encoding_then_decoding_misses_by_less_than_a_twentieth_of_a_pixel(x, y, sigma):
    landmarks = torch.tensor([[[x, y]]])
    decoded, score = decode_heatmaps(gaussian_heatmaps(landmarks, (48, 64), sigma), "subpixel", sigma)
    assert (decoded - landmarks).abs().max() < 0.05
    assert np.exp(-0.25 / sigma**2) - 1e-5 <= score.item() <= 1  # half a pixel off in x and y at worst


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 63), st.floats(0, 47))
def test_argmax_misses_by_rounding_only(x, y):
    landmarks = torch.tensor([[[x, y]]])
    decoded, _ = decode_heatmaps(gaussian_heatmaps(landmarks, (48, 64), 3.0), "argmax", 3.0)
    assert (decoded - landmarks).abs().max() <= 0.5 + 1e-3


def test_the_fit_finds_the_centre_of_a_gaussian_of_another_width():
    landmarks = torch.tensor([[[20.3, 17.8]]])
    decoded, _ = decode_heatmaps(0.6 * gaussian_heatmaps(landmarks, (40, 40), 4.5), "subpixel", 3.0)
    assert (decoded - landmarks).abs().max() < 1e-3


def test_the_fit_is_closer_than_argmax_under_noise():
    torch.manual_seed(0)
    landmarks = torch.rand(1, 200, 2) * 40 + 12
    heatmaps = gaussian_heatmaps(landmarks, (64, 64), 5.0) + 0.03 * torch.randn(1, 200, 64, 64)
    errors = {
        decode: (decode_heatmaps(heatmaps, decode, 5.0)[0] - landmarks).norm(dim=-1).mean().item()
        for decode in ("argmax", "subpixel")
    }
    assert errors["subpixel"] < 0.4 * errors["argmax"]


def test_a_flat_map_decodes_to_its_first_pixel_without_nan():
    decoded, score = decode_heatmaps(torch.zeros(1, 1, 8, 8), "subpixel", 2.0)
    assert decoded.tolist() == [[[0, 0]]] and score.item() == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax_is_the_first_maximum_row_by_row_in_any_layout_and_precision(layout, dtype):
    torch.manual_seed(0)
    heatmaps = torch.randint(0, 50, (2, 3, 12, 9)).to(dtype)  # few values, so many are equal
    decoded, score = decode_heatmaps(heatmaps.contiguous(memory_format=layout), "argmax", 2.0)
    for b, n in np.ndindex(2, 3):
        first = int(np.argmax(heatmaps[b, n].float().numpy()))
        assert decoded[b, n].tolist() == [first % 9, first // 9] and score[b, n] == heatmaps[b, n].max()
    assert decoded.dtype == score.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_map_that_is_not_finite_is_refused(value):
    heatmaps = torch.zeros(1, 2, 4, 4)
    heatmaps[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="nan"):
        decode_heatmaps(heatmaps, "argmax", 2.0)


def test_a_map_whose_sum_overflows_is_no_reason_to_refuse_it():
    heatmaps = torch.zeros(1, 1, 4, 4)
    heatmaps[0, 0, 1, 2:] = 3e38
    assert decode_heatmaps(heatmaps, "argmax", 2.0)[0].tolist() == [[[2, 1]]]


def test_half_size_landmarks_obey_the_half_pixel_rule():
    # pixels 0 and 1 of the full map are pixel 0 of the half map: their common border 0.5 is its centre
    assert scale_landmarks(torch.tensor([0.5, 4.5]), 0.5).tolist() == [0, 2]


def test_radial_errors_are_distances_in_mm():
    landmarks, truth = np.array([[[0.0, 0.0], [3.0, 4.0]]]), np.array([[[0.0, 0.0], [0.0, 0.0]]])
    assert radial_errors(landmarks, truth, np.array([0.2])).tolist() == [[0, 1]]


def test_figures_by_hand():
    figures = error_figures(np.array([1.0, 2.0, 3.0, 6.0]), (2.0, 2.5, 3.0, 4.0))
    assert figures == {
        "MRE": 3.0, "SD": pytest.approx(3.5**0.5), "median": 2.5,
        "SDR_2.0": 50.0, "SDR_2.5": 50.0, "SDR_3.0": 75.0, "SDR_4.0": 75.0,
    }  # fmt: skip


def test_an_error_of_exactly_the_threshold_counts_as_detected():
    assert error_figures(np.array([2.0]), (2.0,))["SDR_2.0"] == 100


def test_missing_landmarks_count_nowhere():
    summary = summarise_errors(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]]), (2.0,))
    assert summary["MRE"] == 2 and summary["n_landmarks"] == 2 and summary["n_images"] == 2
    assert np.isnan(summarise_errors(np.full((2, 2), np.nan), (2.0,))["MRE"])


def test_the_interval_holds_the_figure_and_is_that_of_the_mean_of_independent_images():
    errors = np.abs(np.random.default_rng(1).normal(2, 1, (200, 1)))
    summary = summarise_errors(errors, (2.0,), resamples=2000)
    standard_error = errors.std() / 200**0.5
    assert summary["MRE_low"] == pytest.approx(errors.mean() - 1.96 * standard_error, abs=0.02)
    assert summary["MRE_high"] == pytest.approx(errors.mean() + 1.96 * standard_error, abs=0.02)
    assert summarise_errors(errors, (2.0,), resamples=2000) == summary


def test_images_not_points_are_resampled():
    # every landmark of an image has the same error: 50 columns know no more than one
    one = np.abs(np.random.default_rng(1).normal(2, 1, (30, 1)))
    assert summarise_errors(np.repeat(one, 50, 1), (2.0,))["MRE_low"] == pytest.approx(
        summarise_errors(one, (2.0,))["MRE_low"]
    )


def test_the_same_seeds_draw_the_same_numbers():
    seed_everything(1, 2)
    first = (torch.rand(1).item(), np.random.rand())
    seed_everything(1, 2)
    assert first == (torch.rand(1).item(), np.random.rand())
    seed_everything(1, 3)
    assert first != (torch.rand(1).item(), np.random.rand())


def test_no_landmark_is_decoded_outside_its_map():
    torch.manual_seed(0)
    for _ in range(20):
        landmarks, _ = decode_heatmaps(torch.randn(8, 8, 12, 16), "subpixel", sigma=3.0)
        assert (landmarks >= -0.5).all() and (landmarks <= torch.tensor([15.5, 11.5])).all()


def test_elimination_solves_what_linalg_solves():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(50, 4, 4, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.mT + 1e-6 * torch.eye(4, dtype=torch.float64)
    right = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    found = solve_positive(matrix, right)
    assert ((matrix @ found[..., None])[..., 0] - right).abs().max() < 1e-7
    assert torch.allclose(found, torch.linalg.solve(matrix, right), rtol=1e-6)


def test_twins_that_share_a_peak_are_separated_by_the_larger_sum_of_scores():
    maps = torch.zeros(2, 3, 30, 40)
    spots = {"upper": (10, 5), "lower": (10, 20)}

    def draw(image, landmark, **heights):
        for name, height in heights.items():
            maps[image, landmark] += (
                height * gaussian_heatmaps(torch.tensor([[spots[name]]]).float(), (30, 40), 2.0)[0, 0]
            )

    draw(0, 0, upper=0.9, lower=0.2)  # both are highest on the upper tick: the second one moves
    draw(0, 2, upper=0.8, lower=0.6)
    draw(1, 0, upper=0.9, lower=0.8)  # here the first one does
    draw(1, 2, upper=0.9, lower=0.1)
    maps[:, 1] = maps[:, 2]
    alone, _ = decode_heatmaps(maps, "argmax", 2.0)
    assert alone[:, :, 1].tolist() == [[5, 5, 5], [5, 5, 5]]
    for decode in ("argmax", "subpixel"):
        found, score = decode_heatmaps(maps, decode, 2.0, (0, 2))
        assert torch.allclose(found[0], torch.tensor([[10.0, 5], [10, 5], [10, 20]]), atol=0.01)
        assert torch.allclose(found[1], torch.tensor([[10.0, 20], [10, 5], [10, 5]]), atol=0.01)
        assert torch.allclose(score, torch.tensor([[0.9, 0.8, 0.6], [0.8, 0.9, 0.9]]), atol=1e-3)


def test_twins_that_are_apart_stay_where_they_are():
    maps = torch.rand(4, 5, 30, 40, generator=torch.Generator().manual_seed(0))
    for decode in ("argmax", "subpixel"):
        before, after = decode_heatmaps(maps, decode, 1.0), decode_heatmaps(maps, decode, 1.0, (1, 3))
        apart = (before[0][:, 1] - before[0][:, 3]).norm(dim=-1) > 4
        assert apart.any() and torch.equal(before[0][apart], after[0][apart])
        assert torch.equal(before[1][apart], after[1][apart])
