"""The demo's archive, whose truth is known, and the score of what was published about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.models.embedded import world

DEFAULT_VIDEOS = 14
# What `score` should reach on any seed; below it something is broken.
TARGETS = {"shot_f1": 0.98, "action_top1": 0.95, "object_top1": 0.95, "caption_exact": 0.90, "text_to_clip_recall1": 0.95}
TRUTH = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("shape", pa.string(), nullable=False),
        pa.field("color", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
    ]
)
_SIZES = ((180, 240), (180, 240), (144, 256), (180, 320), (240, 320), (200, 200), (240, 180))  # height, width
_FPS = (24, 25, 30)
_SHOT_S = (1.4, 3.0)
_DARK, _BRIGHT = (0.15, 0.3), (0.45, 0.6)  # luma of the grounds on the two sides of a cut

EmbedText = Callable[[Sequence[str]], NDArray[np.float32]]  # n texts -> (n, dim), rows of unit length


# --- the archive ---


def render_archive(folder: Path, videos: int, seed: int, workers: int | None = None) -> Path:
    """Renders `folder`/archive/*.mp4 and `folder`/truth.parquet (schema TRUTH, by video and start); returns the latter.

    Video i depends on `seed` and i alone, and on no number that the embedded checkpoints were trained with.
    """
    archive = folder / "archive"
    archive.mkdir(parents=True, exist_ok=True)
    workers = workers or max(1, min(videos, os.cpu_count() or 1))
    numbers = range(videos)
    if workers == 1:
        made = [_render_video(archive, seed, number) for number in numbers]
    else:
        # spawned, not forked: the caller may hold threads
        with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(_render_video, repeat(archive), repeat(seed), numbers))
    truth = pa.Table.from_pylist([row for rows in made for row in rows], schema=TRUTH)
    path = folder / "truth.parquet"
    pq.write_table(truth, path)
    return path


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in here calculate on one thread: BLAS threads of several processes would wait for each other."""
    before = {name: os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _render_video(archive: Path, seed: int, number: int) -> list[dict[str, Any]]:
    """Renders video `number`; its rows of TRUTH."""
    rng = world.rng_of(seed, world.DEMO, number)
    height, width = _SIZES[rng.integers(len(_SIZES))]
    fps = int(rng.choice(_FPS))
    shots = list(_shots(rng, fps))
    name = f"video-{number:04d}.mp4"
    _encode(archive / name, height, width, fps, int(rng.integers(20, 30)), shots)
    ends = np.cumsum([frames for _, frames in shots]) / fps
    return [
        {
            "video": name,
            "start_s": float(end_s - frames / fps),
            "end_s": float(end_s),
            "action": shot.action,
            "shape": shot.shape,
            "color": shot.color,
            "caption": shot.sentence,
        }
        for (shot, frames), end_s in zip(shots, ends, strict=True)
    ]


def _shots(rng: np.random.Generator, fps: int) -> Iterator[tuple[world.Shot, int]]:
    """Two to four shots with their counts of frames, on dark and bright grounds by turns."""
    is_dark = bool(rng.integers(2))
    for _ in range(rng.integers(2, 5)):
        ground = float(rng.uniform(*(_DARK if is_dark else _BRIGHT)))
        yield world.random_shot(rng, ground=ground), round(rng.uniform(*_SHOT_S) * fps)
        is_dark = not is_dark


def _encode(path: Path, height: int, width: int, fps: int, crf: int, shots: Sequence[tuple[world.Shot, int]]) -> None:
    import av

    with av.open(str(path), "w") as container:
        options = {"crf": str(crf), "preset": "superfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for shot, count in shots:
            phases = np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
            for pixels in world.render(shot, height, width, phases):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


# --- the score ---


def score(truth: pa.Table, annotations: pa.Table, embed_text: EmbedText) -> dict[str, float | int]:
    """How well `annotations` tells what `truth` (TRUTH) says; shares of 1, and the counts they are of.

    `annotations` has a row per clip: uri, start_s, end_s, fps, action, object ("red circle"), caption, embedding; the last four
    may be null. A shot is judged by the clip that overlaps it longest, and is lost where none does. Shot boundaries
    count as found within one frame, one clip for one shot; text-to-clip recall asks for every object that is there.
    """
    shots, clips = truth.to_pylist(), _named(annotations)
    best = [_longest_overlap(shot, clips) for shot in shots]
    found, claimed, true = _boundaries(shots, clips)
    hits, queries = _searched(shots, clips, embed_text)
    return {
        "shot_f1": _share(2 * found, claimed + true),
        "action_top1": _share(_agree(shots, best, lambda s: s["action"], "action"), len(shots)),
        "object_top1": _share(_agree(shots, best, _object, "object"), len(shots)),
        "caption_exact": _share(_agree(shots, best, lambda s: s["caption"], "caption"), len(shots)),
        "text_to_clip_recall1": _share(hits, queries),
        "videos": len({shot["video"] for shot in shots}),
        "shots": len(shots),
        "clips": len(clips),
        "boundaries": true,
        "queries": queries,
    }


def _named(annotations: pa.Table) -> list[dict[str, Any]]:
    columns = ["uri", "start_s", "end_s", "fps", "action", "object", "caption", "embedding"]
    return [{**row, "video": row["uri"].rsplit("/", 1)[-1]} for row in annotations.select(columns).to_pylist()]


def _object(shot: Mapping[str, Any]) -> str:
    return f"{shot['color']} {shot['shape']}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _longest_overlap(wanted: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of the same video, what shares most time with `wanted`; None where nothing shares any."""
    best, best_s = None, 0.0
    for other in among:
        shared_s = min(wanted["end_s"], other["end_s"]) - max(wanted["start_s"], other["start_s"])
        if other["video"] == wanted["video"] and shared_s > best_s:
            best, best_s = other, shared_s
    return best


def _agree(
    shots: Sequence[Mapping[str, Any]],
    best: Sequence[Mapping[str, Any] | None],
    said: Callable[[Mapping[str, Any]], str],
    column: Literal["action", "object", "caption"],
) -> int:
    return sum(clip is not None and clip[column] == said(shot) for shot, clip in zip(shots, best, strict=True))


def _boundaries(shots: Sequence[Mapping[str, Any]], clips: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """Boundaries found, claimed by the clips, and true."""
    found = claimed = true = 0
    for video in sorted({shot["video"] for shot in shots}):
        own = [clip for clip in clips if clip["video"] == video]
        there = sorted(shot["start_s"] for shot in shots if shot["video"] == video)[1:]
        said = sorted(clip["start_s"] for clip in own)[1:]
        fps = [clip["fps"] for clip in own if clip["fps"]]
        # containers round times, so a frame is a little more than a frame
        found += _paired(there, said, 1.05 / float(np.median(fps))) if fps else 0
        claimed, true = claimed + len(said), true + len(there)
    return found, claimed, true


def _paired(left: Sequence[float], right: Sequence[float], tolerance: float) -> int:
    """Most pairs of one of each, at most `tolerance` apart; both ascending, so taking the earliest that fits is best."""
    assert all(a <= b for a, b in (*pairwise(left), *pairwise(right)))
    pairs = i = j = 0
    while i < len(left) and j < len(right):
        if abs(left[i] - right[j]) <= tolerance:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return pairs


def _searched(shots: Sequence[Mapping[str, Any]], clips: Sequence[Mapping[str, Any]], embed_text: EmbedText) -> tuple[int, int]:
    """Objects whose search ("a red circle") finds first a clip that shows them, and objects there are."""
    objects = sorted({_object(shot) for shot in shots})
    embedded = [clip for clip in clips if clip["embedding"] is not None]
    if not embedded or not objects:
        return 0, len(objects)
    vectors = np.array([clip["embedding"] for clip in embedded], np.float32)
    nearest = (embed_text([world.TEMPLATE.format(name) for name in objects]) @ vectors.T).argmax(axis=1)
    shown = [_longest_overlap(embedded[index], shots) for index in nearest]
    return sum(shot is not None and _object(shot) == name for shot, name in zip(shown, objects, strict=True)), len(objects)
