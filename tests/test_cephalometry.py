"""Each measure against numbers that were worked out by hand on points with round coordinates, y down."""

import math

import numpy as np
import pytest

from reporting.cephalometry import MEASURES, known_measures, measure_profiles

# A profile that looks to the right: S-N, the Frankfort horizontal P-Or, the palate and the occlusal plane are level.
POINTS = {
    "S": (0, 0), "N": (70, 0), "P": (-20, 30), "Or": (60, 30), "PNS": (20, 50), "ANS": (75, 50), "ar": (-10, 40),
    "Go": (0, 80), "Me": (60, 110), "Gn": (65, 108), "Pog": (70, 100), "Cond": (-10, 30), "A": (70, 60), "B": (70, 90),
    "ppOcP": (30, 75), "Is1u": (78, 76), "Is1l": (75, 74), "Ap1u": (70, 56), "Ap1l": (70, 94), "Ls1u": (79, 72),
    "Li1l": (76, 78), "Ns": (100, 50), "Pog’": (80, 110), "Ls": (88, 70), "Li": (86, 80), "CoTg": (95, 60),
    "Sn": (85, 60),
}  # fmt: skip


def value(name: str, spacing: float = 1.0, **changes) -> float:
    """A measure of POINTS, some of them elsewhere."""
    points = POINTS | {key: place for key, place in changes.items()}
    (measure,) = (each for each in MEASURES if each.name == name)
    landmarks = np.array([list(points.values())], float)
    return float(measure_profiles([measure], list(points), landmarks, np.array([spacing]))[0, 0])


def degrees(rise: float, run: float) -> float:
    """The slope angle of a line."""
    return math.degrees(math.atan2(rise, run))


def test_sna_snb_and_anb_are_angles_at_nasion():
    assert value("SNA") == pytest.approx(90) and value("SNB") == pytest.approx(90) and value("ANB") == pytest.approx(0)
    assert value("SNA", A=(76, 60)) == pytest.approx(90 + degrees(6, 60))
    assert value("SNB", B=(61, 90)) == pytest.approx(90 - degrees(9, 90))
    assert value("ANB", A=(76, 60), B=(61, 90)) == pytest.approx(2 * degrees(1, 10))  # A ahead of B: class II, above 0
    assert value("ANB", A=(64, 60)) == pytest.approx(-degrees(1, 10))


def test_the_mandibular_plane_is_measured_to_frankfort_and_to_sella_nasion():
    assert value("FMA") == pytest.approx(degrees(30, 60))
    assert value("SN-GoGn") == pytest.approx(degrees(28, 65))
    assert value("gonial angle") == pytest.approx(90 + degrees(30, 60) + degrees(10, 40))
    assert value("FMA", Me=(60, 70)) == pytest.approx(-degrees(10, 60))  # a plane that rises to the front


def test_odi_adds_the_angle_of_the_palate_where_it_falls_to_the_front():
    level = 90 - degrees(30, 60)  # A-B is plumb
    assert value("ODI") == pytest.approx(level)
    assert value("ODI", ANS=(75, 55)) == pytest.approx(level + degrees(5, 55))
    assert value("ODI", ANS=(75, 45)) == pytest.approx(level - degrees(5, 55))


def test_apdi_is_the_facial_angle_and_adds_where_b_is_ahead_of_the_facial_plane():
    assert value("APDI") == pytest.approx(90)
    assert value("APDI", B=(73, 90)) == pytest.approx(90 + degrees(3, 30))
    assert value("APDI", A=(73, 60)) == pytest.approx(90 - degrees(3, 30))
    assert value("APDI", ANS=(75, 55)) == pytest.approx(90 + degrees(5, 55))
    assert value("facial angle", Pog=(60, 100)) == pytest.approx(90 - degrees(10, 100))


def test_ratios_of_facial_heights():
    assert value("FHI") == pytest.approx(80 / math.hypot(10, 110))
    assert value("lower face") == pytest.approx(math.hypot(15, 60) / math.hypot(10, 110))


def test_the_modified_wits_is_the_distance_of_the_edges_with_the_sign_of_the_overjet():
    assert value("MW") == pytest.approx(math.hypot(3, 2))
    assert value("MW", Is1u=(70, 76)) == pytest.approx(-math.hypot(5, 2))


def test_wits_overjet_and_overbite_lie_along_and_across_the_occlusal_plane():
    assert value("Wits") == pytest.approx(0, abs=1e-9) and value("overjet") == pytest.approx(3)
    assert value("overbite") == pytest.approx(2)
    assert value("Wits", A=(74, 60)) == pytest.approx(4)
    tilted = {"ppOcP": (46.5, 115)}  # the plane rises by 40 over 30 to the front: (0.6, -0.8)
    assert value("Wits", A=(70, 60), B=(70, 90), **tilted) == pytest.approx(24)
    assert value("Wits", spacing=0.5, A=(74, 60)) == pytest.approx(2)


