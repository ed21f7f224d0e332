"""Scenes that look real enough to fool a shot detector, made in code: camera moves over texture, things that pass by, noise.

The still pictures follow the dead-leaves model (Lee, Mumford, Huang 2001): opaque shapes of power-law sizes occlude each
other, which gives edges and spectra like those of photographs; smooth 1/f texture is laid over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Generator = np.random.Generator
_MARGIN = 2.2  # canvas to frame, in each direction: room to pan


def texture(rng: Generator, height: int, width: int, slope: float = 1.1) -> np.ndarray:
    """1/f^slope noise: float32 (height, width), mean 0, standard deviation 1."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0
    spectrum = rng.normal(size=radius.shape) + 1j * rng.normal(size=radius.shape)
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum / radius**slope, s=(height, width)).astype(np.float32)
    return field / field.std()


def picture(rng: Generator, height: int, width: int) -> Image.Image:
    """A still RGB picture of a random palette, brightness, contrast and amount of detail."""
    palette = rng.integers(0, 256, (6, 3))
    gray = palette.mean(axis=1, keepdims=True)
    palette = (gray + rng.choice([0.05, 0.25, 0.7]) * (palette - gray)).astype(int)
    image = Image.new("RGB", (width, height), tuple(map(int, palette[0])))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.choice([4, 40, 250]))):
        radius = float(np.clip(6.0 * rng.pareto(1.1) + 4.0, 4.0, width / 4))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        colour = np.clip(palette[rng.integers(6)] + rng.normal(0, 25, 3), 0, 255).astype(int)
        box = (x - radius, y - radius * rng.uniform(0.3, 1.0), x + radius, y + radius * rng.uniform(0.3, 1.0))
        (draw.ellipse if rng.random() < 0.6 else draw.rectangle)(box, fill=tuple(map(int, colour)))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5))), np.float32)
    pixels = pixels + rng.uniform(3, 25) * texture(rng, height, width)[..., None]
    contrast, brightness = rng.choice([0.15, 0.4, 0.8, 1.0], p=[0.1, 0.2, 0.35, 0.35]), rng.uniform(50, 190)
    pixels = (pixels - pixels.mean()) * contrast + brightness
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _still(_: Generator, t: np.ndarray) -> np.ndarray:
    return np.zeros((len(t), 3))


def _pan(rng: Generator, t: np.ndarray) -> np.ndarray:
    angle, speed = rng.uniform(0, 2 * np.pi), rng.choice([0.004, 0.015, 0.03])
    return _bounce(np.stack([t * speed * np.cos(angle), t * speed * np.sin(angle) * 0.5, 0 * t], axis=1))


def _whip(rng: Generator, t: np.ndarray) -> np.ndarray:
    """Rest, a pan of the whole width within half a second, rest."""
    at, length = rng.uniform(0.3, 0.7) * t[-1], rng.uniform(8.0, 14.0)
    way = 1 / (1 + np.exp(-(t - at) / (length / 8)))
    return np.stack([rng.choice([-1, 1]) * (way - 0.5) * 0.9, 0 * t, 0 * t], axis=1)


def _zoom(rng: Generator, t: np.ndarray) -> np.ndarray:
    return np.stack([0 * t, 0 * t, rng.choice([-1, 1]) * t * rng.choice([0.003, 0.01])], axis=1)


def _shake(rng: Generator, t: np.ndarray) -> np.ndarray:
    steps = rng.normal(0, rng.choice([0.004, 0.012]), (len(t), 3)) * [1, 1, 0.2]
    return steps + np.cumsum(steps, axis=0) * 0.2


CAMERAS: dict[str, Callable[[Generator, np.ndarray], np.ndarray]] = {
    "still": _still, "pan": _pan, "whip": _whip, "zoom": _zoom, "shake": _shake,
}  # fmt: skip


def _bounce(path: np.ndarray) -> np.ndarray:
    """A path that turns back at the canvas' edge instead of leaving it."""
    path[:, :2] = np.abs((path[:, :2] + 0.5) % 2 - 1) - 0.5
    return path


def scene(rng: Generator, frames: int, size: tuple[int, int], camera: str | None = None, step: float = 1.0) -> Iterator[Any]:
    """`frames` RGB frames, uint8 (height, width, 3), of one shot. `size` is (height, width); `step` is the time between frames.

    `step` 1 is 25 to 30 frames a second, 2.5 about ten: the same scene moves 2.5 times as far from frame to frame.
    """
    height, width = size
    canvas = picture(rng, int(height * _MARGIN), int(width * _MARGIN))
    camera = camera or str(rng.choice(list(CAMERAS), p=[0.3, 0.25, 0.1, 0.2, 0.15]))
    path = CAMERAS[camera](rng, np.arange(frames) * step)
    passers = [_passer(rng, size, frames, step) for _ in range(int(rng.choice([0, 1, 3])))]
    grain = rng.normal(0, rng.choice([0.5, 2.0, 6.0]), (2 * height, 2 * width, 1)).astype(np.float32)
    for index in range(frames):
        frame = _view(canvas, path[index], size)
        for passer in passers:
            passer(frame, index)
        y, x = rng.integers(height), rng.integers(width)
        noisy = np.asarray(frame, np.float32) + grain[y : y + height, x : x + width]
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def _view(canvas: Image.Image, at: np.ndarray, size: tuple[int, int]) -> Image.Image:
    height, width = size
    scale = float(np.clip(np.exp(at[2]), 0.5, 1.8))
    w, h = width * scale, height * scale
    x = np.clip(canvas.width / 2 + at[0] * width - w / 2, 0, canvas.width - w)
    y = np.clip(canvas.height / 2 + at[1] * height - h / 2, 0, canvas.height - h)
    return canvas.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))


def _passer(rng: Generator, size: tuple[int, int], frames: int, step: float) -> Callable[[Image.Image, int], None]:
    """Something that crosses the picture: pastes itself into a frame."""
    height, width = size
    part = rng.choice([0.15, 0.3, 0.7], p=[0.5, 0.35, 0.15])  # of the frame's height and width
    h, w = int(height * part * rng.uniform(0.7, 1.3)), int(width * part * rng.uniform(0.3, 1.0))
    sprite = picture(rng, max(8, h), max(8, w))
    mask = Image.new("L", sprite.size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, sprite.width - 1, sprite.height - 1), fill=255)
    speed = rng.choice([-1, 1]) * rng.choice([0.005, 0.02, 0.06]) * width * step
    x0, y0 = rng.uniform(0, width) - speed * frames / 2, rng.uniform(-0.2, 0.9) * height

    def paste(frame: Image.Image, index: int) -> None:
        frame.paste(sprite, (int(x0 + speed * index), int(y0)), mask)

    return paste
