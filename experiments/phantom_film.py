"""The film of a phantom: shapes, such as teeth, add up to its attenuation, which is exposed to a picture.

Frames, both (x, y): the shapes' mm, and *picture* px, pixel centres at integers, 0.3 mm per px.
"""

import math

import cv2
import numpy as np

from experiments.phantom_head import curve

WIDTH, HEIGHT, SPACING = 600, 720, 0.3  # px, px, mm per px
SUPERSAMPLING = 2


class Film:
    """Attenuation per pixel, supersampled, to which shapes in head mm are added."""

    def __init__(self, to_picture: np.ndarray) -> None:
        self.to_picture = to_picture
        self.size = (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING)
        self.attenuation = np.zeros(self.size[::-1], np.float32)
        self.px_per_mm = math.sqrt(np.linalg.det(to_picture[:, :2])) * SUPERSAMPLING

    def pixels(self, points) -> np.ndarray:
        """Convert head mm to supersampled px in the 1/256 fixed point of OpenCV's drawing functions."""
        picture = np.asarray(points, float) @ self.to_picture[:, :2].T + self.to_picture[:, 2]
        return np.round(((picture + 0.5) * SUPERSAMPLING - 0.5) * 256).astype(np.int32)

    def add(self, mask: np.ndarray, amount: float, soft: float) -> None:
        """Add a mask of 0..1, blurred by `soft` mm."""
        mask = cv2.GaussianBlur(mask, (0, 0), max(0.4, soft * self.px_per_mm))
        self.attenuation += amount * mask

    def fill(self, points, amount: float, soft: float = 0.4) -> None:
        """Add a filled shape."""
        mask = np.zeros_like(self.attenuation)
        cv2.fillPoly(mask, [self.pixels(points)], 1.0, cv2.LINE_8, 8)
        self.add(mask, amount, soft)

    def stroke(self, points, amount: float, width: float = 1.2, closed: bool = False, soft: float = 0.25) -> None:
        """Add a line `width` mm wide."""
        mask = np.zeros_like(self.attenuation)
        thickness = max(1, round(width * self.px_per_mm))
        cv2.polylines(mask, [self.pixels(points)], closed, 1.0, thickness, cv2.LINE_8, 8)
        self.add(mask, amount, soft)


def tooth(film: Film, crown, apex, width: float, amount: float = 0.75) -> None:
    """Add a tooth with one root, from the tip of its crown to its apex, `width` mm across."""
    crown, apex = np.asarray(crown, float), np.asarray(apex, float)
    axis = apex - crown
    across = np.array([-axis[1], axis[0]]) / np.linalg.norm(axis) * width / 2
    side = [(0.02, 0.25), (0.15, 0.85), (0.35, 1.0), (0.55, 0.75), (0.85, 0.45), (1.0, 0.08)]
    outline = [crown + along * axis + out * across for along, out in side]
    outline += [crown + along * axis - out * across for along, out in reversed(side)]
    film.fill(outline, amount, 0.25)
    film.fill(curve(outline[:3] + outline[-3:], True), 0.35 * amount, 0.3)  # enamel
    film.stroke([crown + 0.3 * axis, crown + 0.9 * axis], -0.25 * amount, 0.9)  # pulp


def molar(film: Film, mesial, distal, mesial_apex, amount: float = 0.75) -> None:
    """Add a tooth with two roots, given the mesial and distal corners of its crown and its mesial apex."""
    mesial, distal, apex = (np.asarray(point, float) for point in (mesial, distal, mesial_apex))
    root = apex - mesial
    top = [mesial + 0.42 * root, distal + 0.42 * root]
    film.fill([mesial, top[0], top[1], distal], amount, 0.25)
    film.stroke([mesial, top[0]], 0.4 * amount, 0.8)
    film.stroke([distal, top[1]], 0.4 * amount, 0.8)
    middle = (top[0] + top[1]) / 2
    film.fill([top[0], apex, middle], 0.85 * amount, 0.3)
    film.fill([middle, apex + 0.8 * (distal - mesial), top[1]], 0.7 * amount, 0.3)


def smooth_noise(generator: np.random.Generator, cells: int) -> np.ndarray:
    """Return a random field (HEIGHT, WIDTH) of unit deviation with about `cells` bumps across."""
    field = cv2.resize(generator.normal(0, 1, (cells + 2, cells + 2)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return field / field.std()


def expose(film: Film, generator: np.random.Generator) -> np.ndarray:
    """Turn attenuation into a grey picture (HEIGHT, WIDTH) uint8 with the random faults of an exposure."""
    vary = generator.uniform
    attenuation = cv2.resize(film.attenuation, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    texture = [amount * smooth_noise(generator, cells) for amount, cells in ((0.05, 14), (0.04, 45), (0.03, 110))]
    attenuation = np.clip(attenuation, 0, None) * (1 + sum(texture))
    light = 1 - np.exp(-vary(0.75, 1.15) * attenuation)
    light = cv2.GaussianBlur(light, (0, 0), vary(0.35, 1.1))
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
    light = light + vary(0, 0.06) + vary(-0.04, 0.04) * x + vary(-0.04, 0.04) * y
    light = np.clip(light, 0, 1) ** vary(0.8, 1.35)
    light = 0.5 + (light - 0.45) * vary(0.8, 1.15) + vary(-0.08, 0.05)
    grain = cv2.GaussianBlur(generator.normal(0, 1, (HEIGHT, WIDTH)), (0, 0), 0.8)
    light += (vary(0.01, 0.035) * grain / grain.std()) * np.sqrt(np.clip(light, 0.05, 1))
    picture = np.clip(255 * light, 0, 255).round().astype(np.uint8)
    if vary() < 0.6:  # collimation
        # narrower than the margin of draw_pose, so that no landmark is covered
        edge = vary(2, 10, (4, 2))
        border = np.abs(np.array([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]]) - edge)
        inside = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [border.astype(np.int32)], 1)
        picture[inside == 0] = 245 if vary() < 0.35 else 3
    texts = generator.permutation(["L", "R", "CEPH", "12 mA", "73 kV", "0.8 s", "100 %"])
    for text in texts[: generator.integers(0, 4)]:
        place = (int(vary(20, WIDTH - 110)), int(HEIGHT - vary(12, 40) if vary() < 0.5 else vary(30, 50)))
        cv2.putText(picture, str(text), place, cv2.FONT_HERSHEY_SIMPLEX, vary(0.5, 0.9), 250, 2, cv2.LINE_AA)
    return picture
