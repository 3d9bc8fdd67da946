"""Draw charts: rates and agreement of a test, the curves of a training, and the comparison of runs."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from reporting.predictions import PredictionTable
from run_folder import write_bytes
from utils import finite_mean, is_loss_term

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter  # noqa: E402

MOST_PLOTS = 12  # in agreement.png
# Okabe and Ito's colours, which colour-blind people can distinguish, without those that are too light on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure of pyplot as PNG, whole or not at all, and close it. Raises UserError if that fails."""
    figure.tight_layout()
    write_bytes(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    pyplot.close(figure)


def draw_rates(folder: Path, table: PredictionTable, thresholds: Sequence[float]) -> None:
    """Draw folder/rates.png: a bar per landmark with the percentage of images within each threshold."""
    abbreviations, errors, unit, thresholds = table.abbreviations, table.errors, table.unit, sorted(thresholds)
    shares = [[100 * finite_mean(np.where(np.isfinite(e), e <= t, np.nan)) for e in errors.T] for t in thresholds]
    figure, axis = pyplot.subplots(figsize=(max(5, 0.22 * len(abbreviations) + 2), 4))
    shades = pyplot.get_cmap("Blues")(np.linspace(0.9, 0.25, len(thresholds)))
    for number in reversed(range(len(thresholds))):  # the largest first: the others are drawn over it
        label = f"within {thresholds[number]:g} {unit}"
        axis.bar(range(len(abbreviations)), shares[number], 0.8, color=shades[number], label=label)
    axis.set(ylabel="landmarks found (%)", ylim=(0, 100), xlim=(-0.6, len(abbreviations) - 0.4))
    axis.set_xticks(range(len(abbreviations)), abbreviations, rotation=90, fontsize=8)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    save_figure(figure, folder / "rates.png")


def draw_agreement(
    path: Path,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    agreement: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Draw Bland-Altman plots of the first MOST_PLOTS pairs of predicted and true values (I,), by name with the unit.

    A dot per image, the mean of the two against their difference; lines at the bias and the limits of agreement of the
    "predictions" and, where they are known, at the limits between the "readers". Nothing is drawn of fewer than three
    images.
    """
    known, readers = agreement.get("predictions", {}), agreement.get("readers", {})
    names = [name for name in pairs if math.isfinite(known.get(name, {}).get("limit_low", math.nan))][:MOST_PLOTS]
    if not names:
        return
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.7 * rows), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        predicted, true = pairs[name]
        axis.scatter((predicted + true) / 2, predicted - true, 9, COLOURS[0], alpha=0.6, linewidths=0)
        own, other = known[name], readers.get(name, {})
        axis.axhline(own["bias"], color=COLOURS[1], linewidth=1.2)
        for end in ("limit_low", "limit_high"):
            axis.axhline(own[end], color=COLOURS[1], linewidth=1, linestyle="--")
            if math.isfinite(other.get(end, math.nan)):
                axis.axhline(other[end], color="0.5", linewidth=1, linestyle=":")
        axis.set_title(f"{plain_text(name)}, n = {own['n']}", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    words = "line: bias; dashed: 95 % limits of agreement" + ("; dotted: those between two readers" if readers else "")
    figure.suptitle(words, fontsize=9)
    figure.supxlabel("mean of predicted and true", fontsize=9)
    figure.supylabel("predicted minus true", fontsize=9)
    save_figure(figure, path)


def draw_error_curves(
    runs: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], thresholds: Sequence[float], unit: str, path: Path
) -> None:
    """Draw the percentage of points within each distance: a line for the errors (I, N) of each run, nan left out.

    others: errors to compare with, such as those of readers, in grey. The axis ends where the worst run reaches 99 %,
    but not beyond 2.5 times the largest threshold.
    """
    flat = {name: np.sort(errors[np.isfinite(errors)]) for name, errors in (*runs.items(), *others.items())}
    far = max(float(np.quantile(flat[name], 0.99)) for name in runs)
    limit = min(max(far, 1.1 * max(thresholds)), 2.5 * max(thresholds))
    figure, axis = pyplot.subplots(figsize=(7.5, 5))
    for threshold in thresholds:
        axis.axvline(threshold, color="0.8", linewidth=0.8, zorder=0)
        axis.text(threshold, 101.5, f"{threshold:g}", color="0.5", fontsize=8, ha="center")
    styles = [{"color": colour, "linestyle": dash} for dash in ("-", "--", ":") for colour in COLOURS]
    grey = [{"color": "0.45", "linestyle": dash} for dash in ((0, (6, 2)), (0, (2, 2)))]
    for place, (name, errors) in enumerate(flat.items()):
        style = styles[place % len(styles)] if name in runs else grey[(place - len(runs)) % 2]
        shares = 100 * np.arange(len(errors) + 1) / len(errors)
        label = f"{plain_text(name)}: {errors.mean():.2f} {unit}"
        axis.step([0, *errors], shares, where="post", label=label, linewidth=1.5, **style)
    axis.set(xlim=(0, limit), ylim=(0, 101), xlabel=f"radial error ({unit})", ylabel="points within it (%)")
    axis.legend(loc="lower right", title="MRE", fontsize=8 if len(flat) < 12 else 6, alignment="left")
    axis.grid(axis="y", alpha=0.3)
    save_figure(figure, path)


def plain_text(name: str) -> str:
    """Return a name that matplotlib shows unchanged: it reads $ as a formula and hides labels that begin with _."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_differences(
    landmarks: Sequence[str], panels: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str, path: Path
) -> None:
    """Draw the differences of landmarks between two runs as sorted dots with intervals, a panel for each pair of runs.

    panels, by title: (N, 3) difference, low, high, nan where unknown; and (N,) whether the difference is significant.
    """
    height = max(3, 1.4 + 0.17 * len(landmarks))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), height), squeeze=False)
    for axis, (title, (values, significant)) in zip(axes.flat, panels.items(), strict=True):
        order = [n for n in np.argsort(values[:, 0]) if np.isfinite(values[n, 0])]
        colours = [COLOURS[1] if significant[n] else "0.6" for n in order]
        axis.axvline(0, color="0.5", linewidth=0.8)
        axis.hlines(range(len(order)), values[order, 1], values[order, 2], colours, linewidth=1.5)
        axis.scatter(values[order, 0], range(len(order)), 16, colours)
        axis.set_yticks(range(len(order)), [landmarks[n] for n in order], fontsize=7)
        axis.set(ylim=(-0.7, len(order) - 0.3), xlabel=f"difference of MRE ({unit})")
        count = f"significant (orange): {int(significant.sum())} of {len(order)}"
        axis.set_title(f"{plain_text(title)}\n{count}", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def curve_panels(rows: Sequence[Mapping[str, Any]], unit: str) -> list[tuple[list[str], str, str]]:
    """Return the panels of curves.png: columns of metrics.csv, label and scale of the axis; none without columns."""

    def starting(*prefixes: str) -> list[str]:
        return [name for name in rows[-1] if name.startswith(prefixes)]

    validation = ("val_MRE", "val_median")
    others = set(starting("val_error_", "val_SDR", *validation))
    loss = [n for n in rows[-1] if is_loss_term(n) and not (n.startswith("val_") or n in ("epoch", "lr", "seconds"))]
    loss = loss[:-1] if len(loss) == 2 else loss  # a single term is the loss
    below = [name for name in loss if any(row.get(name, math.nan) < 0 for row in rows)]
    panels = [
        ([name for name in loss if name not in below], "training loss", "log"),
        ([name for name in validation if name in rows[-1]], f"validation error ({unit})", "log"),
        (below, "training loss below 0", "linear"),
        (starting("accuracy_"), "accuracy in training", "linear"),
        (starting("gradient_"), "norm of gradients in training", "log"),
        (starting("val_error_"), f"validation error of each landmark ({unit})", "log"),
        ([name for name in starting("val_") if name not in others], "validation", "linear"),
    ]
    return [panel for panel in panels if panel[0]]


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, unit: str) -> None:
    """Draw training curves from the rows of metrics.csv: loss terms, validation errors and the method's extras."""
    epochs, panels = [row["epoch"] for row in rows], curve_panels(rows, unit)
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(5 * columns, 3.6 * lines), squeeze=False)
    for axis, (members, label, scale) in zip(axes.flat, panels, strict=False):
        many = members[0].startswith("val_error_")
        worst = sorted(members, key=lambda name: -np.nan_to_num(rows[-1][name]))[:5] if many else members
        for name in members:
            style = {} if name in worst else {"color": "0.7", "linewidth": 0.6, "zorder": 1}
            text = re.sub("^(val_)?(error_|accuracy_|gradient_)?", "", name) if name in worst else None
            axis.plot(epochs, [row.get(name, math.nan) for row in rows], label=text, **style)
        if not any(row.get(name, math.nan) > 0 for row in rows for name in members):
            scale = "linear"
        axis.set(xlabel="epoch", ylabel=label, yscale=scale)
        crowded = {"fontsize": 8, "ncols": 2} if not many and len(members) > 4 else {}
        axis.legend(title="worst at present" if many and len(members) > 5 else None, framealpha=0.6, **crowded)
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_formatter("{x:g}")
        if scale == "log":  # ticks at 1, 2 and 5; at every digit on a short axis, only at powers of ten on a long one
            low, high = axis.get_ylim()
            axis.yaxis.set_minor_locator(LogLocator(subs=range(2, 10) if high < 6 * low else (2, 5)))
            axis.yaxis.set_minor_formatter("{x:g}" if high < 1000 * low else NullFormatter())
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    save_figure(figure, path)
