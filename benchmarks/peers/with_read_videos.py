"""Ray Data's own reader of videos: `read_videos` gives rows of frames, actors embed them, a group-by makes means of windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.task import STEP_S, WINDOW_S, Embedder, arguments

FPS = 8  # frames a second that the reader is asked for: the least whose frames lie near enough to the middles


class Embed:
    """Keeps frames near the middles of eighths of windows and embeds them."""

    def __init__(self, checkpoint: str) -> None:
        self._embedder = Embedder(checkpoint)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        begins_s = np.array([float(np.asarray(time)[0]) for time in batch["frame_timestamp"]])
        eighths = np.floor(begins_s / STEP_S).astype(np.int64)
        near = np.abs(begins_s - (eighths + 0.5) * STEP_S) <= 0.5 / FPS + 0.02
        videos = np.array([Path(path).name for path in batch["path"]])
        vectors = self._embedder.frames([batch["frame"][i] for i in np.flatnonzero(near)]) if near.any() else []
        return {"video": videos[near], "window": (begins_s[near] // WINDOW_S).astype(np.int32), "embedding": list(vectors)}


def mean(group: dict[str, Any]) -> dict[str, Any]:
    total = np.sum([np.asarray(vector) for vector in group["embedding"]], axis=0)
    unit = (total / np.linalg.norm(total)).astype(np.float32)
    return {"video": group["video"][:1], "window": group["window"][:1], "embedding": [unit]}


def main() -> None:
    import ray

    args = arguments()
    ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    (
        ray.data.read_videos(
            args.paths(), include_paths=True, include_timestamps=True, fps=FPS, ray_remote_args={"num_cpus": 0.5}
        )
        .map_batches(
            Embed,
            fn_constructor_args=(str(args.checkpoint),),
            batch_size=64,
            num_cpus=0.1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .groupby(["video", "window"], num_partitions=2)
        .map_groups(mean)
        .write_parquet(str(args.output))
    )


if __name__ == "__main__":
    main()
