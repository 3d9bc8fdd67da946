"""The head of a phantom in numbers: mean places of its landmarks, how people differ from them, and outlines.

Head frame: mm, x forward, y down, origin at sella. make_phantom.py draws it.
"""

import math

import numpy as np

# Point name, abbreviation, mean position (x, y) in head mm. The spelling is that of the published data set.
LANDMARKS = (
    ("Ruler 1", "R1", None), ("Ruler 2", "R2", None), ("Sella turcica", "S", (0, 0)), (" Nasion", "N", (68, -9)),
    ("Orbital", "Or", (56, 16)), (" Porion", "P", (-21, 16)), ("Condylion", "Cond", (-8, 14)),
    ("Basion", "Ba", (-19, 38)), ("articulare", "ar", (-12, 30)), ("Gonion", "Go", (1, 68)),
    ("Posterior point of Condyle", "ppCond", (-14, 19)), ("Antegonial notch", "Im", (21, 76)),
    ("Pterygomaxillare", "Ptm", (23, 32)), ("Pterygo-maxillary fissure", "Pt", (20, 13)), ("Pogonion", "Pog", (65, 89)),
    ("Gnathion", "Gn", (62, 95)), ("Menton", "Me", (55, 98)), ("Center of symphysis", "D", (58, 87)),
    ("Anterior nasal spine", "ANS", (78, 37)), ("Posterior nasal spine", "PNS", (22, 40)), ("A point", "A", (73, 44)),
    ("B point", "B", (65, 77)), ("Infradentale", "Id", (69, 69)), ("Incision inferior", "Is1l", (74, 59)),
    ("Labial outline of lower incisor", "Li1l", (74, 65)), ("Apex of lower incisor", "Ap1l", (62, 80)),
    ("Prosthion", "Pr", (75, 52)), ("Apex of upper incisor", "Ap1u", (66, 41)),
    ("Labial outline of upper incisor", "Ls1u", (79, 57)), ("Incision superior", "Is1u", (78, 63)),
    ("Posterior point of occlusal plane", "ppOcP", (32, 56)), ("Mesial point of upper molar", "Mu6", (47, 55)),
    ("Distal point of upper molar", "Du6", (36, 54)), ("Mesial apex of upper molar", "Mau6", (46, 38)),
    ("Mesial point of lower molar", "Ml6", (48, 59)), ("Distal point of lower molar", "Dl6", (36, 58)),
    ("Mesial apex of lower molar", "Mal6", (42, 76)),
    ("Tangent 1 (most posterior point on a tangent through articulare and ramus inferior to it)", "T1", (-9, 44)),
    ("Tangent 2 (most inferior on a tangent through menten and lower border)", "T2", (37, 88)),
    ("Soft tissue glabella", "Gl’", (82, -24)), ("Soft tissue Nasion", "N’", (76, -10)),
    ("Tip of the nose", "Ns", (99, 27)), ("Collumella tangent point", "CoTg", (95, 33)), ("subnasale", "Sn", (86, 37)),
    ("Labrale superior", "Ls", (91, 49)), ("Stomion superior", "Stm-s", (86, 55)),
    ("Stomion inferior", "Stm-i", (86, 59)),
    ("Labrale inferior", "Li", (89, 67)), ("Mentolabial fold", "Sm", (80, 75)),
    ("Soft tissue Pogonion", "Pog’", (79, 89)),
    ("Soft tissue Gnathion", "Gn’", (74, 98)), ("Soft tissue Menton", "Me’", (60, 104)),
)  # fmt: skip

MANDIBLE = "Go Im Pog Gn Me D B Id Is1l Li1l Ap1l Ml6 Dl6 Mal6 T1 T2 Li Sm Pog’ Gn’ Me’ Stm-i".split()
MAXILLA = "ANS PNS A Pr Ap1u Ls1u Is1u Mu6 Du6 Mau6 Sn Ls Stm-s".split()
CONDYLE = "Cond ppCond ar T1".split()
UPPER_MOLAR, LOWER_MOLAR = ("Mu6", "Du6", "Mau6"), ("Ml6", "Dl6", "Mal6")

Points = dict[str, np.ndarray]


