"""3D Slicer markups: a .fcsv or .mrk.json file per image, named like the image.

    # Markups fiducial file version = 4.11
    # CoordinateSystem = LPS
    # columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
    1,12.3,45.6,0,0,0,0,1,1,1,0,S,,

    {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS",
                  "controlPoints": [{"label": "S", "position": [12.3, 45.6, 0.0], "positionStatus": "defined"}]}]}

SOURCE is the folder of these files. Positions are mm in patient space, not px: px = (position - origin) / mm_per_px in
LPS, where x and y of a plain picture grow as its columns and rows do; in RAS both signs are reversed. Slicer shows a
picture at 1 mm per px, except a JPEG or TIFF that states its dots per inch, which it shows at 25.4 / dpi. Spacing and
origin of a DICOM image are read from its file. Markups of another type, such as Line, are skipped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from reading import dicom
from reading.images import FORMATS
from reading.paths import visible_files
from settings import UserError, expecting, read_json
from tools.formats.common import Images, Reading, add_point, is_unlabelled, numbers
from tools.formats.files import check_folder, read_text

COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
SIGNS = {"LPS": 1, "1": 1, "RAS": -1, "0": -1}  # older files have numbers
MM = {"mm": 1.0, "um": 0.001, "cm": 10.0, "m": 1000.0}  # by coordinateUnits


def read(
    source: Path,
    images: Path | None = None,
    landmarks: tuple[str, ...] = (),
    mm_per_px: float | None = None,
    origin: tuple[float, ...] = (),
) -> Reading:
    """Read all .fcsv and .mrk.json files in a folder and its subfolders.

    mm_per_px: spacing of the images in Slicer, which becomes theirs; default: that of DICOM, otherwise 1 and no spacing
    origin: x,y of the first pixel in Slicer, mm in LPS, e.g. --origin=-5,1; default: that of DICOM, otherwise 0,0
    """
    if (mm_per_px is not None and not mm_per_px > 0) or len(origin) not in (0, 2):
        raise UserError("--mm_per_px must be above 0, and --origin two numbers")
    check_folder(source, "the folder of the .fcsv or .mrk.json files")
    pictures, notes = Images(images or source), []
    tables: dict[Path, dict[str, Any]] = {}
    for file in sorted([*visible_files(source, "*.fcsv"), *visible_files(source, "*.mrk.json")]):
        own = file.relative_to(source).as_posix()
        found = read_fcsv(file) if file.suffix == ".fcsv" else read_markups(file, notes)
        if found is None:
            notes.append(f"{own}: skipped, it holds no list of points (Fiducial)")
            continue
        system, scale, positions = found
        if str(system) not in SIGNS:
            raise UserError(f"{file}: the coordinate system is {system!r}; expected LPS or RAS")
        path = pictures.take(own.removesuffix(".fcsv").removesuffix(".mrk.json"), file, exact=images is None)
        mm, first = find_geometry(path, mm_per_px, origin)
        table: dict[str, Any] = {}
        for place, (label, position) in enumerate(positions, 1):
            if is_unlabelled(label):
                notes.append(f"{own}: skipped point {place}, it has no label")
                continue
            if position is None:
                continue
            values = numbers(position, f"{file}: {label!r}")
            if len(values) not in (2, 3):
                raise UserError(f"{file}: {label!r}: expected 2 or 3 coordinates, found {len(values)}")
            lps = [SIGNS[str(system)] * scale * value for value in values[:2]]
            add_point(table, label, [(value - start) / mm for value, start in zip(lps, first, strict=True)], str(file))
        tables[path] = table
    return pictures.labelled_reading(source, tables, landmarks, notes, spacing=mm_per_px)


def find_geometry(path: Path, mm_per_px: float | None, origin: Sequence[float]) -> tuple[float, Sequence[float]]:
    """Return mm per px and the origin, mm, of an image in Slicer: as given, or as its file states.

    Raises UserError if they are not given and the file leaves them in doubt.
    """
    if mm_per_px is not None and origin:
        return mm_per_px, origin
    if not dicom.is_dicom(path):
        if mm_per_px is None and (dots := dots_per_inch(path)) is not None:
            raise UserError(
                f"{path} has {dots:g} dots per inch, which Slicer takes for {25.4 / dots:g} mm per px; give --mm_per_px"
            )
        return mm_per_px or 1, origin or (0, 0)
    spacing = dicom.read(path).spacing  # checks that pydicom is there and can read the file
    import pydicom

    data = pydicom.dcmread(path, stop_before_pixels=True)
    stated = {tuple(data[key].value) for key in ("PixelSpacing", "ImagerPixelSpacing") if data.get(key)}
    if mm_per_px is None and len(stated) > 1:
        raise UserError(f"{path} states two spacings, {stated}; give that of Slicer with --mm_per_px")
    turned = data.get("ImageOrientationPatient") or [1, 0, 0, 0, 1, 0]
    if not origin and [round(float(value), 6) for value in turned] != [1, 0, 0, 0, 1, 0]:
        raise UserError(f"{path} has its own axes in patient space; annotate it as a plain picture, such as PNG")
    first = [float(value) for value in (data.get("ImagePositionPatient") or (0, 0))[:2]]
    return mm_per_px or spacing or 1, origin or first


def dots_per_inch(path: Path) -> float | None:
    """Return the resolution that a JPEG or TIFF states, None if it states none."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".tif", ".tiff"):
        return None
    with Image.open(path, formats=FORMATS) as image:
        dots = float(image.info.get("dpi", (0, 0))[0])
    return dots if dots > 1 else None


