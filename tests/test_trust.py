import math

import numpy as np
import pytest
import torch
from conftest import refuses
from test_shapes import heads, turned

from evaluate import Predictions, Verdict
from reading.shapes import similarity
from reporting.memory import Memory, calibrate, join_memories, read_memory, remember, reorder
from reporting.trust import (
    assess,
    differs_from_training,
    doubt_ruler,
    doubt_spacing,
    judge,
    radii,
    rulers_needed,
    variants,
)
from tools.predictor import Predictor
from utils import apply_affine

NAMES = [f"L{n}" for n in range(12)]
SIZES = [(100, 120)] * 60


def remembered(spacing: float = 0.5, errors: np.ndarray | None = None) -> Memory:
    """The memory of 60 heads in px, with scores of about 0.8 and errors (J, 12) px on 20 images."""
    generator = np.random.default_rng(1)
    score = generator.uniform(0.75, 0.85, (20, 12))
    errors = generator.exponential(1.0, (20, 12)) if errors is None else errors
    return remember(heads(), np.full(60, spacing), SIZES, score, *apart(errors))


def apart(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points that were found in heads, and the true ones, at these distances (J, 12)."""
    found = heads()[: len(errors)]
    return found, found + np.stack([errors, 0 * errors], -1)


def verdict(landmarks: np.ndarray, score: float = 0.8) -> Verdict:
    return judge(remembered(), landmarks, np.full(12, score), NAMES)


def test_images_like_those_of_training_are_good_wherever_the_patient_is():
    model = heads(80)  # the first 60 are those of training, the others are new ones of the same kind
    for number, points in enumerate(model[60:]):
        assert verdict(turned(points, 5 * number, 1 + number, (number, -50))) == Verdict("good")


def test_another_shape_is_rejected_and_a_lost_landmark_is_named():
    points = heads(80)[70]
    for other in (points * (-1, 1), np.random.default_rng(5).uniform(0, 100, (12, 2))):
        assert verdict(other).name == "reject" and "deviation" in verdict(other).reason
    for way in ((25, 10), (600, -900)):  # far off, and so far that the whole shape looks wrong
        lost = points.copy()
        lost[4] += way
        assert verdict(lost).name == "check" and "L4 is" in verdict(lost).reason


@pytest.mark.parametrize("images", [5, 10, 15, 30])
def test_few_training_images_do_not_make_good_images_doubtful(images):
    verdicts = []
    for seed in range(10):
        chosen = np.random.default_rng(seed).choice(60, images, replace=False)
        score = np.full((20, 12), 0.8)
        memory = remember(heads()[chosen], np.full(images, 0.5), SIZES[:images], score, *apart(0 * score))
        verdicts += [judge(memory, own, score[0], NAMES).name for own in heads(80)[60:]]
        assert judge(memory, heads(80)[70] * (-1, 1), score[0], NAMES).name == "reject"
    assert "reject" not in verdicts and verdicts.count("check") <= (60 if images == 5 else 30)  # of 200


def test_low_scores_are_said():
    points = heads(80)[70]
    assert verdict(points, 0.6) == Verdict("check", "low scores: 0.60 on average, usual are 0.80")
    assert verdict(points, 0.72).name == "good"


def test_a_slip_in_the_training_images_does_not_blind_the_gate():
    points = heads()
    points[7] = points[7] * (-1, 1)
    points[9] = np.random.default_rng(5).uniform(0, 100, (12, 2))
    score = np.full((20, 12), 0.8)
    memory = remember(points, np.full(60, 0.5), SIZES, score, *apart(score * math.nan))
    assert memory.deviation < 1.3 * remembered().deviation
    assert judge(memory, heads(80)[70] * (-1, 1), score[0], NAMES).name == "reject"


def test_landmarks_that_say_nothing_of_a_shape_are_judged_by_their_scores():
    points = np.random.default_rng(0).uniform(0, 100, (20, 2, 2))
    score = np.full((20, 2), 0.8)
    memory = remember(points, np.full(20, 0.5), SIZES[:20], score, points, points)
    assert judge(memory, points[0] * 7, score[0], ["A", "B"]) == Verdict("good")
    assert judge(memory, points[0], score[0] / 2, ["A", "B"]).name == "check"


@pytest.mark.parametrize("images", [8, 20, 60])
def test_the_radii_hold_the_share_of_errors_that_they_promise(images):
    generator = np.random.default_rng(images)
    scale = np.linspace(0.3, 3, 12)
    shares, means = [], []
    for _ in range(60):
        score = generator.uniform(0.4, 1, (images + 50, 12))
        errors = scale * generator.rayleigh(1, (images + 50, 12)) / score  # large where the score is low
        error, factor = calibrate(score[:images], errors[:images])
        memory = remembered()._replace(relative_error=error, factor=factor, score=np.median(score[:images], 0))
        unit = memory.mean / memory.size(memory.mean)  # a head of size 1
        found = radii(memory, unit, score[images:])
        shares.append([(errors[images:] <= found[f"radius_{level}"]).mean() for level in (90, 95)])
        means.append(found["radius_95"].mean(0))
    assert np.mean(shares, 0) == pytest.approx([0.9, 0.95], abs=0.015)
    assert np.all(np.diff(np.mean(means, 0)) > 0)  # a landmark that is hard to find has a larger radius


def test_a_landmarks_usual_error_is_drawn_to_that_of_all_by_hand():
    score = np.ones((6, 2))
    errors = np.tile([1.0, 3.0], (6, 1))
    error, factor = calibrate(score, errors)
    assert error == pytest.approx([(6 * 1 + 2 * 2) / 8, (6 * 3 + 2 * 2) / 8])
    # each image by the other five: 1 / (9 / 7) and 3 / (19 / 7); 90 % take the twelfth of 12 ratios, 95 % a thirteenth
    assert factor == pytest.approx([3 * 7 / 19, math.nan], nan_ok=True)


def test_too_few_images_or_only_training_images_give_no_radii():
    for errors in (np.full((20, 12), math.nan), np.where(np.arange(20)[:, None] < 4, 1.0, math.nan) * np.ones(12)):
        assert all(np.isnan(own).all() for own in radii(remembered(errors=errors), heads()[0], np.ones(12)).values())


def test_a_level_that_takes_more_errors_than_there_are_has_no_radius():
    errors = np.full((20, 12), math.nan)
    errors[:10, 3] = np.linspace(1, 2, 10)  # ten errors hold 90 %, for 95 % it takes 19
    memory = remembered(errors=errors)
    found = radii(memory, heads()[0], np.full(12, 0.8))
    assert np.flatnonzero(np.isfinite(found["radius_90"])).tolist() == [3]  # no other landmark has an error
    assert np.isnan(found["radius_95"]).all()


def predictions(spacing: float) -> Predictions:
    """Two images, the second mirrored."""
    points = heads(80)[70:72]
    points[1] = points[1] * (-1, 1)
    return Predictions(["a", "b"], points, points, np.full((2, 12), 0.8), np.full(2, spacing))


@pytest.mark.parametrize(
    ("trained", "tested", "unit", "factor"),
    [(0.5, 0.5, "mm", 0.5), (0.5, 0.48, "px", 1), (math.nan, math.nan, "px", 1), (math.nan, 0.1, "mm", 0.1),
     (0.5, math.nan, "px", 1)],
)  # fmt: skip
def test_radii_are_in_the_unit_that_is_asked_for_and_of_no_rejected_image(trained, tested, unit, factor):
    memory, given = remembered(trained), predictions(tested)
    found = assess(memory, given, NAMES, unit)
    first, rejected = found.extras["radius_95"]
    assert first == pytest.approx(factor * radii(memory, given.landmarks[0], np.full(12, 0.8))["radius_95"])
    assert found.verdicts[1].name == "reject" and np.isnan(rejected).all()


def test_a_radius_grows_with_the_patient_in_the_image():
    memory, points = remembered(), heads(80)[70]
    usual = radii(memory, points, np.full(12, 0.8))["radius_90"]
    for other, missing in ((turned(points, 30, 3, (7, -5)), []), (3 * points, [0, 4, 7]), (points * (-3, 3), [])):
        other[missing] = math.nan
        assert radii(memory, other, np.full(12, 0.8))["radius_90"] == pytest.approx(3 * usual, rel=0.1)


def test_a_checkpoint_without_a_memory_judges_nothing():
    assert read_memory({"abbreviations": NAMES}) is None
    nothing = assess(None, predictions(0.5), NAMES, "mm")
    assert not nothing.verdicts and not nothing.extras


def test_the_mean_of_networks_is_judged_by_the_mean_of_their_scores():
    one, other = remembered(), remembered()._replace(score=np.full(12, 0.2), least_score=np.array(0.1))
    joined = join_memories([one, other])
    assert joined.least_score == pytest.approx((one.least_score + 0.1) / 2) and np.array_equal(joined.mean, one.mean)
    assert joined.score == pytest.approx((one.score + 0.2) / 2)
    assert join_memories([one, None]) is None and join_memories([]) is None


def test_a_memory_survives_a_checkpoint_and_a_damaged_one_is_refused():
    memory = remembered()
    state = {"abbreviations": NAMES, "memory": memory.to_state(), "path": "best.pt"}
    for name, own in read_memory(state)._asdict().items():
        assert np.array_equal(own, getattr(memory, name))
    for change in ({"mean": memory.mean[:3]}, {"unknown": memory.mean}):
        broken = {**memory._asdict(), **change}
        with refuses("best.pt", "memory"):
            read_memory(state | {"memory": {**memory.to_state(), "mean": "text"}})
        with refuses("best.pt", "memory"):
            read_memory(state | {"memory": {name: torch.from_numpy(np.array(own)) for name, own in broken.items()}})


def test_a_ruler_is_not_believed_if_its_scores_the_anatomy_or_the_size_of_the_image_speak_against_it():
    memory = remembered()  # 0.5 mm per px, 100 x 120 px
    points, score = heads(80)[70], np.full(12, 0.8)

    def doubt(spacing=0.5, size=(100, 120), score=score, memory=memory) -> str:
        reason = doubt_ruler(memory, points, score, spacing, [0, 1])
        return reason or differs_from_training(memory, size, spacing)

    assert doubt() == "" == doubt(0.52) == doubt(9.0, memory=None)
    assert "one place" in doubt(math.inf) and "one place" in doubt(math.inf, memory=None)
    assert "scores" in doubt(score=np.where(np.arange(12) == 1, 0.3, score))
    assert "anatomy" in doubt(2.87) and "anatomy" in doubt(0.1)
    assert "images of this size" in doubt(0.57) and doubt(0.57, (640, 800)) == ""


def test_an_image_is_doubtful_if_its_spacing_makes_the_anatomy_too_large_or_too_small():
    points = np.stack([heads(80)[70], heads(80)[70] * (-1, 1)])
    for spacing, expected in ((0.5, "good"), (0.25, "check"), (5.0, "check"), (math.nan, "good")):
        own = Predictions(["a", "b"], points, points, np.full((2, 12), 0.8), np.full(2, spacing))
        first, mirrored = assess(remembered(), own, NAMES, "mm").verdicts
        assert first.name == expected and ("anatomy" in first.reason) == (expected == "check")
        assert mirrored.name == "reject" and "anatomy" not in mirrored.reason


def test_a_ruler_that_is_found_inexactly_needs_company_in_images_of_a_new_size():
    memory = remembered()
    memory = memory._replace(relative_error=np.full(12, 0.5 / memory.extent.mean()))
    # both ends: 0.71 mm of 10 mm; two standard errors of the median of two rulers are 10 %
    assert rulers_needed(memory, (640, 800), [0, 1], 10.0) == 2
    assert rulers_needed(memory, (100, 120), [0, 1], 10.0) == 1  # a size known from training
    unknown = memory._replace(relative_error=np.full(12, math.nan))  # taken as 2 mm at each end
    assert (
        rulers_needed(unknown, (640, 800), [0, 1], 10.0) == 32 and rulers_needed(unknown, (100, 120), [0, 1], 10.0) == 1
    )
    assert rulers_needed(None, (640, 800), [0, 1], 10.0) == 1


class Spots(Predictor):
    """Finds spots of the grey values 20, 40, 60, ... in an upright image, without a network; else places by chance."""

    def __init__(self, count: int, memory: Memory) -> None:
        self.memory, self.landmarks = memory, {"abbreviations": NAMES[:count]}

    def predict_pixels(self, pixels):
        points = [np.argwhere(pixels == 20 * (n + 1))[:1, ::-1] for n in range(len(self.landmarks["abbreviations"]))]
        landmarks = np.array([p[0] if len(p) else (n * n, 7 * n) for n, p in enumerate(points)], float)
        turned = similarity(landmarks, self.memory.mean)[0, 0] < 0  # by more than 90 degrees, or
        turned |= np.abs(similarity(landmarks, self.memory.mean)[0, :2]).argmax() == 1  # by more than 45
        found = np.full(len(points), 0.2 if turned else 0.8) * [1.0 if len(p) else 0.2 for p in points]
        return np.roll(landmarks, 1, 0) if turned else landmarks, {"score": found}


@pytest.mark.parametrize("what", ["mirrored", "inverted", "turned upside down", "turned clockwise"])
def test_a_mirrored_inverted_or_turned_image_is_recognised_and_can_be_put_right(what):
    points = heads()
    predictor = Spots(12, remembered())
    image = np.zeros((200, 180), np.uint8)
    places = (points[0] + 40).round().astype(int)
    for n, (x, y) in enumerate(places):
        image[y, x] = 20 * (n + 1)
    landmarks, figures, verdict = predictor.judge(image, *predictor.predict_pixels(image), False)
    assert verdict.name == "good" and np.array_equal(landmarks, places)
    wrong = variants(image)
    seen, affine = wrong["turned anticlockwise" if what == "turned clockwise" else what]
    seen = np.ascontiguousarray(seen)
    found = predictor.predict_pixels(seen)
    assert predictor.judge(seen, *found, False)[2].reason.startswith(f"{what}?")
    landmarks, figures, verdict = predictor.judge(seen, *found, True)
    assert verdict.name == "check" and verdict.reason.startswith(what)
    assert np.array_equal(apply_affine(affine, landmarks), places) and figures["score"].min() == 0.8


def test_every_variant_of_an_image_says_where_its_points_are_in_the_image():
    image = np.zeros((30, 50), np.uint8)
    image[4, 41] = 200
    for name, (other, affine) in variants(image).items():
        bright = 255 - other if "inverted" in name else other
        y, x = np.argwhere(bright == 200)[0]
        assert (affine @ (x, y, 1)).tolist() == [41, 4], name
    colour = np.zeros((30, 50, 3), np.uint8)
    assert variants(colour)["turned clockwise"][0].shape == (50, 30, 3)


def test_a_set_that_faces_both_ways_accepts_both_and_knows_its_size():
    points, score = heads(), np.full((20, 12), 0.8)
    points[::3] = points[::3] * (-1, 1) + (300, 0)
    memory = remember(points, np.full(60, 0.5), SIZES, score, *apart(0 * score))
    assert memory.mirrored == pytest.approx(1 / 3) and memory.deviation < 1.3 * remembered().deviation
    assert memory.extent == pytest.approx(remembered().extent, rel=0.05)
    for own in (heads(80)[70], heads(80)[70] * (-1, 1)):
        assert judge(memory, own, score[0], NAMES) == Verdict("good")
    assert (
        judge(memory, heads(80)[70] * (1, -1) @ np.array([[0, 1], [1, 0]]), score[0], NAMES).name != "reject"
    )  # turned


def test_partly_annotated_training_images_leave_shape_and_size_as_they_are():
    points, whole, score = heads(), remembered(), np.full((20, 12), 0.8)
    points[::2, :4] = math.nan
    points[1, 2:] = math.nan  # any two points fit
    points[3] = math.nan
    memory = remember(points, np.full(60, 0.5), SIZES, score, *apart(0 * score))
    assert memory.extent == pytest.approx(whole.extent, rel=0.08)
    assert memory.deviation == pytest.approx(whole.deviation, rel=0.4)
    assert judge(memory, heads(80)[70], score[0], NAMES) == Verdict("good")


def test_the_ruler_is_no_part_of_the_patients_size_and_shape():
    points, score = heads(), np.full((20, 12), 0.8)
    points[:, :2] = np.random.default_rng(3).uniform(-400, 400, (60, 2, 2))
    memory = remember(points, np.full(60, 0.5), SIZES, score, *apart(0 * score), ruler=[0, 1])
    alone = remember(heads()[:, 2:], np.full(60, 0.5), SIZES, score[:, 2:], *(own[:, 2:] for own in apart(0 * score)))
    assert memory.extent == pytest.approx(alone.extent, 1e-3)
    assert memory.deviation == pytest.approx(alone.deviation, 1e-3)
    memory = read_memory({"abbreviations": NAMES, "memory": memory.to_state(), "path": "best.pt"})
    points = heads(80)[70]
    points[:2] = (900, -900)
    assert judge(memory, points, score[0], NAMES) == Verdict("good")
    points[4] += (25, 10)
    assert "L4 is" in judge(memory, points, score[0], NAMES).reason


def test_a_memory_in_another_order_judges_the_same():
    rows = np.random.default_rng(0).permutation(12)
    memory, points, score = remembered(), heads(80)[70], np.linspace(0.7, 0.9, 12)
    points[4] += (25, 10)
    other = reorder(memory, rows)
    assert judge(other, points[rows], score[rows], [NAMES[n] for n in rows]) == judge(memory, points, score, NAMES)
    for name, own in radii(memory, points, score).items():
        assert radii(other, points[rows], score[rows])[name] == pytest.approx(own[rows])


def test_a_memory_of_the_first_format_judges_shapes_but_knows_no_radii():
    kept = remembered().to_state()
    first = {name: own for name, own in kept.items() if name not in ("mirrored", "anatomy", "relative_error")}
    memory = read_memory({"abbreviations": NAMES, "memory": first | {"error": torch.ones(12)}, "path": "best.pt"})
    score = np.full(12, 0.8)
    assert judge(memory, heads(80)[70], score, NAMES) == Verdict("good")
    assert judge(memory, heads(80)[70] * (-1, 1), score, NAMES).name == "reject"
    assert all(np.isnan(own).all() for own in radii(memory, heads()[0], score).values())
    assert doubt_spacing(memory, heads()[0], 0.5) == "" and "anatomy" in doubt_spacing(memory, heads()[0], 2.0)
    assert rulers_needed(memory, (640, 800), [0, 1], 10.0) > 10
