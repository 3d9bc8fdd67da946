import math
from pathlib import Path

import numpy as np
import pytest
from conftest import refuses

from reading.annotation import Record
from reading.groups import group_records


def records(**values) -> list[Record]:
    """A record for each value of the keys; None: without the key."""
    rows = zip(*values.values(), strict=True)
    return [
        Record(
            f"{number}.png", Path("x"), np.zeros((1, 2)), np.zeros(1, bool),
            keys={key: value for key, value in zip(values, row, strict=True) if value is not None},
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip


def members(report_by, own) -> dict[str, dict[str, list[int]]]:
    """group_records as places of the records."""
    return {
        key: {name: np.flatnonzero(inside).tolist() for name, inside in groups.items()}
        for key, groups in group_records(report_by, own).items()
    }


def test_every_value_of_a_key_is_a_group_and_records_without_it_are_one_too():
    own = records(gender=["f", "m", None, "f"], device=["A", "A", "B", ""])
    assert members(["gender", "device"], own) == {
        "gender": {"f": [0, 3], "m": [1], "unknown": [2]}, "device": {"A": [0, 1], "B": [2], "unknown": [3]},
    }  # fmt: skip
    assert group_records([], own) == {}


# as config.py and as the command line, which splits at every comma, give it
@pytest.mark.parametrize("report_by", [["age:12,18", "gender"], ["age:12", "18", "gender"]])
def test_bands_hold_their_lower_limit(report_by):
    own = records(age=[11.9, 12, 17, "18", None, 40], gender=list("fmffmf"))
    assert members(report_by, own)["age"] == {
        "below 12": [0], "12 to below 18": [1, 2], "18 and above": [3, 5], "unknown": [4],
    }  # fmt: skip
    assert list(group_records(report_by, own)) == ["age", "gender"]


def test_what_cannot_be_grouped_is_refused():
    own = records(age=[11, "old"], gender=["f", "m"])
    with refuses("report_by", "gendr", "gender"):
        group_records(["gendr"], own)
    with refuses("report_by", "1.png", "age", "old"):
        group_records(["age:12"], own)
    for bands in ("18,12", "a", "12,12"):
        with refuses("report_by", bands):
            group_records([f"age:{bands}"], own)


def test_numbers_are_grouped_by_their_value_and_the_rest_is_unknown():
    own = records(age=[11, "", math.inf, None], kv=[70.0, 70.25, 70, "70"])
    assert members(["age:12", "kv"], own) == {
        "age": {"below 12": [0], "12 and above": [2], "unknown": [1, 3]}, "kv": {"70": [0, 2, 3], "70.25": [1]},
    }  # fmt: skip


def test_a_key_that_appears_twice_is_refused():
    with refuses("report_by", "age", "twice"):
        group_records(["age", "age:12"], records(age=[11, 13]))
