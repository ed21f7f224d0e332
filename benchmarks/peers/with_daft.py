"""Daft: its expression `video_frames` samples each file every 1.25 s, a class with the model embeds, its writer of Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daft
import numpy as np
from daft import DataType, Series, col
from daft.functions import unnest, video_file, video_frames
from transformers import AutoImageProcessor, CLIPModel  # noqa: F401 - threads that import it at the same time fail

from benchmarks.peers.task import STEP_S, Embedder, arguments

EARLIER_S = 0.02  # it takes the first frame at or after a time; asked a little earlier, that is mostly the nearest one
ROWS = DataType.list(DataType.struct({"window": DataType.int32(), "embedding": DataType.list(DataType.float32())}))


@daft.cls
class Embed:
    def __init__(self, checkpoint: str) -> None:
        self._embedder = Embedder(checkpoint)

    @daft.method.batch(return_dtype=ROWS, batch_size=1)
    def files(self, videos: Series) -> list[Any]:
        return [self._rows(frames) for frames in videos.to_pylist()]

    def _rows(self, frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
        vectors = self._embedder.windows([np.asarray(frame["data"]) for frame in frames])
        return [{"window": number, "embedding": vector.tolist()} for number, vector in enumerate(vectors)]


def main() -> None:
    args = arguments()
    paths = args.paths()
    embed = Embed(str(args.checkpoint))
    frames = video_frames(video_file(col("path")), start_time=STEP_S / 2 - EARLIER_S, sample_interval_seconds=STEP_S)
    (
        daft.from_pydict({"path": paths, "video": [Path(path).name for path in paths]})
        .into_batches(1)
        .select("video", embed.files(frames).alias("row"))
        .explode("row")
        .select("video", unnest(col("row")))
        .write_parquet(str(args.output))
    )


if __name__ == "__main__":
    main()
