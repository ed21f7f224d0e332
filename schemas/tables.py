"""Arrow schemas of the published tables: one place for names, types, meaning, keys and partitions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")


class VideoStatus(StrEnum):
    """How a video left a run."""

    OK = "ok"
    PARTIAL = "partial"  # clips, a unit or a tail are missing for good
    FAILED = "failed"  # unreadable
    DEFERRED = "deferred"  # the storage failed or the file changed; due again
    QUARANTINED = "quarantined"  # killed or hung its worker


class StageStatus(StrEnum):
    """How one stage left a video."""

    OK = "ok"
    PARTIAL = "partial"
    FAILED = "failed"  # no rows of this video are published for the stage
    DEFERRED = "deferred"


STAGES = ("clips", "classify", "embed", "caption")


@dataclass(frozen=True)
class Table:
    """A published table. `schema` is what stands in the files; `partitions` stand in the path only, outermost first."""

    name: str
    description: str
    key: tuple[str, ...]
    partitions: tuple[str, ...]
    schema: pa.Schema


def field(name: str, kind: pa.DataType, description: str, *, null: bool = True) -> pa.Field:
    """A column with its meaning."""
    return pa.field(name, kind, nullable=null, metadata={"description": description})


_CLIP_ID = field("clip_id", pa.string(), "<video_id>-<clips fingerprint>-<start in ms, 9 digits>", null=False)
_VIDEO_ID = field(
    "video_id", pa.string(), "128-bit hex digest of uri (or the manifest's id), size and etag or mtime", null=False
)
_RUN_ID = field("run_id", pa.string(), "run that published the row", null=False)
_ERROR_CODE = field("error_code", pa.string(), "why values are missing (docs/tables.md lists the codes); null: nothing is")
_ERROR_MESSAGE = field("error_message", pa.string(), "one line for people")

STAGE_RESULT = pa.struct(
    [
        field("stage", pa.string(), "clips, classify, embed or caption", null=False),
        field("model", pa.string(), "full model id; null for clips"),
        field("revision", pa.string(), "commit or digest that was really loaded; null for clips"),
        field("fingerprint", pa.string(), "configuration of the stage, as in the partition's path", null=False),
        field("status", pa.string(), "ok, partial, failed or deferred", null=False),
        field("rows", pa.int64(), "rows published of this video", null=False),
    ]
)

VIDEOS = Table(
    "videos",
    "The ledger: one row per video and run that worked on it. The newest row of a video is how it stands.",
    key=("video_id", "run_id"),
    partitions=("run_date",),
    schema=pa.schema(
        [
            _VIDEO_ID,
            field("uri", pa.string(), "where the source was", null=False),
            field("size_bytes", pa.int64(), "size when listed"),
            field("etag", pa.string(), "the store's etag when listed; null where the store has none"),
            field("modified_at", TIMESTAMP, "modification time when listed"),
            field("supersedes", pa.string(), "video_id that the same uri had before its file was replaced"),
            field("status", pa.string(), "ok, partial, failed, deferred or quarantined", null=False),
            _ERROR_CODE,
            field("error_stage", pa.string(), "discover, decode, classify, embed or caption"),
            _ERROR_MESSAGE,
            field("container", pa.string(), "FFmpeg's name of the container"),
            field("codec", pa.string(), "FFmpeg's name of the video codec"),
            field("width", pa.int32(), "pixels, upright"),
            field("height", pa.int32(), "pixels, upright"),
            field("rotation_deg", pa.int32(), "clockwise turn that was applied to stand upright: 0, 90, 180 or 270"),
            field("fps", pa.float64(), "mean frames per second of what decoded"),
            field("duration_s", pa.float64(), "seconds that the container claims"),
            field("has_audio", pa.bool_(), "whether there is an audio stream"),
            field("clips", pa.int64(), "clips of the video, failed ones included"),
            field("decoded_s", pa.float64(), "seconds that decoded"),
            field("stages", pa.list_(STAGE_RESULT), "what was due in this run and how it went", null=False),
            _RUN_ID,
            field("attempts", pa.int32(), "most attempts that a unit of the video took", null=False),
            field("started_at", TIMESTAMP, "when its first unit began to decode"),
            field("finished_at", TIMESTAMP, "when its epoch was planned", null=False),
        ]
    ),
)

CLIPS = Table(
    "clips",
    "One row per clip: where it is in its video, and what it looks like.",
    key=("clip_id",),
    partitions=("fingerprint", "run_date"),
    schema=pa.schema(
        [
            _CLIP_ID,
            _VIDEO_ID,
            field("uri", pa.string(), "where the source was", null=False),
            field("clip_index", pa.int32(), "place of the clip in its video, from 0", null=False),
            field("start_s", pa.float64(), "time of the clip's first frame, seconds from the video's first frame", null=False),
            field("end_s", pa.float64(), "end of the clip's last frame: the clip is [start_s, end_s)", null=False),
            field("boundary", pa.string(), "why the clip begins: start, cut, gradual, length or unit", null=False),
            field("width", pa.int32(), "pixels of the video, upright", null=False),
            field("height", pa.int32(), "pixels of the video, upright", null=False),
            field("fps", pa.float64(), "mean frames per second of the clip, of what decoded"),
            field("frame_times_s", pa.list_(pa.float64()), "times of the frames kept for the models, seconds", null=False),
            field(
                "motion",
                pa.float32(),
                "mean absolute luma change between frames (above 20 a second, every second one), 0 to 1; 0: frozen; "
                "null: too few frames",
            ),
            field("brightness", pa.float32(), "mean luma, 0 (black) to 1 (white)"),
            field("contrast", pa.float32(), "standard deviation of luma within a frame, mean over frames, 0 to 0.5"),
            field("sharpness", pa.float32(), "mean absolute luma difference of neighbouring pixels, 0 to 1"),
            _ERROR_CODE,
            _ERROR_MESSAGE,
            _RUN_ID,
        ]
    ),
)

_MODEL_PARTITIONS = ("model", "fingerprint", "run_date")

LABELS = Table(
    "labels",
    "The best labels of each clip by each classifier.",
    key=("clip_id", "stage", "model", "fingerprint", "label"),
    partitions=_MODEL_PARTITIONS,
    schema=pa.schema(
        [
            _CLIP_ID,
            _VIDEO_ID,
            field("stage", pa.string(), "classify", null=False),
            field("label", pa.string(), "label; null where the classifier failed on the clip"),
            field("score", pa.float32(), "probability among all labels, 0 to 1"),
            field("rank", pa.int32(), "1 for the most probable label"),
            _ERROR_CODE,
            _ERROR_MESSAGE,
            _RUN_ID,
        ]
    ),
)

CAPTIONS = Table(
    "captions",
    "One sentence or more on each clip by each captioner.",
    key=("clip_id", "model", "fingerprint"),
    partitions=_MODEL_PARTITIONS,
    schema=pa.schema(
        [
            _CLIP_ID,
            _VIDEO_ID,
            field("prompt", pa.string(), "what the model was asked; null for models that take no prompt"),
            field("caption", pa.string(), "what the model said; null where it failed on the clip"),
            field("tokens", pa.int32(), "length of the caption in tokens of the model"),
            _ERROR_CODE,
            _ERROR_MESSAGE,
            _RUN_ID,
        ]
    ),
)

EMBEDDINGS = Table(
    "embeddings",
    "A unit vector of each clip by each embedder; the dot product of two is their cosine similarity.",
    key=("clip_id", "model", "fingerprint"),
    partitions=_MODEL_PARTITIONS,
    schema=pa.schema(
        [
            _CLIP_ID,
            _VIDEO_ID,
            field("dim", pa.int32(), "length of the vector"),
            field("embedding", pa.list_(pa.float32()), "unit vector; null where the model failed on the clip"),
            _ERROR_CODE,
            _ERROR_MESSAGE,
            _RUN_ID,
        ]
    ),
)

TABLES = {table.name: table for table in (VIDEOS, CLIPS, LABELS, CAPTIONS, EMBEDDINGS)}
# A publisher writes in this order, the ledger last: what the ledger says is there, is there.
PUBLISH_ORDER = ("embeddings", "captions", "labels", "clips", "videos")
STAGE_TABLE = {"clips": "clips", "classify": "labels", "embed": "embeddings", "caption": "captions"}
