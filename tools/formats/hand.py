"""Hands of the Digital Hand Atlas, 37 landmarks, as Payer et al. annotated them.

    SOURCE/all.csv                    3142,297,1913,324,1812,...   no header: id, then 37 x,y pairs in px
    SOURCE/images/3142.jpg
    SOURCE/cv/set1/{train,test}.txt   an id per line, three folds

SOURCE is the folder that holds these files. No spacing is stored; by convention the wrist, from landmark 1 to
landmark 5, is 50 mm wide in every image.
"""

import math
from pathlib import Path

from settings import UserError
from tools.formats.common import Images, Reading, make_record, numbers
from tools.formats.files import check_folder, read_csv, read_text

PRESET = "hand"
NUM_LANDMARKS, WRIST_MM = 37, 50.0


def read(source: Path, fold: int = 1) -> Reading:
    """Read all.csv.

    fold: 1, 2 or 3: the fold that sets the split into train and test; 0: no split
    """
    check_folder(source, "the folder that holds all.csv and images")
    pictures, pairs, notes = Images(source / "images"), [], []
    splits = {}
    for split in ("train", "test") if fold else ():
        file = source / "cv" / f"set{fold}" / f"{split}.txt"
        for id_ in read_text(file).split():
            if id_ in splits:
                raise UserError(f"{file}: {id_} is in both lists, or twice in one; keep one")
            splits[id_] = split
    for place, (id_, *cells) in enumerate(read_csv(source / "all.csv"), 1):
        where = f"{source / 'all.csv'}: line {place} ({id_})"
        values = numbers(cells, where, 2 * NUM_LANDMARKS)
        points = {str(n + 1): (values[2 * n], values[2 * n + 1]) for n in range(NUM_LANDMARKS)}
        path = pictures.take_if_there(id_, where, notes)
        if path is None:
            continue
        if fold and id_ not in splits:
            notes.append(f"{id_}: in neither list of fold {fold}, so it trains")
            splits[id_] = "train"
        wrist = math.dist(points["1"], points["5"])
        if not wrist > 0:
            raise UserError(f"{where}: landmarks 1 and 5 are the same point; the spacing needs their distance")
        names = {label: f"Landmark {label}" for label in points}
        pairs.append(
            (path, make_record(pictures.name(path), points, names, spacing=WRIST_MM / wrist, split=splits.get(id_)))
        )
    return pictures.reading(source, pairs, notes)
