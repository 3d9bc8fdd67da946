"""Check settings, read them from text and files, and override them. The settings themselves are in config.py.

The later one wins: config.py < --preset A B ... (left to right) < --config FILE.json < --<setting> VALUE.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import logging
import re
import stat
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

log = logging.getLogger("farnet")

# Settings of earlier versions that no user needed. Older config.json files and checkpoints contain them.
RETIRED = ("compose_heads", "device_targets", "fused_optimizer", "fold_norms", "keep_memory", "compile", "gif")
RENAMED = {"global_checkpoint": "start_from"}  # in the same files, and the names of today


FLOAT32_MAX = 3.4e38  # the largest number that a network computes with
MAX_DEPTH = 20  # of nested lists and objects in a JSON file; ours need five
# what a csv or xls cell, a log line or a file name cannot hold: control characters, line breaks, halves of a pair
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """A mistake in a file, a record or a setting. The programs print it as one line and exit with status 2.

    What a line cannot hold, such as a line break in a label of somebody's file, is escaped.
    """

    def __init__(self, message: str) -> None:
        # torch puts the error of a process that loads images behind its traceback
        message = message.rpartition("\nsettings.UserError: ")[2].strip()
        super().__init__(UNPRINTABLE.sub(lambda odd: ascii(odd[0])[1:-1], message))


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError for mistakes."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def require_file(path: str | Path, remedy: str = "give the path of a file") -> None:
    """Refuse a path without a file, and a pipe or a device, which could make a reader wait. Raises UserError."""
    try:
        kind = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist; {remedy}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
        raise UserError(f"{str(path)!r} cannot be read ({error}); {remedy}") from None
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"
        raise UserError(f"{path} is {what}, not a file; {remedy}")


def read_json(path: str | Path, remedy: str = "give a JSON file in UTF-8") -> Any:
    """Return the content of a JSON file in Unicode, with or without a byte order mark; a huge number becomes inf.

    Raises UserError, ending with the remedy, for anything else and for more than MAX_DEPTH levels of nesting.
    """
    require_file(path, remedy)
    try:
        # an int beyond the range of float64 would overflow wherever it is used
        content = json.loads(Path(path).read_bytes(), parse_int=lambda text: (int if len(text) < 300 else float)(text))
        level = [content]
        for _ in range(MAX_DEPTH):
            nested = (value for value in level if isinstance(value, dict | list))
            level = [item for value in nested for item in (value.values() if isinstance(value, dict) else value)]
        if level:
            raise RecursionError
    except RecursionError:
        raise UserError(f"{path} is nested more than {MAX_DEPTH} levels deep; {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON in UTF-8: {error}; {remedy}") from None
    return content


@contextlib.contextmanager
def expecting(where: object, what: str) -> Iterator[None]:
    """Raise UserError, "expected `what`", for the errors of code that reads content of another structure."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: expected {what}; {reason}") from None


@dataclass(frozen=True)
class Settings:
    """Base of config.Config: a frozen, flat dataclass that checks the type of every field on construction.

    Raises UserError for a value of the wrong type, or for one that `check` refuses.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # preset -> setting -> value

    def __post_init__(self) -> None:
        for name, hint in setting_types(type(self)).items():
            object.__setattr__(self, name, check_value(name, getattr(self, name), hint))
        self.check()

    def check(self) -> None:
        """Refuse values that have the right type but cannot work. Raises UserError."""

    def require(self, holds: bool, name: str, allowed: str) -> None:
        """Raise UserError with the setting, its value and what is allowed, unless `holds`."""
        if not holds:
            raise UserError(f"setting {name}: {getattr(self, name)!r} is not allowed; {allowed}")

    def limit(self, **most: float) -> None:
        """Raise UserError if a setting is above its maximum."""
        for name, maximum in most.items():
            value = getattr(self, name)
            self.require(value is None or value <= maximum, name, f"it must be at most {maximum}")

    def replace(self: "S", **settings: Any) -> "S":
        """Return a copy with some settings replaced."""
        return dataclasses.replace(self, **settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain numbers, strings and lists, for config.json and checkpoints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


S = TypeVar("S", bound=Settings)


def setting_types(config_class: type[Settings]) -> dict[str, Any]:
    """Return the type of each setting of a class, in their order."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def setting_comments(config_class: type[Settings]) -> dict[str, dict[str, str]]:
    """Return the comment beside each setting in the source of a class, {section: {setting: comment}}.

    A section is a comment on a line of its own; settings above the first one belong to section "".
    """
    sections: dict[str, dict[str, str]] = {"": {}}
    for line in inspect.getsource(config_class).splitlines():
        if heading := re.fullmatch(r" {4}# (.*)", line):
            sections[heading[1]] = {}
        elif setting := re.fullmatch(r" {4}(\w+): (?!ClassVar)[^#]*  # (.*)", line):
            sections[list(sections)[-1]][setting[1]] = setting[2]
    return {title: comments for title, comments in sections.items() if comments}


