"""The little world that the embedded checkpoints know: one marked shape on a textured ground, doing one thing.

Everything a shot shows is a number in `Shot`; `render` turns it into frames at any size and at any phases of the shot
(0 begins it, 1 ends it). All of it happens in the central square of the frame, so a centre crop loses nothing. Lengths
are in units of the frame's short side, positions are measured from the frame's centre, y points down, angles are radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ACTIONS = ("left", "right", "up", "down", "growing", "shrinking", "spinning", "still")
SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = {
    "red": (215, 35, 40),
    "green": (35, 165, 65),
    "blue": (35, 75, 225),
    "yellow": (245, 225, 45),
    "purple": (150, 50, 195),
    "cyan": (50, 210, 220),
    "white": (245, 245, 245),
}
OBJECTS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)  # labels of the zero-shot classifier
TEMPLATE = "a {}"  # sentence that such a label is put into, and what a search for it asks

# First spawn key of every random sequence: training, evaluation and demos never share one, whatever their seeds are.
TRAINING, EVALUATION, DEMO = 1, 2, 3

_MARK_RGB = (22, 22, 22)
_GRAINS = 4  # grounds with different grain that the frames of a shot take in turn
_UNIT_VECTORS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_STAR_K1 = np.array([0.809016994375, -0.587785252292], np.float32)

Array = NDArray[np.float32]
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Shot:
    """All that a shot shows."""

    color: str
    shape: str
    action: str
    rgb: tuple[float, float, float]  # the colour as painted, 0 to 255
    x: float  # centre of the shape at mid-shot
    y: float
    radius: float  # at the beginning
    angle: float  # at the beginning; 0: the mark points up, growing clockwise
    amount: float  # travel of a move, factor of growth or shrinking, turns of a spin (negative: anticlockwise), 0: still
    easing: float  # -0.4 to 0.4: how much slower or faster than mean the ends are
    ground: float  # mean luma of the ground, 0 to 1
    grain: float  # standard deviation of the ground's grain, levels of 255
    texture_seed: int

    @property
    def sentence(self) -> str:
        """What a caption says of the shot."""
        return sentence(self.color, self.shape, self.action)


def rng_of(seed: int, *key: int) -> np.random.Generator:
    """Random numbers of one thing: `key` begins with TRAINING, EVALUATION or DEMO and numbers the thing within it."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def sentence(color: str, shape: str, action: str) -> str:
    """The grammar of captions: "a red circle moving left", "a blue star growing", "a green square standing still"."""
    verb = {"still": "standing still"}.get(action, f"moving {action}" if action in _UNIT_VECTORS else action)
    return f"a {color} {shape} {verb}"


def random_shot(
    rng: np.random.Generator,
    *,
    color: str | None = None,
    shape: str | None = None,
    action: str | None = None,
    ground: float | None = None,
) -> Shot:
    """A shot with everything that is not given drawn at random."""
    color = color or str(rng.choice(list(COLORS)))
    shape = shape or str(rng.choice(SHAPES))
    action = action or str(rng.choice(ACTIONS))
    radius, amount = _size_and_amount(rng, action)
    largest = radius * max(1.0, amount if action == "growing" else 1.0)
    room = 0.47 - largest  # that the centre has on every side
    dx, dy = _UNIT_VECTORS.get(action, (0.0, 0.0))
    shade = rng.uniform(0.88, 1.03)
    painted = np.clip(np.array(COLORS[color]) * shade + rng.normal(0, 5, 3), 0, 255)
    return Shot(
        color=color,
        shape=shape,
        action=action,
        rgb=(float(painted[0]), float(painted[1]), float(painted[2])),
        x=float(rng.uniform(-1, 1) * (room - abs(dx) * amount / 2)),
        y=float(rng.uniform(-1, 1) * (room - abs(dy) * amount / 2)),
        radius=radius,
        angle=float(rng.uniform(-np.pi, np.pi) if action == "spinning" else rng.uniform(-0.3, 0.3)),
        amount=amount,
        easing=float(rng.uniform(-0.4, 0.4)),
        ground=float(rng.uniform(0.15, 0.6)) if ground is None else ground,
        grain=float(rng.uniform(0, 5)),
        texture_seed=int(rng.integers(2**32)),
    )


