"""Significance of differences between runs on the same images: paired differences, permutation tests, Holm."""

import math
from collections.abc import Sequence

import numpy as np


def paired_difference(errors: np.ndarray, others: np.ndarray, seed: int = 0, resamples: int = 1000) -> dict[str, float]:
    """Return the mean of errors (images, N) minus that of others on the same images, with a 95 % interval.

    The result is {"difference", "low", "high"} in the unit of the errors. The percentile bootstrap over images draws
    both at once, so the difficulty of an image cancels. Landmarks that are nan in either are ignored; if none is left,
    all values are nan.
    """
    differences = np.asarray(errors, float) - np.asarray(others, float)
    differences = differences[np.isfinite(differences).any(axis=1)]
    if not len(differences):
        return dict.fromkeys(("difference", "low", "high"), math.nan)
    sums, counts = np.nansum(differences, axis=1), np.isfinite(differences).sum(axis=1)
    generator, means = np.random.default_rng(seed), []
    step = max(1, 2_000_000 // len(sums))  # resamples at a time: 50 MB
    for start in range(0, resamples, step):
        samples = generator.choice(len(sums), (min(step, resamples - start), len(sums)))
        means.append(sums[samples].sum(1) / counts[samples].sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return {"difference": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


def paired_permutation(errors: np.ndarray, others: np.ndarray, seed: int = 0, resamples: int = 10000) -> float:
    """Return the two-sided p-value of the difference of means of errors and others (images, N), by permutation.

    The statistic is that of paired_difference. The labels of the two are exchanged for whole images, because the points
    of one image are not independent: all of its differences change sign together. The test is exact, over all patterns
    of signs, if there are at most `resamples`; otherwise it draws that many and counts the observed one too:
    (count + 1) / (resamples + 1). Landmarks that are nan in either are ignored; if none is left, p is nan.
    """
    differences = np.asarray(errors, float) - np.asarray(others, float)
    if not np.isfinite(differences).any():
        return math.nan
    sums = np.nansum(np.atleast_2d(differences), axis=1)
    sums = sums[sums != 0]  # a zero is the same with either sign
    # at least as large as observed, up to the rounding of sums in another order
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    exact = len(sums) < 63 and 2 ** len(sums) <= resamples
    patterns = 2 ** len(sums) if exact else resamples
    generator, count = np.random.default_rng(seed), 0
    step = max(1, 4_000_000 // max(1, len(sums)))  # patterns at a time: 32 MB of numbers
    for start in range(0, patterns, step):
        rows = np.arange(start, min(start + step, patterns))
        if exact:
            kept = rows[:, None] >> np.arange(len(sums)) & 1
        else:
            kept = generator.random((len(rows), len(sums))) < 0.5
        count += int((np.abs((2.0 * kept - 1.0) @ sums) >= least).sum())
    return count / patterns if exact else (count + 1) / (patterns + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values (n,) corrected for their number by Holm's step-down method; nan stays nan and is not counted."""
    corrected = np.array(p_values, float)
    known = np.flatnonzero(np.isfinite(corrected))
    order = known[np.argsort(corrected[known], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps * corrected[order]))
    return corrected


def paired_tests(pairs: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int) -> list[dict[str, float]]:
    """Return difference, low, high, p and p_corrected (for the number of pairs) of pairs (errors, others)."""
    tests = [
        paired_difference(*pair, resamples=resamples) | {"p": paired_permutation(*pair, resamples=resamples)}
        for pair in pairs
    ]
    corrected = holm([test["p"] for test in tests])
    return [test | {"p_corrected": float(p)} for test, p in zip(tests, corrected, strict=True)]
