"""Outputs of any size, made quickly; and what it takes to verify one: `python -m tests.faults.large ROOT PASS_CLIPS`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.storage import Store
from tests.pipeline.rows import Steps, Video, World

CLIPS = 100  # of a video


class _Alike(World):
    """All videos hold the same clips: one is made row by row, and the others are copies of it under other names."""

    _first: tuple[str, str, pa.Table] | None = None

    def rows(self, unit: Mapping[str, Any], attempt: str = "a1", noise: float = 0.0) -> pa.Table:
        if self._first is None:
            self._first = unit["video_id"], unit["uri"], super().rows(unit, attempt, noise)
        video, uri, rows = self._first
        for name, old, new in (
            ("video_id", video, unit["video_id"]),
            ("clip_id", video, unit["video_id"]),
            ("uri", uri, unit["uri"]),
        ):
            at = rows.column_names.index(name)
            rows = rows.set_column(at, rows.schema.field(name), pc.replace_substring(rows[name], old, new))
        return rows


def make(root: str, epochs: int, clips: int) -> None:
    """An output of so many epochs, of so many clips each (a multiple of CLIPS)."""
    count = clips // CLIPS
    videos = [Video(f"v{number:06d}", (CLIPS,)) for number in range(epochs * count)]
    _Alike(Store(root), videos, Steps(), epoch_videos=count, batch_rows=20_000).run()


def main() -> None:
    """Verifies, and prints what was found and the most memory before and after, MiB."""
    from pipeline.verify import verify

    before_mb = _peak_mb()
    found = verify(Store(sys.argv[1]), pass_clips=int(sys.argv[2]))
    print(json.dumps({"found": [str(finding) for finding in found], "before_mb": before_mb, "peak_mb": _peak_mb()}))


def _peak_mb() -> int:
    """As the kernel has it; what `getrusage` says, a process inherits from its parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


if __name__ == "__main__":
    main()
