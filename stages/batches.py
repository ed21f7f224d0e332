"""What the model stages share: which rows are due, batches of them, one bad clip alone, answers back to their rows.

A stage appends structs to its own list column. End rows, rows with an error and rows that are not due pass untouched.

What becomes a row and what is loud: whatever goes wrong between a clip's frames and its structs is that clip's error, be it
an exception of any kind, an answer that makes no sense, or one about another clip. A batch that fails is tried again in halves
or clip by clip, so that the error stands on the clip that it belongs to and its neighbours get their answers. Where a model is
at fault rather than a clip, that is an error on every clip, and the run ends with exit code 3. Loud are a broken device
(BrokenDevice: nothing after it can be believed, so its process ends) and rows that decode should never have made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.entries import Entry
from schemas.errors import BadClip, ErrorCode
from schemas.rows import CLIP_ROW, conform
from stages.models.adapter import Answers, ClipFrames, Infer, model_errors
from stages.sample import choose
from stages.telemetry import Figure, measured, timed

T = TypeVar("T")
Struct = dict[str, Any]


class MixedUp(BadClip):
    """A model's answers do not belong to the clips that it was asked about: none of them is believed."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.MODEL_FAILED, message)


@dataclass
class Batches(Generic[T]):
    """Runs one entry over tables of clip rows, in batches bounded by clips and by bytes of frames."""

    entry: Entry
    column: str  # list column of CLIP_ROW that the stage appends to
    infer: Infer[T]
    structs: Callable[[T], list[Struct]]  # an answer as structs of the column, without their fingerprint; BadClip if it is none
    empty: Struct  # the struct's other fields where there is no answer
    batch_clips: int
    batch_bytes: int

    def __call__(self, table: pa.Table) -> pa.Table:
        """`table` with this entry's structs appended in its due rows; the rows stay as many and in their order."""
        due = due_rows(table, self.entry.fingerprint)
        if not due:
            return conform(table, CLIP_ROW)
        found: dict[int, list[Struct]] = {}
        with timed(Figure.STAGE_S, **self._labels):
            for rows in self._batches(table, due):
                clips = [clip_frames(table, row, self.entry.config.frames) for row in rows]
                answers = self._answers(clips)
                found.update({row: self._marked(answers[clip.id]) for row, clip in zip(rows, clips, strict=True)})
        return conform(_append(table, self.column, found), CLIP_ROW)

    @property
    def _labels(self) -> dict[str, str]:
        return {"stage": self.entry.stage, "model": self.entry.config.slug}

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

    def _answers(self, clips: Sequence[ClipFrames]) -> dict[str, list[Struct] | BadClip]:
        """Structs per clip id. What fails together is tried apart: halves when memory ran out, else one by one."""
        measured(Figure.FORWARD_CLIPS, len(clips), **self._labels)
        try:
            with model_errors():
                told = matched(clips, self.infer(clips))
        except BadClip as error:
            failure = _bare(error)
        else:
            return self._second_tries(clips, {clip_id: self._as_structs(answer) for clip_id, answer in told.items()})
        if len(clips) == 1:
            return {clips[0].id: failure}
        _free_device()
        size = (len(clips) + 1) // 2 if failure.code is ErrorCode.OUT_OF_MEMORY else 1
        apart: dict[str, list[Struct] | BadClip] = {}
        for start in range(0, len(clips), size):
            apart.update(self._answers(clips[start : start + size]))
        return apart

    def _second_tries(
        self, clips: Sequence[ClipFrames], found: dict[str, list[Struct] | BadClip]
    ) -> dict[str, list[Struct] | BadClip]:
        """A clip without an answer among others is asked about alone: one that gives NaN may have spoiled its neighbours."""
        if len(clips) > 1:
            for clip in clips:
                if isinstance(found[clip.id], BadClip):
                    found |= self._answers([clip])
        return found

    def _as_structs(self, answer: T | BadClip) -> list[Struct] | BadClip:
        if isinstance(answer, BadClip):
            return _bare(answer)
        try:
            with model_errors():
                structs = self.structs(answer)
                pa.array([self._marked(structs)], type=CLIP_ROW.field(self.column).type)  # here it costs this clip alone
                return structs
        except BadClip as error:
            return _bare(error)

    def _marked(self, found: list[Struct] | BadClip) -> list[Struct]:
        mark = {"fingerprint": self.entry.fingerprint}
        if isinstance(found, BadClip):
            return [{**mark, **self.empty, "error_code": str(found.code), "error_message": found.message}]
        return [{**mark, **struct, "error_code": None, "error_message": None} for struct in found]


def _bare(error: BadClip) -> BadClip:
    """Without traceback and causes: those hold the frames, and with them the device's memory."""
    return BadClip(error.code, error.message)


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
    if set(asked) != set(told) or len(told) != len(asked) or len(set(asked)) != len(asked):
        others = len(set(told) - set(asked))
        raise MixedUp(f"asked about {len(asked)} clips, the model gave {len(told)} answers, {others} of them about others")
    return dict(answers)


def _append(table: pa.Table, column: str, found: Mapping[int, list[Struct]]) -> pa.Table:
    """`table` with structs added at the end of `column` in the rows of `found`."""
    values = table[column].to_pylist()
    for row, structs in found.items():
        values[row] = [*(values[row] or ()), *structs]
    field = CLIP_ROW.field(column)
    return table.set_column(table.column_names.index(column), field, pa.array(values, type=field.type))


def _free_device() -> None:
    import torch

    if torch.cuda.is_available():
        with model_errors():
            torch.cuda.empty_cache()
