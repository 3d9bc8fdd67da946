"""AASCE 2019 spines: 17 vertebrae (T1-T12, L1-L5) with four corners each, 68 landmarks, and three Cobb angles.

    data/training/NAME.jpg
    labels/training/filenames.csv    NAME.jpg                       the rows of the three files belong together
    labels/training/landmarks.csv    0.478,0.666,...                68 x, then 68 y, as fractions of width and height
    labels/training/angles.csv       41.139,14.63,40.147            degrees
    labels/training/NAME.jpg.mat     key p2, (68, 2), px            the same points; reading it needs scipy

Wu et al., "Automatic landmark estimation for adolescent idiopathic scoliosis assessment using BoostNet", MICCAI 2017.
Vertebrae stand from top to bottom, their corners as top left, top right, bottom left, bottom right, by convention only:
in some images a vertebra stands at the wrong end of the list, of some vertebrae corners are swapped. Both are put in
order here where the points leave no doubt, and noted.
"""

from itertools import permutations
from pathlib import Path

import numpy as np

from settings import UserError
from tools.formats.common import Images, Reading, check_folder, image_size, make_record, numbers, read_csv

PRESET = "spine"
VERTEBRAE = [f"T{n}" for n in range(1, 13)] + [f"L{n}" for n in range(1, 6)]
CORNERS = ("TL", "TR", "BL", "BR")
WORDS = {"TL": "top left", "TR": "top right", "BL": "bottom left", "BR": "bottom right"}
NAMES = {f"{v}-{c}": f"{v} {WORDS[c]}" for v in VERTEBRAE for c in CORNERS}


def read(source: Path, labels: str = "csv", repair: bool = True) -> Reading:
    """The records of the archive's training set. labels: csv or mat; repair: put points in order."""
    if labels not in ("csv", "mat"):
        raise UserError(f"labels is {labels!r}; choose csv or mat")
    folder = check_folder(source / "labels" / "training", "the folder that holds data/training and labels/training")
    pictures = Images(source / "data" / "training")
    tables = {name: read_csv(folder / f"{name}.csv") for name in ("filenames", "landmarks", "angles")}
    if len({len(table) for table in tables.values()}) != 1:
        counts = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
        raise UserError(
            f"{folder}: nothing but the row number joins the files, and their rows are not as many: {counts}"
        )
    pairs, notes, done = [], [], set()
    rows = zip(tables["filenames"], tables["landmarks"], tables["angles"], strict=True)
    for place, ((name, *_), cells, angles) in enumerate(rows, 1):
        path = pictures.find(name)
        if name in done:
            raise UserError(f"{folder / 'filenames.csv'}: line {place}: {name} stands twice")
        done.add(name)
        if path is None:
            notes.append(f"{name}: skipped, there is no image of it")
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
        pairs.append((path, make_record(path.name, table, NAMES, cobb_angles=cobb)))
    if not pairs:
        raise UserError(f"{source}: no row of filenames.csv has an image")
    return Reading(pairs, notes + pictures.unused())


def read_mat(file: Path) -> np.ndarray:
    """The points (68, 2) px of a .mat file. Raises UserError."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError("reading .mat files needs scipy: pip install scipy, or labels csv") from None
    try:
        points = np.asarray(loadmat(file, variable_names=["p2"])["p2"], float)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise UserError(f"{file} cannot be read as a .mat file with p2: {error}") from None
    if points.shape != (len(NAMES), 2) or not np.isfinite(points).all():
        raise UserError(f"{file}: expected p2 of {len(NAMES)} x 2 finite numbers, found {points.shape}")
    return points


def order_points(points: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Points (68, 2), vertebrae from top to bottom and their corners in conventional order; notes of what was not.

    Left as it is, and noted, is a vertebra of which one cannot tell: more than 2.5 times as large as the others, or
    with its centre nearly at that of another; and then also the order of that image's vertebrae.
    """
    corners = points.reshape(-1, 4, 2).copy()
    centres = corners.mean(1)
    extents = np.linalg.norm(corners[:, :, None] - corners[:, None], axis=-1).max((1, 2))
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1) + np.diag(np.full(len(centres), np.inf))
    odd = (extents > 2.5 * np.median(extents)) | (apart.min(1) < 0.3 * np.median(apart.min(1)))
    notes = [f"{VERTEBRAE[v]} is not where or what a vertebra can be, left as it is" for v in np.flatnonzero(odd)]
    downwards = np.argsort(centres[:, 1], kind="stable")
    rank = np.argsort(downwards)
    for v in np.flatnonzero(~odd):
        above, below = centres[downwards[max(rank[v] - 2, 0)]], centres[downwards[min(rank[v] + 2, len(centres) - 1)]]
        axis = (below - above) / np.linalg.norm(below - above)
        turn = np.array([[axis[1], -axis[0]], axis])  # into a frame whose y runs down the spine
        frames = (corners[v], corners[v] @ turn.T)  # in a curve a vertebra is tilted against one of them, not both
        if not any(in_order(frame) for frame in frames):
            orders = [list(order) for order in permutations(range(4)) if in_order(frames[1][list(order)])]
            if orders:
                corners[v] = corners[v][orders[0]]
                notes.append(f"the corners of {VERTEBRAE[v]} were swapped, put in order")
            else:
                notes.append(f"the corners of {VERTEBRAE[v]} are no quadrilateral, left as they are")
    moved = [VERTEBRAE[v] for v in range(len(centres)) if abs(int(np.flatnonzero(downwards == v)[0]) - v) > 1]
    if (downwards != np.arange(len(centres))).any():
        what = f"the vertebrae do not stand from top to bottom (e.g. {(moved or ['neighbours'])[-1]})"
        notes.append(f"{what}, {'left as they are' if odd.any() else 'put in order'}")
        corners = corners if odd.any() else corners[downwards]
    return corners.reshape(-1, 2), notes


def in_order(corners: np.ndarray) -> bool:
    """Whether the corners (4, 2) of a vertebra are top left, top right, bottom left, bottom right, tilted or not.

    That is a convex quadrilateral, gone round clockwise, that begins where it leaves the corners tilted the least.
    """
    ring = corners[[0, 1, 3, 2]]
    sides = np.roll(ring, -1, 0) - ring
    following = np.roll(sides, -1, 0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    return bool((turns > 0).all() and np.argmax([uprightness(np.roll(ring, -n, 0)) for n in range(4)]) == 0)


def uprightness(ring: np.ndarray) -> float:
    """How far the bottom of a ring of corners (4, 2), from top left clockwise, is below its top, and right of left."""
    top_left, top_right, bottom_right, bottom_left = ring
    return float(
        (bottom_left + bottom_right - top_left - top_right)[1] + (top_right + bottom_right - top_left - bottom_left)[0]
    )