def read_fcsv(file: Path) -> tuple[str, float, list[tuple[str, list[str]]]]:
    """Return the coordinate system of a .fcsv (RAS if it states none), its unit in mm and its labelled positions."""
    system, columns, positions = "RAS", COLUMNS.split(","), []
    for line in read_text(file).splitlines():
        if line.startswith("#"):
            key, _, value = line.lstrip("# ").partition("=")
            system = value.strip() if key.strip() == "CoordinateSystem" else system
            columns = value.strip().split(",") if key.strip() == "columns" else columns
        elif line.strip():
            with expecting(file, f"lines of {len(columns)} columns: {','.join(columns)}"):
                row = line.split(",")
                # newer files have two fields more than their header; decimal commas would make three
                if not columns.index("label") < len(row) <= len(columns) + 2:
                    raise ValueError(f"found {len(row)}")
                cells = dict(zip(columns, row, strict=False))
                positions.append((cells["label"], [cells["x"], cells["y"], cells["z"]]))
    return system, 1, positions


def read_markups(file: Path, notes: list[str]) -> tuple[str, float, list[tuple[str, list[float] | None]]] | None:
    """Return the coordinate system of a .mrk.json, the mm of its unit and its labelled positions, None if undefined.

    Markups other than points are skipped with a note; None if there are no points.
    """
    content = read_json(file)
    with expecting(file, "a Slicer file with one list of markups"):
        lists = [markup for markup in content["markups"] if markup.get("type", "Fiducial") == "Fiducial"]
        others = [markup for markup in content["markups"] if markup not in lists]
        notes += [f"{file.name}: skipped markups of type {markup['type']}" for markup in others]
        if not lists:
            return None
        if len(lists) > 1:
            raise UserError(f"{file}: has {len(lists)} lists of points; keep one")
        (markup,) = lists
        units = markup.get("coordinateUnits", "mm")
        unit = units if isinstance(units, str) else units[0]
        if unit not in MM:
            raise UserError(f"{file}: coordinateUnits is {units!r}; expected one of {', '.join(MM)}")
        return (
            markup["coordinateSystem"],
            MM[unit],
            [
                (point.get("label"), point["position"] if point.get("positionStatus", "defined") == "defined" else None)
                for point in markup["controlPoints"]
            ],
        )
