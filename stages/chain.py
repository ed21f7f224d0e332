"""Several model stages as one callable, so that frames reach an actor once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.rows import CLIP_ROW, PART_ROW, conform


@dataclass(frozen=True)
class Link:
    """A stage yet to be built: its class and the arguments that it takes."""

    stage: Callable[..., Callable[[pa.Table], pa.Table]]
    args: tuple[Any, ...]


class Joined:
    """Builds its links in order and passes each table through all of them."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._stages = [link.stage(*link.args) for link in links]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """What the first link takes to what the last one makes."""
        for stage in self._stages:
            rows = stage(rows)
        return rows


class Chain(Joined):
    """Of model stages: frames leave at the end."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        """CLIP_ROW in, PART_ROW (no frames) out."""
        return conform(super().__call__(conform(rows, CLIP_ROW)).drop_columns(["frames"]), PART_ROW)
