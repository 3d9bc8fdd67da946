"""What people look at: predictions.csv -> overlays, rates; metrics.csv -> curves; an image by epochs; runs compared."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from reading.annotation import Record
from reading.images import read_image
from reporting.predictions import PredictionTable
from utils import apply_affine, compose_affines, finite_mean, is_loss_term, radial_errors, resize_affine

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter  # noqa: E402

RED, BLUE, YELLOW = (255, 60, 50), (60, 140, 255), (255, 220, 0)
# colours that colour-blind people tell apart, after Okabe and Ito; all of them show on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def draw_overlay(image: np.ndarray, landmarks: np.ndarray, truth: np.ndarray, caption: str) -> Image.Image:
    """The image with truth (blue) and detection (red) as dots and the error as a line; points in its px."""
    # small pictures are enlarged, or the dots would hide the anatomy
    scale = max(1.0, min(1200 / image.shape[0], 3000 / image.shape[1]))
    picture = Image.fromarray(image.astype(np.uint8)).convert("RGB")
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    factors = np.divide(size, (image.shape[1], image.shape[0]))
    draw = ImageDraw.Draw(picture)
    radius = max(2.0, size[1] / 400)

    def dot(point: np.ndarray, colour: tuple[int, int, int]) -> None:
        if np.isfinite(point).all():
            draw.ellipse([*(point - radius), *(point + radius)], fill=colour)

    found, true = ((points + 0.5) * factors - 0.5 for points in (landmarks, truth))
    for a, b in zip(found, true, strict=True):
        if np.isfinite([a, b]).all():
            draw.line([*a, *b], fill=YELLOW, width=max(1, round(radius / 2)))
    for a, b in zip(found, true, strict=True):
        dot(b, BLUE)
        dot(a, RED)
    words = [(caption, (255, 255, 255)), ("red: detected", RED)]
    words += [("blue: truth", BLUE)] if np.isfinite(true).any() else []
    font = ImageFont.load_default(size=max(12, size[1] // 55))
    length = sum(draw.textlength(text, font=font) + font.size for text, _ in words)
    if length > picture.width:  # a narrow picture
        font = ImageFont.load_default(size=max(8, int(font.size * picture.width / length)))
    band = Image.new("RGB", (picture.width, picture.height + 2 * int(font.size)))
    band.paste(picture, (0, 0))
    draw = ImageDraw.Draw(band)
    x, y = font.size / 2, picture.height + font.size / 2
    for text, colour in words:
        draw.text((x, y), text, fill=colour, font=font)
        x += draw.textlength(text, font=font) + font.size
    return band


def draw_overlays(folder: Path, table: PredictionTable, records: Sequence[Record], most: int) -> None:
    """Draw folder/overlays/*.png for up to `most` images spread from the smallest mean error to the largest.

    Without any truth: from the highest mean score to the lowest. A file's name begins with its rank, so the folder
    sorts from best to worst.
    """
    by_name = {record.name: record for record in records}
    (folder / "overlays").mkdir(exist_ok=True)
    errors, score = table.errors, table.columns["score"]
    badness = errors if np.isfinite(errors).any() else -score
    chosen = spread_of_images(badness, most)
    for rank, index in tqdm(chosen, "drawing overlays", leave=False, disable=None):
        name, mean = table.names[index], finite_mean(errors[index])
        known = f"MRE {mean:.2f} {table.unit}" if math.isfinite(mean) else f"score {finite_mean(score[index]):.2f}"
        caption = f"{''.join(letter if letter.isprintable() else '?' for letter in name)}   {known}   "
        picture = draw_overlay(read_image(by_name[name].path), table.landmarks[index], table.truth[index], caption)
        picture.save(folder / "overlays" / f"{rank:03d}_{Path(name).stem[:100]}.png")


def spread_of_images(errors: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Up to `most` images spread from the smallest mean error to the largest: rank, from 1, and row of errors (I, N).

    An image without a known error ranks first.
    """
    means = np.array([finite_mean(row) for row in errors])
    order = np.argsort(np.nan_to_num(means, nan=-np.inf), kind="stable")
    chosen = sorted(set(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)))
    return [(int(rank) + 1, int(order[rank])) for rank in chosen]


def draw_activations(
    record: Record, maps: np.ndarray, to_original: np.ndarray, points: Mapping[str, np.ndarray]
) -> Image.Image:
    """A sheet with a picture for each landmark: its map (h, w) in 0..1 over the image, and where it was found, and is.

    to_original: the affine (2, 3) from px of the maps; points: of each landmark, by abbreviation, the detected and the
    true one (2, 2), original px.
    """
    image = read_image(record.path).astype(np.uint8)
    width, height = 300, round(300 * image.shape[0] / image.shape[1])
    shrink = resize_affine(record.size, (width, height))
    small = Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    columns = math.ceil(math.sqrt(len(maps)))
    font = ImageFont.load_default(size=14)
    sheet = Image.new("RGB", (columns * width, math.ceil(len(maps) / columns) * (height + 20)))
    for place, (own, (name, pair)) in enumerate(zip(maps, points.items(), strict=True)):
        spread = cv2.warpAffine(own, compose_affines(to_original, shrink), (width, height), flags=cv2.INTER_LINEAR)
        colours = np.concatenate([pyplot.get_cmap("inferno")(spread)[..., :3], 0.75 * spread[..., None]], -1)
        tile = Image.alpha_composite(small.convert("RGBA"), Image.fromarray((255 * colours).astype(np.uint8)))
        draw = ImageDraw.Draw(tile)
        for point, colour in zip(pair, (RED, BLUE), strict=True):
            if np.isfinite(point).all():
                x, y = apply_affine(shrink, point[None])[0]
                for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # a cross with an open middle, for the map to show
                    draw.line([x + 4 * dx, y + 4 * dy, x + 9 * dx, y + 9 * dy], fill=colour)
        corner = (place % columns * width, place // columns * (height + 20))
        sheet.paste(tile.convert("RGB"), (corner[0], corner[1] + 20))
        ImageDraw.Draw(sheet).text((corner[0] + 4, corner[1] + 1), name, fill=(255, 255, 255), font=font)
    return sheet


def draw_rates(folder: Path, table: PredictionTable, thresholds: Sequence[float]) -> None:
    """Draw folder/rates.png: a bar per landmark, the share of images within each threshold."""
    abbreviations, errors, unit, thresholds = table.abbreviations, table.errors, table.unit, sorted(thresholds)
    shares = [[100 * finite_mean(np.where(np.isfinite(e), e <= t, np.nan)) for e in errors.T] for t in thresholds]
    figure, axis = pyplot.subplots(figsize=(max(5, 0.22 * len(abbreviations) + 2), 4))
    shades = pyplot.get_cmap("Blues")(np.linspace(0.9, 0.25, len(thresholds)))
    for number in reversed(range(len(thresholds))):  # the widest first, so that the others stand before it
        label = f"within {thresholds[number]:g} {unit}"
        axis.bar(range(len(abbreviations)), shares[number], 0.8, color=shades[number], label=label)
    axis.set(ylabel="landmarks found (%)", ylim=(0, 100), xlim=(-0.6, len(abbreviations) - 0.4))
    axis.set_xticks(range(len(abbreviations)), abbreviations, rotation=90, fontsize=8)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(thresholds), fontsize=8, frameon=False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(folder / "rates.png", dpi=110)
    pyplot.close(figure)


def draw_error_curves(
    runs: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
    thresholds: Sequence[float],
    unit: str,
    path: Path,
) -> None:
    """The share of points within each distance, a line for each run's errors (I, N) by name, nan not counted.

    references: lines to hold them against, grey. Up to where the worst run reaches 99 %, at most 2.5 times the largest
    threshold.
    """  # fmt: skip
    flat = {name: np.sort(errors[np.isfinite(errors)]) for name, errors in (*runs.items(), *references.items())}
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
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plain_text(name: str) -> str:
    """A name as it stands: matplotlib takes what is between dollars for a formula, and leaves out a label of _."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_differences(
    landmarks: Sequence[str], panels: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str, path: Path
) -> None:
    """Differences of landmarks between two runs, a panel for each pair by its name: dots with their intervals, sorted.

    A panel: (N, 3) difference, low, high, in the unit of the errors, nan where unknown; and (N,) whether it is sure.
    """
    height = max(3, 1.4 + 0.17 * len(landmarks))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), height), squeeze=False)
    for axis, (title, (values, sure)) in zip(axes.flat, panels.items(), strict=True):
        order = [n for n in np.argsort(values[:, 0]) if np.isfinite(values[n, 0])]
        axis.axvline(0, color="0.5", linewidth=0.8)
        for marked, colour in ((True, COLOURS[1]), (False, "0.6")):
            rows = [row for row, n in enumerate(order) if sure[n] == marked]
            middle, low, high = values[[order[row] for row in rows]].T
            axis.hlines(rows, low, high, color=colour, linewidth=1.5)
            axis.plot(middle, rows, "o", color=colour, markersize=4)
        axis.set_yticks(range(len(order)), [landmarks[n] for n in order], fontsize=7)
        axis.set(ylim=(-0.7, len(order) - 0.3), xlabel=f"difference of MRE ({unit})")
        axis.set_title(f"{plain_text(title)}\nsure (orange): {int(sure.sum())} of {len(order)}", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, unit: str) -> None:
    """Training curves from the rows of metrics.csv.

    The loss terms; where there is validation its error, that of each landmark, and the method's measures of it.
    """
    epochs, names = [row["epoch"] for row in rows], list(rows[-1])
    landmarks = [name for name in names if name.startswith("val_error_")]
    errors = [name for name in ("val_MRE", "val_median") if name in names]
    others = [
        n
        for n in names
        if n.startswith("val_") and not n.startswith(("val_error_", "val_MRE", "val_median", "val_SDR"))
    ]
    loss = [name for name in names if name not in ("epoch", "lr", "seconds") and not name.startswith("val_")]
    figures = [name for name in loss if not is_loss_term(name)]
    loss = [name for name in loss if name not in figures]
    loss = loss[:-1] if len(loss) == 2 else loss  # a single term is the loss
    below = [name for name in loss if any(row.get(name, math.nan) < 0 for row in rows)]
    loss = [name for name in loss if name not in below]
    panels = [(loss, "training loss", "log"), (errors, f"validation error ({unit})", "log")]
    panels += [(below, "training loss below 0", "linear")]
    panels += [([n for n in figures if n.startswith("accuracy_")], "accuracy in training", "linear")]
    panels += [([n for n in figures if n.startswith("gradient_")], "norm of gradients in training", "log")]
    panels += [(landmarks, f"validation error of each landmark ({unit})", "log"), (others, "validation", "linear")]
    panels = [panel for panel in panels if panel[0]]
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(5 * columns, 3.6 * lines), squeeze=False)
    for axis, (members, label, scale) in zip(axes.flat, panels, strict=False):
        many = members is landmarks
        worst = sorted(members, key=lambda name: -np.nan_to_num(rows[-1][name]))[:5] if many else members
        for name in members:
            style = {} if name in worst else {"color": "0.7", "linewidth": 0.6, "zorder": 1}
            words = name.removeprefix("val_").removeprefix("error_").removeprefix("accuracy_").removeprefix("gradient_")
            text = words if name in worst else None
            axis.plot(epochs, [row.get(name, math.nan) for row in rows], label=text, **style)
        if not any(row.get(name, math.nan) > 0 for row in rows for name in members):
            scale = "linear"
        axis.set(xlabel="epoch", ylabel=label, yscale=scale)
        crowded = {"fontsize": 8, "ncols": 2} if not many and len(members) > 4 else {}
        axis.legend(title="worst now" if many and len(members) > 5 else None, framealpha=0.6, **crowded)
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_formatter("{x:g}")
        if scale == "log":  # numbers at 1, 2, 5; over a short way at all ten, over a long one at 1
            low, high = axis.get_ylim()
            axis.yaxis.set_minor_locator(LogLocator(subs=range(2, 10) if high < 6 * low else (2, 5)))
            axis.yaxis.set_minor_formatter("{x:g}" if high < 1000 * low else NullFormatter())
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_progress(run_dir: Path, epoch: int, record: Record, landmarks: np.ndarray, unit: str) -> None:
    """run_dir/progress/epoch_<epoch>.png: where the landmarks of one image are found after an epoch."""
    errors = radial_errors(landmarks, record.landmarks, np.nan_to_num(record.spacing, nan=1.0))
    caption = f"{record.name}   epoch {epoch}   MRE {finite_mean(errors):.2f} {unit}   "
    (run_dir / "progress").mkdir(exist_ok=True)
    picture = draw_overlay(read_image(record.path), landmarks, record.landmarks, caption)
    picture.save(run_dir / "progress" / f"epoch_{epoch:04d}.png")
