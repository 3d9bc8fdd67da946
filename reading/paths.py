"""Find files by the paths that data sets name, also those written on Windows.

An image is identified by its path relative to a folder: patients may have files of the same name.
"""

import os
import re
import unicodedata
from pathlib import Path

LITTER = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")  # what systems leave in folders, besides names with a dot


def normal_name(name: str) -> str:
    """Return a file name for comparison: composed letters, lower case."""
    return unicodedata.normalize("NFC", name).casefold()


def path_parts(name: str) -> list[str]:
    """Return the folders and the file of a path with slashes or backslashes, for comparison; x/.. is left out."""
    parts: list[str] = []
    for part in re.split(r"[\\/]+", normal_name(name)):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file with this path relative to a folder; None if there is none, or several that differ in case.

    The path may have backslashes, and differ from the file's in case or in how the file system composes its letters.
    """
    if os.path.isfile(folder / name):  # false for a name that no file can have; Path.is_file raises
        return folder / name
    found = [folder]
    for part in path_parts(name):
        if part == "..":
            found = [path / part for path in found]
        else:
            inside = [each for path in found if path.is_dir() for each in path.iterdir()]
            found = [path for path in inside if normal_name(path.name) == part]
    return found[0] if len(found) == 1 and found[0].is_file() else None


def visible_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the files in a folder and its subfolders, sorted, without hidden ones and what systems leave behind."""
    return [path for path in sorted(folder.rglob(pattern)) if path.is_file() and not is_hidden(path, folder)]


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a file in a folder, or a folder above it in there, is hidden or what systems leave behind."""
    return any(part.startswith(".") or part.lower() in LITTER for part in path.relative_to(folder).parts)
