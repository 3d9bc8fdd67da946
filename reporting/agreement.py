"""Agreement of two methods of measurement on the same images, as clinical reviewers ask for it.

Bland and Altman, "Statistical methods for assessing agreement between two methods of clinical measurement", Lancet
1986; Dahlberg, "Statistical methods for medical and biological students", 1940; Shrout and Fleiss, "Intraclass
correlations", Psychological Bulletin 1979; McGraw and Wong, "Forming inferences about some intraclass correlation
coefficients", Psychological Methods 1996.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import fdtri

from reporting.measurements import Measured

NEAR = 2.0  # degrees or mm: the share of differences within it is reported
FEWEST = 3  # images for limits and correlation
FIGURES = ("n", "bias", "limit_low", "limit_high", "dahlberg", "ICC", "ICC_low", "ICC_high", "within_2")


def agreement(values: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Return how values (I,) agree with others (I,) on the same images, such as predictions with the truth.

    Images where either is nan are left out. "n"; "bias", the mean of values minus others; "limit_low", "limit_high",
    the 95 % limits of agreement, bias -+ 1.96 standard deviations (divisor n - 1) of the differences; "dahlberg",
    sqrt(sum d^2 / 2n); "ICC", the intraclass correlation ICC(2,1), two-way random effects, absolute agreement, single
    measurements, with its 95 % interval "ICC_low", "ICC_high"; "within_2", the percentage of differences of at most 2.
    Limits and correlation are nan below three images, the correlation also if all values are equal.
    """
    known = np.isfinite(values) & np.isfinite(others)
    pair = np.stack([values[known], others[known]], 1).astype(float)
    n = len(pair)
    figures = dict.fromkeys(FIGURES, math.nan) | {"n": n}
    if n:
        apart = pair[:, 0] - pair[:, 1]
        figures |= {"bias": apart.mean(), "dahlberg": math.sqrt((apart**2).sum() / (2 * n))}
        figures["within_2"] = 100 * np.mean(np.abs(apart) <= NEAR)
    if n >= FEWEST:
        spread = 1.96 * apart.std(ddof=1)
        figures |= {"limit_low": apart.mean() - spread, "limit_high": apart.mean() + spread}
        figures |= dict(zip(("ICC", "ICC_low", "ICC_high"), intraclass_correlation(pair), strict=True))
    return {name: int(value) if name == "n" else float(value) for name, value in figures.items()}


def intraclass_correlation(table: np.ndarray) -> tuple[float, float, float]:
    """Return ICC(2,1) of a complete table (n subjects, k raters), and the ends of its 95 % interval.

    The interval is that of McGraw and Wong for case 2A, absolute agreement. All are nan if all subjects are equal.
    """
    n, k = table.shape
    mean, subjects, raters = table.mean(), table.mean(1), table.mean(0)
    between = k * ((subjects - mean) ** 2).sum() / (n - 1)  # mean squares: of subjects,
    columns = n * ((raters - mean) ** 2).sum() / (k - 1)  # of raters,
    rest = ((table - subjects[:, None] - raters + mean) ** 2).sum() / ((n - 1) * (k - 1))  # and what is left
    whole = between + (k - 1) * rest + k * (columns - rest) / n
    if whole <= 0 or between == 0:  # nothing can be told apart
        return math.nan, math.nan, math.nan
    icc = (between - rest) / whole
    if columns == rest == 0:
        return icc, icc, icc
    a, b = k * icc, n * (1 - icc) + k * icc * (n - 1)  # both times n (1 - icc), which cancels in the next line
    freedom = (a * columns + b * rest) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * rest) ** 2 / ((n - 1) * (k - 1)))
    low_f, high_f = fdtri(n - 1, freedom, 0.975), fdtri(freedom, n - 1, 0.975)
    noise = k * columns + (k * n - k - n) * rest
    low = n * (between - low_f * rest) / (low_f * noise + n * between)
    high = n * (high_f * between - rest) / (noise + n * high_f * between)
    return icc, low, high


def agreements(names: Sequence[str], values: np.ndarray, others: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the agreement of each column of values and others (I, M) by its name; columns without a pair are left out.

    "within_2" is nan for a name whose unit is neither degrees nor mm.
    """
    found = {name: agreement(*pair) for name, *pair in zip(names, values.T, others.T, strict=True)}
    for name, figures in found.items():
        if not name.endswith(("(degrees)", "(mm)")):
            figures["within_2"] = math.nan
    return {name: figures for name, figures in found.items() if figures["n"]}


def paired_readings(
    abbreviations: Sequence[str],
    unit: str,
    spacing: np.ndarray,
    landmarks: np.ndarray,
    others: np.ndarray,
    measured: Measured | None,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return M names and two arrays (I, M): all that two sets of landmarks (I, N, 2) px say of the same images.

    These are their angles and distances (measured, if any), then the coordinates of each landmark, "S x (mm)", "S y
    (mm)", ..., in the unit: px times spacing (I,).
    """
    names = [
        *(measured.names if measured else ()),
        *(f"{name} {axis} ({unit})" for name in abbreviations for axis in "xy"),
    ]
    pairs = []
    for points, own in ((landmarks, measured and measured.predicted), (others, measured and measured.true)):
        flat = points.reshape(len(points), -1) * spacing[:, None]
        pairs.append(flat if own is None else np.concatenate([own, flat], 1))
    return names, pairs[0], pairs[1]