def check_value(name: str, value: Any, hint: Any) -> Any:
    """Return the value if it has the setting's type; an int passes for a float, a list for a tuple.

    Raises UserError that names the setting and what is allowed.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is types.NoneType:
            if value is None:
                return None
        elif typing.get_origin(option) is tuple:
            if isinstance(value, list | tuple):
                return tuple(check_value(name, item, typing.get_args(option)[0]) for item in value)
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                if not abs(value) <= sys.float_info.max:  # also for an int that no float can hold
                    raise UserError(f"setting {name}: {value} is not a finite number")
                if abs(value) > FLOAT32_MAX:
                    raise UserError(f"setting {name}: {value} is too large")
                return float(value)
        elif isinstance(value, option) and not (option is int and isinstance(value, bool)):
            if isinstance(value, int) and abs(value) >= 2**63:  # more than torch and numpy hold
                raise UserError(f"setting {name}: {value} is too large")
            if isinstance(value, str) and UNPRINTABLE.search(value):
                raise UserError(f"setting {name}: {value!r} holds a control character or half a character; remove it")
            return value
    raise UserError(f"setting {name}: {value!r} is not {describe_type(hint)}")


def describe_type(hint: Any) -> str:
    """Return a setting's type in words, for messages."""
    if isinstance(hint, types.UnionType):
        return " or ".join(describe_type(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        items = {int: "whole numbers", float: "numbers", str: "names"}[typing.get_args(hint)[0]]
        return f"a list of {items} (comma-separated on the command line)"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}[hint]


def parse_text(name: str, text: str, hint: Any) -> Any:
    """Return a setting's value from its text on the command line: 0.1, true, none, or a,b,c for a list.

    Raises UserError that names the setting and what is allowed.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in options and text.lower() in ("none", "null"):
        return None
    if options[0] is float and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", text):
        raise UserError(f"setting {name}: {text!r} has a decimal comma; write {text.strip().replace(',', '.')}")
    for option in options:
        if typing.get_origin(option) is tuple:
            items = [] if text.lower() in ("", "none") else [item.strip() for item in text.split(",")]
            return tuple(parse_text(name, item, typing.get_args(option)[0]) for item in items)
        if option is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
            return text.lower() in ("true", "yes", "1")
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
        if option is str:
            return text
    raise UserError(f"setting {name}: {text!r} is not {describe_type(hint)}")


def parse_settings(config_class: type[Settings], overrides: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the settings of the command line as typed values; None (given without a value) means true.

    Raises UserError for an unknown name, a value of the wrong type, or a missing value.
    """
    hints = setting_types(config_class)
    check_names(overrides, hints, "setting")
    for name, text in overrides.items():
        if text is None and hints[name] is not bool:
            raise UserError(f"setting {name} has no value; give --{name} VALUE")
    return {name: parse_text(name, "true" if text is None else text, hints[name]) for name, text in overrides.items()}


def check_names(names: Iterable[str], allowed: Iterable[str], what: str, where: str = "") -> None:
    """Refuse names that are not allowed. Raises UserError with where, the nearest name and all allowed ones."""
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{where}there is no {what} {name!r}; {hint}known: {', '.join(allowed)}")


def preset_settings(config_class: type[Settings], presets: Iterable[str]) -> dict[str, Any]:
    """Return the settings of the named presets for a method; later presets win. Raises UserError for an unknown one."""
    tables = [cls.__dict__["presets"] for cls in reversed(config_class.__mro__) if "presets" in cls.__dict__]
    settings: dict[str, Any] = {}
    for preset in ",".join(presets).split(",") if presets else ():
        check_names([preset], {name: None for table in tables for name in table}, "preset")
        for table in tables:
            settings |= table.get(preset, {})
    return settings


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings in a JSON file, such as the config.json of a run. Raises UserError if it has none."""
    settings = read_json(path, 'give a JSON object of settings, e.g. {"epochs": 300}')
    settings = settings.get("settings", settings) if isinstance(settings, dict) else settings
    if not isinstance(settings, dict):
        raise UserError(f'{path} must hold a JSON object of settings, e.g. {{"epochs": 300}}')
    return without_retired(settings)


def without_retired(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an older run by their names of today; logs once per program which no longer exist."""
    warn_of_retired(tuple(name for name in settings if name in RETIRED))
    return {RENAMED.get(name, name): value for name, value in settings.items() if name not in RETIRED}


@functools.cache
def warn_of_retired(names: tuple[str, ...]) -> None:
    """Log which settings of an older run are ignored."""
    if names:
        log.warning("settings of an older version are ignored: %s", ", ".join(names))


def build_config(config_class: type[S], settings: Mapping[str, Any]) -> S:
    """Return the settings of a method from a dict. Raises UserError for an unknown name or a value not allowed."""
    check_names(settings, setting_types(config_class), "setting")
    return config_class(**settings)
