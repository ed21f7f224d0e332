from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from benchmarks.footage import FPS, encode, repeat


def decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [float(frame.time) for frame in frames], [frame.to_ndarray(format="gray") for frame in frames]


def test_a_repeated_piece_is_the_piece_again_and_again_without_a_gap(tmp_path: Path) -> None:
    encode(tmp_path / "piece.mp4", 90, shots=(12, 18))
    repeat(tmp_path / "piece.mp4", tmp_path / "long.mp4", times=3)
    _, piece = decoded(tmp_path / "piece.mp4")
    times_s, frames = decoded(tmp_path / "long.mp4")
    assert len(piece) == 30
    np.testing.assert_allclose(times_s, np.arange(90) / FPS, atol=1e-3)
    assert all((frame == piece[number % 30]).all() for number, frame in enumerate(frames))
