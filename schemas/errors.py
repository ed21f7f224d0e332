"""Errors as data: a closed set of codes, and the only exceptions that may turn into rows."""

from __future__ import annotations

from enum import StrEnum

from schemas.secrets import hidden

MAX_MESSAGE_CHARS = 500


class ErrorCode(StrEnum):
    """Why a video, a unit, a clip or a stage has no (complete) result."""

    # the source, before decoding
    MISSING = "missing"  # named by a manifest, not there when listed
    VANISHED = "vanished"  # listed, gone when opened
    CHANGED = "changed"  # size, etag or mtime differ from the listing
    STORAGE = "storage"  # the store did not answer, or answered with an error
    FORBIDDEN = "forbidden"  # the store refuses to let us read it, or it lies outside --allow
    # the file
    EMPTY = "empty"  # zero bytes
    UNREADABLE = "unreadable"  # no container that we know
    UNSUPPORTED_CONTAINER = "unsupported_container"
    UNSUPPORTED_CODEC = "unsupported_codec"
    NO_VIDEO = "no_video"  # audio only
    COVER_ART = "cover_art"  # the only picture is an attached one
    NO_FRAMES = "no_frames"  # a video stream of which nothing decodes
    DAMAGED = "damaged"  # some packets did not decode
    TRUNCATED = "truncated"  # the file ends before its index says
    TOO_LARGE = "too_large"  # more pixels than the limit
    TOO_LONG = "too_long"  # more seconds than the limit
    TOO_MANY_PACKETS = "too_many_packets"
    DEADLINE = "deadline"  # not decoded in the time a unit has
    MEMORY = "memory"  # decoding wanted more memory than a worker may have
    KILLED = "killed"  # ended its worker
    # a clip in a model stage
    MODEL_FAILED = "model_failed"
    OUT_OF_MEMORY = "out_of_memory"  # one clip alone does not fit the device
    NOT_FINITE = "not_finite"  # NaN or infinity in the answer
    NO_CLIPS = "no_clips"  # the stage had no clip to work on


# The file itself may be fine: such a video is due again in the next run.
DEFERRING = frozenset({ErrorCode.VANISHED, ErrorCode.CHANGED, ErrorCode.STORAGE, ErrorCode.FORBIDDEN})
# The file ended or hung its worker.
QUARANTINING = frozenset({ErrorCode.DEADLINE, ErrorCode.MEMORY, ErrorCode.KILLED})


class ClipmillError(Exception):
    """Root of every error that Clipmill raises on purpose."""


class CodedError(ClipmillError):
    """An error that becomes columns of a row: a code of the closed set and one line of text."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = one_line(message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class BadVideo(CodedError):
    """A video (or a unit of one) that cannot be used, or not any further."""


class BadClip(CodedError):
    """A clip for which a stage has no answer."""


class BadRequest(ClipmillError):
    """What was asked for cannot be done; nothing was started (exit code 2). The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """`text` on one line, control characters as spaces, without secrets, at most MAX_MESSAGE_CHARS characters."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in hidden(text)).split())
    return flat if len(flat) <= MAX_MESSAGE_CHARS else flat[: MAX_MESSAGE_CHARS - 1] + "…"
