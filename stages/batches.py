"""What the model stages share: which rows are due, batches of them, one bad clip alone, answers back to their rows.

A stage appends structs to its own list column. End rows, rows with an error and rows that are not due pass untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.entries import Entry
from schemas.errors import BadClip, ClipmillError, ErrorCode
from schemas.rows import CLIP_ROW, conform
from stages.models.adapter import Answers, ClipFrames, Infer
from stages.sample import choose

T = TypeVar("T")
Struct = dict[str, Any]


class MixedUp(ClipmillError):
    """A model's answers do not belong to the clips that it was asked about. Our bug: loud, never a row."""


@dataclass
class Batches(Generic[T]):
    """Runs one entry over tables of clip rows, in batches bounded by clips and by bytes of frames."""

    entry: Entry
    column: str  # list column of CLIP_ROW that the stage appends to
    infer: Infer[T]
    structs: Callable[[T], list[Struct]]  # an answer as structs of the column, without their fingerprint
    empty: Struct  # the struct's other fields where there is no answer
    batch_clips: int
    batch_bytes: int

    def __call__(self, table: pa.Table) -> pa.Table:
        """`table` with this entry's structs appended in its due rows; the rows stay as many and in their order."""
        due = due_rows(table, self.entry.fingerprint)
        found: dict[int, list[Struct]] = {}
        for rows in self._batches(table, due):
            clips = [clip_frames(table, row, self.entry.config.frames) for row in rows]
            answers = self._answers(clips)
            found.update({row: self._as_structs(answers[clip.id]) for row, clip in zip(rows, clips, strict=True)})
        return conform(_append(table, self.column, found), CLIP_ROW)

    def _batches(self, table: pa.Table, due: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        held = 0
        for row in due:
            size = self.entry.config.frames * 3 * int(table["frame_height"][row].as_py() * table["frame_width"][row].as_py())
            if batch and (len(batch) >= self.batch_clips or held + size > self.batch_bytes):
                yield batch
                batch, held = [], 0
            batch.append(row)
            held += size
        if batch:
            yield batch

    def _answers(self, clips: Sequence[ClipFrames]) -> dict[str, T | BadClip]:
        """An answer per clip id. What fails together is tried apart: halves when memory ran out, else one by one."""
        try:
            return matched(clips, self.infer(clips))
        except BadClip as error:
            failure = error.with_traceback(None)  # a traceback holds the frames, and with them the device's memory
        if len(clips) == 1:
            return {clips[0].id: failure}
        _free_device()
        size = (len(clips) + 1) // 2 if failure.code is ErrorCode.OUT_OF_MEMORY else 1
        apart: dict[str, T | BadClip] = {}
        for start in range(0, len(clips), size):
            apart.update(self._answers(clips[start : start + size]))
        return apart

    def _as_structs(self, answer: T | BadClip) -> list[Struct]:
        mark = {"fingerprint": self.entry.fingerprint}
        if isinstance(answer, BadClip):
            return [{**mark, **self.empty, "error_code": str(answer.code), "error_message": answer.message}]
        return [{**mark, **struct, "error_code": None, "error_message": None} for struct in self.structs(answer)]


def due_rows(table: pa.Table, fingerprint: str) -> list[int]:
    """Indices of the clip rows without an error that still need `fingerprint`."""
    names = ("clip_id", "error_code", "due")
    clip_ids, errors, due = (table[name].to_pylist() for name in names)
    return [
        i
        for i, (clip_id, error, needs) in enumerate(zip(clip_ids, errors, due, strict=True))
        if clip_id is not None and error is None and fingerprint in needs
    ]


def clip_frames(table: pa.Table, row: int, count: int) -> ClipFrames:
    """The `count` frames of a row's clip nearest to the mid-bins of its time; a view into Arrow's buffer where all are used.

    ValueError where the row's counts, times and bytes do not belong together.
    """
    value = {name: table[name][row].as_py() for name in _SHAPE}
    times_s = np.asarray(value["frame_times_s"], dtype=np.float64)
    shape = (value["frame_count"], value["frame_height"], value["frame_width"], 3)
    if len(times_s) != shape[0] or not len(times_s):
        raise ValueError(f"clip {value['clip_id']} has {shape[0]} frames and {len(times_s)} times of frames")
    kept = _bytes_of(table["frames"], row).reshape(shape)
    chosen = choose(times_s, value["start_s"], value["end_s"], count)
    is_all = np.array_equal(chosen, np.arange(len(kept)))
    return ClipFrames(
        id=f"{value['clip_id']}#{value['attempt']}",  # two attempts at one unit may meet in a table
        frames=kept if is_all else kept[chosen],
        times_s=times_s[chosen] - value["start_s"],
        duration_s=value["end_s"] - value["start_s"],
    )


_SHAPE = ("clip_id", "attempt", "start_s", "end_s", "frame_times_s", "frame_count", "frame_height", "frame_width")


def _bytes_of(column: pa.ChunkedArray, row: int) -> npt.NDArray[np.uint8]:
    """The bytes of one value of a large_binary column where Arrow has them (a scalar of Arrow's would be a copy)."""
    for chunk in column.chunks:
        if row < len(chunk):
            _, offsets, data = chunk.buffers()
            first, last = np.frombuffer(offsets, dtype=np.int64)[chunk.offset + row : chunk.offset + row + 2]
            return np.frombuffer(data, dtype=np.uint8, count=last - first, offset=first)
        row -= len(chunk)
    raise IndexError(row)


def matched(clips: Sequence[ClipFrames], answers: Answers[T]) -> dict[str, T | BadClip]:
    """Answers by clip id, whatever their order; MixedUp where one is missing, doubled or about another clip."""
    asked = [clip.id for clip in clips]
    told = [clip_id for clip_id, _ in answers]
    if sorted(asked) != sorted(told) or len(set(asked)) != len(asked):
        raise MixedUp(f"asked about {len(asked)} clips, answers do not match: {sorted(set(asked) ^ set(told))[:3]}")
    return dict(answers)


def _append(table: pa.Table, column: str, found: Mapping[int, list[Struct]]) -> pa.Table:
    """`table` with structs added at the end of `column` in the rows of `found`."""
    if not found:
        return table
    values = table[column].to_pylist()
    for row, structs in found.items():
        values[row] = [*(values[row] or ()), *structs]
    field = CLIP_ROW.field(column)
    return table.set_column(table.column_names.index(column), field, pa.array(values, type=field.type))


def _free_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
