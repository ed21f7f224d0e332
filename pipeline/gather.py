"""Gathers complete videos into an epoch: a plan that holds everything a publisher needs.

A plan is an entry of the log and two sidecars, `_runs/RUN/epochs/<epoch>.<token>.{videos,parts}.parquet`: the epoch's rows of
the ledger, and the parts whose rows it publishes, in the order in which they are published. Sidecars are written before the
entry and never change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from heapq import merge
from itertools import chain, islice
from operator import itemgetter
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.intake import Intake
from pipeline.log import Body, Event, timestamp
from pipeline.objects import Hashing, RowWriter, Written, hashed
from pipeline.outcome import Outcome, Row, UnitEnd, outcome, rejected
from pipeline.receipts import part_name
from pipeline.recipe import Recipe
from schemas.identity import unit_id
from schemas.rows import rows_table
from schemas.tables import PUBLISH_ORDER, VIDEOS, StageStatus, VideoStatus
from stages.storage import Store

CHUNK_VIDEOS = 500  # in memory as plain values
_Kept = tuple[str, list[UnitEnd], Outcome]
PARTS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # file name below the run's parts
        pa.field("attempt", pa.string(), nullable=False),
        pa.field("first_row", pa.int32(), nullable=False),
        pa.field("last_row", pa.int32(), nullable=False),
        pa.field("first_index", pa.int32(), nullable=False),  # clip_index of the unit's row 0
        pa.field("publish", pa.list_(pa.string()), nullable=False),  # fingerprints
    ]
)


@dataclass(frozen=True)
class PlannedObject:
    """One object of an epoch. `stage` and what follows is null for videos, the model for clips too."""

    table: str
    key: str
    rows: int
    stage: str | None = None
    fingerprint: str | None = None
    model: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Origin:
    """The run and the planning of an epoch whose rows another one has taken up."""

    run: str
    at: datetime

    def to_json(self) -> dict[str, str]:
        """As it stands in the log."""
        return {"run": self.run, "at": timestamp(self.at)}

    @classmethod
    def from_json(cls, data: dict[str, str]) -> Self:
        """Reverse of `to_json`."""
        return cls(data["run"], datetime.fromisoformat(data["at"]))


@dataclass(frozen=True)
class EpochPlan:
    """What to publish, small enough to send anywhere. `objects` are in the order in which they appear, videos last.

    `origins`: of an epoch that was put together from others (`pipeline.compact`), whose rows they are, oldest first.
    """

    run: str
    epoch: int
    token: str
    at: datetime
    run_date: str
    videos: int
    clips: int
    ledger: Written  # the sidecar that is copied to become the last object
    parts: Written
    objects: tuple[PlannedObject, ...]
    origins: tuple[Origin, ...] = ()

    @property
    def made_by(self) -> tuple[Origin, ...]:
        """Of which runs and times its rows are."""
        return self.origins or (Origin(self.run, self.at),)

    def body(self) -> Body:
        """As an entry of the log."""
        return {
            "token": self.token,
            "at": timestamp(self.at),
            "run_date": self.run_date,
            "videos": self.videos,
            "clips": self.clips,
            "ledger": {**self.ledger.to_json(), "planned": self.ledger.key, "key": self.objects[-1].key},
            "parts": self.parts.to_json(),
            "objects": [asdict(planned) for planned in self.objects],
            **({"origins": [origin.to_json() for origin in self.origins]} if self.origins else {}),
        }

    @classmethod
    def of(cls, event: Event) -> Self:
        """Reverse of `body`."""
        body = event.body
        ledger = {name: body["ledger"][name] for name in ("rows", "size_bytes", "digest")}
        return cls(
            run=event.run, epoch=event.number, token=body["token"], at=event.at, run_date=body["run_date"],
            videos=body["videos"], clips=body["clips"],
            ledger=Written(body["ledger"]["planned"], **ledger), parts=Written.from_json(body["parts"]),
            objects=tuple(PlannedObject(**planned) for planned in body["objects"]),
            origins=tuple(Origin.from_json(origin) for origin in body.get("origins", ())),
        )  # fmt: skip

    def properties(self, planned: PlannedObject) -> dict[str, str]:
        """What stands in the footer of one of its objects."""
        return properties(self.run, self.epoch, self.token, planned)


def properties(run: str, epoch: int, token: str, planned: PlannedObject) -> dict[str, str]:
    """What stands in the footer of an object, beside the rows."""
    known = {name: value for name, value in asdict(planned).items() if value is not None and name != "key"}
    return {"run": run, "epoch": str(epoch), "token": token} | {name: str(value) for name, value in known.items()}


@dataclass(frozen=True)
class Batch:
    """What an epoch is made of: complete videos of an intake, and sources that were bad when they were listed; both by id."""

    intake: Intake
    videos: Sequence[str]
    rejects: Sequence[Row] = ()
    # (video ids) -> of each the fingerprints that somebody else has published or claimed
    taken: Callable[[Sequence[str]], Iterable[Iterable[str]]] = lambda videos: [()] * len(videos)
    # decides on a settled video whether it gets its row and its rows
    keeps: Callable[[Outcome], bool] = lambda _: True


@dataclass
class Tally:
    """What an epoch comes to."""

    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    published: Counter[str] = field(default_factory=Counter)  # rows by fingerprint
    clips: int = 0
    decoded_s: float = 0.0
    unanswered: int = 0  # videos with clips, to none of which one of the models had an answer

    def add(self, found: Outcome) -> None:
        """Counts a video."""
        has_clips = found.status in (VideoStatus.OK, VideoStatus.PARTIAL)
        self.unanswered += has_clips and any(stage["status"] == StageStatus.FAILED for stage in found.row["stages"])
        self.statuses[found.status] += 1
        self.errors.update([found.row["error_code"]] if found.row["error_code"] else [])
        self.published.update(found.published)
        self.clips += found.row.get("clips") or 0
        self.decoded_s += found.row.get("decoded_s") or 0.0

    @property
    def videos(self) -> int:
        """All of them."""
        return self.statuses.total()


class Gatherer:
    """Builds plans of one run."""

    def __init__(self, store: Store, run: str, recipe: Recipe) -> None:
        self._store, self._run, self._recipe = store, run, recipe

    def plan(self, batch: Batch, epoch: int, token: str, at: datetime) -> tuple[EpochPlan, Tally] | None:
        """Writes the sidecars of an epoch, a chunk of videos at a time; None where nothing is kept.

        Raises StorageUnavailable.
        """
        kept = (item for item in self._outcomes(batch, at) if batch.keeps(item[2]))
        first = next(kept, None)
        if first is None:
            return None
        folder = f"_runs/{self._run}/epochs/{epoch:08d}.{token}"
        tally = Tally()
        with (
            self._store.open_write(f"{folder}.videos.parquet") as videos,
            hashed(self._store, f"{folder}.parts.parquet") as parts,
            RowWriter(f"{folder}.videos.parquet", videos, "videos") as ledger,
        ):
            count = self._write(chain([first], kept), ledger, parts, tally)
            objects = self._objects(tally, epoch, at.strftime("%Y-%m-%d"))
            written = ledger.close(properties(self._run, epoch, token, objects[-1]))
        plan = EpochPlan(
            run=self._run, epoch=epoch, token=token, at=at, run_date=at.strftime("%Y-%m-%d"), videos=tally.videos,
            clips=tally.clips, ledger=written,
            parts=Written(f"{folder}.parts.parquet", count, parts.size_bytes, parts.digest), objects=objects,
        )  # fmt: skip
        return plan, tally

    def _write(self, kept: Iterable[_Kept], ledger: RowWriter, file: Hashing, tally: Tally) -> int:
        """Writes both sidecars; the number of parts."""
        count = 0
        kept = iter(kept)
        with pq.ParquetWriter(file, PARTS, compression="zstd") as parts:
            while chunk := list(islice(kept, CHUNK_VIDEOS)):
                ledger.write(rows_table([found.row for _, _, found in chunk], VIDEOS.schema))
                rows = [row for _, units, found in chunk for row in _parts(units, found)]
                parts.write_table(rows_table(rows, PARTS))
                count += len(rows)
                for _, _, found in chunk:
                    tally.add(found)
        return count

    def _outcomes(self, batch: Batch, at: datetime) -> Iterator[_Kept]:
        """(video, its units, its outcome), by id."""
        rejects: Iterator[_Kept] = ((row["video_id"], [], rejected(row, self._recipe, self._run, at)) for row in batch.rejects)
        return merge(rejects, self._settled(batch, at), key=itemgetter(0))

    def _settled(self, batch: Batch, at: datetime) -> Iterator[_Kept]:
        videos = iter(batch.videos)
        while chunk := list(islice(videos, CHUNK_VIDEOS)):
            for (video, units), taken in zip(batch.intake.ends(chunk), batch.taken(chunk), strict=True):
                due = set(units[0].source["due"]) - set(taken)
                yield video, units, outcome(units, self._recipe, due, self._run, at)

    def _objects(self, tally: Tally, epoch: int, run_date: str) -> tuple[PlannedObject, ...]:
        name = f"part-{self._run}-{epoch:08d}.parquet"
        objects = [
            PlannedObject(
                part.table, f"{part.folder(run_date)}/{name}", tally.published[part.fingerprint], part.stage,
                part.fingerprint, part.model, part.revision,
            )
            for part in self._recipe.ingredients
            if tally.published[part.fingerprint]
        ]  # fmt: skip
        objects.sort(key=lambda planned: (PUBLISH_ORDER.index(planned.table), planned.key))
        return (*objects, PlannedObject("videos", f"videos/run_date={run_date}/{name}", tally.videos))


def _parts(units: Sequence[UnitEnd], found: Outcome) -> Iterator[Row]:
    """The PARTS rows of a video: parts that hold clips, in the order of their time."""
    first_index = 0
    for unit in units:
        for receipt in unit.receipts if found.published else ():
            if receipt["clips"]:
                rows = receipt["first_row"], receipt["last_row"]
                name = part_name(unit_id(unit.source["video_id"], unit.source["unit"]), receipt["attempt"], *rows)
                yield {
                    "video_id": unit.source["video_id"], "part": name, "attempt": receipt["attempt"],
                    "first_row": rows[0], "last_row": rows[1], "first_index": first_index, "publish": sorted(found.published),
                }  # fmt: skip
        first_index += unit.clips


def read_parts(store: Store, plan: EpochPlan) -> Iterator[Row]:
    """The PARTS rows of a plan, streamed. FileNotFoundError where the sidecar is gone."""
    with store.open_read(plan.parts.key) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=CHUNK_VIDEOS):
            yield from batch.to_pylist()
