"""Look at a data set before training on it.

    python -m tools.inspect_data FOLDER [--out DIR] [--spacing MM] [--review]

FOLDER holds imgs/ and json/data.json. Prints what it holds and, for cephalograms, the number of images in each class by
their angles (reporting/cephalometry.py); then the annotations that do not fit the others (label_check.py). Writes into
--out: sheet.jpg, the images with their landmarks; scatter.png, the position of each landmark in all images;
landmarks.csv; doubtful.csv; and with --review, doubtful.html to correct the most doubtful images in a browser. If the
records keep two readers (ISBI 2015, Aariz), also reports how far these disagree and the noise of their mean: half that
distance, if their errors are equal in size and independent.
"""

import argparse
import logging
import math
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from PIL import Image, ImageDraw, ImageFont, ImageOps

from config import Config
from machine import exit_status
from reading.annotation import Record, read_annotation, read_images, read_spacing, shorten
from reading.images import read_image
from reporting.cephalometry import known_measures, measure_profiles
from reporting.charts import save_figure
from reporting.pictures import BLUE, write_names
from reporting.readers import read_readers, reader_errors
from run_folder import write_bytes, write_csv
from settings import Parser, UserError, read_json
from tools.formats.common import spacing_number
from tools.label_check import describe_doubts, find_doubts, write_review
from utils import apply_affine, finite_mean, resize_affine

SHEET, MOST = 2400, 48  # width of the sheet, px, and how many images it has at most


def load(folder: Path, spacing: float | None = None) -> tuple[tuple[str, ...], list[Record], list[dict]]:
    """Return abbreviations, checked records, and the entries of data.json. Raises UserError.

    spacing: mm per px of the images whose records state none; default: by the ruler, if there is one.
    """
    json_path = folder / "json" / "data.json"
    if not json_path.exists():
        raise UserError(f"{folder} holds no json/data.json; give the folder that tools.convert wrote")
    content = read_json(json_path)
    abbreviations, _, records = read_annotation(json_path, folder / "imgs")
    ruler = set(Config.ruler) <= set(abbreviations)
    config = Config(json_path=str(json_path), spacing=spacing or ("ruler" if ruler else None))
    records = read_images(json_path, folder / "imgs", abbreviations, records)
    return abbreviations, read_spacing(config, abbreviations, records), content


