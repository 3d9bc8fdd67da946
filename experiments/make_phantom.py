"""Draw the bundled data set: lateral skull radiographs of people who do not exist, with 52 landmarks each.

    python -m experiments.make_phantom [--out CustomDataSet] [--count 60] [--seed 0] [--implants] [--force]

A mean head in mm is varied in shape and pose, drawn as layers of attenuation and exposed like a film. A landmark is a
point of the drawn geometry, so its position is exact. Picture i depends on (seed, i) only. With --implants it is the
same head, and a metal plate occludes one to three landmarks ("occluded" in data.json).

Frames, both (x, y), x forward (the face looks right), y down: *head* mm, origin at sella; *picture* px, pixel
centres at integers, 0.3 mm per px. The ruler is part of the machine and does not turn or scale with the head.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from experiments.phantom_film import HEIGHT, SPACING, WIDTH, Film, expose, molar, tooth
from experiments.phantom_head import LANDMARKS, LOWER_MOLAR, UPPER_MOLAR, Points, curve, ellipse, rotation, vary_shape
from machine import exit_status
from settings import UserError


def draw_pose(points: Points, generator: np.random.Generator) -> np.ndarray:
    """Draw the affine (2, 3) from head mm to picture px: turn, scale and place, moved so that every point is inside."""
    matrix = generator.uniform(0.88, 1.12) / SPACING * rotation(generator.uniform(-12, 12))
    centre = np.array([40.0, 38.0])
    target = np.array([WIDTH * 0.57, HEIGHT * 0.56]) + generator.uniform(-12, 12, 2) / SPACING
    placed = np.array([matrix @ (point - centre) + target for point in points.values()])
    margin = 12
    target += np.maximum(0, margin - placed.min(0)) - np.maximum(0, placed.max(0) - (WIDTH - margin, HEIGHT - margin))
    return np.column_stack([matrix, target - matrix @ centre])


def draw_head(film: Film, p: Points, generator: np.random.Generator) -> None:
    """Add a head to the film, from the skin inwards."""
    vary = generator.uniform
    # soft tissue: profile, throat, neck, vault
    profile = [(52, -98), (75, -58), p["Gl’"], p["N’"]]
    profile += [0.45 * p["N’"] + 0.55 * p["Ns"] + (-2, -2), p["Ns"], p["CoTg"], p["Sn"], p["Ls"], p["Stm-s"]]
    lower = [p[name] for name in ("Stm-i", "Li", "Sm", "Pog’", "Gn’", "Me’")]
    behind = [(42, 108), (28, 114), (20, 130), (18, 175), (-80, 185), (-84, 60), (-104, 10), (-105, -50), (-60, -108)]
    behind += [(0, -118), (52, -98)]
    skin = np.vstack([curve(profile), (p["Stm-s"] + p["Stm-i"]) / 2 - (5, 0), curve([*lower, *behind])])
    film.fill(skin, 0.42, 0.5)
    film.fill(skin - (3.0, 0), 0.10, 3.0)
    film.stroke(curve(profile), 0.12, 1.2)
    film.stroke(curve(lower), 0.12, 1.2)
    # vault and skull base
    glabella = p["N"] + (4.5, -13)
    vault = [p["N"], glabella, (68, -52), (46, -88), (0, -103), (-56, -88), (-92, -40), (-88, 5), (-58, 34)]
    vault.append(p["Ba"] + (-9, 2))
    film.fill(curve([*vault, p["Ba"], (-9, 10), (30, -4)], True), 0.42, 0.8)
    film.stroke(curve(vault), 0.42, 3.6, soft=0.7)
    film.stroke(curve(vault[:-1]), 0.4, 1.0)
    film.stroke(curve([np.asarray(v) * 0.93 + (0, -1) for v in vault[1:-1]]), 0.25, 0.9)
    sinus = curve([p["N"] + offset for offset in ((-2, -4), (1.5, -10), (1, -20), (-5, -22), (-6, -10))], True)
    film.fill(sinus, -0.35, 0.5)
    film.stroke(sinus, 0.2, 0.8, True)
    cup = ellipse(p["S"], 5.5, 5.0, -25, 205)  # sella: the landmark is its centre
    film.fill(cup, -0.25, 0.4)
    film.stroke(cup, 0.85, 1.4)
    film.stroke(curve([cup[0], p["S"] + (14, -5), p["S"] + (36, -9), p["N"] + (-8, -3)]), 0.45, 1.2)
    film.stroke(curve([cup[-1], p["S"] + (-9, 6), 0.5 * p["Ba"] + (-3, 4), p["Ba"]]), 0.65, 2.2)
    film.fill([p["Ba"], p["Ba"] + (2.5, -8), p["Ba"] + (-4, -8)], 0.6, 0.3)
    base = [p["Ba"] + (-14, -3), p["ar"] + (-6, 2.5), p["ar"], p["ar"] + (12, -5), p["Pt"] + (-4, 0)]
    film.stroke(curve(base), 0.5, 1.4)
    # ear
    canal = ellipse(p["P"] + (0, 4.2), 4.2, 4.2)
    film.fill(ellipse(p["P"] + (-1, 3), 13, 11), 0.35, 2.5)
    film.fill(canal, -0.5, 0.4)
    film.stroke(canal, 0.5, 1.0, True)
    # orbit, nose, cheek
    for offset, amount in (((0, 0), 0.5), (vary(-3, 3, 2), 0.22)):
        rim = ellipse(p["Or"] + (3, -15) + offset, 14, 15, 20, 215)
        film.stroke(rim, amount, 1.3)
    film.fill(ellipse(p["Or"] + (3, -15), 12, 13), -0.12, 2)
    film.fill([p["N"] + (-3, 0), p["N"] + (0.5, -1), p["N"] + (9, 15), p["N"] + (4, 13)], 0.45, 0.3)
    film.fill(curve([p["Or"] + o for o in ((-8, 2), (2, 3), (-4, 14), (-12, 26), (-14, 12))], True), 0.2, 1.2)
    film.stroke(curve([p["Or"] + o for o in ((-14, 4), (-8, 18), (-10, 28))]), 0.3, 1.0)
    # pterygomaxillary fissure: a drop, Pt on top, Ptm at the tip
    axis = p["Ptm"] - p["Pt"]
    drop = curve([p["Pt"], p["Pt"] + 0.25 * axis + (4, 0), p["Ptm"] + (0.6, -3), p["Ptm"], p["Ptm"] + (-0.8, -4),
                  p["Pt"] + 0.25 * axis + (-3, 0)], True)  # fmt: skip
    film.fill(drop, -0.3, 0.3)
    film.stroke(drop, 0.5, 0.9, True)
    # upper jaw
    maxilla = [p["ANS"], p["ANS"] + (-3, 3), p["A"], p["Pr"], p["Mu6"] + (10, -4), p["Du6"] + (0, -3), p["PNS"]]
    film.fill(maxilla, 0.35, 0.5)
    film.stroke([p["ANS"] + (-2, 1.5), p["A"], p["Pr"]], 0.5, 1.0)
    palate = [p["ANS"], p["ANS"] + (-12, -2.5), p["PNS"] + (4, -1.2), p["PNS"], p["PNS"] + (4, 1), p["ANS"] + (-12, 2)]
    film.fill(palate, 0.55, 0.3)
    # lower jaw, its other side fainter
    ramus = [p["ppCond"], p["ar"] + (1.5, 0.5), p["T1"], p["Go"] + (-5.5, -8), p["Go"]]
    border = [p["Go"], p["Go"] + (7, 6), p["Im"], p["T2"], p["Me"], p["Gn"], p["Pog"]]
    front = [p["Pog"], p["B"], p["Id"]]
    inner = [p["Ml6"] + (10, 6), p["Dl6"] + (-4, 6), (16, 46), (15, 24), (10, 22), (4, 27)]
    inner += [p["Cond"] + (4, 4), p["Cond"]]
    outline = np.vstack([curve([p["Cond"], *ramus]), curve(border), curve(front), curve(inner)])
    film.fill(outline, 0.36, 0.4)
    film.stroke(curve([p["Cond"] + (4, 4), p["Cond"], *ramus]), 0.45, 1.4)
    film.stroke(curve(border), 0.62, 2.0)
    film.stroke(curve(front), 0.45, 1.2)
    film.fill(ellipse((p["Cond"] + p["ppCond"]) / 2 + (2.5, 2.5), 4.5, 4.5), 0.3, 0.6)
    film.stroke(curve([*ramus, *border[1:4]]) + vary(-4, 4, 2), 0.2, 1.2)
    film.stroke(curve([p["Dl6"] + (-8, 10), p["Mal6"] + (-4, 3), p["Ap1l"] + (-9, 3)]), -0.16, 2.2, soft=0.6)  # canal
    film.stroke(ellipse(p["D"], 4.5, 7.5), 0.35, 1.3, True)  # symphysis
    film.fill(ellipse(p["D"], 2.2, 4.0), -0.2, 0.6)
    # teeth: front ones by their landmarks, the rest between
    for labial, tip, apex in (("Ls1u", "Is1u", "Ap1u"), ("Li1l", "Is1l", "Ap1l")):
        tooth(film, p[tip], p[apex], 6.2)
        film.fill(curve([p[tip], p[labial] + (0.2, 0), p[tip] + 0.4 * (p[apex] - p[tip])], False), 0.5, 0.25)
    molar(film, *(p[name] for name in UPPER_MOLAR))
    molar(film, *(p[name] for name in LOWER_MOLAR))
    for front_tip, back, up in ((p["Is1u"], p["Mu6"], -1), (p["Is1l"], p["Ml6"], 1)):
        for share in (0.28, 0.5, 0.75):
            tip = (1 - share) * front_tip + share * back + (vary(-1, 1), 0.5 * up)
            tooth(film, tip, tip + (3 * (1 - share) * up, up * vary(17, 21)), vary(5.5, 7), 0.45)
    for corner, far, up in ((p["Du6"], p["Mu6"], -1), (p["Dl6"], p["Ml6"], 1)):
        shift = 0.95 * (corner - far)
        molar(film, far + shift + (-1, 0), corner + shift * 0.9, far + shift + (2, up * 17), 0.4)
    # spine, airway, hyoid
    for level in range(4):
        centre = np.array([-36 - 3 * level, 58 + 22 * level]) + vary(-1.5, 1.5, 2)
        corners = np.array([(-9, -7), (0, -6), (8, -6), (8, 0), (9, 7), (0, 6), (-8, 7), (-8, 0)])
        body = curve(centre + corners @ rotation(8).T, True)
        film.fill(body, 0.3, 0.6)
        film.stroke(body, 0.22, 1.0, True)
        film.fill(centre + np.array([(-12, -3), (-30, 2), (-33, 8), (-12, 5)]), 0.22, 0.8)
    film.fill(curve([(12, 46), (16, 60), (9, 90), (10, 130), (2, 130), (0, 90), (3, 60)], True), -0.2, 1.2)
    film.stroke(curve([p["PNS"], p["PNS"] + (-6, 8), p["PNS"] + (-11, 22)]), 0.18, 5.0, soft=1.0)  # soft palate
    film.fill(curve([(18, 112), (28, 108), (30, 112), (20, 116)], True), 0.3, 0.4)
    # clutter: fine bony lines behind the orbit and in the ear bone, fillings, brackets, ear rod
    for _ in range(14):
        start = np.array([vary(20, 60), vary(-4, 30)]) if vary() < 0.6 else p["P"] + vary(-14, 10, 2)
        film.stroke(curve(start + np.cumsum(generator.normal(0, 5, (4, 2)), 0)), vary(0.08, 0.2), vary(0.6, 1.4))
    for _ in range(generator.integers(0, 4)):
        at = p["Mu6"] * (share := vary()) + p["Du6"] * (1 - share) + (vary(-6, 12), vary(-4, 7))
        film.fill(ellipse(at, vary(1, 2.4), vary(1, 2)), 1.2, 0.2)
    if vary() < 0.3:
        for tip, apex in ((p["Is1u"], p["Ap1u"]), (p["Is1l"], p["Ap1l"])):
            for along in (0.0, 0.3, 0.55):
                at = tip + 0.22 * (apex - tip) + (3 - 45 * along, 0)
                film.fill(at + np.array([(-1.6, -1.4), (1.6, -1.4), (1.6, 1.4), (-1.6, 1.4)]), 0.9, 0.15)
    if vary() < 0.5:
        film.stroke(ellipse(p["P"] + (2, 7) + vary(-2, 2, 2), 5.0, 5.0), 1.1, 1.0, True)


def draw_ruler(film: Film, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Add a graduated bar in front of the forehead; return its two long ticks (x, y), picture px, 10 mm apart."""
    millimetre = 1 / SPACING
    along = rotation(generator.uniform(-6, 6)) @ (0, millimetre)
    across = np.array([along[1], -along[0]])
    top = np.array([generator.uniform(150, 168), generator.uniform(8, 22)]) * millimetre
    machine = Film(np.eye(2, 3))  # drawn in picture px
    bar = [top - 3 * across, top + 3 * across, top + 3 * across + 45 * along, top - 3 * across + 45 * along]
    machine.fill(bar, 0.55, 0.4)
    first = int(generator.integers(8, 24))
    for tick in range(2, 44):
        long = tick in (first, first + 10)
        middle, reach = top + tick * along, 5.5 if long else 2.4 if (tick - first) % 5 == 0 else 1.4
        machine.stroke([middle - reach * across, middle + (reach if long else 0.2) * across], 1.1, 1.3 if long else 0.9)
    film.attenuation += machine.attenuation
    return top + first * along, top + (first + 10) * along


