"""Clip rows as decode and the model stages would leave them, made without either; and a small run of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.events import Observer, unobserved
from pipeline.gather import EpochPlan
from pipeline.lease import Owner
from pipeline.publish import publish
from pipeline.recovery import Clock
from pipeline.session import Session
from pipeline.staging import StageParts
from schemas.config import CaptionConfig, ClassifyConfig, EmbedConfig, JobConfig
from schemas.entries import Entry
from schemas.identity import clip_id, video_id
from schemas.rows import PART_ROW, SOURCE_ROW, UNIT_ROW, rows_table
from stages.storage import Store

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SMALL_DIM = 4


@dataclass(frozen=True)
class Video:
    """What a video holds: clips of each unit, and what goes wrong with it."""

    name: str
    clips: tuple[int, ...] = (3,)  # per unit
    version: str = "1"
    error: str | None = None  # code of the last unit's end row
    bad_clips: tuple[int, ...] = ()  # clip indices that decode could not finish
    failing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # stage -> clip indices without an answer
    missing: bool = False  # not there when it was listed

    @property
    def uri(self) -> str:
        return f"/videos/{self.name}.mp4"

    @property
    def id(self) -> str:
        return video_id(self.uri, None if self.missing else 1000, None if self.missing else self.version)


class Steps:
    """A clock that moves by hand, and tokens that count."""

    def __init__(self, prefix: str = "") -> None:
        self.now = START
        self._prefix, self._count = prefix, 0

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=lambda s: self.advance(s), token=self.token)

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def token(self) -> str:
        self._count += 1
        return f"{self._prefix[:3]:0>3}{self._count:03x}"


ELSEWHERE = Owner("elsewhere", None, 1, None)  # a process that cannot be seen from here: only its lease counts


def job(output: str = "/out", caption: str | None = "Say it.", **kwargs: Any) -> tuple[JobConfig, list[Entry]]:
    """A configuration with one model in each stage, and its entries; another `caption` is another prompt."""
    captions = () if caption is None else (CaptionConfig(model="embedded:git", prompt=caption),)
    config = JobConfig(
        input={"uri": "/videos"},
        output=output,
        classify=ClassifyConfig(model="embedded:motion"),
        embed=EmbedConfig(model="embedded:clip"),
        caption=captions,
        **kwargs,
    )
    return config, entries_of(config)


def entries_of(config: JobConfig) -> list[Entry]:
    clips = config.clips.fingerprint()
    stages = {"classify": config.classify, "embed": config.embed, "caption": config.caption}
    return [
        Entry(stage, one, "r1", one.fingerprint(clips, "r1"), f"{stage}_{index}")
        for stage, configs in stages.items()
        for index, one in enumerate(configs)
    ]


def sources(videos: Iterable[Video]) -> pa.Table:
    """SOURCE_ROW of videos."""
    rows = [
        {
            "video_id": video.id,
            "uri": video.uri,
            "size_bytes": None if video.missing else 1000,
            "etag": None if video.missing else video.version,
            "error_code": "missing" if video.missing else None,
            "error_message": "not there" if video.missing else None,
        }
        for video in videos
    ]
    return rows_table(rows, SOURCE_ROW)


def units(due: pa.Table, videos: Sequence[Video]) -> pa.Table:
    """UNIT_ROW of what `Session.due` returned."""
    by_id = {video.id: video for video in videos}
    rows = []
    for row in due.to_pylist():
        count = len(by_id[row["video_id"]].clips)
        kept = {name: row[name] for name in UNIT_ROW.names if name in row}
        rows += [kept | {"unit": number, "units": count} for number in range(count)]
    return rows_table(rows, UNIT_ROW)


def clip_rows(
    unit: Mapping[str, Any],
    video: Video,
    entries: Sequence[Entry],
    clips_fingerprint: str,
    attempt: str = "a1",
    noise: float = 0.0,
) -> pa.Table:
    """PART_ROW rows of one attempt at one unit, end row last. `noise` changes floats only."""
    number, count = unit["unit"], video.clips[unit["unit"]]
    first = sum(video.clips[:number])
    base = {name: unit[name] for name in UNIT_ROW.names} | {"attempt": attempt}
    rows: list[dict[str, Any]] = []
    for row in range(count):
        index = first + row
        start_s = 600.0 * number + 2.0 * row
        is_bad = index in video.bad_clips
        rows.append(
            base
            | {
                "row": row, "clip_id": clip_id(video.id, clips_fingerprint, start_s), "start_s": start_s, "end_s": start_s + 2,
                "boundary": "cut" if row else "start", "width": 64, "height": 48, "fps": 25.0, "frame_count": 2,
                "frame_times_s": [start_s + 0.5, start_s + 1.5], "motion": 0.5 + noise,
                "error_code": "damaged" if is_bad else None, "error_message": "frames lost" if is_bad else None,
                "labels": [], "embeddings": [], "captions": [],
            }
            | ({} if is_bad else answers(index, video, [e for e in entries if e.fingerprint in unit["due"]], noise))
        )  # fmt: skip
    error = video.error if number == len(video.clips) - 1 else None
    end = {
        "clips": count, "error_code": error, "error_message": error and "it broke",
        "container": "mov" if count else None, "codec": "h264" if count else None, "width": 64, "height": 48,
        "frames": 50 * count, "lost_packets": 0, "decoded_s": 2.0 * count, "started_at": START, "decode_cpu_s": 0.1,
    }  # fmt: skip
    rows.append(base | {"row": count, "end": end})
    return rows_table(rows, PART_ROW)


def answers(index: int, video: Video, entries: Sequence[Entry], noise: float) -> dict[str, list[dict[str, Any]]]:
    """What the model stages say of one clip."""
    found: dict[str, list[dict[str, Any]]] = {"labels": [], "embeddings": [], "captions": []}
    for entry in entries:
        failed = index in video.failing.get(entry.stage, ())
        base = {"fingerprint": entry.fingerprint} | ({"error_code": "not_finite", "error_message": "NaN"} if failed else {})
        if entry.stage == "classify":
            labels = [{"label": f"label {n}", "score": (0.6 if n == 1 else 0.3) + noise, "rank": n} for n in (1, 2)]
            found["labels"] += [base] if failed else [base | label for label in labels]
        elif entry.stage == "embed":
            vector = np.roll(np.eye(SMALL_DIM, dtype=np.float32)[0], index)
            found["embeddings"] += [base | ({} if failed else {"dim": SMALL_DIM, "embedding": vector.tolist()})]
        else:
            said = {"prompt": entry.config.prompt, "caption": f"{entry.config.prompt} clip {index}", "tokens": 3}
            found["captions"] += [base | ({} if failed else said)]
    return found


@dataclass
class World:
    """An archive, an output, and what it takes to run one on the other without Ray."""

    store: Store
    videos: Sequence[Video]
    steps: Steps = field(default_factory=Steps)
    batch_rows: int = 4  # rows that are staged at a time
    caption: str | None = "Say it."
    owner: Owner = ELSEWHERE
    epoch_videos: int = 3
    attempt: str = "a1"
    retry_failed: bool = False
    observe: Observer = unobserved

    def __post_init__(self) -> None:
        self.config, self.entries = job(caption=self.caption)
        self._by_id = {video.id: video for video in self.videos}

    def open(self) -> Session:
        return Session.open(
            self.store, self.config, self.entries, clock=self.steps.clock(), owner=self.owner,
            retry_failed=self.retry_failed, observe=self.observe,
        )  # fmt: skip

    def expect(self, session: Session) -> pa.Table:
        found = units(session.due(sources(self.videos)), self.videos)
        session.expect(found)
        return found

    def rows(self, unit: Mapping[str, Any], attempt: str = "a1", noise: float = 0.0) -> pa.Table:
        video = self._by_id[unit["video_id"]]
        return clip_rows(unit, video, self.entries, self.config.clips.fingerprint(), attempt, noise)

    def stage(self, session: Session, found: pa.Table) -> pa.Table:
        """Stages whole units, `batch_rows` rows of all of them at a time; the receipts."""
        if not found.num_rows:
            return pa.table({})
        stage = StageParts(self.store, session.run_id)
        rows = pa.concat_tables([self.rows(unit, self.attempt) for unit in found.to_pylist()])
        batches = [stage(rows.slice(begin, self.batch_rows)) for begin in range(0, rows.num_rows, self.batch_rows)]
        return pa.concat_tables(batches)

    def publish(self, session: Session, plan: EpochPlan | None) -> None:
        if plan is not None:
            publish(self.store, plan)
            session.commit(plan)

    def run(self) -> Session:
        """A whole run, an epoch for every few units."""
        session = None
        for session in self.program():  # noqa: B007
            pass
        assert session is not None
        return session

    def program(self) -> Iterator[Session]:
        """The same, pausing after every step."""
        session = self.open()
        yield session
        found = self.expect(session)
        yield session
        for begin in range(0, found.num_rows, self.epoch_videos):
            receipts = self.stage(session, found.slice(begin, self.epoch_videos))
            yield session
            session.receive(receipts)
            plan = session.plan_epoch()
            yield session
            if plan is not None:
                publish(self.store, plan)
                yield session
                session.commit(plan)
                yield session
            self.steps.advance(1)
        self.publish(session, session.plan_epoch())
        session.close()
        yield session
