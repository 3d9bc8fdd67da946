"""3D Slicer markups: a .fcsv or .mrk.json file per image, of the image's name.

    # Markups fiducial file version = 4.11
    # CoordinateSystem = LPS
    # columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
    1,12.3,45.6,0,0,0,0,1,1,1,0,S,,

    {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS",
                  "controlPoints": [{"label": "S", "position": [12.3, 45.6, 0.0], "positionStatus": "defined"}]}]}

mm in patient space, not px: px = (position - origin) / spacing, in LPS, where x and y of a plain picture grow as its
columns and rows do; a file in RAS has both signs turned. Slicer gives a picture 1 mm per px, but a JPEG or TIFF that
tells its dots per inch 25.4 over these.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from settings import UserError
from tools.formats.common import (
    Images,
    Reading,
    add_point,
    check_folder,
    expecting,
    make_record,
    numbers,
    read_json,
    read_text,
    same_landmarks,
)

COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
SIGNS = {"LPS": 1, "1": 1, "RAS": -1, "0": -1}  # numbers in older files


def read(
    source: Path,
    images: Path | None = None,
    landmarks: Sequence[str] = (),
    mm_per_px: float | None = None,
    origin: Sequence[float] = (0.0, 0.0),
) -> Reading:
    """The records of all .fcsv and .mrk.json files in a folder; images: the folder of the images, else the same.

    mm_per_px, origin (x, y in mm, LPS): those of the images in Slicer; none: 1, which becomes no spacing.
    """
    if (mm_per_px is not None and not mm_per_px > 0) or len(origin) != 2:
        raise UserError("mm_per_px must be above 0, and origin two numbers")
    check_folder(source, "the folder of the .fcsv or .mrk.json files")
    pictures, tables, paths, notes = Images(images or source), {}, {}, []
    for file in sorted([*source.rglob("*.fcsv"), *source.rglob("*.mrk.json")]):
        name = file.name.removesuffix(".fcsv").removesuffix(".mrk.json")
        path = pictures.find(name)
        if path is None:
            raise UserError(f"{file}: there is no image {name} in {pictures.folder}")
        if path.name in tables:
            raise UserError(f"{file}: a second annotation of {path.name}; keep one")
        if mm_per_px is None and (dots := dots_per_inch(path)) is not None:
            raise UserError(
                f"{path} has {dots:g} dots per inch, which Slicer takes for {25.4 / dots:g} mm per px; give mm_per_px"
            )
        system, positions = read_fcsv(file) if file.suffix == ".fcsv" else read_markups(file)
        if str(system) not in SIGNS:
            raise UserError(f"{file}: the coordinate system is {system!r}; expected LPS or RAS")
        table: dict[str, Any] = {}
        for label, position in positions:
            if position is None:
                continue
            values = numbers(position, f"{file}: {label!r}")
            if len(values) not in (2, 3):
                raise UserError(f"{file}: {label!r}: expected 2 or 3 coordinates, found {len(values)}")
            mm = [SIGNS[str(system)] * value for value in values[:2]]
            add_point(table, label, [(m - o) / (mm_per_px or 1) for m, o in zip(mm, origin, strict=True)], str(file))
        tables[path.name], paths[path.name] = table, path
    if not tables:
        raise UserError(f"{source} holds no .fcsv or .mrk.json files")
    tables, missing = same_landmarks(tables, landmarks)
    pairs = [(paths[name], make_record(name, table, spacing=mm_per_px)) for name, table in tables.items()]
    return Reading(pairs, notes + missing + pictures.unused())


def dots_per_inch(path: Path) -> float | None:
    """What a JPEG or TIFF tells of its resolution; none where it does not."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".tif", ".tiff"):
        return None
    with Image.open(path) as image:
        dots = float(image.info.get("dpi", (0, 0))[0])
    return dots if dots > 1 else None


def read_fcsv(file: Path) -> tuple[str, list[tuple[str, list[str]]]]:
    """The coordinate system and the labelled positions of a .fcsv; RAS where an old one does not say it."""
    system, columns, positions = "RAS", COLUMNS.split(","), []
    for line in read_text(file).splitlines():
        if line.startswith("#"):
            key, _, value = line.lstrip("# ").partition("=")
            system = value.strip() if key.strip() == "CoordinateSystem" else system
            columns = value.strip().split(",") if key.strip() == "columns" else columns
        elif line.strip():
            with expecting(file, f"lines of {len(columns)} columns: {','.join(columns)}"):
                row = line.split(",")
                if len(row) < columns.index("label") + 1:
                    raise ValueError(f"found {len(row)}")
                cells = dict(zip(columns, row, strict=False))  # newer ones have fields more than their header
                positions.append((cells["label"], [cells["x"], cells["y"], cells["z"]]))
    return system, positions


def read_markups(file: Path) -> tuple[str, list[tuple[str, list[float] | None]]]:
    """The coordinate system and the labelled positions of a .mrk.json; none where a position is not defined."""
    content = read_json(file)
    with expecting(file, "a Slicer file with one list of markups"):
        (markup,) = content["markups"]
        return markup["coordinateSystem"], [
            (point["label"], point["position"] if point.get("positionStatus", "defined") == "defined" else None)
            for point in markup["controlPoints"]
        ]
