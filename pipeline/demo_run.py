"""The demo from rendering to score: an archive of known truth, the main job on it, and how much of the truth came back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import preflight, query, settings, summary
from schemas.errors import BadRequest

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.demo import EmbedText
    from pipeline.summary import RunResult
    from schemas.config import JobConfig
    from schemas.entries import Entry
    from stages.storage import Store

QUERY = (
    "SELECT parse_filename(uri) AS video, start_s, object, action, caption FROM annotations WHERE object LIKE 'red %' LIMIT 8"
)
_NAMES = {
    "shot_f1": "shot boundaries, F1 within a frame",
    "action_top1": "actions right",
    "object_top1": "colour and shape right, zero-shot",
    "caption_exact": "captions right, word by word",
    "text_to_clip_recall1": "text search, first hit right",
}
_COLUMNS = ("uri", "start_s", "end_s", "fps", "action", "object", "caption", "embedding")

Run = Callable[["JobConfig", "tuple[Entry, ...]"], "RunResult"]


@dataclass(frozen=True)
class Demo:
    """Where one demo lives."""

    folder: Path
    videos: int
    seed: int

    @property
    def tables(self) -> Path:
        """The output of the run."""
        return self.folder / "tables"

    def render(self, note: Callable[[str], None]) -> None:
        """Renders archive/ and truth.parquet, unless the same demo has done so before. BadRequest where another one has."""
        from pipeline import demo

        made, wanted = self.folder / "demo.json", {"videos": self.videos, "seed": self.seed}
        if made.exists():
            there = json.loads(made.read_text())
            if there != wanted:
                raise BadRequest(f"--output {self.folder}: holds the demo of {_said(there)}; choose another folder")
            return
        if self.folder.exists() and any(path.name not in ("archive", "truth.parquet") for path in self.folder.iterdir()):
            raise BadRequest(f"--output {self.folder}: is not empty; choose another folder")
        note(f"rendering {self.videos} videos of known truth into {self.folder / 'archive'}")
        demo.render_archive(self.folder, self.videos, self.seed)
        made.write_text(json.dumps(wanted) + "\n")

    def annotate(self, run: Run) -> RunResult:
        """Runs the main job with the embedded models."""
        config = settings.load(preset="embedded", input_uri=str(self.folder / "archive"), output=str(self.tables))
        return run(config, preflight.preflight(config).entries)

    def score(self, embed_text: EmbedText | None = None) -> dict[str, Any]:
        """Compares what is published with the truth and writes score.json.

        `embed_text` stands in for the text side of the embedder.
        """
        import pyarrow.parquet as pq

        from pipeline import demo
        from stages.storage import Store

        store = Store(str(self.tables))
        truth = pq.read_table(self.folder / "truth.parquet")
        scores: dict[str, Any] = dict(demo.score(truth, _annotations(store), embed_text or _text_side(store)))
        (self.folder / "score.json").write_text(json.dumps(scores, indent=1) + "\n")
        return scores

    def command(self) -> str:
        """A query to try, ready for a shell."""
        return f'clipmill query {shlex.quote(str(self.tables))} "{QUERY}"'  # it has nothing that a shell minds in there

    def lines(self, result: RunResult, scores: Mapping[str, Any]) -> list[str]:
        """What the demo prints at its end."""
        return [
            *summary.lines(result),
            "",
            *score_lines(scores),
            "",
            f"truth and score  {self.folder / 'truth.parquet'}, {self.folder / 'score.json'}",
            "a query to try",
            f"  {self.command()}",
        ]


def score_lines(scores: Mapping[str, Any]) -> list[str]:
    """The scores beside what they should reach."""
    from pipeline.demo import TARGETS

    head = f"score against the truth ({scores['videos']} videos, {scores['shots']} shots)"
    width = max(map(len, _NAMES.values()))
    rows = []
    for name, target in TARGETS.items():
        verdict = "ok" if scores[name] >= target else "LOW" if _is_low(scores, name) else "near"
        rows.append(f"  {_NAMES[name]:<{width}}  {scores[name]:.3f}  {verdict}, should be {target:.2f} or more")
    return [head, *rows]


def too_low(scores: Mapping[str, Any]) -> list[str]:
    """Names of the scores that miss their targets by more than one shot."""
    from pipeline.demo import TARGETS

    return [name for name in TARGETS if _is_low(scores, name)]


def _is_low(scores: Mapping[str, Any], name: str) -> bool:
    """Whether a score misses its target by more than one shot (or query): in a small demo one alone may weigh a tenth."""
    from pipeline.demo import TARGETS

    of = scores["queries"] if name == "text_to_clip_recall1" else scores["shots"]
    return bool(scores[name] + 1 / max(1, of) < TARGETS[name])


def _annotations(store: Store) -> pa.Table:
    with query.opened(store) as connection:
        return connection.sql(f"SELECT {', '.join(_COLUMNS)} FROM annotations ORDER BY uri, start_s").to_arrow_table()


def _text_side(store: Store) -> EmbedText:
    """Of the embedder whose vectors are in the tables, at the revision that made them."""
    from pipeline.views import read_current
    from stages.models import catalogue

    embedder = next(entry for entry in read_current(store).entries if entry.stage == "embed")
    return catalogue.text_encoder(embedder.model, embedder.revision)


def _said(demo: Mapping[str, Any]) -> str:
    return f"{demo.get('videos')} videos with seed {demo.get('seed')}"
