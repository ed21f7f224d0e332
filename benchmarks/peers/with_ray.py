"""A Ray Data job as a person writes it: tasks that decode a file with PyAV, actors that hold the model, Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.task import Embedder, arguments, windows


def decode(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, images in windows(row["path"]):
        small = [image.resize(_size(image)) for image in images]  # a block of whole pictures would be large
        yield {"video": Path(row["path"]).name, "window": number, "frames": np.stack([np.asarray(image) for image in small])}


def _size(image: Any) -> tuple[int, int]:
    scale = 224 / min(image.size)
    return max(224, round(image.width * scale)), max(224, round(image.height * scale))


class Embed:
    def __init__(self, checkpoint: str) -> None:
        self._embedder = Embedder(checkpoint)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        vectors = self._embedder.windows([frame for frames in batch["frames"] for frame in frames])
        return {"video": batch["video"], "window": batch["window"], "embedding": list(vectors)}


def main() -> None:
    import ray

    args = arguments()
    ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = [{"path": path} for path in args.paths()]
    # Halves of processors, so that both decode while the model waits: whole ones took half as long again.
    (
        ray.data.from_items(paths, override_num_blocks=min(len(paths), 32))
        .flat_map(decode, num_cpus=0.5)
        .map_batches(
            Embed,
            fn_constructor_args=(str(args.checkpoint),),
            batch_size=16,
            num_cpus=0.1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .write_parquet(str(args.output))
    )


if __name__ == "__main__":
    main()
