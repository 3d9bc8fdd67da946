"""Foreign annotation formats, one file each: read(source, ...) -> Reading, and in some write(pairs, destination).

The docstring of a format's file is what `tools.convert FORMAT --help` prints: a first line that says what it is, which
`--list` prints too, and a tiny example. A line "option: text" in the docstring of its `read` is that option's help.
PRESET, if it has one, is the preset of config.py for its data.
"""

from importlib import import_module
from types import ModuleType

NAMES = (
    "isbi2015", "isbi_csv", "hand", "spine", "cl2023", "cl_csv", "aariz", "suh", "labelme", "coco", "cvat",
    "labelstudio", "via", "slicer", "native",
)  # fmt: skip
FORMATS: dict[str, ModuleType] = {name: import_module(f"{__name__}.{name}") for name in NAMES}