def test_incisors_lean_ahead_by_growing_angles():
    lean = degrees(8, 20)  # of the upper incisor to the plumb line
    assert value("U1-SN") == pytest.approx(90 + lean) and value("U1-NA") == pytest.approx(lean)
    lower = degrees(5, 20)
    assert value("L1-NB") == pytest.approx(lower)
    plane = degrees(30, 60)
    assert value("IMPA") == pytest.approx(90 + lower - plane)
    assert value("FMIA") == pytest.approx(90 - lower) == pytest.approx(180 - value("FMA") - value("IMPA"))
    assert value("interincisal angle") == pytest.approx(180 - lean - lower)
    assert value("U1-NA distance") == pytest.approx(9) and value("L1-NB distance") == pytest.approx(6)


def test_lips_are_measured_ahead_of_the_line_from_nose_to_chin():
    # Ns-Pog’ falls by 60 and goes back by 20: at the height of Ls it lies at x = 100 - 20 / 3
    across = 60 / math.hypot(20, 60)
    assert value("Ls to E-line") == pytest.approx((88 - (100 - 20 / 3)) * across)
    assert value("Li to E-line") == pytest.approx((86 - 90) * across)
    assert value("Li to E-line", Li=(95, 80)) == pytest.approx(5 * across)
    assert value("nasolabial angle") == pytest.approx(degrees(10, 3))


def test_convexity_axis_and_lengths():
    assert value("convexity") == pytest.approx(0)
    assert value("convexity", A=(76, 60)) == pytest.approx(degrees(6, 60) + degrees(6, 40))
    assert value("Y axis") == pytest.approx(degrees(108, 65))
    assert value("midface length") == pytest.approx(math.hypot(80, 30))
    assert value("mandibular length", spacing=0.1) == pytest.approx(0.1 * math.hypot(75, 78))


def all_values(landmarks: np.ndarray, spacing: float = 1.0) -> np.ndarray:
    return measure_profiles(MEASURES, list(POINTS), landmarks, np.full(len(landmarks), spacing))


def test_a_profile_that_looks_left_turned_or_shifted_measures_the_same():
    plain = np.array([list(POINTS.values())], float)
    angle = math.radians(7)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    for other in (plain * (-1, 1) + (500, 20), plain @ matrix.T + 40):
        expected = all_values(plain)
        assert np.allclose(all_values(other), expected, atol=1e-9)
    assert np.isfinite(all_values(plain)).all()


def test_a_measure_is_missing_where_a_point_or_the_spacing_is():
    points = np.array([list(POINTS.values())], float)
    points[0, list(POINTS).index("A")] = math.nan
    missing = np.isnan(all_values(points)[0])
    assert [m.name for m, gone in zip(MEASURES, missing, strict=True) if gone] == [
        m.name for m in MEASURES if "A" in m.landmarks
    ]
    plain = np.array([list(POINTS.values())], float)
    missing = np.isnan(all_values(plain, math.nan)[0])
    assert [bool(gone) for gone in missing] == [m.unit == "mm" for m in MEASURES]


def test_a_profile_whose_side_is_unknown_has_no_measures():
    measures = known_measures(["S", "Go", "N", "Me"])
    points = np.full((1, 4, 2), 3.0)
    points[0, :2] = math.nan
    assert np.isnan(measure_profiles(measures, ["S", "Go", "N", "Me"], points, np.ones(1))).all()


def test_limits_belong_to_the_normal_class():
    by_name = {measure.name: measure for measure in MEASURES}
    values = np.array([3.19, 3.2, 5.7, 5.71, math.nan])
    assert by_name["ANB"].class_names(values).tolist() == ["class III", "class I", "class I", "class II", ""]
    values = np.array([-0.1, 0.0, 1.9, 2.0, 4.5, 4.6])
    assert by_name["MW"].class_names(values).tolist() == [
        "anterior crossbite", "edge to edge", "edge to edge", "normal", "normal", "large overjet",
    ]  # fmt: skip


def test_measures_are_those_whose_landmarks_are_there():
    nineteen = "S N Or P A B Pog Me Gn Go Is1l Is1u Ls Li Sn Pog’ PNS ANS ar".split()
    names = {measure.name for measure in known_measures(nineteen)}
    assert names >= {"SNA", "SNB", "ANB", "ODI", "APDI", "FHI", "SN-GoGn", "MW", "FMA"}
    assert not names & {"Wits", "IMPA", "U1-SN", "interincisal angle", "Ls to E-line"}
    assert known_measures(["1", "2"]) == ()


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_measure_has_a_source_and_a_class_more_than_limits(measure):
    assert measure.unit in ("degrees", "mm", "ratio") and measure.definition and measure.source
    assert len(measure.classes) == (len(measure.limits) + 1 if measure.limits else 0)
    assert list(measure.limits) == sorted(measure.limits)


@pytest.mark.parametrize("side", [1, -1])
def test_a_turned_image_has_the_measures_of_the_upright_one(side):
    names, upright = list(POINTS), np.array([list(POINTS.values())], float) * (side, 1)
    measures = known_measures(names)
    expected = measure_profiles(measures, names, upright, np.ones(1))
    for turn in ([[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]):
        turned = upright @ np.array(turn).T + 500
        assert measure_profiles(measures, names, turned, np.ones(1)) == pytest.approx(expected, nan_ok=True)
