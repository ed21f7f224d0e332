"""Receipts: what a staged part says of itself, in its footer and to the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.identity import VIDEO_ID, clip_id, unit_id
from schemas.rows import RECEIPT, UNIT_ROW, conform
from schemas.tables import TIMESTAMP
from stages.storage import Store

FOOTER_KEY = b"clipmill.receipt"
# The columns of a part in which model stages leave their answers, and the stage of each.
STAGE_COLUMNS = {"labels": "classify", "embeddings": "embed", "captions": "caption"}


class BadPart(ValueError):
    """Rows that no correct stage makes: a mistake of ours, found before it is published."""


def part_name(unit: str, attempt: str, first_row: int, last_row: int) -> str:
    """File name of a part: the rows that it holds are in it, so that a replay which cuts batches elsewhere cannot collide."""
    return f"{unit}.{attempt}.{first_row:06d}-{last_row:06d}.parquet"


def parts_folder(run_id: str) -> str:
    """Where the parts of a run are."""
    return f"_runs/{run_id}/parts"


def receipt_of(part: pa.Table) -> pa.Table:
    """PART_ROW rows first_row..last_row of one attempt at one unit -> one RECEIPT row. Raises BadPart."""
    first = part.slice(0, 1)
    is_end = part["end"].is_valid()
    clips = part.filter(pc.invert(is_end))
    bad = clips.filter(clips["error_code"].is_valid())
    _check(part, clips)
    rows = {name: first[name] for name in UNIT_ROW.names} | {
        "attempt": first["attempt"],
        "first_row": part["row"].slice(0, 1),
        "last_row": part["row"].slice(part.num_rows - 1),
        "clips": pa.array([clips.num_rows], pa.int32()),
        "bad_clips": pa.array([bad.num_rows], pa.int32()),
        "error_code": _first(bad["error_code"]),
        "error_message": _first(bad["error_message"]),
        "staged": pa.array([list(_staged(clips))], RECEIPT.field("staged").type),
        "end": part["end"].slice(part.num_rows - 1),
    }
    return conform(pa.table(rows), RECEIPT)


def _first(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([column[0].as_py() if len(column) else None], pa.string())


def _staged(clips: pa.Table) -> Iterator[dict[str, object]]:
    for column, stage in STAGE_COLUMNS.items():
        answers = clips[column].combine_chunks()
        found = pa.table(
            {
                "clip": pc.list_parent_indices(answers),
                "fingerprint": pc.list_flatten(answers).field("fingerprint"),
                "error_code": pc.list_flatten(answers).field("error_code"),
                "error_message": pc.list_flatten(answers).field("error_message"),
            }
        )
        for fingerprint in sorted(pc.unique(found["fingerprint"]).to_pylist()):
            of = found.filter(pc.equal(found["fingerprint"], fingerprint))
            failed = of.filter(of["error_code"].is_valid())
            yield {
                "stage": stage,
                "fingerprint": fingerprint,
                "rows": of.num_rows,
                "good": pc.count_distinct(of.filter(of["error_code"].is_null())["clip"]).as_py(),
                "failed": pc.count_distinct(failed["clip"]).as_py(),
                "error_code": failed["error_code"][0].as_py() if failed.num_rows else None,
                "error_message": failed["error_message"][0].as_py() if failed.num_rows else None,
            }


def _check(part: pa.Table, clips: pa.Table) -> None:
    ends = part.num_rows - clips.num_rows
    if ends > 1 or (ends and not part["end"][-1].is_valid):
        raise BadPart(f"the end row is not the last one in {_name(part)}")
    if ends and part["end"][-1]["clips"].as_py() != part["row"][-1].as_py():
        raise BadPart(f"the end row's count and place differ in {_name(part)}")
    columns = ("video_id", "clip_id", "start_s", "end_s", "boundary", "width", "height", "error_code", "due")
    answered = _answered(clips)
    last_id = ""
    for index, row in enumerate(clips.select(columns).to_pylist()):
        video, name = row["video_id"], row["clip_id"]
        if any(row[column] is None for column in columns[:7]):
            raise BadPart(f"clip {name} of {_name(part)} lacks a place, a boundary or a size")
        fingerprint = name[33:41]
        if not VIDEO_ID.fullmatch(video) or name != clip_id(video, fingerprint, row["start_s"]):
            raise BadPart(f"clip {name} is not named after video {video} and its start {row['start_s']}")
        if name <= last_id or not row["start_s"] < row["end_s"]:
            raise BadPart(f"clip {name} follows {last_id or 'none'} or has no length")
        wanted = set() if row["error_code"] else set(row["due"]) - {fingerprint}
        if answered[index] != wanted:
            raise BadPart(f"clip {name} has answers of {sorted(answered[index])} where {sorted(wanted)} were due")
        last_id = name


def _answered(clips: pa.Table) -> list[set[str]]:
    """Fingerprints that answered each clip; raises BadPart where one that gives one answer gave two."""
    found: list[set[str]] = [set() for _ in range(clips.num_rows)]
    for column in STAGE_COLUMNS:
        for index, answers in enumerate(clips[column].to_pylist() if column == "labels" else _fingerprints(clips[column])):
            names = [answer["fingerprint"] if isinstance(answer, dict) else answer for answer in answers or ()]
            if column != "labels" and len(set(names)) != len(names):
                raise BadPart(f"clip {clips['clip_id'][index]} has two answers of one model in {column}")
            found[index] |= set(names)
    return found


def _fingerprints(column: pa.ChunkedArray) -> list[list[str]]:
    """list<struct<fingerprint, ...>> -> per row the fingerprints, without touching vectors."""
    answers = column.combine_chunks()
    names: list[list[str]] = [[] for _ in range(len(answers))]
    pairs = zip(
        pc.list_parent_indices(answers).to_pylist(), pc.list_flatten(answers).field("fingerprint").to_pylist(), strict=True
    )
    for index, fingerprint in pairs:
        names[index].append(fingerprint)
    return names


def _name(part: pa.Table) -> str:
    return unit_id(part["video_id"][0].as_py(), part["unit"][0].as_py())


def to_footer(receipt: pa.Table) -> bytes:
    """One RECEIPT row as JSON; times as microseconds since 1970."""
    row = receipt.cast(_as_numbers(receipt.schema)).to_pylist()[0]
    return json.dumps(row, separators=(",", ":")).encode()


def from_footer(data: bytes) -> pa.Table:
    """Reverse of `to_footer`."""
    return conform(pa.Table.from_pylist([json.loads(data)], schema=_as_numbers(RECEIPT)).cast(RECEIPT), RECEIPT)


def _as_numbers(schema: pa.Schema) -> pa.Schema:
    return pa.schema([_number_field(field) for field in schema])


def _number_field(field: pa.Field) -> pa.Field:
    if pa.types.is_struct(field.type):
        return field.with_type(pa.struct([_number_field(inner) for inner in field.type]))
    return field.with_type(pa.int64()) if field.type == TIMESTAMP else field


def read_receipt(store: Store, key: str) -> pa.Table:
    """The RECEIPT row in a part's footer. Raises FileNotFoundError, and BadPart for an object that is no part."""
    try:
        with store.open_read(key) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return from_footer(metadata[FOOTER_KEY])
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:  # pyarrow has an OSError for what is no Parquet, too
        raise BadPart(f"{store.uri(key)} holds no receipt: {error}") from error
