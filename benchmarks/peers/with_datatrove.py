"""datatrove: a reader that shares files out by rank, a step that decodes and embeds, its writer of Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import ParquetWriter

from benchmarks.peers.task import Embedder, arguments, windows


class Files(PipelineStep):
    name, type = "Videos", "Reader"

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self._paths = paths

    def run(self, _data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for path in self._paths[rank::world_size]:
            yield Document(text="", id=path)


class Embed(PipelineStep):
    name, type = "CLIP", "Embedder"

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self._checkpoint = checkpoint

    def run(self, data: DocumentsPipeline, _rank: int = 0, _world_size: int = 1) -> Iterator[Document]:
        embedder = Embedder(self._checkpoint)
        for document in data:
            for number, images in windows(document.id):
                vector = embedder.windows(images)[0].tolist()
                yield Document(
                    text="",
                    id=f"{document.id}-{number}",
                    metadata={"video": Path(document.id).name, "window": number, "embedding": vector},
                )


def row(_writer: Any, document: Document) -> dict[str, Any]:
    return document.metadata


def main() -> None:
    args = arguments()
    workers = os.cpu_count() or 1
    pipeline = [Files(args.paths()), Embed(str(args.checkpoint)), ParquetWriter(str(args.output), adapter=row)]
    LocalPipelineExecutor(
        pipeline, tasks=workers, workers=workers, logging_dir=str(args.output.parent / "logs"), skip_completed=False
    ).run()


if __name__ == "__main__":
    main()
