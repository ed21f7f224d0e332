"""Decoding packet by packet: frames with times that only grow, damage counted and survived, units found by time.

Times are seconds from the video's first frame. The rules where a file does not keep to order:

- A frame without a timestamp takes its decoding timestamp, or else comes one nominal frame after the one before.
- A frame whose time lies beyond the next frame's (a spike) is put midway between its neighbours.
- Any other frame that does not lie after the one before comes one nominal frame after it.

And where it is damaged:

- A packet that does not decode is lost, and so is a read that fails; MAX_LOST_IN_A_ROW of them end the file.
- Packets before a file's first keyframe decode nowhere, those before a unit's mark belong to another unit: not counted.
- A frame that the decoder had to patch is kept, and counted as concealed.

With `effort: fast` the decoder leaves out frames that no other frame refers to. Where MAX_SKIPPED_IN_A_ROW packets give nothing
(some encoders mark nearly all frames so), the rest of the unit is decoded in full. In H.264 the B-frames that are left keep
their block edges: their loop filter takes up to a fifth of the time, and hardly a frame that follows is made from them. Without
it in P-frames errors would add up until the next keyframe, which then looks like a cut; in H.265 whole videos may be B-frames.

Frames come by the burst: between two decoded frames every line of this code has left the CPU's caches, so that as little as
can be is done there, and everything else for a burst at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av

from schemas.config import Effort, LimitsConfig
from schemas.errors import BadVideo, ErrorCode
from stages.media import Media
from stages.planes import HANDFUL

BURST_BYTES = 48 << 20  # of decoded frames, of which a burst always has one
MAX_LOST_IN_A_ROW = 1000
MAX_SKIPPED_IN_A_ROW = 24  # more than what a decoder holds back to put frames in order
_SEEK_BACK_S = (0.0, 5.0, 60.0)  # how far before its mark a unit looks for a keyframe; then it reads from the file's start

Timed = tuple[float, av.VideoFrame]  # time in seconds


@dataclass(frozen=True)
class Span:
    """The part of a video that a unit is: [start_s, end_s), seconds from `origin_s`, the first frame's container time.

    None: from the first frame, to the last one, and not known yet.
    """

    start_s: float | None = None
    end_s: float | None = None
    origin_s: float | None = None


class Reader:
    """One pass over a unit's frames. Its figures are final when `bursts` is exhausted."""

    def __init__(
        self,
        media: Media,
        limits: LimitsConfig,
        span: Span,
        check: Callable[[], None],
        effort: Effort = "exact",
        handful: int = HANDFUL,
    ) -> None:
        self.frames_read = 0
        self.lost_packets = 0
        self.concealed = 0
        self.end_s = 0.0  # end of the last frame
        self.problem: BadVideo | None = None  # the limit that ended reading; what came before is good
        self._media = media
        self._limits = limits
        self._span = span
        self._check = check  # called once a packet; may raise
        self._handful = handful
        self._reached_end = False  # of the file, not of the unit
        self._ends_in_corrupt_packet = False
        self._can_decode = span.start_s is not None  # a keyframe came
        self._lost_in_a_row = 0
        self._packets_read = 0
        self._last_packet: Any = None
        base = media.facts.time_base
        self._numerator, self._denominator = base.numerator, base.denominator
        self._origin = None if span.origin_s is None else round(span.origin_s / base)
        self._skipped_in_a_row = 0
        self._skips = effort == "fast"
        if self._skips:
            self._leave_out(media.stream.codec_context)

    @property
    def origin_s(self) -> float | None:
        """Container time of the frame whose time is 0; None before the first frame."""
        return None if self._origin is None else self._origin * self._numerator / self._denominator

    def bursts(self) -> Iterator[list[Timed]]:
        """(time in seconds, frame) of every frame of the unit, times strictly growing: about `handful` or BURST_BYTES at once.

        Ends early with `problem` set at a limit. BadVideo: MEMORY, and what `check` or reading the file raises.
        """
        start_s = float("-inf") if self._span.start_s is None else self._span.start_s
        limit_s = self._limits.max_duration_s
        end_s = limit_s if self._span.end_s is None else min(self._span.end_s, limit_s)
        last: Timed | None = None
        for burst in self._in_order():
            ours = [timed for timed in burst if start_s <= timed[0] < end_s]
            if ours:
                self.concealed += sum(frame.is_corrupt for _, frame in ours)
                self.frames_read += len(ours)
                last = ours[-1]
                yield ours
            if burst[-1][0] >= end_s:
                self._end_early(next(time_s for time_s, _ in burst if time_s >= end_s))
                return
        if last is not None:
            self.end_s = min(last[0] + self._duration_s(last[1]), limit_s)  # a last frame may claim to last for years

    def _end_early(self, time_s: float) -> None:
        """The unit's mark or a limit is reached by the frame at `time_s`: what was read beyond it is not ours to judge."""
        limit_s, end_s = self._limits.max_duration_s, self._span.end_s
        self.problem, self._reached_end = None, False
        if end_s is None or time_s < end_s:
            self.problem = BadVideo(ErrorCode.TOO_LONG, f"longer than {limit_s:g} s; what comes before was used")
        self.end_s = min(time_s, limit_s)

    def trouble(self) -> BadVideo | None:
        """What is wrong with the unit, after `frames`: None, or why it is partial (frames were read) or failed (none were)."""
        if self.problem is not None:
            return self.problem
        if self.frames_read == 0:
            return self._trouble_without_frames()
        if self._reached_end:
            missing = self._media.missing_bytes()
            if missing:
                return BadVideo(ErrorCode.TRUNCATED, f"the file ends {missing} bytes before its headers say")
            if self._ends_in_corrupt_packet:
                return BadVideo(ErrorCode.TRUNCATED, "the file ends in the middle of a packet")
        return self._damage()

    def _trouble_without_frames(self) -> BadVideo | None:
        if self._span.start_s is None:
            lost = f", {self.lost_packets} lost" if self.lost_packets else ""
            return BadVideo(ErrorCode.NO_FRAMES, f"no frame decodes (packets: {self._packets_read} read{lost})")
        return self._damage()  # the file may just end before this unit

    def _damage(self) -> BadVideo | None:
        if not self.lost_packets and not self.concealed:
            return None
        return BadVideo(
            ErrorCode.DAMAGED, f"packets lost: {self.lost_packets}, frames patched by the decoder: {self.concealed}"
        )

    def _duration_s(self, frame: av.VideoFrame) -> float:
        ticks = frame.duration
        return ticks * self._numerator / self._denominator if ticks and ticks > 0 else self._media.facts.frame_s

    def _in_order(self) -> Iterator[list[Timed]]:
        """Frames with growing times: one frame is held back until the next one tells whether its time is a spike."""
        step_s = self._media.facts.frame_s
        last_s = float("-inf")
        held: Timed | None = None
        for burst in self._positioned():
            out: list[Timed] = []
            for raw_s, frame in burst:
                if held is not None:
                    if last_s < raw_s < held[0] and last_s != float("-inf"):
                        held = (last_s + raw_s) / 2, held[1]
                    out.append(held)
                    last_s = held[0]
                held = raw_s if raw_s > last_s else last_s + step_s, frame
            if out:
                yield out
        if held is not None:
            yield [held]

    def _positioned(self) -> Iterator[list[Timed]]:
        """Frames as they decode, beginning at or before the unit's first one."""
        start_s = self._span.start_s
        if start_s is None:
            yield from self._decoded()
            return
        for back_s in _SEEK_BACK_S:
            if start_s - back_s <= 0 or not self._seek(start_s - back_s):
                continue
            bursts = self._decoded()
            first = next(bursts, None)
            if first is not None and first[0][0] <= start_s:
                yield first
                del first  # or these frames stay in memory as long as the unit is read
                yield from bursts
                return
        self._seek(0.0)
        yield from self._decoded()

    def _seek(self, time_s: float) -> bool:
        ticks = (self._origin or 0) + int(time_s * self._denominator / self._numerator)
        try:
            self._media.container.seek(ticks, stream=self._media.stream, backward=True)
        except av.FFmpegError:
            self._media.raise_source_error()
            return False
        return True

    def _decoded(self) -> Iterator[list[Timed]]:
        """(raw time, frame) in the decoder's order."""
        step_s = self._media.facts.frame_s
        numerator, denominator = self._numerator, self._denominator
        raw_s = -step_s
        for frames in self._undated():
            out = []
            for frame in frames:
                pts = frame.pts
                if pts is None:
                    pts = frame.dts
                if self._origin is None:
                    self._origin = pts or 0
                raw_s = raw_s + step_s if pts is None else (pts - self._origin) * numerator / denominator
                out.append((raw_s, frame))
            yield out

    def _undated(self) -> Iterator[list[av.VideoFrame]]:
        """Bursts of frames as they come out of packets, and at last those that the decoder still held."""
        burst: list[av.VideoFrame] = []
        most, size = 0, (0, 0)
        for packet in self._packets():
            try:
                frames = packet.decode()
            except (av.FFmpegError, MemoryError) as error:
                self._lose(packet, error)
                continue
            if frames:
                self._lost_in_a_row = self._skipped_in_a_row = 0
                self._can_decode = True
                burst += frames
                if size != (frames[0].width, frames[0].height):
                    most, size = self._most(frames[0]), (frames[0].width, frames[0].height)
                if len(burst) >= most:
                    yield burst
                    burst = []
            elif self._skips:
                self._skipped_in_a_row += 1
                if self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
                    self._skip_no_more()
        try:
            burst += self._media.stream.codec_context.decode(None)
        except (av.FFmpegError, MemoryError) as error:
            _raise_if_memory(error)  # anything else, decoders complained of before
        if burst:
            yield burst

    def _most(self, frame: av.VideoFrame) -> int:
        """How many frames like this one are a burst."""
        frame_bytes = sum(plane.buffer_size for plane in frame.planes) or 1
        return min(max(1, BURST_BYTES // frame_bytes), self._handful)

    def _leave_out(self, context: Any) -> None:
        context.skip_frame = "NONREF"
        if self._media.facts.codec == "h264":
            context.options = {**context.options, "skip_loop_filter": "bidir"}

    def _skip_no_more(self) -> None:
        self._skips = False
        self._media.stream.codec_context.skip_frame = "DEFAULT"

    def _packets(self) -> Iterator[Any]:
        """Packets that hold something, as far as the file's end, a limit or damage allows."""
        media, max_packets = self._media, self._limits.max_packets
        self._reached_end = False
        while self._lost_in_a_row < MAX_LOST_IN_A_ROW:
            try:
                for packet in media.container.demux(media.stream):
                    self._check()
                    if not packet.size:  # empty packets would flush the decoder: left to `_undated`
                        continue
                    self._packets_read += 1
                    if self._packets_read > max_packets:
                        self.problem = BadVideo(ErrorCode.TOO_MANY_PACKETS, f"more than {max_packets} packets")
                        return
                    self._last_packet, self._ends_in_corrupt_packet = packet, packet.is_corrupt
                    yield packet
                    if self._lost_in_a_row >= MAX_LOST_IN_A_ROW:
                        return
                media.raise_source_error()
                self._reached_end = True
                return
            except IndexError:  # PyAV at the end of a file in which FFmpeg found further streams on the way
                media.raise_source_error()
                self._reached_end = True
                return
            except av.FFmpegError as error:  # of reading: what the caller does with a packet is not raised here
                media.raise_source_error()
                _raise_if_memory(error)
                self._lost_in_a_row += 1
                self.lost_packets += self._last_packet is None or self._is_ours(self._last_packet)

    def _lose(self, packet: Any, error: Exception) -> None:
        _raise_if_memory(error)
        self._lost_in_a_row += 1
        self._can_decode = self._can_decode or packet.is_keyframe
        if self._can_decode and self._is_ours(packet):
            self.lost_packets += 1

    def _is_ours(self, packet: Any) -> bool:
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None or self._origin is None:
            return True
        time_s = (pts - self._origin) * self._numerator / self._denominator
        start_s, end_s = self._span.start_s, self._span.end_s
        return (start_s is None or time_s >= start_s) and (end_s is None or time_s < end_s)


def _raise_if_memory(error: Exception) -> None:
    if isinstance(error, MemoryError):
        raise BadVideo(ErrorCode.MEMORY, "the video wants more memory than a worker may have") from error
