"""ISBI 2014/2015 cephalograms: the official archive -> records of data.json.

    RawImage/{TrainingData,Test1Data,Test2Data}/NNN.{bmp,jpg,png}      1935 x 2400 px, 0.1 mm per px by convention
    AnnotationsByMD/{400_senior,400_junior}/NNN.txt                    19 lines "x,y" in px, then clinical classes

Wang et al., "A benchmark for comparison of dental radiography analysis algorithms", Med. Image Anal. 2016. Images
001-150 train, 151-300 are Test1, 301-400 Test2. Known oddities: 038 = 283 and 144 = 173 are the same image on both
sides of the official split; in Test2 five landmarks follow another convention.
"""

from pathlib import Path

import numpy as np

from config import UserError

SPACING = 0.1  # mm per px
SETS = {"TrainingData": "train", "Test1Data": "test1", "Test2Data": "test2"}
READERS = {"senior": ("400_senior",), "junior": ("400_junior",), "mean": ("400_senior", "400_junior")}
# In the archive's order; abbreviations of the 52-landmark table, so that sets can be compared by them.
LANDMARKS = (
    ("Sella turcica", "S"), ("Nasion", "N"), ("Orbitale", "Or"), ("Porion", "P"), ("A point", "A"), ("B point", "B"),
    ("Pogonion", "Pog"), ("Menton", "Me"), ("Gnathion", "Gn"), ("Gonion", "Go"), ("Incision inferior", "Is1l"),
    ("Incision superior", "Is1u"), ("Labrale superior", "Ls"), ("Labrale inferior", "Li"), ("Subnasale", "Sn"),
    ("Soft tissue Pogonion", "Pog’"), ("Posterior nasal spine", "PNS"), ("Anterior nasal spine", "ANS"),
    ("Articulare", "ar"),
)  # fmt: skip


def read(source: Path, reader: str = "mean") -> list[tuple[Path, dict]]:
    """Image files and their records, in the order of the archive's sets and numbers.

    reader: "senior", "junior", or "mean" of both, the usual truth. Sets that are not there are left out.
    Raises UserError for a folder without images, an image without annotation, or a file that is cut off.
    """
    if not (source / "RawImage").is_dir():
        raise UserError(f"{source} has no folder RawImage; give the folder that holds RawImage and AnnotationsByMD")
    pairs = []
    for folder, split in SETS.items():
        endings = (".bmp", ".jpg", ".jpeg", ".png")
        images = sorted(p for p in (source / "RawImage").glob(f"{folder}/*") if p.suffix.lower() in endings)
        for image in images:
            files = [source / "AnnotationsByMD" / name / f"{image.stem}.txt" for name in READERS[reader]]
            landmarks = np.mean([read_points(file) for file in files], axis=0)
            points = [
                {"pointName": name, "pointAbbreviation": abbreviation, "X": float(x), "Y": float(y)}
                for (name, abbreviation), (x, y) in zip(LANDMARKS, landmarks, strict=True)
            ]
            pairs.append((image, {"imagePath": image.name, "split": split, "spacing": SPACING, "points": points}))
    if not pairs:
        raise UserError(f"{source / 'RawImage'} holds no images in {', '.join(SETS)}")
    return pairs


def read_points(file: Path) -> np.ndarray:
    """The first 19 lines of a txt file as points (19, 2) px; the classes below them are left."""
    try:
        lines = file.read_text(encoding="utf-8").split()[: len(LANDMARKS)]
        points = np.array([[float(value) for value in line.split(",")] for line in lines])
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: every image needs its annotation") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected {len(LANDMARKS)} lines x,y in px") from None
    if points.shape != (len(LANDMARKS), 2):
        raise UserError(f"{file}: expected {len(LANDMARKS)} lines x,y in px, found {len(points)}")
    return points
