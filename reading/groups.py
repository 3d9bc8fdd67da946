"""Groups of records by keys of data.json, such as gender, device or bands of age (setting report_by)."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from reading.annotation import Record
from settings import UserError, check_names

UNKNOWN = "unknown"  # the group of records without the key


def group_records(report_by: Sequence[str], records: Sequence[Record]) -> dict[str, dict[str, np.ndarray]]:
    """Return which records (I,) bool belong to each group, by key and by the name of the group.

    report_by: keys of the records. "age:12,18" makes bands of a key that holds numbers: below 12, 12 to below 18, 18
    and above. Records without the key form the group "unknown". Raises UserError for a key that no record has, and
    where bands are not ascending numbers or a value is no number.
    """
    # the command line splits at every comma: what is only a number belongs to the bands before it
    asked = re.split(r",(?!\s*-?[\d.]+\s*(?:,|$))", ",".join(report_by)) if report_by else []
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, _, bands in ([part.strip() for part in one.partition(":")] for one in asked):
        known = {name for record in records for name in record.keys}
        check_names([key], known, "key of a record", "setting report_by: ")
        if key in groups:
            raise UserError(f"setting report_by: {key!r} appears twice; keep one")
        if bands:
            limits = read_limits(key, bands)
            numbers = np.array([read_number(key, record) for record in records], float)  # nan: none
            places = np.where(np.isnan(numbers), len(limits) + 1, np.searchsorted(limits, numbers, "right"))
            inner = [f"{low:g} to below {high:g}" for low, high in zip(limits, limits[1:], strict=False)]
            names = [f"below {limits[0]:g}", *inner, f"{limits[-1]:g} and above", UNKNOWN]
        else:
            values = [group_name(record.keys.get(key)) for record in records]
            names = sorted(set(values) - {UNKNOWN}) + [UNKNOWN]
            places = np.array([names.index(value) for value in values])
        groups[key] = {name: places == place for place, name in enumerate(names) if place in places}
    return groups


def read_limits(key: str, bands: str) -> list[float]:
    """Return the limits between bands. Raises UserError for what are not ascending numbers."""
    try:
        limits = [float(limit) for limit in bands.split(",")]
    except ValueError:
        limits = []
    if not limits or sorted(set(limits)) != limits:
        raise UserError(f"setting report_by: {key}:{bands} is not allowed; give ascending numbers, e.g. age:12,18")
    return limits


def read_number(key: str, record: Record) -> float | None:
    """Return the number that a record holds under a key, None if it has none. Raises UserError for another value."""
    value: Any = record.keys.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        return float(value)
    except ValueError:
        raise UserError(f"setting report_by: {record.name}: {key} is {value!r}; expected a number for bands") from None


def group_name(value: Any) -> str:
    """Return the name of the group of a value."""
    if value is None or value == "":
        return UNKNOWN
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
