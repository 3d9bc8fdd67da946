import math

import numpy as np
import pytest
import scipy.stats

from tools.significance import holm, paired_difference, paired_permutation


def statistic_of(counts: np.ndarray):
    """The difference of two means from sums by image, as scipy wants it."""
    return lambda one, other, axis: (one - other).sum(axis) / counts.sum()


def test_a_paired_difference_is_that_of_the_means_and_what_both_share_cancels():
    generator = np.random.default_rng(0)
    hard = 50 * generator.random((40, 1))  # images differ far more than the methods
    others = hard + generator.random((40, 5))
    others[3, 2] = np.nan
    errors = others + 0.5 + 0.1 * generator.standard_normal((40, 1))
    result = paired_difference(errors, others)
    assert result["difference"] == pytest.approx(np.nanmean(errors) - np.nanmean(others), abs=1e-9)
    assert result["low"] < result["difference"] < result["high"] < result["low"] + 0.1


def test_images_without_a_landmark_of_the_kind_leave_a_paired_difference_as_it_is():
    errors = np.full((12, 3), math.nan)
    errors[3] = 2.0
    assert paired_difference(errors, errors - 0.5) == {"difference": 0.5, "low": 0.5, "high": 0.5}


def test_where_nothing_is_known_in_both_there_is_no_difference_to_tell():
    nowhere = np.full((3, 2), np.nan)
    assert np.isnan(list(paired_difference(nowhere, np.ones((3, 2))).values())).all()
    assert np.isnan(paired_permutation(nowhere, np.ones((3, 2))))


def test_few_images_are_permuted_exactly():
    better = np.arange(10.0).reshape(5, 2)
    assert paired_permutation(better, better + 0.5) == 2 / 32  # all signs as they are, or all turned
    # sums by image 3, 2, -1: of the eight patterns 3 + 2 - 1 = 4 or more in size: +-(3 + 2 + 1), +-(3 + 2 - 1)
    assert paired_permutation(np.array([[3.0], [2.0], [0.0]]), np.array([[0.0], [0.0], [1.0]])) == 4 / 8
    assert paired_permutation(better, better) == 1
    # an image without a difference has no sign; one without a known point is none
    more = np.vstack([better, [[7.0, 7.0]], [[np.nan, 1.0]]])
    assert paired_permutation(more, more + np.array([[0.5]] * 5 + [[0.0]] * 2)) == 2 / 32


def test_the_labels_of_a_whole_image_are_exchanged_at_once():
    errors = np.repeat([[1.0], [2.0], [4.0]], 50, axis=1)  # 150 points, but three images
    assert paired_permutation(errors, np.zeros((3, 50))) == 2 / 8


@pytest.mark.parametrize("images, missing, exact", [(9, 0.0, True), (9, 0.2, True), (40, 0.0, False), (40, 0.2, False)])
def test_the_p_value_is_that_of_scipy(images, missing, exact):
    generator = np.random.default_rng(images)
    errors, others = generator.gamma(2, 1, (2, images, 6))
    errors += generator.normal(0.15, 0.4, (images, 1))
    errors[generator.random(errors.shape) < missing] = np.nan
    known = np.isfinite(errors)
    sums = [np.where(known, each, 0).sum(1) for each in (errors, others)]
    resamples = 10000
    reference = scipy.stats.permutation_test(
        sums, statistic_of(known.sum(1)), permutation_type="samples", n_resamples=resamples, vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    p = paired_permutation(errors, others, seed=2, resamples=resamples)
    assert 0.005 < p < 0.9
    # either draws its own patterns: four standard errors of the difference, scipy's twice one tail's
    bound = 4 * math.sqrt((p * (1 - p) + 4 * p / 2 * (1 - p / 2)) / resamples)
    assert p == pytest.approx(reference, abs=1e-12 if exact else bound)


def test_under_the_null_hypothesis_p_is_uniform():
    generator = np.random.default_rng(0)
    # points of one image err alike: a test that took them for independent would find differences everywhere
    draws = generator.normal(0, 1, (600, 2, 25, 1)) + generator.normal(0, 0.3, (600, 2, 25, 8))
    p_values = np.array([paired_permutation(*pair, resamples=399) for pair in draws])
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 600))


def test_drawn_patterns_depend_on_the_seed_and_never_give_zero():
    errors = np.random.default_rng(0).normal(1, 0.1, (100, 3))
    assert paired_permutation(errors, np.zeros((100, 3)), resamples=999) == 1 / 1000
    others = errors + np.random.default_rng(1).normal(0.02, 0.1, errors.shape)
    assert paired_permutation(errors, others, 3) == paired_permutation(errors, others, 3)
    assert len({paired_permutation(errors, others, seed) for seed in range(5)}) > 1


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; none below the one before it
    assert np.allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    assert np.allclose(holm([0.5, 0.001, 0.9]), [1, 0.003, 1])
    assert np.allclose(holm([0.02, math.nan, 0.03]), [0.04, math.nan, 0.04], equal_nan=True)
    assert holm([]).size == 0 and holm([0.3]) == 0.3
