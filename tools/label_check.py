"""Find doubtful annotations: points that do not lie where the other landmarks of their image put them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reading.annotation import Record
from reading.shapes import BOTH_WAYS, doubts, fit_shapes, shape_size
from run_folder import write_csv
from tools.review import write_page
from tools.review_source import read_data_set

FEWEST = 20  # images: below, what is usual cannot be learned from the others
MOST = 15  # listed on the terminal and on the page
MIRRORED = "the image is mirrored"
STRIKING = 1.5  # times the usual distance of a landmark from where the others put it, plus that of all landmarks


class Doubt(NamedTuple):
    """The most doubtful point of an image."""

    image: str
    landmark: str
    distance: float  # from where the others put it, mm, or px if the spacing is unknown
    doubt: float  # that distance relative to what is usual: reading.shapes.doubts
    slip: str  # what it may be


def find_doubts(abbreviations: Sequence[str], records: Sequence[Record]) -> list[Doubt]:
    """Return the most doubtful point of each image with three points or more, the most doubtful image first.

    Mirrored images come before all others, unless the set faces BOTH_WAYS. [] if there are fewer than FEWEST images.
    """
    records = [record for record in records if np.isfinite(record.landmarks).all(-1).sum() > 2]
    if len(records) < FEWEST:
        return []
    points = np.stack([record.landmarks for record in records])
    _, places, mirrored = fit_shapes(points)
    mirrored &= mirrored.mean() <= BOTH_WAYS
    sizes = np.array([shape_size(own) for own in points])
    doubt = doubts((points - places) / sizes[:, None, None])
    found = []
    for i, record in enumerate(records):
        if not np.isfinite(doubt[i]).any():  # too few points that other images have as well
            continue
        n = int(np.nan_to_num(doubt[i]).argmax())
        distance = float(np.linalg.norm(points[i, n] - places[i, n])) * float(np.nan_to_num(record.spacing, nan=1))
        slip = MIRRORED if mirrored[i] else name_slip(abbreviations, points[i], places[i], n)
        found.append(Doubt(record.name, abbreviations[n], distance, float(doubt[i, n]), slip))
    return sorted(found, key=lambda each: (each.slip != MIRRORED, -each.doubt))


def name_slip(abbreviations: Sequence[str], points: np.ndarray, places: np.ndarray, n: int) -> str:
    """Return what may be wrong with point n of an image: swapped with another one, or far off.

    points, places: (N, 2), where they are and where the others put them.
    """
    apart = np.linalg.norm(points - places, axis=-1)
    own, other = np.linalg.norm(points - places[n], axis=-1), np.linalg.norm(points[n] - places, axis=-1)
    swapped = np.nan_to_num(own + other, nan=np.inf)  # what would be left of both distances
    swapped[n] = np.inf
    partner = int(swapped.argmin())
    if swapped[partner] < (apart[n] + apart[partner]) / 2:
        return f"swapped with {abbreviations[partner]}"
    return "far off"


def describe_doubts(found: Sequence[Doubt], unit: str, path: Path) -> list[str]:
    """Write all doubts as a csv file; return those that stand out, line by line."""
    if not found:
        return [f"doubtful annotations: not looked for; that takes {FEWEST} images with three points or more"]
    rows = [[each.image, each.landmark, f"{each.distance:.3f}", f"{each.doubt:.3f}", each.slip] for each in found]
    write_csv(path, [["image", "landmark", f"distance_{unit}", "doubt", "slip"], *rows])
    striking = [each for each in found if each.doubt > STRIKING or each.slip == MIRRORED]
    if not striking:
        return [f"doubtful annotations: none stands out; {path} has the most doubtful point of each image"]
    return [
        f"doubtful annotations, worst first ({len(striking)}; {path} has the most doubtful point of each image):",
        *(
            f"  {each.image}: {each.landmark} is {each.distance:.1f} {unit} from where the other landmarks put it"
            f"{'' if each.slip == 'far off' else f', {each.slip}?'}"
            for each in striking[:MOST]
        ),
    ]


def write_review(folder: Path, found: Sequence[Doubt], path: Path) -> None:
    """Write the review page of the MOST most doubtful images of a data set, worst first. Raises UserError."""
    review = read_data_set(folder / "json" / "data.json", None, None)
    shown = {image.record["imagePath"]: image for image in review.images}
    chosen = [shown.pop(each.image) for each in found[:MOST]]
    others = review.others | {image.place: image.record for image in shown.values()}
    write_page(review._replace(images=chosen, others=others), path, 1200, False)
