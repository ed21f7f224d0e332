"""What `clips.effort: fast` changes of the clips of real files: their boundaries, and what a model makes of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.shots.montage import Recipe, build, real_shots
from schemas.config import ClipsConfig, Effort, EmbedConfig
from schemas.entries import Entry
from schemas.rows import UNIT_ROW, rows_table
from stages.decode import Decode
from stages.embed import Embed
from stages.media import open_media
from stages.models import weights

FRAMES = 8
Vectors = dict[float, np.ndarray]  # of clips, by their starts in seconds


@dataclass(frozen=True)
class Changes:
    """Of several files: cosines between the embeddings that a clip gets in both modes, those between neighbouring clips of the
    exact mode (what a difference looks like to this model), and shot boundaries: those that both modes have to one frame, those
    of the exact mode, those of the fast one.
    """

    files: int
    cosines: Sequence[float]
    neighbours: Sequence[float]
    agreed: int
    exact: int
    fast: int

    @property
    def median_cosine(self) -> float:
        return statistics.median(self.cosines)

    @property
    def f1(self) -> float:
        """Of the fast mode's boundaries, taking the exact mode's for the truth; 1 where neither has any."""
        return 2 * self.agreed / (self.exact + self.fast) if self.exact + self.fast else 1.0

    def text(self) -> str:
        return (
            "Fast mode does not decode frames that no other frame is made from. "
            f"On {self.files} files that have such frames, two of them montages of the recordings with many cuts, its clips' "
            f"embeddings (by the CLIP checkpoint of the package) have a median cosine of {self.median_cosine:.4f} to those of "
            f"the exact mode, at least {min(self.cosines):.4f}; clips that follow each other in a file have "
            f"{statistics.median(self.neighbours):.4f}. Of {self.exact} boundaries it finds {self.agreed} to the frame or its "
            f"neighbour, and {self.fast - self.agreed} others."
        )


def montages(folder: Path, recordings: Path) -> list[Path]:
    """Two montages of the recordings, encoded with B-frames: the recordings themselves have few cuts."""
    found = []
    for seed in (2, 4):
        recipe = Recipe(shots=60, size=(270, 480))
        path = folder / f"montage-{seed}.mp4"
        path.write_bytes(build(real_shots(recordings, recipe.size, 1, part=0), seed, recipe).video)
        found.append(path)
    return found


def changes(files: Sequence[Path]) -> Changes:
    """Decodes and embeds each file in both modes."""
    cosines: list[float] = []
    neighbours: list[float] = []
    agreed = exact_count = fast_count = 0
    for path in files:
        exact, fast = (_embedded(path, mode) for mode in ("exact", "fast"))
        pairs = _pairs(exact, fast, _frame_s(path))
        cosines += [float(np.dot(exact[one], fast[other])) for one, other in pairs]
        vectors = list(exact.values())
        neighbours += [float(np.dot(a, b)) for a, b in pairwise(vectors)]
        agreed += sum(one > 0 for one, _ in pairs)
        exact_count, fast_count = exact_count + len(exact) - 1, fast_count + len(fast) - 1
    return Changes(len(files), cosines, neighbours, agreed, exact_count, fast_count)


def _pairs(exact: Vectors, fast: Vectors, frame_s: float) -> list[tuple[float, float]]:
    """Starts of clips that begin at the same frame or its neighbour, one to one."""
    free, found = set(fast), []
    for start_s in exact:
        nearest_s = min(free, key=lambda at: abs(at - start_s), default=math.inf)
        if abs(nearest_s - start_s) <= 1.01 * frame_s:
            free.remove(nearest_s)
            found.append((start_s, nearest_s))
    return found


def _frame_s(path: Path) -> float:
    with path.open("rb") as file, open_media(file, ClipsConfig().limits) as media:
        return media.facts.frame_s


def _embedded(path: Path, mode: Effort) -> Vectors:
    clips = ClipsConfig(effort=mode)
    config = EmbedConfig(model="embedded:clip", frames=FRAMES)
    entry = Entry("embed", config, weights.resolve(config.model).revision, "eeeeeeee", "embedding")
    unit = {"video_id": "0" * 32, "uri": str(path), "size_bytes": path.stat().st_size, "unit": 0, "units": 1}
    embed = Embed(entry)
    decode = Decode(clips, {entry.fingerprint: FRAMES}, unit_deadline_s=600.0)
    tables = decode(rows_table([unit | {"due": [entry.fingerprint]}], UNIT_ROW))
    rows = [row for made in tables for row in embed(made).drop_columns(["frames"]).to_pylist() if row["clip_id"]]
    return {row["start_s"]: np.array(row["embeddings"][0]["embedding"]) for row in rows}
