"""Receipts: what a staged part says of itself, in its footer and to the driver."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.outcome import Row
from schemas.identity import VIDEO_ID, clip_id, unit_id
from schemas.rows import RECEIPT, UNIT_ROW, conform
from schemas.tables import TIMESTAMP
from stages.storage import Store

FOOTER_KEY = b"clipmill.receipt"
# The columns of a part in which model stages leave their answers, and the stage of each.
STAGE_COLUMNS = {"labels": "classify", "embeddings": "embed", "captions": "caption"}
_CHECKED = ("clip_id", "start_s", "end_s", "boundary", "width", "height")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BadPart(ValueError):
    """Rows that no correct stage makes: a mistake of ours, found before it is published."""


def part_name(unit: str, attempt: str, first_row: int, last_row: int) -> str:
    """File name of a part: the rows that it holds are in it, so that a replay which cuts batches elsewhere cannot collide."""
    return f"{unit}.{attempt}.{first_row:06d}-{last_row:06d}.parquet"


def parts_folder(run_id: str) -> str:
    """Where the parts of a run are."""
    return f"_runs/{run_id}/parts"


class Described:
    """PART_ROW rows as plain values, without their vectors, so that many small parts cost little each."""

    def __init__(self, rows: pa.Table) -> None:
        self._units = rows.select(UNIT_ROW.names)
        names = ("attempt", "row", *_CHECKED, "error_code", "error_message", "end")
        self._columns = {name: rows[name].to_pylist() for name in names}
        self._answers = {column: _answers(rows[column]) for column in STAGE_COLUMNS}

    def receipt(self, begin: int, end: int) -> Row:
        """The RECEIPT row of rows [begin, end), which are of one attempt at one unit, in order. Raises BadPart."""
        unit: Row = self._units.slice(begin, 1).to_pylist()[0]
        self._check_end(unit, begin, end)
        last = self._columns["end"][end - 1]
        clips = range(begin, end if last is None else end - 1)
        self._check_clips(unit, clips)
        codes = self._columns["error_code"]
        bad = [index for index in clips if codes[index] is not None]
        return unit | {
            "attempt": self._columns["attempt"][begin],
            "first_row": self._columns["row"][begin],
            "last_row": self._columns["row"][end - 1],
            "clips": len(clips),
            "bad_clips": len(bad),
            "error_code": codes[bad[0]] if bad else None,
            "error_message": self._columns["error_message"][bad[0]] if bad else None,
            "staged": [found for column in STAGE_COLUMNS for found in self._staged(column, clips)],
            "end": last,
        }

    def _staged(self, column: str, clips: range) -> Iterator[Row]:
        answers = [(index, answer) for index in clips for answer in self._answers[column][index]]
        for fingerprint in sorted({answer[0] for _, answer in answers}):
            own = [(index, answer) for index, answer in answers if answer[0] == fingerprint]
            failed = [(index, answer) for index, answer in own if answer[1] is not None]
            yield {
                "stage": STAGE_COLUMNS[column],
                "fingerprint": fingerprint,
                "rows": len(own),
                "good": len({index for index, answer in own if answer[1] is None}),
                "failed": len({index for index, _ in failed}),
                "error_code": failed[0][1][1] if failed else None,
                "error_message": failed[0][1][2] if failed else None,
            }

    def _check_end(self, unit: Row, begin: int, end: int) -> None:
        ends = self._columns["end"][begin:end]
        if any(found is not None for found in ends[:-1]):
            raise BadPart(f"the end row is not the last one in {_name(unit)}")
        if ends[-1] is not None and ends[-1]["clips"] != self._columns["row"][end - 1]:
            raise BadPart(f"the end row's count and place differ in {_name(unit)}")

    def _check_clips(self, unit: Row, clips: range) -> None:
        video, last_id, due = unit["video_id"], "", set(unit["due"])
        if not VIDEO_ID.fullmatch(video):
            raise BadPart(f"{video!r} is no video id")
        for index in clips:
            name, start_s, end_s, *rest = (self._columns[column][index] for column in _CHECKED)
            if None in (name, start_s, end_s, *rest):
                raise BadPart(f"clip {name} of {_name(unit)} lacks a place, a boundary or a size")
            fingerprint = name[33:41]
            if name != clip_id(video, fingerprint, start_s):
                raise BadPart(f"clip {name} is not named after video {video} and its start {start_s}")
            if name <= last_id or not start_s < end_s:
                raise BadPart(f"clip {name} follows {last_id or 'none'} or has no length")
            self._check_answers(name, index, set() if self._columns["error_code"][index] else due - {fingerprint})
            last_id = name

    def _check_answers(self, name: str, index: int, wanted: set[str]) -> None:
        answered: set[str] = set()
        for column, answers in self._answers.items():
            fingerprints = [answer[0] for answer in answers[index]]
            if column != "labels" and len(set(fingerprints)) != len(fingerprints):
                raise BadPart(f"clip {name} has two answers of one model in {column}")
            answered.update(fingerprints)
        if answered != wanted:
            raise BadPart(f"clip {name} has answers of {sorted(answered)} where {sorted(wanted)} were due")


def _answers(column: pa.ChunkedArray) -> list[list[tuple[str, str | None, str | None]]]:
    """Of each row, (fingerprint, error_code, error_message) of each answer."""
    lists = column.combine_chunks()
    flat = pc.list_flatten(lists)
    fields = (flat.field(name).to_pylist() for name in ("fingerprint", "error_code", "error_message"))
    found: list[list[tuple[str, str | None, str | None]]] = [[] for _ in range(len(lists))]
    for index, *answer in zip(pc.list_parent_indices(lists).to_pylist(), *fields, strict=True):
        found[index].append((answer[0], answer[1], answer[2]))
    return found


def _name(unit: Row) -> str:
    return unit_id(unit["video_id"], unit["unit"])


def receipts_table(receipts: Iterable[Row]) -> pa.Table:
    """RECEIPT rows as a table."""
    return conform(pa.Table.from_pylist(list(receipts), schema=RECEIPT), RECEIPT)


def to_footer(receipt: Row) -> bytes:
    """A RECEIPT row as JSON; times as microseconds since 1970."""
    return json.dumps(receipt, separators=(",", ":"), default=_microseconds).encode()


def _microseconds(value: Any) -> int:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} does not belong into a receipt")
    return (value - _EPOCH) // timedelta(microseconds=1)


def from_footer(data: bytes) -> Row:
    """Reverse of `to_footer`."""
    row: Row = json.loads(data)
    _restore(row, RECEIPT)
    return row


def _restore(row: Row, fields: Sequence[pa.Field]) -> None:
    for field in fields:
        value = row[field.name]
        if value is not None and field.type == TIMESTAMP:
            row[field.name] = _EPOCH + timedelta(microseconds=value)
        elif value is not None and pa.types.is_struct(field.type):
            _restore(value, [field.type.field(number) for number in range(field.type.num_fields)])


def read_receipt(store: Store, key: str) -> Row:
    """The RECEIPT row in a part's footer. Raises FileNotFoundError, and BadPart for an object that is no part."""
    try:
        with store.open_read(key) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return from_footer(metadata[FOOTER_KEY])
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:  # pyarrow has an OSError for what is no Parquet, too
        raise BadPart(f"{store.uri(key)} holds no receipt: {error}") from error
