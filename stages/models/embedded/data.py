"""Clips to train on and to score with: shots of the little world as the pipeline would hand them to the models.

A clip is rendered, encoded with H.264 (real packets, no container), decoded, made RGB at short side 224 with
swscale's bicubic, then resized to the checkpoints' 64 pixels as their processors do. One clip in four is never encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from stages.models.embedded import world

PIXELS = 64  # side of what the checkpoints see
LOG_RADIUS_AT = 0.16  # radius whose logarithm counts as 0
SHORT_SIDE = 224  # of the frames that the pipeline keeps
RENDERED = 16  # frames of a clip
MOTION_AT = tuple(range(1, 16, 2))  # the mid-bins of 8 frames among the 16
SPARSE_AT = (2, 6, 10, 14)  # the mid-bins of 4
SIZES = ((180, 240), (144, 256), (240, 320), (180, 320), (200, 200), (240, 180), (160, 214), (320, 426))  # height, width

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Clips:
    """What training reads. `frames` uint8 (n, 16, 64, 64, 3); `poses` float32 (n, 16, 5): x, y, log radius, cos, sin."""

    frames: Frames
    poses: NDArray[np.float32]
    actions: NDArray[np.int64]  # indices into world.ACTIONS
    colors: NDArray[np.int64]  # indices into world.COLORS
    shapes: NDArray[np.int64]  # indices into world.SHAPES

    def __len__(self) -> int:
        return len(self.frames)

    def rows(self, rows: NDArray[np.int64]) -> Clips:
        """The clips of the given rows."""
        return Clips(**{name: array[rows] for name, array in vars(self).items()})

    def save(self, path: Path) -> None:
        """Writes an .npz that `load` reads."""
        np.savez(path, **vars(self))

    @staticmethod
    def load(path: Path) -> Clips:
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            return Clips(**{name: arrays[name] for name in arrays.files})


def build(count: int, seed: int, tag: int, workers: int = 2) -> Clips:
    """Renders `count` clips; clip i depends on (seed, tag, i) alone. `tag` is world.TRAINING or world.EVALUATION."""
    if workers == 1:
        made = [one_clip(seed, tag, index) for index in range(count)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(one_clip, repeat(seed), repeat(tag), range(count), chunksize=64))
    frames, poses, kinds = zip(*made, strict=True)
    actions, colors, shapes = np.array(kinds, np.int64).T
    return Clips(np.stack(frames), np.stack(poses), actions, colors, shapes)


def one_clip(seed: int, tag: int, index: int) -> tuple[Frames, NDArray[np.float32], tuple[int, int, int]]:
    """Clip number `index`: its frames, its poses and its (action, color, shape) as indices."""
    rng = world.rng_of(seed, tag, index)
    shot = world.random_shot(rng, action=world.ACTIONS[index % len(world.ACTIONS)])
    height, width = SIZES[rng.integers(len(SIZES))]
    # a real clip's frames fill its time; the detector may miss its ends by a frame
    first, last = rng.uniform(0, 0.04), rng.uniform(0.96, 1)
    phases = np.linspace(first, last, RENDERED, endpoint=False, dtype=np.float32)
    frames = world.render(shot, height, width, phases)
    if rng.random() < 0.75:
        frames = recoded(
            _disturbed(frames, rng), crf=int(rng.integers(18, 38)), preset=str(rng.choice(["ultrafast", "veryfast"]))
        )
    else:
        frames = scaled(_disturbed(frames, rng))
    resample = Image.Resampling.BICUBIC if rng.random() < 0.6 else Image.Resampling.BILINEAR
    kinds = (
        world.ACTIONS.index(shot.action),
        list(world.COLORS).index(shot.color),
        world.SHAPES.index(shot.shape),
    )
    return processed(frames, resample), targets(world.poses(shot, phases)), kinds


def targets(poses: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the heads that are thrown away learn of poses (n, 4): x, y, log radius, cos, sin, each about -1 to 1: (n, 5)."""
    x, y, radius, angle = poses.T
    return np.stack([2 * x, 2 * y, np.log(radius / LOG_RADIUS_AT), np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def _disturbed(frames: Frames, rng: np.random.Generator) -> Frames:
    """What cameras and earlier encoders do: noise, blur, exposure."""
    work: NDArray[np.float32] = frames.astype(np.float32)
    if rng.random() < 0.3:
        work = (work + np.roll(work, 1, 1) + np.roll(work, 1, 2) + np.roll(work, (1, 1), (1, 2))) * np.float32(0.25)
    gain, offset = np.float32(rng.uniform(0.85, 1.1)), np.float32(rng.uniform(-12, 12))
    work = (work - 128) * gain + 128 + offset
    if rng.random() < 0.3:
        work += rng.standard_normal(work.shape, np.float32) * np.float32(rng.uniform(2, 10))
    return np.clip(work, 0, 255).astype(np.uint8)


def recoded(frames: Frames, crf: int = 23, preset: str = "veryfast", fps: int = 12) -> Frames:
    """Frames after H.264 and back, at short side 224: uint8 (n, height, width, 3) in, another height and width out."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = frames.shape[2], frames.shape[1]
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, fps), Fraction(fps)
    encoder.options = {"crf": str(crf), "preset": preset, "threads": "1"}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    coded = list(_decoded(decoder, _encoded(encoder, frames)))
    return scaled_frames(coded)


def _encoded(encoder: av.VideoCodecContext, frames: Frames) -> Iterator[av.Packet]:
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = index
        yield from encoder.encode(frame)
    yield from encoder.encode(None)


def _decoded(decoder: av.VideoCodecContext, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from decoder.decode(packet)
    yield from decoder.decode(None)


def scaled(frames: Frames) -> Frames:
    """RGB frames at short side 224 as decode makes them, without a codec in between."""
    return scaled_frames([av.VideoFrame.from_ndarray(pixels, format="rgb24") for pixels in frames])


def scaled_frames(frames: list[av.VideoFrame]) -> Frames:
    """Decoded frames as RGB at short side 224, aspect kept: uint8 (n, height, width, 3)."""
    reformatter = VideoReformatter()
    scale = SHORT_SIDE / min(frames[0].width, frames[0].height)
    width, height = (round(side * scale) for side in (frames[0].width, frames[0].height))
    made = [
        reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC)
        for frame in frames
    ]
    return np.stack([frame.to_ndarray() for frame in made])


def processed(frames: Frames, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Frames:
    """Shortest edge to 64 and centre crop, as the checkpoints' processors do: uint8 (n, 64, 64, 3)."""
    height, width = frames.shape[1:3]
    scale = PIXELS / min(height, width)
    size = (int(width * scale), int(height * scale))
    top, left = (size[1] - PIXELS) // 2, (size[0] - PIXELS) // 2
    small = np.stack([np.asarray(Image.fromarray(pixels).resize(size, resample)) for pixels in frames])
    return small[:, top : top + PIXELS, left : left + PIXELS]
