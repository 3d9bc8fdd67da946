"""Foreign annotation formats, one file each: read(source, ...) -> Reading, and in some write(pairs, destination).

A format's file begins with its name and a tiny example; PRESET, if it has one, is the preset that its data train with.
"""

from types import ModuleType

from tools.formats import (
    aariz,
    cl2023,
    cl_csv,
    coco,
    cvat,
    hand,
    isbi2015,
    isbi_csv,
    labelme,
    labelstudio,
    native,
    slicer,
    spine,
    suh,
    via,
)

FORMATS: dict[str, ModuleType] = {
    module.__name__.removeprefix(f"{__name__}."): module
    for module in (
        isbi2015, isbi_csv, hand, spine, cl2023, cl_csv, aariz, suh, labelme, coco, cvat, labelstudio, via, slicer,
        native,
    )
}  # fmt: skip
