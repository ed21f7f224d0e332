"""How an output stands: videos by status, errors, hours, models, last runs, and with an input what has gone or come since."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline import query, views
from pipeline.summary import duration
from schemas.config import InputConfig
from schemas.tables import VideoStatus

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from stages.storage import Store

LAST_RUNS = 5
SHOWN_URIS = 5

_NEWEST = """
SELECT * FROM (
  SELECT *, row_number() OVER (PARTITION BY uri ORDER BY finished_at DESC, run_id DESC, video_id) AS age FROM videos
) WHERE age = 1
"""


@dataclass(frozen=True)
class ErrorCount:
    """Videos whose newest row has one error."""

    stage: str | None
    code: str
    videos: int
    example: str | None  # uri of one of them


@dataclass(frozen=True)
class ModelCount:
    """What one model of the latest configuration has answered."""

    name: str
    stage: str
    model: str
    revision: str
    fingerprint: str
    videos: int
    rows: int


@dataclass(frozen=True)
class RunCount:
    """One run of the log. `state` is done (closed), running, or dead (its lease lapsed; the next run closes it)."""

    run: str
    state: str
    opened_at: str
    closed_at: str | None
    videos: int


@dataclass(frozen=True)
class Sources:
    """The input against the ledger: uris that are listed no more, and listed ones that no ledger row has."""

    gone: int
    new: int
    listed: int
    gone_uris: tuple[str, ...]  # the first few


@dataclass(frozen=True)
class Status:
    """All of it. Videos are counted once per uri, in their newest version."""

    output: str
    videos: dict[str, int] = field(default_factory=dict)
    superseded: int = 0
    decoded_s: float = 0.0
    clips: int = 0
    errors: tuple[ErrorCount, ...] = ()
    models: tuple[ModelCount, ...] = ()
    runs: tuple[RunCount, ...] = ()
    sources: Sources | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return asdict(self)


def read(store: Store, source: InputConfig | None = None) -> Status:
    """Reads ledger, tables and log. Raises BadRequest where there is no output or no input, PromiseBroken at a damaged log."""
    current = views.read_current(store)
    with query.opened(store) as connection:
        by_status = dict(_rows(connection, f"SELECT status, count(*) FROM ({_NEWEST}) GROUP BY 1"))
        [(superseded,)] = _rows(connection, "SELECT count(DISTINCT video_id) - count(DISTINCT uri) FROM videos")
        [(decoded_s,)] = _rows(connection, _DECODED)
        [(clips,)] = _rows(connection, f"SELECT count(*) FROM ({_clips(current)})")
        return Status(
            output=store.root,
            videos={status.value: by_status[status] for status in VideoStatus if status in by_status},
            superseded=superseded,
            decoded_s=decoded_s or 0.0,
            clips=clips,
            errors=tuple(ErrorCount(*row) for row in _rows(connection, _ERRORS)),
            models=tuple(_models(connection, current)),
            runs=tuple(_runs(connection, store)),
            sources=None if source is None else _sources(connection, source),
        )


_DECODED = f"""
SELECT sum(s) FROM (
  SELECT max(v.decoded_s) AS s FROM videos v JOIN ({_NEWEST}) n USING (video_id) GROUP BY v.video_id
)
"""
_ERRORS = f"""
SELECT error_stage, error_code, count(*), min(uri) FROM ({_NEWEST}) WHERE error_code IS NOT NULL
GROUP BY ALL ORDER BY 3 DESC, 2, 1
"""
_STAGES = f"""
SELECT s.fingerprint, count(DISTINCT video_id), CAST(sum(s.rows) AS BIGINT) FROM (
  SELECT v.video_id, unnest(v.stages) AS s FROM videos v JOIN ({_NEWEST}) n USING (video_id)
) WHERE s.status IN ('ok', 'partial') GROUP BY 1
"""


def _rows(connection: DuckDBPyConnection, sql: str) -> list[Any]:
    return list(query.select(connection, sql).rows)


def _clips(current: views.Current) -> str:
    return views.annotations_select(views.Current(current.clips), "duckdb")


def _models(connection: DuckDBPyConnection, current: views.Current) -> Iterator[ModelCount]:
    counted = {fingerprint: (videos, rows) for fingerprint, videos, rows in _rows(connection, _STAGES)}
    for entry in current.entries:
        videos, rows = counted.get(entry.fingerprint, (0, 0))
        yield ModelCount(entry.name, entry.stage, entry.model, entry.revision, entry.fingerprint, videos, rows)


def _runs(connection: DuckDBPyConnection, store: Store) -> Iterator[RunCount]:
    from pipeline import lease
    from pipeline.log import Log

    log = Log(store)
    log.refresh()
    counted: dict[str, int] = dict(_rows(connection, "SELECT run_id, count(*) FROM videos GROUP BY 1"))
    for run in sorted(log.runs.values(), key=lambda run: run.opened.number, reverse=True)[:LAST_RUNS]:
        name = run.opened.run
        state = "done" if run.closed else "dead" if lease.read(store, run).is_dead(datetime.now(UTC)) else "running"
        closed_at = None if run.closed is None else run.closed.at.isoformat()
        # Rows that `compact` has taken up name the runs that made them.
        taken_up = sum(log.epochs[n].plan.body["videos"] for n in run.epochs if log.epochs[n].plan.body.get("origins"))
        yield RunCount(name, state, run.opened.at.isoformat(), closed_at, counted.get(name, 0) + taken_up)


def _sources(connection: DuckDBPyConnection, source: InputConfig) -> Sources:
    """Eight bytes a uri, so that an archive of millions fits."""
    from stages.discover import Discovery

    known = {_digest(uri) for (uri,) in query.select(connection, "SELECT DISTINCT uri FROM videos").rows}
    listed = {_digest(uri) for table in Discovery(source).batches() for uri in table["uri"].to_pylist()}
    gone = known - listed
    uris = (uri for (uri,) in query.select(connection, "SELECT DISTINCT uri FROM videos ORDER BY 1").rows)
    shown = _first(SHOWN_URIS, (uri for uri in uris if _digest(uri) in gone)) if gone else ()
    return Sources(len(gone), len(listed - known), len(listed), tuple(shown))


def _digest(uri: str) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _first(count: int, items: Iterable[str]) -> list[str]:
    return [item for _, item in zip(range(count), items, strict=False)]


# --- for people ---


def lines(status: Status) -> list[str]:
    """The status, one string a line, aligned."""
    counts = ", ".join(f"{count:,} {name}" for name, count in status.videos.items()) or "none yet"
    hidden = f" ({status.superseded:,} older versions are hidden)" if status.superseded else ""
    out = [
        status.output,
        f"  videos   {counts}{hidden}",
        f"  footage  {duration(status.decoded_s)}",
        f"  clips    {status.clips:,}",
    ]
    if status.sources is not None:
        out += _source_lines(status.sources)
    columns = [(m.name, m.stage, m.model, f"{m.videos:,} videos", f"{m.rows:,} rows", m.fingerprint) for m in status.models]
    out += _block("models", columns)
    out += _block("errors", [(f"{e.videos:,}", e.code, e.stage or "", f"such as {e.example}") for e in status.errors])
    return out + _block("last runs", [_run_columns(run) for run in status.runs])


def _source_lines(sources: Sources) -> list[str]:
    out = [f"  input    {sources.listed:,} listed, {sources.new:,} of them new, {sources.gone:,} known ones gone"]
    out += [f"             gone: {uri}" for uri in sources.gone_uris]
    if sources.gone > len(sources.gone_uris):
        out.append(f"             and {sources.gone - len(sources.gone_uris):,} more")
    return out


def _run_columns(run: RunCount) -> tuple[str, ...]:
    opened = datetime.fromisoformat(run.opened_at)
    words = {"running": "running", "dead": "ended without closing; the next run tidies up"}
    took = ""
    if run.closed_at:
        took = f"took {duration((datetime.fromisoformat(run.closed_at) - opened).total_seconds())}"
    return (run.run, f"{opened:%Y-%m-%d %H:%M} UTC", f"{run.videos:,} videos", words.get(run.state, took))


def _block(title: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = (("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))).rstrip() for row in rows)
    return [f"  {title}", *(f"    {line}" for line in cells)]
