"""The work, said once: 8 frames of each 10 seconds, one embedding of unit length for each, rows (video, window, embedding).

Programs of the peers use from here what their library leaves to its user: which frames, PyAV's decoding, the model. Needs
av, numpy, torch, transformers and pyarrow, nothing of Clipmill.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WINDOW_S = 10.0
FRAMES = 8  # of each window
STEP_S = WINDOW_S / FRAMES


@dataclass(frozen=True)
class Arguments:
    """What every program is called with."""

    videos: Path
    output: Path
    checkpoint: Path

    def paths(self) -> list[str]:
        """All videos, sorted."""
        return sorted(str(path) for path in self.videos.glob("*.mp4"))


def arguments() -> Arguments:
    """From the command line."""
    parser = argparse.ArgumentParser()
    for name in ("videos", "output", "checkpoint"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return Arguments(**vars(parser.parse_args()))


def windows(path: str) -> Iterator[tuple[int, list[Any]]]:
    """(number, its 8 frames as PIL images) of each window, decoded in one pass by one thread.

    Frames are those nearest to the middles of eighths of the window.
    """
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        found: list[Any] = []
        number, last = 0, None
        for frame in container.decode(stream):
            while frame.time >= _middle_s(number, len(found)):
                nearer = frame if last is None or _is_nearer(frame, last, number, len(found)) else last
                found.append(nearer.to_image())
                if len(found) == FRAMES:
                    yield number, found
                    number, found = number + 1, []
            last = frame


def _middle_s(window: int, place: int) -> float:
    return window * WINDOW_S + (place + 0.5) * STEP_S


def _is_nearer(frame: Any, last: Any, window: int, place: int) -> bool:
    middle_s = _middle_s(window, place)
    return bool(frame.time - middle_s < middle_s - last.time)


class Embedder:
    """One thread of CLIP by way of transformers: images to unit vectors."""

    def __init__(self, checkpoint: Path | str, threads: int = 1) -> None:
        import torch
        from transformers import AutoImageProcessor, CLIPModel
        from transformers.utils.logging import disable_progress_bar

        torch.set_num_threads(threads)
        disable_progress_bar()
        self._net = CLIPModel.from_pretrained(checkpoint).eval()
        self._processor = AutoImageProcessor.from_pretrained(checkpoint)

    def frames(self, images: Sequence[Any]) -> Any:
        """Images (PIL, or arrays of height x width x RGB) to unit vectors, float32 (n, dim)."""
        import torch

        with torch.inference_mode():
            pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
            return _unit(self._net.get_image_features(pixel_values=pixels).pooler_output).numpy()

    def windows(self, images: Sequence[Any]) -> Any:
        """8 images of each window, one window after the other, to one unit vector of each, float32 (n / 8, dim)."""
        import numpy as np

        means = self.frames(images).reshape(len(images) // FRAMES, FRAMES, -1).mean(axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def _unit(vectors: Any) -> Any:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def write(rows: Sequence[tuple[str, int, Any]], path: Path) -> None:
    """Rows (video, window, embedding) as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "video": pa.array([Path(video).name for video, _, _ in rows]),
        "window": pa.array([number for _, number, _ in rows], pa.int32()),
        "embedding": pa.array([vector.tolist() for _, _, vector in rows], pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)
