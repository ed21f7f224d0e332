"""The decode stage: units of videos in, clips with their kept frames out, one pass, one end row for every unit."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO

import av
import numpy as np
import pyarrow as pa

from schemas.config import ClipsConfig
from schemas.errors import DEFERRING, BadVideo, ErrorCode
from schemas.identity import clip_id
from schemas.rows import CLIP_ROW, UNIT_ROW, conform, rows_table
from stages.clipper import Clipper, Draft
from stages.media import Media, open_media
from stages.memory import cap_memory, keep_freed_memory, trim_memory
from stages.quality import look_at
from stages.reader import Reader, Span
from stages.roots import ANYWHERE, Roots
from stages.sample import RgbConverter, rotation_of, union
from stages.sources import check_unchanged, open_source
from stages.telemetry import Figure, measured
from stages.watchdog import Watchdog

FLUSH_CLIPS = 16
FLUSH_BYTES = 32 << 20  # of kept frames
_FRAMES = CLIP_ROW.get_field_index("frames")
_NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)
Row = dict[str, Any]
Open = Callable[[str, int | None, str | None, datetime | None], BinaryIO]
Check = Callable[[str, int | None, str | None, datetime | None], None]


@dataclass
class _Clips:
    """Rows with the kept frames of each, not yet a table."""

    rows: list[Row] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)

    def add(self, row: Row, frames: np.ndarray) -> None:
        self.rows.append(row)
        self.frames.append(frames)

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= FLUSH_CLIPS or sum(one.nbytes for one in self.frames) >= FLUSH_BYTES

    def table(self) -> pa.Table:
        """CLIP_ROW; the kept frames stay where they are, one chunk for each clip."""
        column = pa.chunked_array([_binary(kept) for kept in self.frames], pa.large_binary())
        return rows_table(self.rows, CLIP_ROW).set_column(_FRAMES, CLIP_ROW.field(_FRAMES), column)


@dataclass
class _Report:
    """What a unit's end row will say, and the clips that leave with it."""

    clips: int = 0
    error: BadVideo | None = None
    media: Media | None = None
    reader: Reader | None = None
    width: int | None = None  # upright
    height: int | None = None
    rotation_deg: int | None = None
    first_s: float | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    cpu_s: float = 0.0
    waiting: _Clips = field(default_factory=_Clips)

    def see(self, time_s: float, frame: av.VideoFrame) -> None:
        """The unit's first frame."""
        self.first_s, self.rotation_deg = time_s, rotation_of(frame)
        turned = self.rotation_deg % 180 == 90
        self.width, self.height = (frame.height, frame.width) if turned else (frame.width, frame.height)

    def end(self) -> Row:
        """The `end` struct. A field that is not known is null."""
        facts = None if self.media is None else self.media.facts
        reader = self.reader
        decoded_s = 0.0 if reader is None or self.first_s is None else max(0.0, reader.end_s - self.first_s)
        return {
            "clips": self.clips,
            "error_code": None if self.error is None else self.error.code.value,
            "error_message": None if self.error is None else self.error.message,
            "container": facts and facts.container,
            "codec": facts and facts.codec,
            "width": self.width,
            "height": self.height,
            "rotation_deg": self.rotation_deg,
            "duration_s": facts and facts.duration_s,
            "has_audio": facts and facts.has_audio,
            "frames": 0 if reader is None else reader.frames_read,
            "lost_packets": 0 if reader is None else reader.lost_packets,
            "decoded_s": decoded_s,
            "started_at": self.started_at,
            "decode_cpu_s": self.cpu_s,
        }


