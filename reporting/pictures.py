"""Draw pictures of images with landmarks: overlays, activations, and how predictions progress over epochs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from reading.annotation import Record
from reading.images import ENDINGS, read_image
from reporting.predictions import PredictionTable
from run_folder import write_bytes
from utils import apply_affine, compose_affines, finite_mean, radial_errors, resize_affine

RED, BLUE, YELLOW, WHITE = (255, 60, 50), (60, 140, 255), (255, 220, 0), (255, 255, 255)


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
        colours = np.concatenate([colormaps["inferno"](spread)[..., :3], 0.75 * spread[..., None]], -1)
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


def draw_progress(run_dir: Path, epoch: int, record: Record, landmarks: np.ndarray, unit: str) -> None:
    """Draw run_dir/progress/epoch_<epoch>.png: the landmarks of one image as they are found after an epoch."""
    errors = radial_errors(landmarks, record.landmarks, np.nan_to_num(record.spacing, nan=1.0))
    caption = f"{record.name}   epoch {epoch}   MRE {finite_mean(errors):.2f} {unit}   "
    (run_dir / "progress").mkdir(exist_ok=True)
    picture = draw_overlay(read_image(record.path), landmarks, record.landmarks, caption)
    save_picture(picture, run_dir / "progress" / f"epoch_{epoch:04d}.png")
