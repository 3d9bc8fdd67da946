"""AASCE 2019 spines: 17 vertebrae (T1-T12, L1-L5) with four corners each, 68 landmarks, and three Cobb angles.

    SOURCE/data/training/NAME.jpg
    SOURCE/labels/training/filenames.csv    NAME.jpg               the three .csv files are matched by row number
    SOURCE/labels/training/landmarks.csv    0.478,0.666,...        68 x, then 68 y, as fractions of width and height
    SOURCE/labels/training/angles.csv       41.139,14.63,40.147    degrees
    SOURCE/labels/training/NAME.jpg.mat     key p2, (68, 2), px    the same points

SOURCE is the folder of the archive. Wu et al., "Automatic landmark estimation for adolescent idiopathic scoliosis
assessment using BoostNet", MICCAI 2017. By convention vertebrae are listed from top to bottom, and their corners as top
left, top right, bottom left, bottom right. In some images a vertebra is at the wrong end of the list, or corners are
swapped. Both are repaired and noted where the points leave no doubt.
"""

from itertools import permutations
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from reading.images import image_size
from settings import UserError
from tools.formats.common import Images, Reading, make_record, numbers
from tools.formats.files import check_folder, read_csv

PRESET = "spine"
VERTEBRAE = [f"T{n}" for n in range(1, 13)] + [f"L{n}" for n in range(1, 6)]
CORNERS = ("TL", "TR", "BL", "BR")
WORDS = {"TL": "top left", "TR": "top right", "BL": "bottom left", "BR": "bottom right"}
NAMES = {f"{v}-{c}": f"{v} {WORDS[c]}" for v in VERTEBRAE for c in CORNERS}


def read(source: Path, labels: str = "csv", repair: bool = True) -> Reading:
    """Read the training set of the archive.

    labels: csv or mat: which of the two copies of the points to read
    repair: true: put vertebrae and corners in order | false: leave them as they are
    """
    if labels not in ("csv", "mat"):
        raise UserError(f"labels is {labels!r}; choose csv or mat")
    folder = check_folder(source / "labels" / "training", "the folder that holds data/training and labels/training")
    pictures = Images(source / "data" / "training")
    tables = {name: read_csv(folder / f"{name}.csv") for name in ("filenames", "landmarks", "angles")}
    if len({len(table) for table in tables.values()}) != 1:
        counts = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
        raise UserError(f"{folder}: the files are matched by row number, but have different numbers of rows: {counts}")
    pairs, notes = [], []
    rows = zip(tables["filenames"], tables["landmarks"], tables["angles"], strict=True)
    for place, ((name, *_), cells, angles) in enumerate(rows, 1):
        path = pictures.take_if_there(name, f"{folder / 'filenames.csv'}: line {place}", notes)
        if path is None:
            continue
        if labels == "csv":
            values = numbers(cells, f"{folder / 'landmarks.csv'}: line {place}", 2 * len(NAMES))
            points = np.array(values).reshape(2, len(NAMES)).T * image_size(path)
        else:
            points = read_mat(folder / f"{name}.mat")
        if repair:
            points, repairs = order_points(points)
            notes += [f"{name}: {note}" for note in repairs]
        table: dict = dict(zip(NAMES, points.tolist(), strict=True))
        width, height = image_size(path)
        for label, (x, y) in table.items():
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                notes.append(
                    f"{name}: {label} at ({x:.1f}, {y:.1f}) is outside the image of {width} x {height} px: missing"
                )
                table[label] = None
        cobb = numbers(angles, f"{folder / 'angles.csv'}: line {place}", 3)
        pairs.append((path, make_record(pictures.name(path), table, NAMES, cobb_angles=cobb)))
    return pictures.reading(source, pairs, notes)


def read_mat(file: Path) -> np.ndarray:
    """Return the points (68, 2) px of a .mat file. Raises UserError."""
    try:
        points = np.asarray(loadmat(file, variable_names=["p2"])["p2"], float)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except Exception as error:  # scipy's parser may raise anything
        raise UserError(f"{file} cannot be read as a .mat file with p2: {error}") from None
    if points.shape != (len(NAMES), 2) or not np.isfinite(points).all():
        raise UserError(f"{file}: expected p2 of {len(NAMES)} x 2 finite numbers, found {points.shape}")
    return points


def order_points(points: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return points (68, 2) with vertebrae and corners in conventional order, and notes on what was repaired.

    A vertebra is in doubt if it is more than 2.5 times as large as the others, or if its centre nearly coincides with
    another one. It is left as it is and noted, and so is the order of the vertebrae in its image.
    """
    corners = points.reshape(-1, 4, 2).copy()
    centres = corners.mean(1)
    extents = np.linalg.norm(corners[:, :, None] - corners[:, None], axis=-1).max((1, 2))
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1) + np.diag(np.full(len(centres), np.inf))
    odd = (extents > 2.5 * np.median(extents)) | (apart.min(1) < 0.3 * np.median(apart.min(1)))
    notes = [f"{VERTEBRAE[v]} has an implausible place or size, left as it is" for v in np.flatnonzero(odd)]
    downwards = np.argsort(centres[:, 1], kind="stable")
    rank = np.argsort(downwards)
    for v in np.flatnonzero(~odd):
        above, below = centres[downwards[max(rank[v] - 2, 0)]], centres[downwards[min(rank[v] + 2, len(centres) - 1)]]
        axis = (below - above) / np.linalg.norm(below - above)
        turn = np.array([[axis[1], -axis[0]], axis])  # into a frame whose y runs down the spine
        frames = (corners[v], corners[v] @ turn.T)  # in a curve, a vertebra is upright in one of them
        if not any(in_order(frame) for frame in frames):
            orders = [list(order) for order in permutations(range(4)) if in_order(frames[1][list(order)])]
            if orders:
                corners[v] = corners[v][orders[0]]
                notes.append(f"the corners of {VERTEBRAE[v]} were swapped, put in order")
            else:
                notes.append(f"the corners of {VERTEBRAE[v]} do not form a quadrilateral, left as they are")
    moved = [VERTEBRAE[v] for v in range(len(centres)) if abs(int(np.flatnonzero(downwards == v)[0]) - v) > 1]
    if (downwards != np.arange(len(centres))).any():
        what = f"the vertebrae are not listed from top to bottom (e.g. {(moved or ['neighbours'])[-1]})"
        notes.append(f"{what}, {'left as they are' if odd.any() else 'put in order'}")
        corners = corners if odd.any() else corners[downwards]
    return corners.reshape(-1, 2), notes


def in_order(corners: np.ndarray) -> bool:
    """Return whether the corners (4, 2) of a vertebra are top left, top right, bottom left, bottom right.

    That is, whether they form a convex quadrilateral in clockwise order, and no other first corner would make it more
    upright.
    """
    ring = corners[[0, 1, 3, 2]]
    sides = np.roll(ring, -1, 0) - ring
    following = np.roll(sides, -1, 0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    return bool((turns > 0).all() and np.argmax([uprightness(np.roll(ring, -n, 0)) for n in range(4)]) == 0)


def uprightness(ring: np.ndarray) -> float:
    """Return how far the bottom of four corners, clockwise from top left, is below the top, plus right from left."""
    top_left, top_right, bottom_right, bottom_left = ring
    return float(
        (bottom_left + bottom_right - top_left - top_right)[1] + (top_right + bottom_right - top_left - bottom_left)[0]
    )