def draw_implant(film: Film, landmarks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Add an opaque plate over one to three of the landmarks (N, 2) px, not the ruler; return which ones (N,)."""
    while True:
        length, width = generator.uniform((14, 8), (24, 14)) / SPACING  # its long and short side, px
        turn = rotation(generator.uniform(0, 180))
        centre = landmarks[generator.integers(2, len(landmarks))] + generator.normal(0, 2 / SPACING, 2)
        across = np.abs((landmarks - centre) @ turn)  # along its own axes
        hidden, touched = ((across < np.array([length, width]) / 2 + rim / SPACING).all(1) for rim in (-1, 1))
        if 1 <= hidden.sum() <= 3 and (hidden == touched).all() and not hidden[:2].any():  # none within 1 mm of its rim
            break
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (length, width) / 2
    plate = Film(np.eye(2, 3))  # drawn in picture px
    plate.fill(centre + corners @ turn.T, 8.0, 0.4)
    film.attenuation += plate.attenuation
    return hidden


def draw_phantom(seed: int, index: int, implants: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return picture `index` of a data set: grey (HEIGHT, WIDTH) uint8, landmarks (52, 2) (x, y) px, occluded (52,)."""
    generator = np.random.default_rng((seed, index))
    points = vary_shape(generator)
    film = Film(draw_pose(points, generator))
    draw_head(film, points, generator)
    ruler = draw_ruler(film, generator)
    names = [name for _, name, _ in LANDMARKS[2:]]
    head = np.array([points[name] for name in names]) @ film.to_picture[:, :2].T + film.to_picture[:, 2]
    landmarks = np.vstack([ruler, head])
    occluded = np.zeros(len(landmarks), bool)
    if implants:  # from a generator of its own, so that the rest of the picture does not change
        occluded = draw_implant(film, landmarks, np.random.default_rng((seed, index, 1)))
    return expose(film, generator), landmarks, occluded


def write_data_set(out: Path, count: int, seed: int, implants: bool = False) -> None:
    """Write imgs/phantom_NNN.jpg and json/data.json under `out`."""
    for folder in ("imgs", "json"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    records = []
    for index in tqdm(range(1, count + 1), "drawing", disable=None):
        picture, landmarks, occluded = draw_phantom(seed, index, implants)
        name = f"phantom_{index:03d}.jpg"
        (out / "imgs" / name).write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())
        points = [
            {"pointName": title, "pointAbbreviation": name, "X": round(float(x), 3), "Y": round(float(y), 3)}
            | ({"occluded": True} if hidden else {})
            for (title, name, _), (x, y), hidden in zip(LANDMARKS, landmarks, occluded, strict=True)
        ]
        records.append({"imagePath": name, "points": points})
    text = json.dumps(records, indent=1, ensure_ascii=False)
    (out / "json" / "data.json").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Return exit status 2 if there is already a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("CustomDataSet"))
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--implants", action="store_true", help="occlude one to three landmarks of each picture")
    parser.add_argument("--force", action="store_true", help="replace an existing data set")
    options = parser.parse_args()

    def work() -> None:
        target = options.out / "json" / "data.json"
        if target.exists() and not options.force:
            raise UserError(f"{target} exists already; give another --out, or --force to replace it")
        write_data_set(options.out, options.count, options.seed, options.implants)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
