"""The table of angles and distances that orthodontists measure on a lateral cephalogram, by landmark abbreviations.

Abbreviations are those of the 52-landmark set; the converters use them for the same points of other sets. Profiles that
face left are mirrored first, so "ahead" means to the right. Classes and their limits are those of the ISBI challenge:
Wang et al., "A benchmark for comparison of dental radiography analysis algorithms", Medical Image Analysis 2016.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

FRONT = ("N", "Or", "ANS", "A", "B", "Pog", "Me", "Gn", "Is1u", "Is1l", "Ls", "Li", "Sn")
BACK = ("S", "P", "ar", "Go", "PNS", "Ba", "Cond")
UPPER, LOWER = ("N", "Or"), ("Me", "Gn")  # about above each other


class Measure(NamedTuple):
    """An angle, a distance or a ratio: its landmarks, formula, definition, source and classes."""

    name: str
    unit: str  # degrees, mm (nan if the spacing is unknown) or ratio
    landmarks: tuple[str, ...]
    value: Callable[..., np.ndarray]  # (I,) of the landmarks (I, 2), in mm if the unit is, y down, facing right
    definition: str
    source: str
    limits: tuple[float, ...] = ()  # between classes, ascending, in the unit
    classes: tuple[str, ...] = ()  # one more than limits, from the lowest values to the highest

    @property
    def title(self) -> str:
        """The name with its unit."""
        return f"{self.name} ({self.unit})"

    def class_names(self, values: np.ndarray) -> np.ndarray:
        """Return the classes (I,) of values (I,), "" for nan.

        A limit belongs to the class above it, but the last one to the class below it: normal includes both of its ends.
        """
        number = sum((values >= limit).astype(int) for limit in self.limits[:-1]) + (values > self.limits[-1])
        return np.where(np.isfinite(values), np.array(self.classes)[number], "")


# --- Geometry -------------------------------------------------------------------------------------------


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the cross product (I,) of vectors (I, 2), positive if v is clockwise of u on the screen (y down)."""
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the angle (I,) between vectors (I, 2), 0 to 180 degrees."""
    return np.abs(turn(u, v))


def turn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the angle (I,) from u to v (I, 2), -180 to 180 degrees, positive clockwise: downwards in front."""
    return np.degrees(np.arctan2(cross(u, v), (u * v).sum(-1)))


def length(u: np.ndarray) -> np.ndarray:
    """Return the length (I,) of vectors (I, 2)."""
    return np.linalg.norm(u, axis=-1)


