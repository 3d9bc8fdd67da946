"""Annotation files: reading and writing them, with errors in one line."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from run_folder import write_text
from settings import UserError, require_file

UNFINISHED = "unfinished"  # a file that marks a folder to which a command is writing, or was when it was stopped


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark, as Excel writes it. Raises UserError."""
    require_file(file)
    try:
        content = file.read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as text in UTF-8: {error}") from None


def read_csv(file: Path) -> list[list[str]]:
    """Return the rows of a csv file that are not blank, each cell stripped of white space. Raises UserError.

    If all lines have semicolons, or all have tabs, these separate the cells, and a decimal comma becomes a point. A
    first line "sep=;", by which Excel knows the separator, is skipped.
    """
    text = re.sub(r'\A"?sep=.?"?\r?\n', "", read_text(file))
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = next((each for each in ";\t" if lines and all(each in line for line in lines)), ",")
    try:
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        ]
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as csv: {error}") from None
    if delimiter != ",":
        rows = [[re.sub(r"^([+-]?\d*),(\d+)$", r"\1.\2", cell) for cell in row] for row in rows]
    return [row for row in rows if any(row)]


def read_xml(file: Path) -> ElementTree.Element:
    """Return the root of an XML file. Raises UserError, also for declared entities, which could be an entity bomb."""
    text = read_text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{file} declares a document type or entities, which annotations do not need; remove them")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{file} cannot be read as XML: {error}") from None


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON in UTF-8; make the folder if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check_out(out: Path) -> Path:
    """Return the folder for the files of a tool.

    Raises UserError if something is there already, other than what a command left that was stopped (see `filling`).
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / UNFINISHED).exists())):
        raise UserError(f"{out} exists already and is not empty; choose another folder")
    return out


@contextlib.contextmanager
def filling(out: Path) -> Iterator[None]:
    """Make a folder and mark it while files are written to it, so that a command that was stopped can be repeated."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / UNFINISHED
    mark.touch()
    try:
        yield
    except BaseException:
        if list(out.iterdir()) == [mark]:
            mark.unlink()
            out.rmdir()
        raise
    mark.unlink()


def check_folder(folder: Path, what: str) -> Path:
    """Return the folder. Raises UserError, "give `what`", if it is not a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give {what}")
    return folder
