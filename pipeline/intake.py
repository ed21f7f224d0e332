"""Which units and videos are complete, from receipts alone."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from pipeline.outcome import Row, Trouble, UnitEnd
from schemas.errors import DEFERRING, ErrorCode, one_line
from schemas.identity import unit_id
from schemas.rows import RECEIPT, UNIT_ROW, conform


@dataclass(frozen=True)
class Delta:
    """What some receipts added to the work done."""

    units: int = 0
    videos: int = 0
    clips: int = 0
    decoded_s: float = 0.0
    failed: int = 0  # of the videos, those without a clip
    deferred: int = 0

    def __add__(self, other: Delta) -> Delta:
        return Delta(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


MERGE_TABLES = 64
_FIGURES = [name for name in RECEIPT.names if name not in UNIT_ROW.names]  # of a receipt, beside what its unit says itself


@dataclass(slots=True)
class _Held:
    """Rows that arrived together, as they lie in a larger table with others: many small tables cost more than their rows."""

    table: pa.Table
    offset: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """One receipt: rows first..last of an attempt. The last part of an attempt has its end row's figures."""

    first: int
    last: int
    held: _Held
    row: int
    clips: int | None = None
    code: str | None = None
    decoded_s: float = 0.0


@dataclass(slots=True)
class _Unit:
    held: _Held  # UNIT_ROW or RECEIPT rows, of which row `row` describes the unit
    row: int
    units: int
    tries: int
    attempts: dict[str, dict[tuple[int, int], _Part]] | None = None
    chosen: Sequence[_Part] | None = None
    given_up: Trouble | None = None

    @property
    def is_over(self) -> bool:
        return self.chosen is not None or self.given_up is not None


class Intake:
    """Units from when they are expected until their video is planned.

    With `accept_unknown`, a unit that was never expected begins with its first receipt (parts of a dead run explain
    themselves); else its receipts are ignored: its video was planned already.
    """

    def __init__(self, accept_unknown: bool = False) -> None:
        self._accept_unknown = accept_unknown
        self._kept = RECEIPT.names if accept_unknown else _FIGURES
        self._units: dict[str, _Unit] = {}
        self._over: dict[str, int] = defaultdict(int)  # video_id -> its units that are over
        self._ready: dict[str, int] = {}  # video_id -> its units, for videos of which all are over
        self._small: list[_Held] = []  # receipts that are not merged yet
        self.ready_clips = 0

    def expect(self, units: pa.Table) -> int:
        """UNIT_ROW rows that will be run, and how many of them were not expected before; one that is expected again has had a
        try that left too little.
        """
        known = len(self._units)
        held = _Held(_copied(conform(units, UNIT_ROW)))
        for row, (name, count) in enumerate(zip(_names(units), units["units"].to_pylist(), strict=True)):
            if name in self._units:
                self._units[name].tries += 1
            else:
                self._units[name] = _Unit(held, row, count, tries=1)
        return len(self._units) - known

    def receive(self, receipts: pa.Table) -> Delta:
        """Takes RECEIPT rows in; tells what they completed."""
        held = self._hold(_copied(conform(receipts, RECEIPT).select(self._kept)))
        delta = Delta()
        attempts, counts = receipts["attempt"].to_pylist(), receipts["units"].to_pylist()
        for row, (name, part) in enumerate(zip(_names(receipts), _parts(receipts, held), strict=True)):
            unit = self._units.get(name)
            if unit is None and self._accept_unknown:
                unit = self._units[name] = _Unit(held, row, counts[row], tries=0)
            if unit is None or unit.is_over:
                continue
            unit.attempts = {} if unit.attempts is None else unit.attempts
            parts = unit.attempts.setdefault(attempts[row], {})
            parts.setdefault((part.first, part.last), part)
            chosen = _tiling(parts)
            if chosen:
                unit.chosen, unit.tries, unit.attempts = chosen, max(unit.tries, len(unit.attempts)), None
                delta += self._finished(name, chosen[-1])
        return delta

    def _hold(self, receipts: pa.Table) -> _Held:
        held = _Held(receipts)
        self._small.append(held)
        if len(self._small) >= MERGE_TABLES:
            merged, offset = _copied(pa.concat_tables([small.table for small in self._small])), 0
            for small in self._small:
                rows, small.table, small.offset = small.table.num_rows, merged, offset
                offset += rows
            self._small = []
        return held

    def give_up(self, unit_ids: Iterable[str], code: ErrorCode, message: str) -> Delta:
        """Ends units that will not be tried again; what was staged of them is left out. Unknown units are ignored."""
        delta = Delta()
        for name in unit_ids:
            unit = self._units.get(name)
            if unit is not None and not unit.is_over:
                place = f"unit {int(name[33:]) + 1} of {unit.units}: " if unit.units > 1 else ""
                unit.given_up = Trouble(code.value, "decode", one_line(place + message))
                delta += self._finished(name, None)
        return delta

    def _finished(self, name: str, last: _Part | None) -> Delta:
        video, units = name[:32], self._units[name].units
        clips, decoded_s = ((last.clips or 0), last.decoded_s) if last else (0, 0.0)
        self._over[video] += 1
        if self._over[video] < units:
            return Delta(units=1, clips=clips, decoded_s=decoded_s)
        del self._over[video]
        self._ready[video] = units
        found = [self._units[unit_id(video, number)] for number in range(units)]
        video_clips = sum(unit.chosen[-1].clips or 0 for unit in found if unit.chosen)
        self.ready_clips += video_clips
        is_deferred = any(_code(unit) in DEFERRING for unit in found)
        is_failed = not is_deferred and not video_clips
        return Delta(1, 1, clips, decoded_s, int(is_failed), int(is_deferred))

    @property
    def ready(self) -> list[str]:
        """Videos all of whose units are over, by id."""
        return sorted(self._ready)

    def ends(self, videos: Sequence[str]) -> Iterator[tuple[str, list[UnitEnd]]]:
        """Of each of some ready videos, its units in order."""
        names = {video: [unit_id(video, number) for number in range(self._ready[video])] for video in videos}
        units = {name: self._units[name] for own in names.values() for name in own}
        sources = _rows([(unit.held, unit.row) for unit in units.values()], UNIT_ROW.names)
        parts = [(part.held, part.row) for unit in units.values() for part in unit.chosen or ()]
        receipts = iter(_rows(parts, _FIGURES))
        found = {
            name: UnitEnd(source, [next(receipts) for _ in unit.chosen or ()], unit.given_up, unit.tries)
            for source, (name, unit) in zip(sources, units.items(), strict=True)
        }
        for video, own in names.items():
            yield video, [found[name] for name in own]

    def drop(self, videos: Iterable[str]) -> None:
        """Forgets ready videos: they are planned."""
        for video in videos:
            for number in range(self._ready.pop(video)):
                unit = self._units.pop(unit_id(video, number))
                self.ready_clips -= unit.chosen[-1].clips or 0 if unit.chosen else 0

    def missing(self) -> pa.Table:
        """UNIT_ROW rows of the units that are not over."""
        units = [unit for unit in self._units.values() if not unit.is_over]
        by_table: dict[int, list[_Unit]] = defaultdict(list)
        for unit in units:
            by_table[id(unit.held.table)].append(unit)
        tables = [
            own[0].held.table.select(UNIT_ROW.names).take([unit.held.offset + unit.row for unit in own])
            for own in by_table.values()
        ]
        return pa.concat_tables([UNIT_ROW.empty_table(), *tables])

    @property
    def open_videos(self) -> int:
        """Videos of which a unit is not over."""
        return len({name[:32] for name, unit in self._units.items() if not unit.is_over})


