"""Draw pictures: overlays, activations, rates, training curves, progress over epochs, and the comparison of runs."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from reading.annotation import Record
from reading.images import ENDINGS, read_image
from reporting.predictions import PredictionTable
from run_folder import write_bytes
from utils import apply_affine, compose_affines, finite_mean, is_loss_term, radial_errors, resize_affine

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter  # noqa: E402

MOST_PLOTS = 12  # in agreement.png
RED, BLUE, YELLOW, WHITE = (255, 60, 50), (60, 140, 255), (255, 220, 0), (255, 255, 255)
# Okabe and Ito's colours, which colour-blind people can distinguish, without those that are too light on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def draw_overlay(
    image: np.ndarray,
    landmarks: np.ndarray,
    truth: np.ndarray,
    caption: str,
    names: Sequence[str] = (),
    circles: np.ndarray | None = None,
) -> Image.Image:
    """Return the image with truth (blue) and detection (red) as dots and the error as a line; points in its px.

    names: abbreviations to write beside the points. circles: radii (N,) px of circles around the detected points.
    """
    # small images are enlarged, or the dots would hide the anatomy
    scale = max(1.0, min(1200 / image.shape[0], 3000 / image.shape[1]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    picture = Image.fromarray(image.astype(np.uint8)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    radius = max(2.0, size[1] / 400)
    found, true = (apply_affine(resize_affine(image.shape[1::-1], size), points) for points in (landmarks, truth))
    for a, b in zip(found, true, strict=True):
        if np.isfinite([a, b]).all():
            draw.line([*a, *b], fill=YELLOW, width=max(1, round(radius / 2)))
    for point, circle in zip(found, circles if circles is not None else (), strict=False):
        if np.isfinite([*point, circle]).all():
            draw.ellipse([*(point - scale * circle), *(point + scale * circle)], outline=RED)
    for a, b in zip(found, true, strict=True):
        for point, colour in ((b, BLUE), (a, RED)):
            if np.isfinite(point).all():
                draw.ellipse([*(point - radius), *(point + radius)], fill=colour)
    if len(names):
        write_names(draw, found, true, names, radius)
    words = [(caption, WHITE), ("red: detected", RED)]
    words += [("blue: truth", BLUE)] if np.isfinite(true).any() else []
    height = max(12, size[1] // 55)
    length = sum(draw.textlength(text, font=ImageFont.load_default(height)) + height for text, _ in words)
    if length > size[0]:  # a narrow picture
        height = max(8, int(height * size[0] / length))
    band = Image.new("RGB", (size[0], size[1] + 2 * height))
    band.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(height)
    x = height / 2
    for text, colour in words:
        draw.text((x, size[1] + height / 2), text, fill=colour, font=font)
        x += draw.textlength(text, font=font) + height
    return band


def write_names(
    draw: ImageDraw.ImageDraw, found: np.ndarray, true: np.ndarray, names: Sequence[str], radius: float
) -> None:
    """Write each name beside its point of found (N, 2), or leave it out where it would cover something or mislead.

    It covers no dot and no other name, and keeps away from the dots of other landmarks. The worst point comes first.
    """
    size, stroke, dots = np.array(draw.im.size), round(radius / 3), np.concatenate([found, true])
    font = ImageFont.load_default(size=max(10, size[1] // (50 + len(names))))  # the more points, the smaller
    boxes = np.empty((0, 2, 2))  # of the names: top left, bottom right
    for n in np.argsort(-np.nan_to_num(radial_errors(found, true)), kind="stable"):
        left, top, right, bottom = font.getbbox(names[n], stroke_width=stroke)
        half = np.array([right - left, bottom - top]) / 2
        margin = np.where(np.arange(len(dots)) % len(names) == n, radius, 3 * radius)[:, None]
        taken = np.concatenate([boxes, np.stack([dots - margin, dots + margin], 1)])
        for side in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
            middle = found[n] + side * (half + radius + 1)
            box = np.stack([middle - half, middle + half])
            free = not ((box[0] < taken[:, 1]) & (box[1] > taken[:, 0])).all(1).any()
            if free and (box[0] >= 0).all() and (box[1] <= size).all():  # False for nan
                place = (box[0, 0] - left, box[0, 1] - top)
                draw.text(place, names[n], fill=WHITE, font=font, stroke_width=stroke, stroke_fill=(0, 0, 0))
                boxes = np.concatenate([boxes, box[None]])
                break


def draw_overlays(
    folder: Path, table: PredictionTable, records: Sequence[Record], most: int, circles: bool = False
) -> None:
    """Draw folder/overlays/*.png for up to `most` images spread from the smallest mean error to the largest.

    Without any truth, the mean score ranks them. File names begin with the rank, so they sort from best to worst.
    circles: draw radius_95 of each landmark, if it is known, around it.
    """
    by_name = {record.name: record for record in records}
    (folder / "overlays").mkdir(exist_ok=True)
    errors, score = table.errors, table.columns["score"]
    chosen = spread_of_images(errors if np.isfinite(errors).any() else -score, most)
    for rank, index in tqdm(chosen, "drawing overlays", leave=False, disable=None):
        name, mean = table.names[index], finite_mean(errors[index])
        known = f"MRE {mean:.2f} {table.unit}" if math.isfinite(mean) else f"score {finite_mean(score[index]):.2f}"
        caption = f"{''.join(letter if letter.isprintable() else '?' for letter in name)}   {known}   "
        points = table.landmarks[index], table.truth[index]
        radius = None
        if circles and "radius_95" in table.columns:
            radius = table.columns["radius_95"][index] / (by_name[name].spacing if table.unit == "mm" else 1)
        picture = draw_overlay(read_image(by_name[name].path), *points, caption, table.abbreviations, radius)
        save_picture(picture, folder / "overlays" / picture_name(rank, name))


def spread_of_images(errors: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Return rank, from 1, and row of up to `most` images, evenly spread from the smallest mean of errors (I, N) on.

    An image without a known error ranks first.
    """
    means = np.array([finite_mean(row) for row in errors])
    order = np.argsort(np.nan_to_num(means, nan=-np.inf), kind="stable")
    chosen = sorted(set(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)))
    return [(int(rank) + 1, int(order[rank])) for rank in chosen]


def draw_activations(
    record: Record, maps: np.ndarray, to_original: np.ndarray, points: Mapping[str, np.ndarray]
) -> Image.Image:
    """Return a sheet with a tile per landmark: its map (h, w) in 0..1 over the image, the detected and the true point.

    to_original: affine (2, 3) from px of the maps. points: detected and true (2, 2), original px, by abbreviation.
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
                for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # a cross with an open centre, which shows the map
                    draw.line([x + 4 * dx, y + 4 * dy, x + 9 * dx, y + 9 * dy], fill=colour)
        corner = (place % columns * width, place // columns * (height + 20))
        sheet.paste(tile.convert("RGB"), (corner[0], corner[1] + 20))
        ImageDraw.Draw(sheet).text((corner[0] + 4, corner[1] + 1), name, fill=WHITE, font=font)
    return sheet


def picture_name(rank: int, name: str) -> str:
    """Return the file name of the picture of an image: its rank, folders and name, short enough for file systems."""
    path = PurePosixPath(name.replace("\\", "/"))
    path = path.with_suffix("") if path.suffix.lower() in ENDINGS else path
    whole = "_".join(part for part in path.parts if part not in ("/", ".."))
    return f"{rank:03d}_{whole.encode()[-200:].decode(errors='ignore')}.png"


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all. Raises UserError if that fails."""
    write_bytes(path, lambda file: picture.save(file, "PNG"))


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


def draw_progress(run_dir: Path, epoch: int, record: Record, landmarks: np.ndarray, unit: str) -> None:
    """Draw run_dir/progress/epoch_<epoch>.png: the landmarks of one image as they are found after an epoch."""
    errors = radial_errors(landmarks, record.landmarks, np.nan_to_num(record.spacing, nan=1.0))
    caption = f"{record.name}   epoch {epoch}   MRE {finite_mean(errors):.2f} {unit}   "
    (run_dir / "progress").mkdir(exist_ok=True)
    picture = draw_overlay(read_image(record.path), landmarks, record.landmarks, caption)
    save_picture(picture, run_dir / "progress" / f"epoch_{epoch:04d}.png")