def rotation(degrees: float) -> np.ndarray:
    """Return the matrix (2, 2) that turns x towards y."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def turn(points: Points, names, about: np.ndarray, degrees: float) -> None:
    """Turn the named points in place."""
    for name in names:
        points[name] = about + rotation(degrees) @ (points[name] - about)


def vary_shape(generator: np.random.Generator) -> Points:
    """Return the landmarks of a person, head mm: the mean head, varied as faces differ."""
    points = {name: np.array(place, float) for _, name, place in LANDMARKS if place}

    def move(names, x: float, y: float) -> None:
        for name in names:
            points[name] = points[name] + (x, y)

    normal = generator.normal
    move(MAXILLA, normal(0, 2.2), normal(0, 1.6))  # sagittal and vertical position of the jaws
    move(MANDIBLE, normal(0, 3.2), normal(0, 2.5))
    turn(points, MANDIBLE, points["Cond"], normal(0, 2.0))
    turn(points, ["Go", "Im"], points["T2"], normal(0, 4.0))  # gonial angle
    turn(points, ["Is1u", "Ls1u", "Pr"], points["Ap1u"], normal(0, 5.0))  # inclination of the incisors
    turn(points, ["Is1l", "Li1l", "Id"], points["Ap1l"], normal(0, 5.0))
    turn(points, ["N", "N’", "Gl’", "Or"], points["S"], normal(0, 2.0))  # cranial base
    move(["Ns", "CoTg"], normal(0, 3.0), normal(0, 2.0))  # nose, lips, chin
    move(["Ls", "Stm-s"], normal(0, 1.2), 0)
    move(["Li", "Stm-i"], normal(0, 1.2), 0)
    move(["Pog’", "Gn’"], normal(0, 1.5), 0)
    move(["Pog", "Gn"], normal(0, 1.2), 0)
    move(CONDYLE, normal(0, 1.5), normal(0, 1.2))
    move(["P"], normal(0, 2.0), normal(0, 1.5))
    move(["Ba"], normal(0, 1.5), normal(0, 2.0))
    move(["Pt", "Ptm"], normal(0, 1.5), normal(0, 1.5))
    move(UPPER_MOLAR, normal(0, 1.5), 0)
    move(LOWER_MOLAR, normal(0, 1.5), 0)
    together = {**dict.fromkeys(UPPER_MOLAR, 0), **dict.fromkeys(LOWER_MOLAR, 1), "Stm-s": 2}
    shifts = generator.normal(0, 0.7, (53, 2))
    for index, name in enumerate(points):
        move([name], *shifts[50 + together[name] if name in together else index])
    # the teeth do not pass through each other, and the occlusal plane ends behind the molars' contact
    gap = (points["Ml6"] + points["Dl6"] - points["Mu6"] - points["Du6"])[1] / 2
    move(LOWER_MOLAR, 0, max(0.0, 3.5 - gap))
    overbite = points["Is1u"][1] - points["Is1l"][1]
    move(["Is1l", "Li1l", "Id", "Ap1l"], 0, max(0.0, overbite - 4.0))
    points["Stm-i"] = points["Stm-s"] + (normal(0, 0.8), abs(normal(3.0, 1.2)))  # the lips meet, or nearly
    points["Li"] = np.maximum(points["Li"], points["Stm-i"] + (-5, 5.5))
    points["ppOcP"] = (points["Du6"] + points["Dl6"]) / 2 + (-3.5, 0)
    points["D"] = 0.25 * points["B"] + 0.25 * points["Pog"] + 0.5 * points["Me"] + (-0.5, -4.0)
    return points


def curve(nodes, closed: bool = False, steps: int = 12) -> np.ndarray:
    """Return a Catmull-Rom curve (M, 2) through nodes (n, 2)."""
    nodes = np.asarray(nodes, float)
    padded = np.vstack([nodes[-1], nodes, nodes[:2]]) if closed else np.vstack([nodes[0], nodes, nodes[-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.vstack(pieces if closed else [*pieces, nodes[-1:]])


def ellipse(centre, radius_x: float, radius_y: float, start: float = 0, end: float = 360) -> np.ndarray:
    """Return points (40, 2) on the arc of an ellipse, degrees from x towards y."""
    angles = np.radians(np.linspace(start, end, 40))
    return np.asarray(centre) + np.column_stack([radius_x * np.cos(angles), radius_y * np.sin(angles)])