def _copied(table: pa.Table) -> pa.Table:
    """A copy on our own heap: what comes out of an object store would stay pinned there for as long as we hold it."""
    return table.take(np.arange(table.num_rows)).combine_chunks()


def _names(table: pa.Table) -> list[str]:
    return [
        unit_id(video, number) for video, number in zip(table["video_id"].to_pylist(), table["unit"].to_pylist(), strict=True)
    ]


def _parts(receipts: pa.Table, held: _Held) -> Iterator[_Part]:
    end = receipts["end"].combine_chunks()
    columns = (
        receipts["first_row"], receipts["last_row"], end.is_valid(),
        *(end.field(name) for name in ("clips", "error_code", "decoded_s")),
    )  # fmt: skip
    for row, (first, last, is_end, *figures) in enumerate(zip(*(column.to_pylist() for column in columns), strict=True)):
        yield _Part(first, last, held, row, *figures) if is_end else _Part(first, last, held, row)


def _code(unit: _Unit) -> str | None:
    return unit.given_up.code if unit.given_up else unit.chosen[-1].code if unit.chosen else None


def _tiling(parts: Mapping[tuple[int, int], _Part]) -> list[_Part] | None:
    """Parts of one attempt that together are its rows 0..n, its end row last, each row once; None where there are none.

    Parts may overlap where a replay cut its batches elsewhere, so this searches: every row is reached at most once.
    """
    if not any(part.clips is not None for part in parts.values()) or (0 not in {first for first, _ in parts}):
        return None
    starting: dict[int, list[_Part]] = defaultdict(list)
    for part in parts.values():
        starting[part.first].append(part)
    came_by: dict[int, _Part] = {}
    queue = deque([0])
    while queue:
        for part in starting[queue.popleft()]:
            if part.clips is not None:
                return _path(part, came_by)
            if part.last + 1 not in came_by:
                came_by[part.last + 1] = part
                queue.append(part.last + 1)
    return None


def _path(last: _Part, came_by: Mapping[int, _Part]) -> list[_Part]:
    path = [last]
    while path[-1].first:
        path.append(came_by[path[-1].first])
    return path[::-1]


def _rows(places: Sequence[tuple[_Held, int]], columns: Sequence[str]) -> list[Row]:
    """Rows of several tables as dicts, each table read once."""
    by_table: dict[int, list[int]] = defaultdict(list)
    for index, (held, _) in enumerate(places):
        by_table[id(held.table)].append(index)
    found: list[Row] = [{}] * len(places)
    for indices in by_table.values():
        rows = [places[index][0].offset + places[index][1] for index in indices]
        table = places[indices[0]][0].table.select(columns).take(rows)
        for index, row in zip(indices, table.to_pylist(), strict=True):
            found[index] = row
    return found
