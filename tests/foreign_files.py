"""Foreign files, drawn here in their layouts, for the tests of formats and of tools.convert."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tools.formats import FORMATS
from tools.formats.common import record_points

SIZE = (60, 50)


NAMES = ("a.png", "b (1).png")


TRUTH = {
    "a.png": {"S": (10.25, 20.5), "N": (1 / 3, 48.9), "Pog’": (59.0, 0.0), "s": (7.0, 8.0)},
    "b (1).png": {"S": (0.1 + 0.2, 3.0), "N": None, "Pog’": (12.0, 13.5), "s": (30.0, 31.0)},
}


WRITABLE = [name for name, module in FORMATS.items() if hasattr(module, "write")]


def optional(module: str):
    """Import a module, or skip the test and say how to install it."""
    return pytest.importorskip(module, reason=f"needs {module}: pip install -r requirements-dev.txt")


def draw_images(folder: Path, names=NAMES, size=SIZE) -> Path:
    """Images of noise in a folder."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(generator.integers(1, 255, size[::-1], dtype=np.uint8)).save(folder / name)
    return folder


def write_native(folder: Path) -> Path:
    """TRUTH as a data.json with its images; landmark s is occluded in the first, b's points stand in another order."""
    draw_images(folder / "imgs")
    records = []
    for number, (name, points) in enumerate(TRUTH.items()):
        entries = [
            {"pointName": f"point {label}", "pointAbbreviation": label, "X": xy and xy[0], "Y": xy and xy[1]}
            | ({"occluded": True} if (label, number) == ("s", 0) else {})
            for label, xy in points.items()
        ]
        records.append({"imagePath": name, "spacing": 0.1, "points": entries[:: -1 if number else 1]})
    (folder / "json").mkdir()
    (folder / "json" / "data.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return folder


def tables(reading) -> dict[str, dict]:
    """The points of a Reading by image and label."""
    return {record["imagePath"]: record_points(record) for _, record in reading.pairs}


def write_via(folder: Path) -> Path:
    content = {}
    for name, points in TRUTH.items():
        regions = [
            {"shape_attributes": {"name": "point", "cx": xy[0], "cy": xy[1]}, "region_attributes": {"name": label}}
            for label, xy in points.items()
            if xy
        ]
        content[f"{name}12345"] = {"filename": name, "size": 12345, "regions": regions, "file_attributes": {}}
    (folder / "via.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "via.json"


def write_slicer(folder: Path) -> Path:
    for number, (name, points) in enumerate(TRUTH.items()):
        stem = name.removesuffix(".png")
        if number == 0:
            rows = [
                f"{i},{xy[0]!r},{xy[1]!r},0,0,0,0,1,1,1,0,{label},," for i, (label, xy) in enumerate(points.items())
            ]
            head = ["# Markups fiducial file version = 4.11", "# CoordinateSystem = LPS"]
            columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
            (folder / f"{stem}.fcsv").write_text("\n".join([*head, columns, *rows]) + "\n", encoding="utf-8")
        else:
            controls = [
                {"label": label, "position": [-xy[0], -xy[1], 0.0], "positionStatus": "defined"}
                if xy
                else {"label": label, "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"}
                for label, xy in points.items()
            ]
            markup = {"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": controls}
            (folder / f"{stem}.mrk.json").write_text(json.dumps({"markups": [markup]}), encoding="utf-8")
    return folder


def write_suh(folder: Path) -> Path:
    head = "image_name,image_width,image_height,n_landmarks," + ",".join(
        f"landmark_{n}_{a}" for n in (1, 2) for a in "xy"
    )
    (folder / "suh.csv").write_text(f"{head}\na.png,60,50,2,48,40,51,\nb (1).png,60,50,2,1,2,3,4\n", encoding="utf-8")
    return folder / "suh.csv"


def write_cl_csv(folder: Path, head="image file,spacing(mm)") -> Path:
    points = ",".join(f"p{n}{a}" for n in (1, 2) for a in "xy")
    (folder / "cl.csv").write_text(f"{head},{points}\na.png,0.1,1,2,3,4\nb (1).png,0.125,5,6,7,8.5\n", encoding="utf-8")
    return folder / "cl.csv"


def write_isbi_csv(folder: Path) -> Path:
    draw_images(folder, ["017.png", "151.png"])
    rows = [
        f"{name}," + ",".join(str(value) for value in range(start, start + 38))
        for name, start in (("017.png", 1), ("151.png", 2))
    ]
    (folder / "isbi.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "isbi.csv"


def write_hand(folder: Path) -> Path:
    draw_images(folder / "images", ["3142.png", "3143.png", "3150.png"], (300, 300))
    rows = []
    for id_ in (3142, 3143, 3150, 3999):
        values = np.arange(74).reshape(37, 2) + 5
        values[4] = values[0] + (30, 40)
        rows.append(f"{id_}," + ",".join(map(str, values.flatten())))
    (folder / "all.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "cv" / "set1").mkdir(parents=True)
    (folder / "cv" / "set1" / "train.txt").write_text("3142\n")
    (folder / "cv" / "set1" / "test.txt").write_text("3143\n")
    return folder


def spine_points(size=(200, 400)) -> np.ndarray:
    """A spine (68, 2) px that leans a little to the right going down."""
    width, height = size
    corners = np.array([(-20, -7), (20, -5), (-20, 5), (20, 7)])
    return np.vstack([(width / 2 + 2 * v, 20 + 22 * v) + corners for v in range(17)]).astype(float)


def write_spine(folder: Path, points=None, size=(200, 400)) -> Path:
    draw_images(folder / "data" / "training", ["s 1.png"], size)
    labels = folder / "labels" / "training"
    labels.mkdir(parents=True)
    points = spine_points(size) if points is None else points
    (labels / "filenames.csv").write_text("s 1.png\n")
    (labels / "landmarks.csv").write_text(",".join(f"{value:.8f}" for value in (points / size).T.flatten()) + "\n")
    (labels / "angles.csv").write_text("41.139,14.63,40.147\n")
    savemat(labels / "s 1.png.mat", {"p2": points})
    return folder


def write_aariz(folder: Path) -> Path:
    draw_images(folder / "train" / "Cephalograms", ["x1.png"])
    draw_images(folder / "test" / "Cephalograms", ["x2.png"])
    for split, id_ in (("train", "x1"), ("test", "x2")):
        for who, shift in (("Senior", 0), ("Junior", 3)):
            landmarks = [
                {"landmark_id": "lm-01", "title": "A-point", "symbol": "A", "value": {"x": 13 + shift, "y": 10}},
                {"landmark_id": "lm-02", "title": "Sella", "symbol": "S", "value": {"x": 20, "y": 30 + shift}},
            ]
            path = folder / split / "Annotations" / "Cephalometric Landmarks" / f"{who} Orthodontists" / f"{id_}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps({"ceph_id": id_, "landmarks": landmarks, "dataset_name": "Aariz"}), encoding="utf-8"
            )
    table = "cephalogram_id,mode,machine,pixel_size\nx1,train,M1,0.1\nx2,test,M2,0.139\n"
    (folder / "cephalogram_machine_mappings.csv").write_text(table)
    return folder


def write_isbi(folder: Path) -> Path:
    """Three images of the ISBI archive's layout, the junior reader 3 px to the lower right."""
    for number, name in ((1, "TrainingData"), (2, "TrainingData"), (151, "Test1Data")):
        draw_images(folder / "RawImage" / name, [f"{number:03d}.bmp"])
        for reader, points in ISBI_POINTS.items():
            (folder / "AnnotationsByMD" / reader).mkdir(parents=True, exist_ok=True)
            lines = [f"{x},{y}" for x, y in points] + ["1", "2", "1"]  # the clinical classes
            (folder / "AnnotationsByMD" / reader / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
    return folder


ISBI_POINTS = {"400_senior": np.arange(38).reshape(19, 2) + 1, "400_junior": np.arange(38).reshape(19, 2) + 4}


def write_cl2023(folder: Path) -> Path:
    """Two images of 20 x 30 and 35 x 40 px in a stack of 50 x 40; landmark 7 of the second is missing."""
    generator = np.random.default_rng(0)
    stack = np.zeros((2, 40, 50), np.uint8)
    stack[0, :30, :20], stack[1, :40, :35] = generator.integers(1, 255, (30, 20)), generator.integers(1, 255, (40, 35))
    simpleitk = optional("SimpleITK")
    simpleitk.WriteImage(simpleitk.GetImageFromArray(stack), str(folder / "train_stack.mha"))
    points = [
        {"name": str(n), "point": [n / 2, n / 4, slice_], "scale": scale}
        for n in range(38, 0, -1)
        for slice_, scale in ((2, "0.125"), (1, "0.1"))
        if (n, slice_) != (7, 2)
    ]
    (folder / "gt.json").write_text(json.dumps({"name": "Orthodontic landmarks", "points": points}))
    return folder / "gt.json"


def write_dicom(file: Path, pixels: np.ndarray, photometric="MONOCHROME2", bits=12, **tags) -> Path:
    """A small DICOM file of pixels (h, w), with some patient's name."""
    pydicom = optional("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientName, data.PhotometricInterpretation, data.SamplesPerPixel = "Secret^Name", photometric, 1
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, bits, bits - 1, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(file, enforce_file_format=True)
    return file


SOURCES = {  # every format, and how its files are made; None: by its own `write`
    "labelme": None, "coco": None, "cvat": None, "labelstudio": None, "native": None, "via": write_via,
    "slicer": write_slicer, "suh": write_suh, "cl_csv": write_cl_csv, "isbi_csv": write_isbi_csv, "hand": write_hand,
    "spine": write_spine, "aariz": write_aariz, "isbi2015": write_isbi, "cl2023": write_cl2023,
}  # fmt: skip


def write_source(name: str, folder: Path) -> Path:
    """Files of a format in an empty folder; what of them is read."""
    write = SOURCES[name]
    if write is not None:
        draw_images(folder)
        return write(folder)
    native = write_native(folder / "set") / "json" / "data.json"
    if name == "native":
        return native
    images = folder / "set" / "imgs"
    FORMATS[name].write(FORMATS["native"].read(native).pairs, images)
    files = [path for path in images.iterdir() if path.suffix != ".png"]
    return files[0] if len(files) == 1 else images