def _size_and_amount(rng: np.random.Generator, action: str) -> tuple[float, float]:
    if action in _UNIT_VECTORS:
        radius = rng.uniform(0.13, 0.19)
        return float(radius), float(rng.uniform(0.28, min(0.56, 2 * (0.47 - radius))))
    if action in ("growing", "shrinking"):
        small, factor = rng.uniform(0.1, 0.14), rng.uniform(1.7, 2.5)
        return (float(small), float(factor)) if action == "growing" else (float(small * factor), float(1 / factor))
    if action == "spinning":
        return float(rng.uniform(0.15, 0.26)), float(rng.uniform(0.4, 1.25) * rng.choice([-1, 1]))
    return float(rng.uniform(0.14, 0.26)), 0.0


def poses(shot: Shot, phases: Array) -> Array:
    """Where the shape is at each phase: float32, shape (len(phases), 4), columns x, y, radius, angle."""
    phases = np.asarray(phases, np.float32)
    progress = phases + shot.easing * np.sin(2 * np.pi * phases) / (2 * np.pi)
    dx, dy = _UNIT_VECTORS.get(shot.action, (0.0, 0.0))
    sized = shot.action in ("growing", "shrinking")
    turned = 2 * np.pi * shot.amount * progress if shot.action == "spinning" else np.zeros_like(progress)
    travelled = (progress - 0.5) * shot.amount
    radius = shot.radius * shot.amount**progress if sized else np.full_like(progress, shot.radius)
    return np.stack([shot.x + dx * travelled, shot.y + dy * travelled, radius, shot.angle + turned], axis=1).astype(np.float32)


def render(shot: Shot, height: int, width: int, phases: Array) -> Frames:
    """Frames of the shot at the given phases: uint8, shape (len(phases), height, width, 3), RGB."""
    grounds = _grounds(shot, height, width)
    frames = grounds[np.arange(len(phases)) % _GRAINS]
    short = min(height, width)
    for frame, (x, y, radius, angle) in zip(frames, poses(shot, phases), strict=True):
        _paint(frame, shot, width / 2 + x * short, height / 2 + y * short, radius * short, angle)
    return frames


def _paint(frame: Frames, shot: Shot, x_px: float, y_px: float, radius_px: float, angle: float) -> None:
    """Blends the shape into one frame, touching only the pixels around it."""
    reach = radius_px * 1.25 + 2
    top, bottom = max(0, int(y_px - reach)), min(frame.shape[0], int(y_px + reach) + 1)
    left, right = max(0, int(x_px - reach)), min(frame.shape[1], int(x_px + reach) + 1)
    dx = ((np.arange(left, right)[None, :] + 0.5 - x_px) / radius_px).astype(np.float32)
    dy = ((np.arange(top, bottom)[:, None] + 0.5 - y_px) / radius_px).astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    window = frame[top:bottom, left:right]
    color = np.array(shot.rgb, np.float32)
    inside = np.clip(0.5 - distance(shot.shape, u, v) * radius_px, 0, 1)[..., None]
    marked = np.clip(0.5 - _mark_distance(u, v) * radius_px, 0, 1)[..., None]
    paint = color + marked * (np.array(_MARK_RGB, np.float32) - color)
    window[:] = (window + inside * (paint - window) + 0.5).astype(np.uint8)


def distance(shape: str, u: Array, v: Array) -> Array:
    """Signed distance (or a bound of it near the edge) to a shape of about unit radius that points up; negative inside."""
    return _DISTANCES[shape](u, v)


def _circle(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - np.float32(1)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.86)


def _triangle(u: Array, v: Array) -> Array:
    slope_u, slope_v = np.float32(0.8660254), np.float32(0.5)
    return np.maximum(np.abs(u) * slope_u - v * slope_v, v) - np.float32(0.58)


def _cross(u: Array, v: Array) -> Array:
    long, wide = np.float32(1.0), np.float32(0.34)
    across = np.maximum(np.abs(u) - long, np.abs(v) - wide)
    return np.minimum(across, np.maximum(np.abs(u) - wide, np.abs(v) - long))


