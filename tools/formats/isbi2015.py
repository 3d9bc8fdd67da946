"""ISBI 2014/2015 cephalograms, the official archive: 19 landmarks of two readers.

    SOURCE/RawImage/{TrainingData,Test1Data,Test2Data}/NNN.{bmp,jpg,png}   1935 x 2400 px, 0.1 mm per px by convention
    SOURCE/AnnotationsByMD/{400_senior,400_junior}/NNN.txt                 19 lines "x,y" in px, then clinical classes

    835,996
    1473,1029

SOURCE is the folder of the archive. Wang et al., "A benchmark for comparison of dental radiography analysis
algorithms", Med. Image Anal. 2016. Images 001-150 train, 151-300 are Test1, 301-400 Test2. Known oddities: 038 = 283
and 144 = 173 are the same images on both sides of the official split; in Test2 five landmarks follow another
convention.
"""

from pathlib import Path

import numpy as np

from settings import UserError
from tools.formats.common import Reading, make_record
from tools.formats.files import check_folder

PRESET = "isbi2015"
SPACING = 0.1  # mm per px
SETS = {"TrainingData": "train", "Test1Data": "test1", "Test2Data": "test2"}
READERS = {"mean": ("senior", "junior"), "senior": ("senior",), "junior": ("junior",)}
# In the archive's order, with the abbreviations of the 52-landmark table, so that data sets can be compared.
LANDMARKS = (
    ("Sella turcica", "S"), ("Nasion", "N"), ("Orbitale", "Or"), ("Porion", "P"), ("A point", "A"), ("B point", "B"),
    ("Pogonion", "Pog"), ("Menton", "Me"), ("Gnathion", "Gn"), ("Gonion", "Go"), ("Incision inferior", "Is1l"),
    ("Incision superior", "Is1u"), ("Labrale superior", "Ls"), ("Labrale inferior", "Li"), ("Subnasale", "Sn"),
    ("Soft tissue Pogonion", "Pog’"), ("Posterior nasal spine", "PNS"), ("Anterior nasal spine", "ANS"),
    ("Articulare", "ar"),
)  # fmt: skip


def read(source: Path, reader: str = "mean") -> Reading:
    """Read the sets of the archive that are there, in the order of their images, with both readers' points.

    Raises UserError for a folder without images, an image without annotation, or a file that is cut off.
    reader: which reader's points: mean of both (the usual truth), senior or junior
    """
    if reader not in READERS:
        raise UserError(f"reader is {reader!r}; choose one of {', '.join(READERS)}")
    check_folder(source / "RawImage", "the folder that holds RawImage and AnnotationsByMD")
    names = {abbreviation: name for name, abbreviation in LANDMARKS}
    pairs = []
    for folder, split in SETS.items():
        endings = (".bmp", ".jpg", ".jpeg", ".png")
        images = sorted(p for p in (source / "RawImage").glob(f"{folder}/*") if p.suffix.lower() in endings)
        for image in images:
            both = {
                who: read_lines(source / "AnnotationsByMD" / name / f"{image.stem}.txt")
                for who, name in (("senior", "400_senior"), ("junior", "400_junior"))
            }
            points = np.mean([both[who] for who in READERS[reader]], axis=0)
            record = make_record(
                image.name, dict(zip(names, points.tolist(), strict=True)), names, split=split, spacing=SPACING,
                readers={who: each.tolist() for who, each in both.items()},
            )  # fmt: skip
            pairs.append((image, record))
    if not pairs:
        raise UserError(f"{source / 'RawImage'} holds no images in {', '.join(SETS)}")
    return Reading(pairs, [])


def read_lines(file: Path) -> np.ndarray:
    """Return the first 19 lines of a txt file as points (19, 2) px; the clinical classes below are ignored."""
    try:
        lines = file.read_text(encoding="utf-8").split()[: len(LANDMARKS)]
        points = np.array([[float(value) for value in line.split(",")] for line in lines])
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; every image needs its annotation") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected {len(LANDMARKS)} lines x,y in px") from None
    if not np.isfinite(points).all():
        raise UserError(f"{file}: expected {len(LANDMARKS)} lines x,y in px, found a number that is not finite")
    if points.shape != (len(LANDMARKS), 2):
        raise UserError(f"{file}: expected {len(LANDMARKS)} lines x,y in px, found {len(points)}")
    return points