def describe(abbreviations: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Return what a data set holds, line by line."""
    splits = Counter(record.split or "none" for record in records)
    sizes = Counter(record.size for record in records)
    spacings = np.array([record.spacing for record in records])
    missing = [sum(bool(np.isnan(record.landmarks[n, 0])) for record in records) for n in range(len(abbreviations))]
    hidden = int(sum(record.occluded.sum() for record in records))
    known = spacings[np.isfinite(spacings)]
    lines = [
        f"{len(records)} images, {len(abbreviations)} landmarks; splits: "
        + ", ".join(f"{split} {count}" for split, count in splits.items()),
        "sizes: " + ", ".join(f"{w} x {h} px ({count})" for (w, h), count in sizes.most_common(5))
        + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""),
        f"spacing: {known.min():.4f} to {known.max():.4f} mm/px" if known.size else "spacing: unknown; errors in px",
        "missing: "
        + (", ".join(f"{name} {count}" for name, count in zip(abbreviations, missing, strict=True) if count) or "none")
        + (f"; occluded: {hidden}" if hidden else ""),
    ]  # fmt: skip
    same: dict[str, list[Record]] = {}
    for record in records:
        same.setdefault(record.fingerprint, []).append(record)
    for group in same.values():
        if len(group) > 1:
            names = " = ".join(f"{record.name} ({record.split or 'no split'})" for record in group)
            apart = len({record.split for record in group}) > 1
            lines.append(f"identical pixels{', across splits' if apart else ''}: {names}")
    return lines


def reader_distances(
    entries: Sequence[dict], abbreviations: Sequence[str], records: Sequence[Record]
) -> np.ndarray | None:
    """Return distances (I, N) between two readers, mm, or px if the spacing is unknown; None without two readers."""
    found = read_readers(entries, "data.json", [record.name for record in records], abbreviations)
    spacing = np.nan_to_num([record.spacing for record in records], nan=1.0)
    return None if found is None else 2 * reader_errors(found[0], spacing)


def describe_classes(abbreviations: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Return, for each measurement of a cephalogram that has classes, the number of images in each class."""
    measures = [measure for measure in known_measures(abbreviations) if measure.limits]
    if not measures:
        return []
    landmarks, spacing = np.stack([r.landmarks for r in records]), np.array([r.spacing for r in records])
    lines = []
    for measure, values in zip(measures, measure_profiles(measures, abbreviations, landmarks, spacing).T, strict=True):
        names = Counter(name for name in measure.class_names(values).tolist() if name)
        shares = ", ".join(
            f"{name} {names[name]} ({names[name] / names.total():.0%})" for name in measure.classes if names
        )
        mean = f"mean {np.nanmean(values):.2f}, SD {np.nanstd(values):.2f}; {shares}" if names else "unknown"
        lines.append(f"{measure.title}: {mean}")
    return lines


def describe_readers(
    abbreviations: Sequence[str], records: Sequence[Record], distances: np.ndarray, unit: str
) -> list[str]:
    """Return how far two readers disagree in each split, and for the landmarks with the largest distance."""
    lines = []
    for split in dict.fromkeys(record.split for record in records):
        own = distances[[record.split == split for record in records]]
        known = own[np.isfinite(own)]
        if not known.size:
            continue
        lines.append(
            f"readers in {split or 'all'}: {known.mean():.2f} +- {known.std():.2f} {unit} apart; noise of their mean: "
            f"{known.mean() / 2:.2f} {unit}"
        )
    means = [finite_mean(column) for column in distances.T]
    order = np.argsort(-np.nan_to_num(means))[:5]
    worst = ", ".join(f"{abbreviations[n]} {means[n]:.2f}" for n in order)
    return [*lines, f"readers disagree most on {worst} {unit}"]


# --- Pictures and table -----------------------------------------------------------------------------


def draw_sheet(abbreviations: Sequence[str], records: Sequence[Record], path: Path) -> None:
    """Draw up to MOST images, spread over the data set, each with its name and its landmarks.

    An abbreviation is left out where it would cover a landmark or another abbreviation.
    """
    chosen = sorted(set(np.linspace(0, len(records) - 1, min(MOST, len(records))).round().astype(int)))
    columns = min(len(chosen), max(3, math.ceil(math.sqrt(len(chosen)))))
    width = SHEET // max(3, columns)
    height = max(round(width * min(2.5, records[n].size[1] / records[n].size[0])) for n in chosen)
    radius, size = max(2, width // 150), max(11, width // 40)  # of a dot and of the letters, px
    sheet = Image.new("RGB", (columns * width, math.ceil(len(chosen) / columns) * (height + size + 5)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    for place, n in enumerate(chosen):
        record = records[n]
        image = Image.fromarray(read_image(record.path).astype(np.uint8)).convert("RGB")
        image = ImageOps.contain(image, (width, height))
        points, marks = apply_affine(resize_affine(record.size, image.size), record.landmarks), ImageDraw.Draw(image)
        for point in points[np.isfinite(points).all(1)]:
            marks.ellipse([*(point - radius), *(point + radius)], fill=BLUE)
        write_names(marks, points, points, abbreviations, radius)
        left, top = place % columns * width, place // columns * (height + size + 5) + size + 5
        sheet.paste(image, (left, top))
        draw.text((left + 3, top - 4), record.name[: 2 * width // size], font=font, anchor="ls")
    write_bytes(path, lambda file: sheet.save(file, "JPEG", quality=88))


def draw_scatter(abbreviations: Sequence[str], records: Sequence[Record], path: Path) -> None:
    """Draw each landmark of all images in fractions of the image's width and height, so that outliers are visible."""
    points = np.stack([record.landmarks / record.size for record in records])
    aspect = float(np.median([record.size[1] / record.size[0] for record in records]))
    figure, axis = pyplot.subplots(figsize=(7, min(12, 7 * aspect)))
    colours = pyplot.get_cmap("hsv")(np.linspace(0, 1, len(abbreviations), endpoint=False))
    for n, (name, colour) in enumerate(zip(abbreviations, colours, strict=True)):
        axis.scatter(*points[:, n].T, s=5, color=colour, alpha=0.6, linewidths=0)
        if np.isfinite(points[:, n]).any():
            axis.annotate(name, np.nanmedian(points[:, n], axis=0), fontsize=7, ha="center", va="center")
    axis.set(xlim=(0, 1), ylim=(1, 0), xlabel="fraction of the width", ylabel="fraction of the height", aspect=aspect)
    save_figure(figure, path)


def write_table(
    abbreviations: Sequence[str], records: Sequence[Record], distances: np.ndarray | None, unit: str, path: Path
) -> None:
    """Write landmarks.csv: each landmark's number, mean position and scatter, and the distance of two readers."""
    points = np.stack([record.landmarks / record.size for record in records])
    hidden = np.stack([record.occluded for record in records])
    head = ["landmark", "n", "missing", "occluded", "mean_x", "mean_y", "SD_x", "SD_y", "farthest_image"]
    head += [f"readers_mean_{unit}", f"readers_SD_{unit}", f"noise_of_mean_{unit}"] if distances is not None else []
    rows = [head]
    for n, name in enumerate(abbreviations):
        known = np.isfinite(points[:, n, 0])
        row = [name, int(known.sum()), int((~known).sum()), int(hidden[:, n].sum())]
        if known.any():
            own = points[known, n]
            far = np.linalg.norm(own - np.median(own, axis=0), axis=1).argmax()
            farthest = records[int(np.flatnonzero(known)[far])].name
            row += [*(f"{value:.4f}" for value in (*own.mean(0), *own.std(0))), farthest]
        else:
            row += [""] * 5
        if distances is not None:
            own = distances[np.isfinite(distances[:, n]), n]
            row += [f"{own.mean():.3f}", f"{own.std():.3f}", f"{own.mean() / 2:.3f}"] if own.size else [""] * 3
        rows.append(row)
    write_csv(path, rows)


def run() -> None:
    """Do what the command line says. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the pictures and the table; default: FOLDER/inspection")
    parser.add_argument(
        "--spacing",
        metavar="MM",
        type=partial(spacing_number, where="--spacing"),
        help="mm per px of the images that state no spacing",
    )
    parser.add_argument("--review", action="store_true", help="also write a page to correct the doubtful images")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    out = options.out or options.folder / "inspection"
    abbreviations, records, entries = load(options.folder, options.spacing)
    unit = "mm" if math.isfinite(records[0].spacing) else "px"
    print(*describe(abbreviations, records), *describe_classes(abbreviations, records), sep="\n")
    distances = reader_distances(entries, abbreviations, records)
    if distances is not None:
        print(*describe_readers(abbreviations, records, distances, unit), sep="\n")
    out.mkdir(parents=True, exist_ok=True)
    draw_sheet(abbreviations, records, out / "sheet.jpg")
    draw_scatter(abbreviations, records, out / "scatter.png")
    write_table(abbreviations, records, distances, unit, out / "landmarks.csv")
    found = find_doubts(abbreviations, records)
    print(*describe_doubts(found, unit, out / "doubtful.csv"), sep="\n")
    pages = ["doubtful.html"] if options.review and found else []
    if pages:
        write_review(options.folder, found, out / "doubtful.html")
    print(f"look at {shorten([str(out / name) for name in ('sheet.jpg', 'scatter.png', 'landmarks.csv', *pages)])}")


def main() -> int:
    """Return exit status 2 for a data set that cannot be read."""
    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