def _star(u: Array, v: Array) -> Array:
    """Five points; Inigo Quilez, "2D distance functions", sdStar5 with y turned down."""
    outer, inner = np.float32(1.15), np.float32(0.45)
    k1 = _STAR_K1
    x, y = np.broadcast_arrays(np.abs(u), -v)
    for kx in (k1[0], -k1[0]):
        fold = 2 * np.maximum(kx * x + k1[1] * y, 0)
        x, y = x - fold * kx, y - fold * k1[1]
    x, y = np.abs(x), y - outer
    bx, by = inner * -k1[1], inner * k1[0] - 1
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, outer)
    distance: Array = np.hypot(x - bx * along, y - by * along) * np.sign(y * bx - x * by)
    return distance


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross, "star": _star}


def _mark_distance(u: Array, v: Array) -> Array:
    """Distance to the mark: a dark hand from the middle towards the shape's top, so that every spin shows."""
    return np.hypot(u, v + np.clip(-v, 0, np.float32(0.6))) - np.float32(0.14)


def _grounds(shot: Shot, height: int, width: int) -> Frames:
    """The ground, `_GRAINS` times with different grain: uint8, shape (_GRAINS, height, width, 3)."""
    rng = np.random.default_rng(shot.texture_seed)
    tint = rng.normal(0, 0.025, 3).astype(np.float32)
    relief = _gradient(rng, height, width) + _clouds(rng, height, width) + _pattern(rng, height, width)
    relief -= relief.mean()
    smooth = np.clip(shot.ground + relief, 0.04, 0.75)[..., None] * (1 + tint)
    noise = rng.standard_normal((height, width), np.float32) * shot.grain
    shifts = rng.integers(0, [height, width], (_GRAINS, 2))
    grains = np.stack([np.roll(noise, tuple(shift), (0, 1)) for shift in shifts])
    grounds: Frames = np.clip(smooth[None] * 255 + grains[..., None], 0, 255).astype(np.uint8)
    return grounds


def _gradient(rng: np.random.Generator, height: int, width: int) -> Array:
    slope_y, slope_x = rng.uniform(-0.12, 0.12, 2)
    ramp = np.linspace(-1, 1, height)[:, None] * slope_y + np.linspace(-1, 1, width)[None, :] * slope_x
    return np.asarray(ramp, np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int) -> Array:
    """Noise at several scales, as in plaster, grass or fabric."""
    total = np.zeros((height, width), np.float32)
    strength = rng.uniform(0.0, 0.07)
    for cells in (4, 9, 20, 45):
        grid = rng.standard_normal((cells, cells), np.float32)
        total += _stretch(height, cells) @ grid @ _stretch(width, cells).T * np.float32(strength)
        strength *= rng.uniform(0.4, 0.9)
    return total


def _stretch(pixels: int, cells: int) -> Array:
    """Matrix that interpolates `cells` values linearly to `pixels` values."""
    at = np.linspace(0, cells - 1, pixels)[:, None]
    return np.asarray(np.maximum(0, 1 - np.abs(at - np.arange(cells)[None, :])), np.float32)


def _pattern(rng: np.random.Generator, height: int, width: int) -> Array:
    """Nothing, or faint stripes, boards or blocks."""
    kind = rng.integers(4)
    strength = rng.uniform(0.01, 0.05)
    period = rng.uniform(0.1, 0.4) * min(height, width)
    direction = rng.uniform(0, np.pi)
    if kind == 0:
        return np.zeros((height, width), np.float32)
    along_x = np.arange(width)[None, :] * 2 * np.pi / period
    along_y = np.arange(height)[:, None] * 2 * np.pi / period
    waves = np.sin(along_x * np.cos(direction) + along_y * np.sin(direction))
    if kind == 1:
        pattern = waves
    elif kind == 2:
        pattern = np.sign(waves)
    else:
        pattern = np.sign(np.sin(along_x)) * np.sign(np.sin(along_y))
    return np.asarray(pattern * strength, np.float32)
