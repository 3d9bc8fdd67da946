"""Where tools write their files."""

from pathlib import Path

from settings import UserError


def check_out(out: Path) -> Path:
    """Return the folder for the files of a tool. Raises UserError if something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already and is not empty; choose another folder")
    return out
