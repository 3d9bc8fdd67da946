"""What people look at: predictions.csv -> overlays, metrics.csv -> curves, one image epoch by epoch -> an animation."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from annotation import Record
from images import read_image
from report import read_predictions
from utils import finite_mean, radial_errors

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402

RED, BLUE, YELLOW = (255, 60, 50), (60, 140, 255), (255, 220, 0)


def draw_overlay(image: np.ndarray, landmarks: np.ndarray, truth: np.ndarray, caption: str) -> Image.Image:
    """The image with truth (blue) and detection (red) as dots and the error as a line; points in its px."""
    scale = max(1.0, 1200 / image.shape[0])  # small pictures are enlarged, or the dots would hide the anatomy
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
    font = ImageFont.load_default(size=max(12, size[1] // 55))
    band = Image.new("RGB", (picture.width, picture.height + 2 * font.size))
    band.paste(picture, (0, 0))
    draw = ImageDraw.Draw(band)
    x, y = font.size / 2, picture.height + font.size / 2
    for words, colour in ((caption, (255, 255, 255)), ("red: detected", RED), ("blue: truth", BLUE)):
        draw.text((x, y), words, fill=colour, font=font)
        x += draw.textlength(words, font=font) + font.size
    return band


def draw_overlays(folder: Path, records: Sequence[Record], most: int) -> None:
    """folder/overlays/*.png for up to `most` images spread from the smallest mean error to the largest.

    A file's name begins with its rank, so the folder sorts from best to worst.
    """
    names, _, columns, unit = read_predictions(folder / "predictions.csv")
    by_name = {record.name: record for record in records}
    with np.errstate(invalid="ignore"):
        counts = np.isfinite(columns["error"]).sum(1)
        means = np.nansum(columns["error"], 1) / np.maximum(counts, 1)
    order = np.argsort(means, kind="stable")
    chosen = sorted(set(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)))
    (folder / "overlays").mkdir(exist_ok=True)
    for rank in chosen:
        index = order[rank]
        name = names[index]
        caption = f"{name}   MRE {means[index]:.2f} {unit}   " if counts[index] else f"{name}   "
        points = [np.stack([columns[x][index], columns[y][index]], -1) for x, y in (("x", "y"), ("x_true", "y_true"))]
        picture = draw_overlay(read_image(by_name[name].path), *points, caption)
        picture.save(folder / "overlays" / f"{rank + 1:03d}_{Path(name).stem}.png")


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
    loss = loss[:-1] if len(loss) == 2 else loss  # a single term is the loss
    panels = [(loss, "training loss", "log"), (errors, f"validation error ({unit})", "log")]
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
            text = name.removeprefix("val_").removeprefix("error_") if name in worst else None
            axis.plot(epochs, [row.get(name, math.nan) for row in rows], label=text, **style)
        axis.set(xlabel="epoch", ylabel=label, yscale=scale)
        axis.legend(title="worst now" if many and len(members) > 5 else None)
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


def animate_progress(run_dir: Path) -> None:
    """run_dir/progress.gif of the pictures in run_dir/progress in half of their size: ten a second, few ones slower."""
    pictures = []
    for path in sorted((run_dir / "progress").glob("epoch_*.png")):
        with Image.open(path) as picture:
            pictures.append(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS))
    if pictures:
        duration = max(100, 3000 // len(pictures))  # ms of each
        pictures[0].save(run_dir / "progress.gif", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
