"""Write test images in other frames: with borders, with parts cut off, smaller and larger. Landmarks move with them.

    python -m experiments.frames FOLDER OUT [--set test1]

FOLDER is a data set as tools.convert writes it. OUT/imgs and OUT/json/data.json hold each image of one of its test sets
once untouched and once per frame; each frame is a test set of its own:

    python main.py --test CHECKPOINT --img_dir OUT/imgs --json_path OUT/json/data.json

Errors in mm are comparable: a spacing changes with its image's scale.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from machine import exit_status
from reading.images import read_image
from run_folder import write_text
from settings import Parser, UserError, read_json
from tools.formats.files import check_out, filling

BORDER = 0.2  # of the side that it lengthens
CUT = (0.15, 0.1)  # of each side: the most that is cut off, and the least
GREY = 128
# name -> sides (left, top, right, bottom) that get a border or lose a part, its grey level, and the scale
FRAMES: dict[str, tuple[tuple[int, int, int, int], int | None, float]] = {
    "untouched": ((0, 0, 0, 0), None, 1.0),
    "black-left": ((1, 0, 0, 0), 0, 1.0), "grey-right": ((0, 0, 1, 0), GREY, 1.0),
    "black-top-right": ((0, 1, 1, 0), 0, 1.0), "grey-left-bottom": ((1, 0, 0, 1), GREY, 1.0),
    "black-all": ((1, 1, 1, 1), 0, 1.0), "grey-all": ((1, 1, 1, 1), GREY, 1.0),
    "cut": ((1, 1, 1, 1), None, 1.0), "smaller": ((0, 0, 0, 0), None, 0.6), "larger": ((0, 0, 0, 0), None, 1.5),
}  # fmt: skip


def frame_image(image: np.ndarray, points: np.ndarray, frame: str) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (h, w[, 3]) and its landmarks (N, 2), original px, in another frame."""
    sides, grey, scale = FRAMES[frame]
    size = np.array([image.shape[1], image.shape[0]])
    if grey is not None:
        left, top, right, bottom = (round(BORDER * size[n % 2]) * side for n, side in enumerate(sides))
        image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(grey,) * 3)
        return image, points + (left, top)
    if any(sides):  # at most what lies two hundredths of the image beside all landmarks
        free = np.concatenate([np.nanmin(points, 0) / size, 1 - np.nanmax(points, 0) / size]) - 0.02
        left, top, right, bottom = (
            int(share * size[n % 2]) for n, share in enumerate(np.where(free >= CUT[1], np.minimum(free, CUT[0]), 0.0))
        )
        return image[top : size[1] - bottom, left : size[0] - right], points - (left, top)
    if scale != 1:
        target = np.round(size * scale).astype(int)
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, tuple(target.tolist()), interpolation=way)
        return image, (points + 0.5) * (target / size) - 0.5
    return image, points


def write_frames(folder: Path, out: Path, test_set: str) -> int:
    """Write the images and records of every frame; return the number of images. Raises UserError."""
    records = [r for r in read_json(folder / "json" / "data.json") if r.get("split") == test_set]
    if not records:
        raise UserError(f"{folder / 'json' / 'data.json'} has no record of split {test_set!r}")
    check_out(out)
    written: list[dict[str, Any]] = []
    with filling(out):
        (out / "imgs").mkdir(parents=True)
        (out / "json").mkdir()
        for record in tqdm(records, "framing", disable=None):
            image = read_image(folder / "imgs" / record["imagePath"])
            points = np.array([(p.get("X"), p.get("Y")) for p in record["points"]], float)  # None: nan
            for frame, (_, _, scale) in FRAMES.items():
                framed, moved = frame_image(image, points, frame)
                name = f"{Path(record['imagePath']).stem}-{frame}.png"
                cv2.imwrite(str(out / "imgs" / name), framed[..., ::-1] if framed.ndim == 3 else framed)
                own = copy.deepcopy(record) | {"imagePath": name, "split": frame}
                own.pop("readers", None)
                if "spacing" in own:
                    own["spacing"] /= scale
                for point, (x, y) in zip(own["points"], moved, strict=True):
                    if np.isfinite(x):  # else it is missing
                        point |= {"X": round(float(x), 3), "Y": round(float(y), 3)}
                written.append(own)
        write_text(out / "json" / "data.json", json.dumps(written))
    return len(written)


def main() -> int:
    """Return the exit status: 2 for a mistake of the user."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the data set")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument("--set", default="test1", metavar="NAME", help="its test set to frame (test1)")

    def run() -> None:
        options = parser.parse_args()
        print(f"{write_frames(options.folder, options.out, options.set)} images in {options.out}")

    return exit_status(run)


if __name__ == "__main__":
    raise SystemExit(main())
