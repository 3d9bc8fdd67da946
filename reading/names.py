"""Which landmarks of two sets are the same, by their abbreviations."""

from collections.abc import Sequence
from pathlib import Path

from reading.annotation import read_points
from settings import UserError, read_json

# Abbreviations of the 52-landmark set, and those of the same points in other sets; checked by their definitions. The 19
# of ISBI 2015 have those of the 52 already. Not the same: R of Aariz (the ramus), and its molars, which are cusp tips.
SAME = {
    "ar": ("Ar",), "P": ("Po",), "Cond": ("Co",), "Ns": ("Pn", "Prn"), "Is1u": ("UIT",), "Ap1u": ("UIA",),
    "Is1l": ("LIT",), "Ap1l": ("LIA",), "N’": ("N`", "N'"), "Pog’": ("Pog`", "Pog'"),
}  # fmt: skip


def match_landmarks(own: Sequence[str], theirs: Sequence[str], pairs: Sequence[str] = ()) -> dict[int, int]:
    """Return the index in another set of each landmark that it shares, by the index in the own set.

    own, theirs: abbreviations, each once. pairs: OWN=THEIRS for what they call otherwise; it comes before SAME, and
    "OWN=" says that they have none. Numbers are no names: they are matched only if both sets are equal.
    Raises UserError for a pair that names what is not there, and for a landmark with two partners.
    """
    if tuple(own) == tuple(theirs):
        return {n: n for n in range(len(own))}
    given: dict[str, str] = {}
    for pair in pairs:
        mine, equals, other = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UserError(f"setting start_names: {pair!r} is no pair; write OWN=THEIRS, e.g. Pn=Ns")
        for name, known, whose in ((mine, own, "the data"), (other or None, theirs, "the other network")):
            if name is not None and name not in known:
                raise UserError(f"setting start_names: {pair!r}: {whose} has no landmark {name!r}: {', '.join(known)}")
        if mine in given:
            raise UserError(f"setting start_names: {mine!r} has two partners, {given[mine]!r} and {other!r}; keep one")
        given[mine] = other
    groups = [{name, *others} for name, others in SAME.items()]
    matches: dict[int, int] = {}
    for n, name in enumerate(own):
        if name in given:
            partners = [given[name]] if given[name] else []
        elif name in theirs:
            partners = [] if name.isdigit() else [name]
        else:
            partners = sorted(next((group for group in groups if name in group), set()) & set(theirs))
        if len(partners) > 1:
            raise UserError(f"{name} may be {' or '.join(partners)} of the other network: choose one by start_names")
        if partners:
            matches[n] = theirs.index(partners[0])
    for place in set(matches.values()):
        both = [own[n] for n, other in matches.items() if other == place]
        if len(both) > 1:
            raise UserError(
                f"{' and '.join(both)} are both {theirs[place]} of the other network: set start_names, e.g. {both[1]}="
            )
    return matches


def read_landmarks(path: Path) -> dict[str, str]:
    """Return the names of the landmarks of the first record of a data.json, by abbreviation. Raises UserError."""
    records = read_json(path)
    if not isinstance(records, list) or not records or not isinstance(records[0], dict):
        raise UserError(f"{path}: expected a data.json, a list of records")
    points = read_points(f"{path}: record 1", records[0])
    return {abbreviation: str(point.get("pointName", abbreviation)) for abbreviation, point in points.items()}