def ahead(upper: np.ndarray, lower: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the distance (I,) of points (I, 2) ahead of the lines from an upper to a lower point."""
    return cross(point - upper, lower - upper) / length(lower - upper)


def palate_to_frankfort(porion, orbitale, pns, ans) -> np.ndarray:
    """Return the angle of the palatal plane to the Frankfort horizontal, degrees, positive if it falls to the front."""
    return turn(orbitale - porion, ans - pns)


def odi(a, b, menton, gonion, porion, orbitale, pns, ans) -> np.ndarray:
    """Return the overbite depth indicator, degrees."""
    return angle(gonion - menton, a - b) + palate_to_frankfort(porion, orbitale, pns, ans)


def apdi(nasion, pogonion, a, b, porion, orbitale, pns, ans) -> np.ndarray:
    """Return the anteroposterior dysplasia indicator, degrees."""
    facial = angle(porion - orbitale, pogonion - nasion)
    return facial - turn(pogonion - nasion, b - a) + palate_to_frankfort(porion, orbitale, pns, ans)


def modified_wits(upper, lower) -> np.ndarray:
    """Return the distance of the incisal edges, negative if the lower one is ahead."""
    return np.where(upper[..., 0] >= lower[..., 0], 1, -1) * length(upper - lower)


def along_occlusal_plane(start, end, molar, upper, lower) -> np.ndarray:
    """Return how far end is ahead of start along the line from the molars to the midpoint of the incisal edges."""
    plane = (upper + lower) / 2 - molar
    return ((end - start) * plane).sum(-1) / length(plane)


def above_occlusal_plane(start, end, molar, upper, lower) -> np.ndarray:
    """Return how far end is above start, perpendicular to that line."""
    plane = (upper + lower) / 2 - molar
    return cross(end - start, plane) / length(plane)


# --- The table ------------------------------------------------------------------------------------------

OCCLUSAL = ("ppOcP", "Is1u", "Is1l")
MEASURES = (
    # the eight of the ISBI challenge
    Measure("SNA", "degrees", ("S", "N", "A"), lambda s, n, a: angle(s - n, a - n),
            "S-N-A", "Steiner 1953", (79.4, 83.2), ("retrognathic maxilla", "normal", "prognathic maxilla")),
    Measure("SNB", "degrees", ("S", "N", "B"), lambda s, n, b: angle(s - n, b - n),
            "S-N-B", "Steiner 1953", (74.6, 78.7), ("retrognathic mandible", "normal", "prognathic mandible")),
    Measure("ANB", "degrees", ("N", "A", "B"), lambda n, a, b: turn(a - n, b - n), "A-N-B: SNA - SNB", "Steiner 1953",
            (3.2, 5.7), ("class III", "class I", "class II")),
    Measure("ODI", "degrees", ("A", "B", "Me", "Go", "P", "Or", "PNS", "ANS"), odi,
            "A-B to Me-Go, plus the palatal plane PNS-ANS to P-Or, positive if it falls to the front", "Kim 1974",
            (68.4, 80.5), ("open bite", "normal", "deep bite")),
    Measure("APDI", "degrees", ("N", "Pog", "A", "B", "P", "Or", "PNS", "ANS"), apdi,
            "P-Or to N-Pog, plus N-Pog to A-B (positive if B is ahead), plus the palatal plane as in ODI",
            "Kim and Vietas 1978", (77.6, 85.2), ("class II", "class I", "class III")),
    Measure("FHI", "ratio", ("S", "Go", "N", "Me"), lambda s, go, n, me: length(s - go) / length(n - me),
            "posterior to anterior facial height, S-Go to N-Me", "Jarabak 1972",
            (0.65, 0.75), ("long face", "normal", "short face")),
    Measure("SN-GoGn", "degrees", ("S", "N", "Go", "Gn"), lambda s, n, go, gn: turn(n - s, gn - go),
            "S-N to Go-Gn; the challenge calls it FMA or FHA", "Steiner 1953",
            (26.8, 31.4), ("low angle", "normal", "high angle")),
    Measure("MW", "mm", ("Is1u", "Is1l"), modified_wits,
            "Is1u to Is1l, negative if Is1l is ahead; the challenge has no class for 0 to 2 mm, edge to edge",
            "Wang et al. 2016", (0.0, 2.0, 4.5), ("anterior crossbite", "edge to edge", "normal", "large overjet")),
    # jaws
    Measure("FMA", "degrees", ("P", "Or", "Go", "Me"), lambda p, o, go, me: turn(o - p, me - go),
            "P-Or to Go-Me", "Tweed 1954"),
    Measure("Wits", "mm", ("B", "A", *OCCLUSAL), along_occlusal_plane,
            "how far A is ahead of B along the occlusal plane, from ppOcP to the midpoint of Is1u and Is1l",
            "Jacobson 1975, on the occlusal plane of Downs 1948"),
    Measure("facial angle", "degrees", ("P", "Or", "N", "Pog"), lambda p, o, n, pog: angle(p - o, pog - n),
            "P-Or to N-Pog", "Downs 1948"),
    Measure("convexity", "degrees", ("N", "A", "Pog"), lambda n, a, pog: turn(a - n, pog - a),
            "N-A to A-Pog, positive if A is ahead", "Downs 1948"),
    Measure("Y axis", "degrees", ("P", "Or", "S", "Gn"), lambda p, o, s, gn: turn(o - p, gn - s),
            "P-Or to S-Gn", "Downs 1948"),
    Measure("gonial angle", "degrees", ("ar", "Go", "Me"), lambda ar, go, me: angle(ar - go, me - go),
            "ar-Go-Me", "Björk 1947"),
    Measure("lower face", "ratio", ("ANS", "Me", "N"), lambda ans, me, n: length(ans - me) / length(n - me),
            "lower to total anterior facial height, ANS-Me to N-Me", "Wylie 1952"),
    Measure("midface length", "mm", ("Cond", "A"), lambda cond, a: length(a - cond), "Cond-A", "McNamara 1984"),
    Measure("mandibular length", "mm", ("Cond", "Gn"), lambda cond, gn: length(gn - cond), "Cond-Gn", "McNamara 1984"),
    # teeth
    Measure("U1-SN", "degrees", ("S", "N", "Ap1u", "Is1u"), lambda s, n, ap, edge: angle(s - n, edge - ap),
            "the upper incisor's axis to S-N", "Riedel 1952"),
    Measure("U1-NA", "degrees", ("N", "A", "Ap1u", "Is1u"), lambda n, a, ap, edge: turn(edge - ap, a - n),
            "the upper incisor's axis to N-A, positive if it leans forward", "Steiner 1953"),
    Measure("U1-NA distance", "mm", ("N", "A", "Ls1u"), ahead, "how far the upper incisor's crown is ahead of N-A",
            "Steiner 1953"),
    Measure("L1-NB", "degrees", ("N", "B", "Ap1l", "Is1l"), lambda n, b, ap, edge: turn(b - n, ap - edge),
            "the lower incisor's axis to N-B, positive if it leans forward", "Steiner 1953"),
    Measure("L1-NB distance", "mm", ("N", "B", "Li1l"), ahead, "how far the lower incisor's crown is ahead of N-B",
            "Steiner 1953"),
    Measure("IMPA", "degrees", ("Go", "Me", "Ap1l", "Is1l"), lambda go, me, ap, edge: angle(go - me, edge - ap),
            "the lower incisor's axis to Go-Me", "Tweed 1954"),
    Measure("FMIA", "degrees", ("P", "Or", "Ap1l", "Is1l"), lambda p, o, ap, edge: angle(p - o, ap - edge),
            "the lower incisor's axis to P-Or: 180 - FMA - IMPA", "Tweed 1954"),
    Measure("interincisal angle", "degrees", ("Ap1u", "Is1u", "Ap1l", "Is1l"),
            lambda upper, edge, lower, other: angle(upper - edge, lower - other),
            "between the axes of the upper and the lower incisor", "Downs 1948"),
    Measure("overjet", "mm", ("Is1l", "Is1u", *OCCLUSAL), along_occlusal_plane,
            "how far Is1u is ahead of Is1l along the occlusal plane of Wits", "in common use"),
    Measure("overbite", "mm", ("Is1u", "Is1l", *OCCLUSAL), above_occlusal_plane,
            "how far Is1l reaches above Is1u, perpendicular to it", "in common use"),
    # soft tissue
    Measure("Ls to E-line", "mm", ("Ns", "Pog’", "Ls"), ahead, "how far Ls is ahead of Ns-Pog’", "Ricketts 1957"),
    Measure("Li to E-line", "mm", ("Ns", "Pog’", "Li"), ahead, "how far Li is ahead of Ns-Pog’", "Ricketts 1957"),
    Measure("nasolabial angle", "degrees", ("CoTg", "Sn", "Ls"), lambda nose, sn, ls: angle(nose - sn, ls - sn),
            "CoTg-Sn-Ls", "in common use"),
)  # fmt: skip


def known_measures(abbreviations: Sequence[str]) -> tuple[Measure, ...]:
    """Return the measures that need no other landmarks than these."""
    return tuple(measure for measure in MEASURES if set(measure.landmarks) <= set(abbreviations))


def measure_profiles(
    measures: Sequence[Measure], abbreviations: Sequence[str], landmarks: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """Return the values (I, M) of measures for landmarks (I, N, 2) px and spacing (I,) mm per px.

    nan if a landmark or the spacing is missing, or if it is unknown which way the profile faces.
    """
    points = profiles_to_the_right(upright(dict(zip(abbreviations, np.moveaxis(landmarks, 1, 0), strict=True))))
    columns = []
    for measure in measures:
        scale = spacing[:, None] if measure.unit == "mm" else 1.0
        columns.append(measure.value(*(scale * points[name] for name in measure.landmarks)))
    return np.stack(columns, 1)


def middle(points: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return the means (I, 2) of the named ones of landmarks (I, 2) by abbreviation; nan where all are missing."""
    unknown = np.full(next(iter(points.values())).shape, np.nan)
    own = [points[name] for name in names if name in points]
    return np.ma.masked_invalid([unknown, *own]).mean(0).filled(np.nan)


def upright(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return landmarks (I, 2) by abbreviation, turned by quarter turns so that the chin is below the forehead."""
    down = middle(points, LOWER) - middle(points, UPPER)
    turns = np.nan_to_num(np.round(np.arctan2(down[:, 0], down[:, 1]) / (np.pi / 2))).astype(int) % 4
    cosine, sine = np.array([1, 0, -1, 0])[turns], np.array([0, 1, 0, -1])[turns]
    return {
        name: np.stack([cosine * own[:, 0] - sine * own[:, 1], sine * own[:, 0] + cosine * own[:, 1]], -1)
        for name, own in points.items()
    }


def profiles_to_the_right(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return landmarks (I, 2) by abbreviation, mirrored if those of the front are to the left of those of the back."""
    side = np.sign(middle(points, FRONT) - middle(points, BACK))[:, 0]
    return {name: np.stack([side * own[:, 0], own[:, 1]], -1) for name, own in points.items()}