class Decode:
    """Units (UNIT_ROW) in, tables of CLIP_ROW out: each unit's clips in order, then its end row.

    `frame_counts` says, for each fingerprint that may be due, how many frames of a clip that model sees; a clip's frames are
    the union over what is due. A unit that takes longer than `unit_deadline_s` ends with `deadline`, and where it hangs, its
    process ends with watchdog.EXIT_DEADLINE. `worker_memory_bytes`: what this *process* may allocate from now on; None: no cap.
    Sources outside `roots` are not opened.
    A video's trouble is in its end row; anything else that is raised is a bug of ours.
    """

    def __init__(
        self,
        clips: ClipsConfig,
        frame_counts: Mapping[str, int],
        unit_deadline_s: float,
        worker_memory_bytes: int | None = None,
        roots: Roots = ANYWHERE,
        *,
        open_file: Open | None = None,
        check_file: Check | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._clips = clips
        self._fingerprint = clips.fingerprint()
        self._frame_counts = dict(frame_counts)
        self._open_file = open_file or partial(open_source, roots=roots)
        self._check_file = check_file or partial(check_unchanged, roots=roots)
        self._watchdog = watchdog or Watchdog(unit_deadline_s)
        self._converter = RgbConverter(clips.short_side)
        keep_freed_memory()
        if worker_memory_bytes is not None:
            cap_memory(worker_memory_bytes)

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Tables of at most FLUSH_CLIPS clips or about FLUSH_BYTES of frames, as they are done."""
        for unit in conform(units, UNIT_ROW).to_pylist():
            yield from self._metered(unit)
            if unit["units"] > 1:  # took its time: what is free between what stays would add up from one to the next
                trim_memory()

    def _metered(self, unit: Row) -> Iterator[pa.Table]:
        """The unit's tables; its clocks stand while a table is with the consumer."""
        report = _Report()
        base = {**unit, "attempt": uuid.uuid4().hex}
        tables, wall_s = self._unit(base, report), 0.0
        self._watchdog.start(f"{unit['uri']} unit {unit['unit']}")
        more = True
        while more:
            table = None  # the consumer's by now: its frames need not stay while the next ones are made
            self._watchdog.resume()
            began_s, cpu_s = time.monotonic(), time.thread_time()
            try:
                table = next(tables, None)
            finally:
                report.cpu_s += time.thread_time() - cpu_s
                wall_s += time.monotonic() - began_s
                self._watchdog.pause()
            if table is not None:
                yield table
            more = table is not None
        measured(Figure.STAGE_S, wall_s, stage="decode", model="")
        report.waiting.add({**base, "row": report.clips, "end": report.end()}, _NO_FRAMES)
        yield report.waiting.table()

    def _unit(self, base: Row, report: _Report) -> Iterator[pa.Table]:
        """Tables of the unit's clips, without the last ones: `report` holds those, and says how it went."""
        source = (base["uri"], base["size_bytes"], base["etag"], base["modified_at"])
        try:
            with self._open_file(*source) as file, open_media(file, self._clips.limits, self._watchdog.check) as media:
                report.media = media
                for row, kept in self._clip_rows(base, media, report):
                    report.waiting.add(row, kept)
                    report.clips += 1
                    if report.waiting.is_full:
                        full, report.waiting = report.waiting.table(), _Clips()
                        yield full
                        del full
                assert report.reader is not None
                report.error = report.reader.trouble()
            self._check_file(*source)
        except BadVideo as error:
            # A new one: what was raised holds, by its traceback, every frame that was in hand.
            report.error = self._blamed(BadVideo(error.code, error.message), source)
        except MemoryError:
            report.error = BadVideo(ErrorCode.MEMORY, "the video wants more memory than a worker may have")

    def _blamed(self, error: BadVideo, source: tuple[Any, ...]) -> BadVideo:
        """What went wrong, or that the file is another one by now: half of each may look like a broken one."""
        try:
            if error.code not in DEFERRING:
                self._check_file(*source)
        except BadVideo as other:
            return other if other.code in DEFERRING else error
        return error

    def _clip_rows(self, base: Row, media: Media, report: _Report) -> Iterator[tuple[Row, np.ndarray]]:
        """Each clip's row and its kept frames, uint8 (frames, height, width, 3); none where no model wants any."""
        span = Span(base["unit_start_s"], base["unit_end_s"], base["origin_s"])
        reader = report.reader = Reader(media, self._clips.limits, span, self._watchdog.check, self._clips.effort)
        clipper = Clipper(self._clips, "start" if span.start_s is None else "unit")
        counts = [self._frame_counts[entry] for entry in base["due"] if entry in self._frame_counts]
        number = 0
        for burst in reader.bursts():
            if report.first_s is None:
                report.see(*burst[0])
            drafts = clipper.push(burst)
            while drafts:  # no name may hold a draft, and its frames, while the next clip grows
                yield self._clip_row(base, drafts.pop(0), counts, report, number)
                number += 1
        for draft in clipper.finish(reader.end_s):
            yield self._clip_row(base, draft, counts, report, number)
            number += 1

    def _clip_row(self, base: Row, draft: Draft, counts: list[int], report: _Report, number: int) -> tuple[Row, np.ndarray]:
        kept = union(draft.times_s, draft.start_s, draft.end_s, counts)
        quality = look_at(draft.times_s, draft.frames, draft.start_s, draft.end_s, draft.motion)
        row = {
            **base,
            "row": number,
            "clip_id": clip_id(base["video_id"], self._fingerprint, draft.start_s),
            "start_s": draft.start_s,
            "end_s": draft.end_s,
            "boundary": draft.boundary,
            "width": report.width,
            "height": report.height,
            "fps": draft.fps,
            "frame_times_s": [draft.times_s[index] for index in kept],
            "motion": quality.motion,
            "brightness": quality.brightness,
            "contrast": quality.contrast,
            "sharpness": quality.sharpness,
            "frame_count": len(kept),
        }
        if not kept:
            return row, _NO_FRAMES
        rgb = self._converter.convert([draft.frames[index] for index in kept], report.rotation_deg or 0)
        return row | {"frame_height": rgb.shape[1], "frame_width": rgb.shape[2]}, rgb


def _binary(values: np.ndarray) -> pa.Array:
    """One value of large_binary over the memory of `values`; null for nothing."""
    if not values.size:
        return pa.nulls(1, pa.large_binary())
    offsets = pa.py_buffer(np.array([0, values.nbytes], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(values)])
