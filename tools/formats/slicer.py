"""3D Slicer markups: a .fcsv or .mrk.json file per image, named like the image.

    # Markups fiducial file version = 4.11
    # CoordinateSystem = LPS
    # columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
    1,12.3,45.6,0,0,0,0,1,1,1,0,S,,

    {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS",
                  "controlPoints": [{"label": "S", "position": [12.3, 45.6, 0.0], "positionStatus": "defined"}]}]}

SOURCE is the folder of these files. Positions are mm in patient space, not px: px = (position - origin) / mm_per_px in
LPS, where x and y of a plain picture grow as its columns and rows do; in RAS both signs are reversed. Slicer shows a
picture at 1 mm per px, except a JPEG or TIFF that states its dots per inch, which it shows at 25.4 / dpi.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from settings import UserError
from tools.formats.common import Images, Reading, add_point, numbers
from tools.formats.files import check_folder, expecting, read_json, read_text

COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
SIGNS = {"LPS": 1, "1": 1, "RAS": -1, "0": -1}  # older files have numbers


def read(
    source: Path,
    images: Path | None = None,
    landmarks: tuple[str, ...] = (),
    mm_per_px: float | None = None,
    origin: tuple[float, ...] = (0.0, 0.0),
) -> Reading:
    """Read all .fcsv and .mrk.json files in a folder and its subfolders.

    mm_per_px: spacing of the images in Slicer, which becomes their spacing; default: 1, and no spacing
    origin: x,y of the first pixel in Slicer, mm in LPS, e.g. --origin=-5,1
    """
    if (mm_per_px is not None and not mm_per_px > 0) or len(origin) != 2:
        raise UserError("--mm_per_px must be above 0, and --origin two numbers")
    check_folder(source, "the folder of the .fcsv or .mrk.json files")
    pictures, notes = Images(images or source), []
    tables: dict[Path, dict[str, Any]] = {}
    for file in sorted([*source.rglob("*.fcsv"), *source.rglob("*.mrk.json")]):
        path = pictures.take(file.name.removesuffix(".fcsv").removesuffix(".mrk.json"), file)
        if mm_per_px is None and (dots := dots_per_inch(path)) is not None:
            raise UserError(
                f"{path} has {dots:g} dots per inch, which Slicer takes for {25.4 / dots:g} mm per px; give --mm_per_px"
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
        tables[path] = table
    return pictures.labelled_reading(source, tables, landmarks, notes, spacing=mm_per_px)


def dots_per_inch(path: Path) -> float | None:
    """Return the resolution that a JPEG or TIFF states, None if it states none."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".tif", ".tiff"):
        return None
    with Image.open(path) as image:
        dots = float(image.info.get("dpi", (0, 0))[0])
    return dots if dots > 1 else None


def read_fcsv(file: Path) -> tuple[str, list[tuple[str, list[str]]]]:
    """Return the coordinate system of a .fcsv (RAS if an old one does not state it) and its labelled positions."""
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
                cells = dict(zip(columns, row, strict=False))  # newer files have more fields than their header
                positions.append((cells["label"], [cells["x"], cells["y"], cells["z"]]))
    return system, positions


def read_markups(file: Path) -> tuple[str, list[tuple[str, list[float] | None]]]:
    """Return the coordinate system of a .mrk.json and its labelled positions, None where not defined."""
    content = read_json(file)
    with expecting(file, "a Slicer file with one list of markups"):
        (markup,) = content["markups"]
        return markup["coordinateSystem"], [
            (point["label"], point["position"] if point.get("positionStatus", "defined") == "defined" else None)
            for point in markup["controlPoints"]
        ]
