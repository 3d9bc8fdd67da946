"""What people look at, drawn from files: predictions.csv -> overlays; metrics.csv -> curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from annotation import Record
from images import read_image
from report import read_predictions

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)

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
    """Training curves from the rows of metrics.csv: the loss terms, and the validation error where there is one."""
    epochs = [row["epoch"] for row in rows]
    validated = "val_MRE" in rows[0]
    figure, axes = pyplot.subplots(1, 1 + validated, figsize=(5 + 5 * validated, 3.6), squeeze=False)
    known = ("epoch", "lr", "seconds")
    for name in rows[0]:
        if name not in known and not name.startswith("val_"):
            axes[0, 0].plot(epochs, [row[name] for row in rows], label=name)
    axes[0, 0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes[0, 0].legend()
    if validated:
        axes[0, 1].plot(epochs, [row["val_MRE"] for row in rows], label="MRE")
        axes[0, 1].plot(epochs, [row["val_median"] for row in rows], label="median")
        axes[0, 1].set(xlabel="epoch", ylabel=f"validation error ({unit})", yscale="log")
        axes[0, 1].legend()
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_formatter("{x:g}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
