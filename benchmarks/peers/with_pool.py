"""A pool of processes by hand, one for each processor: decodes with PyAV, embeds, hands vectors to the parent."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

from benchmarks.peers.task import Embedder, arguments, windows, write

_embedder: Embedder


def begin(checkpoint: str) -> None:
    global _embedder
    _embedder = Embedder(checkpoint)


def work(path: str) -> list[tuple[str, int, Any]]:
    return [(path, number, _embedder.windows(images)[0]) for number, images in windows(path)]


def main() -> None:
    args = arguments()
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), begin, (str(args.checkpoint),)) as pool:
        rows = [row for rows in pool.imap_unordered(work, args.paths()) for row in rows]
    write(rows, args.output / "embeddings.parquet")


if __name__ == "__main__":
    main()
