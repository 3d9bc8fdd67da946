import math

import numpy as np
import pytest

from reporting.agreement import agreement, agreements, intraclass_correlation, paired_readings
from reporting.measurements import Measured

# Shrout and Fleiss 1979, table 2: four judges rate six targets
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def test_the_correlation_of_the_published_example_is_the_published_one():
    icc, low, high = intraclass_correlation(SHROUT_FLEISS)
    assert (round(icc, 2), round(low, 2), round(high, 2)) == (0.29, 0.02, 0.76)


def test_a_small_table_by_hand():
    # differences 1, 2, 0, 1: mean 1, standard deviation sqrt(2 / 3)
    predicted, true = np.array([11.0, 14, 15, 20]), np.array([10.0, 12, 15, 19])
    figures = agreement(predicted, true)
    assert (figures["n"], figures["bias"], figures["within_2"]) == (4, 1.0, 100.0)
    assert figures["dahlberg"] == pytest.approx(math.sqrt(6 / 8))
    assert figures["limit_low"] == pytest.approx(1 - 1.96 * math.sqrt(2 / 3))
    assert figures["limit_high"] == pytest.approx(1 + 1.96 * math.sqrt(2 / 3))
    # mean squares: subjects with means 10.5 13 15 19.5 about 14.5, raters 15 and 14, the rest (d - 1)^2 / 2 summed
    subjects, raters, rest = 2 * (16 + 2.25 + 0.25 + 25) / 3, 4 * 2 * 0.25, (0 + 1 + 1 + 0) / 2 / 3
    expected = (subjects - rest) / (subjects + rest + 2 * (raters - rest) / 4)
    assert figures["ICC"] == pytest.approx(expected)
    assert figures["ICC_low"] < expected < figures["ICC_high"] < 1


def least_squares_icc(table: np.ndarray) -> float:
    """ICC(2,1) by another way: mean squares as drops of the residual of nested linear models."""
    n, k = table.shape
    rows, columns = np.eye(n).repeat(k, 0), np.tile(np.eye(k), (n, 1))

    def residual(*parts: np.ndarray) -> float:
        design = np.concatenate([np.ones((n * k, 1)), *parts], 1)
        fit = design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
        return float(((table.ravel() - fit) ** 2).sum())

    rest = residual(rows, columns) / ((n - 1) * (k - 1))
    between = (residual(columns) - residual(rows, columns)) / (n - 1)
    raters = (residual(rows) - residual(rows, columns)) / (k - 1)
    variances = (between - rest) / k, (raters - rest) / n  # of subjects and of raters
    return variances[0] / (sum(variances) + rest)


@pytest.mark.parametrize("seed", range(5))
def test_the_correlation_equals_that_of_linear_models(seed):
    generator = np.random.default_rng(seed)
    table = generator.normal(50, 5, (30, 1)) + generator.normal(1, 2, (1, 2)) + generator.normal(0, 3, (30, 2))
    assert agreement(table[:, 0], table[:, 1])["ICC"] == pytest.approx(least_squares_icc(table))


def test_the_interval_covers_the_true_correlation_in_about_95_percent_of_samples():
    generator, inside = np.random.default_rng(0), 0
    for _ in range(400):
        # variances: subjects 9, raters 0.25, rest 1; only the interval's dependence on the raters is approximate
        pair = generator.normal(0, 3, (40, 1)) + generator.normal(0, 0.5, (1, 2)) + generator.normal(0, 1, (40, 2))
        _, low, high = intraclass_correlation(pair)
        inside += low <= 9 / 10.25 <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_perfect_agreement_and_equal_values():
    values = np.array([1.0, 4, 9, 16])
    figures = agreement(values, values)
    assert (figures["bias"], figures["limit_low"], figures["dahlberg"], figures["ICC"]) == (0, 0, 0, 1)
    assert (figures["ICC_low"], figures["ICC_high"]) == (1, 1)
    assert math.isnan(agreement(np.full(4, 3.0), np.full(4, 3.0))["ICC"])


def test_unknown_values_are_left_out_and_two_images_have_no_limits():
    figures = agreement(np.array([1.0, math.nan, 3, 5]), np.array([1.0, 2, math.nan, 4]))
    assert (figures["n"], figures["bias"]) == (2, 0.5)
    assert math.isnan(figures["limit_low"]) and math.isnan(figures["ICC"])
    assert "a (px)" not in agreements(["a (px)"], np.full((3, 1), math.nan), np.ones((3, 1)))


def test_only_degrees_and_mm_have_a_share_within_2():
    values = np.arange(8.0).reshape(4, 2)
    found = agreements(["SNA (degrees)", "S x (px)"], values, values + 1)
    assert found["SNA (degrees)"]["within_2"] == 100 and math.isnan(found["S x (px)"]["within_2"])


def test_the_readings_of_two_sets_of_landmarks_are_measurements_then_coordinates():
    landmarks = np.array([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]])
    measured = Measured(("angle (degrees)",), np.array([[80.0], [81]]), np.array([[82.0], [83]]), {})
    spacing = np.array([1, 0.5])
    names, values, others = paired_readings(["S", "N"], "mm", spacing, landmarks, landmarks + 2, measured)
    assert names == ["angle (degrees)", "S x (mm)", "S y (mm)", "N x (mm)", "N y (mm)"]
    assert values.tolist() == [[80, 1, 2, 3, 4], [81, 2.5, 3, 3.5, 4]]
    assert others.tolist() == [[82, 3, 4, 5, 6], [83, 3.5, 4, 4.5, 5]]
    assert len(paired_readings(["S", "N"], "px", spacing, landmarks, landmarks, None)[0]) == 4


def test_subjects_that_are_all_equal_have_no_correlation():
    assert math.isnan(agreement(np.array([1.0, 2, 3, 2]), np.array([3.0, 2, 1, 2]))["ICC"])  # each has the mean 2
