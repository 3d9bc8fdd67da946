"""Write and read predictions.csv, the record of a test: a row per image and landmark. The rest is derived from it."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from run_folder import write_csv
from settings import UserError, require_file

OWN_COLUMNS = ("x", "y", "x_true", "y_true", "error", "score", "occluded", "verdict", "reason")  # others are extras
TEXTS = ("verdict", "reason")  # columns of text, the same for all landmarks of an image


def write_predictions(path: Path, predictions, abbreviations: Sequence[str], unit: str) -> None:
    """Write evaluate.Predictions with the columns image, landmark, x, y, x_true, y_true, error_<unit>, score, extras.

    Coordinates are in original px. Unknown truth, errors and extras stay blank. If data.json marks occluded landmarks,
    the column occluded is 1 for them and 0 for the others. If images were judged, verdict and reason follow.
    """
    errors, further = predictions.errors(), dict(predictions.extras)
    if predictions.occluded is not None and predictions.occluded.any():
        further = {"occluded": predictions.occluded} | further

    def text(value: float) -> str:
        return f"{value:.4f}" if math.isfinite(value) else ""

    head = ["image", "landmark", "x", "y", "x_true", "y_true", f"error_{unit}", "score", *further]
    head += TEXTS if predictions.verdicts else ()
    rows = [head]
    for i, name in enumerate(predictions.names):
        for n, abbreviation in enumerate(abbreviations):
            values = [*predictions.landmarks[i, n], *predictions.truth[i, n], errors[i, n], predictions.score[i, n]]
            values += [extra[i, n] for extra in further.values()]
            rows.append(
                [name, abbreviation, *map(text, values), *(predictions.verdicts[i] if predictions.verdicts else ())]
            )
    write_csv(path, rows)


class PredictionTable(NamedTuple):
    """The contents of a predictions.csv of I images and N landmarks, coordinates in original px."""

    names: list[str]  # (I) imagePath of each image
    abbreviations: list[str]  # (N)
    columns: dict[str, np.ndarray]  # (I, N) by name, nan where blank (text: ""); error_<unit> is called "error"
    unit: str  # mm, or px if the spacing is unknown

    @property
    def errors(self) -> np.ndarray:
        """(I, N) radial errors in the unit, nan where the truth is unknown."""
        return self.columns["error"]

    @property
    def landmarks(self) -> np.ndarray:
        """(I, N, 2) predicted landmarks (x, y)."""
        return np.stack([self.columns["x"], self.columns["y"]], -1)

    @property
    def truth(self) -> np.ndarray:
        """(I, N, 2) annotated landmarks (x, y), nan where missing."""
        return np.stack([self.columns["x_true"], self.columns["y_true"]], -1)

    @property
    def extras(self) -> dict[str, np.ndarray]:
        """(I, N) by name: further figures of a method, such as Dice."""
        return {name: values for name, values in self.columns.items() if name not in OWN_COLUMNS}

    @property
    def verdicts(self) -> list[tuple[str, str]]:
        """Verdict and reason of each image; [] if the images were not judged."""
        if not set(TEXTS) <= set(self.columns):
            return []
        return list(zip(*(self.columns[name][:, 0].tolist() for name in TEXTS), strict=True))

    def part(self, name: str, exclude: Sequence[str]) -> np.ndarray:
        """Return which points (I, N) a part of the report covers: bool.

        name: "all"; "headline", all but the landmarks in `exclude`; or "occluded".
        """
        if name == "occluded":
            return self.columns["occluded"] == 1
        kept = np.array([name == "all" or landmark not in exclude for landmark in self.abbreviations])
        return np.broadcast_to(kept, self.errors.shape)


def read_predictions(path: Path) -> PredictionTable:
    """Read a predictions.csv, in any order of rows. Raises UserError for a damaged or foreign file."""
    rows = read_rows(path)
    unit = "mm" if "error_mm" in rows[0] else "px"
    absent = [name for name in ("image", "landmark", *OWN_COLUMNS[:4], f"error_{unit}") if name not in rows[0]]
    if absent:
        raise UserError(f"{path} has no column {absent[0]}; give the predictions.csv of a run")
    images = {name: i for i, name in enumerate(dict.fromkeys(row["image"] for row in rows))}
    landmarks = {name: n for n, name in enumerate(dict.fromkeys(row["landmark"] for row in rows))}
    grid = np.zeros((len(images), len(landmarks)), int)
    columns = {name: np.full(grid.shape, math.nan) for name in rows[0] if name not in ("image", "landmark")}
    columns |= {name: np.full(grid.shape, "", object) for name in TEXTS if name in rows[0]}
    for row in rows:
        place = images[row["image"]], landmarks[row["landmark"]]
        grid[place] += 1
        for name, values in columns.items():
            if name in TEXTS:
                values[place] = row[name]
                continue
            try:
                values[place] = float(row[name] or "nan")
            except ValueError:
                values[place] = math.inf
            if math.isinf(values[place]):
                where = f"{path}: image {row['image']}, landmark {row['landmark']}: {name}"
                raise UserError(f"{where} is {row[name]!r}; expected a number or a blank; copy the file again")
    for i, n in np.argwhere(grid != 1)[:1]:
        what = "no row" if grid[i, n] == 0 else f"{grid[i, n]} rows"
        where = f"{path}: image {list(images)[i]}, landmark {list(landmarks)[n]}"
        raise UserError(f"{where} has {what}; expected one per image and landmark; copy the file again")
    columns["error"] = columns.pop(f"error_{unit}")
    return PredictionTable(list(images), list(landmarks), columns, unit)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a csv file, each by column. Raises UserError for an empty or damaged file."""
    require_file(path, "give the predictions.csv of a run")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            head, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read as csv in UTF-8 ({error}); give the predictions.csv of a run") from None
    if not rows:
        raise UserError(f"{path} holds no rows; give the predictions.csv of a run that was tested")
    if len(head) == 1 and re.search("[;\t]", head[0]):
        raise UserError(f"{path} is separated by semicolons or tabs; save it with commas and decimal points")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise UserError(f"{path}: row {number} has {len(row)} cells, expected {len(head)}; copy the file again")
    return [dict(zip(head, row, strict=True)) for row in rows]


def pool_predictions(sources: Sequence[Path], path: Path) -> None:
    """Write the rows of several predictions.csv into one file; cells stay blank where a source lacks the column."""
    rows = [row for source in sources for row in read_rows(source)]
    head = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(path, [head, *([row.get(name, "") for name in head] for row in rows)])
