"""What `clips.effort: fast` changes of the clips of real files: their boundaries, and what a model makes of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
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
SHOT = frozenset({"cut", "gradual"})  # how a clip begins that is a shot's first


@dataclass(frozen=True)
class Clips:
    """Of one file and mode, by their starts in seconds: the vectors of all clips, and which of them begin a shot."""

    vectors: dict[float, np.ndarray]
    shots: frozenset[float]


@dataclass(frozen=True)
class Changes:
    """Of several files: cosines between the embeddings that a clip gets in both modes, those between neighbouring clips of the
    exact mode (what a difference looks like to this model), clips that only one mode has, and shot boundaries: those that both
    modes have to one frame, those of the exact mode, those of the fast one.
    """

    files: int
    cosines: Sequence[float]
    neighbours: Sequence[float]
    alone: int
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
            "Fast mode does not decode frames that no other frame is made from, and leaves the block edges of other B-frames "
            "as they are (H.264). "
            f"On {self.files} files that have such frames, two of them montages of the recordings with many cuts, its clips' "
            f"embeddings (by the CLIP checkpoint of the package) have a median cosine of {self.median_cosine:.4f} to those of "
            f"the exact mode, at least {min(self.cosines):.4f}; clips that follow each other in a file have "
            f"{statistics.median(self.neighbours):.4f}. {len(self.cosines)} clips are in both modes, {self.alone} in one "
            f"alone. Of {self.exact} boundaries of shots it finds {self.agreed} to the frame or its neighbour, and "
            f"{self.fast - self.agreed} others."
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
    alone = agreed = exact_count = fast_count = 0
    for path in files:
        exact, fast, frame_s = _embedded(path, "exact"), _embedded(path, "fast"), _frame_s(path)
        pairs = _pairs(exact.vectors, fast.vectors, frame_s)
        cosines += [float(np.dot(exact.vectors[one], fast.vectors[other])) for one, other in pairs]
        neighbours += [float(np.dot(a, b)) for a, b in pairwise(exact.vectors.values())]
        alone += len(exact.vectors) + len(fast.vectors) - 2 * len(pairs)
        agreed += len(_pairs(exact.shots, fast.shots, frame_s))
        exact_count, fast_count = exact_count + len(exact.shots), fast_count + len(fast.shots)
    return Changes(len(files), cosines, neighbours, alone, agreed, exact_count, fast_count)


def _pairs(exact: Iterable[float], fast: Iterable[float], frame_s: float) -> list[tuple[float, float]]:
    """Starts that lie at the same frame or its neighbour, one to one."""
    free, found = set(fast), []
    for start_s in sorted(exact):
        nearest_s = min(free, key=lambda at: abs(at - start_s), default=math.inf)
        if abs(nearest_s - start_s) <= 1.01 * frame_s:
            free.remove(nearest_s)
            found.append((start_s, nearest_s))
    return found


def _frame_s(path: Path) -> float:
    with path.open("rb") as file, open_media(file, ClipsConfig().limits) as media:
        return media.facts.frame_s


def _embedded(path: Path, mode: Effort) -> Clips:
    clips = ClipsConfig(effort=mode)
    config = EmbedConfig(model="embedded:clip", frames=FRAMES)
    entry = Entry("embed", config, weights.resolve(config.model).revision, "eeeeeeee", "embedding")
    unit = {"video_id": "0" * 32, "uri": str(path), "size_bytes": path.stat().st_size, "unit": 0, "units": 1}
    embed = Embed(entry)
    decode = Decode(clips, {entry.fingerprint: FRAMES}, unit_deadline_s=600.0)
    tables = decode(rows_table([unit | {"due": [entry.fingerprint]}], UNIT_ROW))
    rows = [row for made in tables for row in embed(made).drop_columns(["frames"]).to_pylist() if row["clip_id"]]
    vectors = {row["start_s"]: np.array(row["embeddings"][0]["embedding"]) for row in rows}
    return Clips(vectors, frozenset(row["start_s"] for row in rows if row["boundary"] in SHOT))
