"""The one row that travels through the stages, and the checks at every border.

A table of *units* goes into decode, tables of *clip rows* come out and pass through every stage. Each unit ends with one
*end row*: `end` is set, `clip_id` and all clip columns are null. Stages pass end rows,
and rows with an `error_code`, untouched.
A stage appends one or more structs per clip to its own list column, each naming the fingerprint of the stage entry that
made it.
"""

from __future__ import annotations

import pyarrow as pa

from schemas.tables import TIMESTAMP

# What is known of a source before it is opened. Travels in every row so that staged parts explain themselves.
SOURCE_FIELDS = [
    pa.field("video_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("modified_at", TIMESTAMP),
]
# error_code/error_message: a source that is known to be bad already when it is listed (missing).
SOURCE_ROW = pa.schema([*SOURCE_FIELDS, pa.field("error_code", pa.string()), pa.field("error_message", pa.string())])

UNIT_FIELDS = [
    *SOURCE_FIELDS,
    pa.field("supersedes", pa.string()),
    pa.field("unit", pa.int32(), nullable=False),  # from 0
    pa.field("units", pa.int32(), nullable=False),  # of the video
    pa.field("unit_start_s", pa.float64()),  # null: from the first frame
    pa.field("unit_end_s", pa.float64()),  # null: to the last frame
    pa.field("origin_s", pa.float64()),  # container time of the video's first frame; null for videos of one unit
    pa.field("due", pa.list_(pa.string()), nullable=False),  # fingerprints to compute, of clips and of stage entries
]
UNIT_ROW = pa.schema(UNIT_FIELDS)

LABEL = pa.struct(
    [
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("rank", pa.int32()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
EMBEDDING = pa.struct(
    [
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("dim", pa.int32()),
        pa.field("embedding", pa.list_(pa.float32())),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
CAPTION = pa.struct(
    [
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("tokens", pa.int32()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)

# What a unit reports when it is done, readable or not.
END = pa.struct(
    [
        pa.field("clips", pa.int32(), nullable=False),  # clip rows of this attempt at the unit
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("rotation_deg", pa.int32()),
        pa.field("duration_s", pa.float64()),
        pa.field("has_audio", pa.bool_()),
        pa.field("frames", pa.int64(), nullable=False),  # that decoded, in this unit
        pa.field("lost_packets", pa.int64(), nullable=False),
        pa.field("decoded_s", pa.float64(), nullable=False),
        pa.field("started_at", TIMESTAMP, nullable=False),
        pa.field("decode_cpu_s", pa.float64(), nullable=False),
    ]
)

CLIP_ROW = pa.schema(
    [
        *UNIT_FIELDS,
        pa.field("attempt", pa.string(), nullable=False),  # token of one try at one unit
        pa.field("row", pa.int32(), nullable=False),  # 0..n-1 for the n clips of the attempt, n for its end row
        pa.field("clip_id", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("boundary", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("frame_times_s", pa.list_(pa.float64())),
        pa.field("frames", pa.large_binary()),  # uint8 RGB, (frame_count, frame_height, frame_width, 3), C order
        pa.field("frame_count", pa.int32()),
        pa.field("frame_height", pa.int32()),
        pa.field("frame_width", pa.int32()),
        pa.field("motion", pa.float32()),
        pa.field("brightness", pa.float32()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("labels", pa.list_(LABEL)),
        pa.field("embeddings", pa.list_(EMBEDDING)),
        pa.field("captions", pa.list_(CAPTION)),
        pa.field("end", END),
    ]
)
# As staged: frames have left, everything else stays.
PART_ROW = pa.schema([f for f in CLIP_ROW if f.name != "frames"])

# What a part holds of one stage entry.
STAGED = pa.struct(
    [
        pa.field("stage", pa.string(), nullable=False),  # classify, embed or caption
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),  # rows that its table gets
        pa.field("good", pa.int32(), nullable=False),  # clips with an answer
        pa.field("failed", pa.int32(), nullable=False),  # clips with an error instead
        pa.field("error_code", pa.string()),  # of the first clip that failed
        pa.field("error_message", pa.string()),
    ]
)
# A receipt for one staged part: rows first_row..last_row of one attempt at one unit. Stands in the part's footer, too.
RECEIPT = pa.schema(
    [
        *UNIT_FIELDS,
        pa.field("attempt", pa.string(), nullable=False),
        pa.field("first_row", pa.int32(), nullable=False),
        pa.field("last_row", pa.int32(), nullable=False),
        pa.field("clips", pa.int32(), nullable=False),  # clip rows of the part
        pa.field("bad_clips", pa.int32(), nullable=False),  # those with an error_code of their own
        pa.field("error_code", pa.string()),  # of the first of them
        pa.field("error_message", pa.string()),
        pa.field("staged", pa.list_(STAGED), nullable=False),
        pa.field("end", END),
    ]
)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`, in its order and types.

    Raises ValueError naming each column that is missing or does not belong, and pa.ArrowInvalid where a value does not fit
    its type or a null stands where none may.
    """
    if table.schema.equals(schema, check_metadata=True):  # at most borders; a cast takes near a millisecond
        out = table
    else:
        names, wanted = table.column_names, schema.names
        missing = [name for name in wanted if name not in names]
        extra = [name for name in names if name not in wanted]
        if missing or extra:
            raise ValueError(f"columns do not conform: missing {missing}, unknown {extra}")
        out = table.select(wanted).cast(schema)
    for field, column in zip(schema, out.columns, strict=True):
        if not field.nullable and column.null_count:
            raise pa.ArrowInvalid(f"column {field.name} has {column.null_count} nulls and may have none")
    return out


def rows_table(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    """A table of `rows`; a key that is absent is null, a key that the schema lacks is a ValueError."""
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}")
    return conform(pa.Table.from_pylist(rows, schema=schema), schema)
