"""Opening untrusted media with FFmpeg, safely: what may be opened, how, and what is known of it before decoding.

- FFmpeg never sees a URL or a path, only a file object; whatever else a file asks to have opened is refused.
- Containers and codecs are whitelisted; playlists, scripts and pictures are refused by name.
- Frames over the limit are refused by the header, and by the decoder before it allocates them.
- One thread, no hardware.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, NoReturn

import av
from av.codec.context import ThreadType
from av.stream import Discard, Disposition

from schemas.config import LimitsConfig
from schemas.errors import BadVideo, ErrorCode
from stages.extent import missing_bytes

BUFFER_BYTES = 1 << 20
# Demuxers by FFmpeg's names. The last line is audio: opened so that it can be refused by name, with or without cover art.
FORMATS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "mpegvideo",
    "ogg", "asf", "mxf",
    "mp3", "flac", "wav", "aac",
)  # fmt: skip
# Decoders by FFmpeg's names. No scripts, no screen-capture oddities, no decoder that opens files.
CODECS = (
    "h264", "hevc", "vvc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "vp6", "vp6f", "vp6a", "libvpx", "libvpx-vp9",
    "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "h261", "h263", "h263i", "h263p", "flv",
    "wmv1", "wmv2", "wmv3", "vc1", "theora", "mjpeg", "mjpegb", "dvvideo", "prores", "dnxhd", "cfhd", "ffv1", "huffyuv",
    "ffvhuff", "utvideo", "magicyuv", "rawvideo", "v210", "svq1", "svq3", "cinepak", "indeo3", "indeo4", "indeo5", "rv30",
    "rv40", "qtrle", "rpza", "png", "jpeg2000", "mss2",
)  # fmt: skip
_PLAYLISTS = {
    b"ffconcat": "an ffconcat script",
    b"#EXTM3U": "an HLS playlist",
    b"<?xml": "XML, as manifests are",
    b"<MPD": "a DASH manifest",
    b"v=0": "an SDP description",
}
_CONTAINER_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "codec_whitelist": ",".join(CODECS),
    "enable_drefs": "0",  # MOV: samples that stand in other files
    "use_absolute_path": "0",
}


@dataclass(frozen=True)
class Facts:
    """What the headers say. Durations are claims: they lie or are missing."""

    container: str
    codec: str
    width: int  # as stored, before rotation
    height: int
    duration_s: float | None
    has_audio: bool
    time_base: Fraction
    frame_s: float  # nominal seconds of a frame, where a frame does not say it itself
    claimed_frames: int  # 0: no claim


class Media:
    """An open video: its stream, ready to decode, and its facts. Made by `open_media`."""

    def __init__(self, container: Any, stream: Any, facts: Facts, tap: _Tap) -> None:
        self.container = container
        self.stream = stream
        self.facts = facts
        self._tap = tap

    def raise_source_error(self) -> None:
        """Raises what reading the file raised: FFmpeg may take a failing source for its end."""
        if self._tap.error is not None:
            raise self._tap.error

    def missing_bytes(self) -> int:
        """Bytes that should follow the file's end by its own headers. Moves the file's position: for after decoding."""
        return self._tap.missing_bytes()


class _Tap(io.RawIOBase):
    """The file as FFmpeg sees it: no name, and its first error kept.

    PyAV keeps what a callback raises until FFmpeg returns, and FFmpeg may not mind: only a failing source is raised here.
    """

    def __init__(self, file: BinaryIO, check: Callable[[], None]) -> None:
        super().__init__()
        self._file = file
        self._check = check
        self.error: BadVideo | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.error is not None:  # FFmpeg may not mind an error and ask again: said once, it is the file's end
            return b""
        try:
            self._check()
            return self._file.read(size)
        except BadVideo as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):  # a place that no file has: the headers lie, which is for FFmpeg to deal with
            return -errno.EINVAL

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """The file belongs to whoever opened it."""

    def missing_bytes(self) -> int:
        return missing_bytes(self._file, self._file.seek(0, io.SEEK_END))


@contextmanager
def open_media(file: BinaryIO, limits: LimitsConfig, check: Callable[[], None] = lambda: None) -> Iterator[Media]:
    """An open video, closed at the end. `check` is called before every read: FFmpeg may search gigabytes for a next packet.

    BadVideo: EMPTY, UNREADABLE, TRUNCATED, UNSUPPORTED_CONTAINER, UNSUPPORTED_CODEC, NO_VIDEO, COVER_ART, TOO_LARGE, or what
    reading the file or `check` raises.
    """
    tap = _Tap(file, check)
    container = _open(tap, limits)
    try:
        stream = _video_stream(container)
        _prepare(container, stream, limits)
        facts = _facts(container, stream)
        if facts.width * facts.height > limits.max_pixels:
            raise BadVideo(ErrorCode.TOO_LARGE, f"{facts.width}x{facts.height} is more than {limits.max_pixels} pixels")
        yield Media(container, stream, facts, tap)
    finally:
        container.close()


def _open(tap: _Tap, limits: LimitsConfig) -> Any:
    head = tap.read(64)
    if not head:
        raise BadVideo(ErrorCode.EMPTY, "the file has no bytes")
    for start, name in _PLAYLISTS.items():
        if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(start):
            raise BadVideo(ErrorCode.UNSUPPORTED_CONTAINER, f"is {name}: what names other files is never followed")
    tap.seek(0)
    try:
        return av.open(
            tap,
            "r",
            options={"max_pixels": str(limits.max_pixels), "threads": "1"},  # for the decoders that probe
            container_options=_CONTAINER_OPTIONS,
            metadata_errors="replace",
            buffer_size=BUFFER_BYTES,
            io_open=_refuse,
        )
    except (av.FFmpegError, ValueError) as error:
        if tap.error is not None:
            raise tap.error from error
        raise _open_error(tap, error) from error


def _open_error(tap: _Tap, error: Exception) -> BadVideo:
    if isinstance(error, MemoryError):
        return BadVideo(ErrorCode.MEMORY, "no memory to open the file")
    if isinstance(error, av.error.ArgumentError):  # what a format off the whitelist gives
        return BadVideo(ErrorCode.UNSUPPORTED_CONTAINER, "is of a kind that is not read as video")
    missing = tap.missing_bytes()
    if missing:
        return BadVideo(ErrorCode.TRUNCATED, f"the file ends {missing} bytes early, before its index")
    if isinstance(error, av.error.EOFError):
        return BadVideo(ErrorCode.UNREADABLE, "ends within its headers")
    return BadVideo(ErrorCode.UNREADABLE, "is no video that is known, or its headers are damaged")


def _refuse(url: str, _flags: int, _options: dict[str, str]) -> NoReturn:
    """Stands where FFmpeg would open another file or a URL that a file names."""
    raise BadVideo(ErrorCode.UNSUPPORTED_CONTAINER, f"names another file, {url!r}, which is never opened")


def _video_stream(container: Any) -> Any:
    streams = container.streams.video
    pictures = [s for s in streams if s.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)]
    videos = [s for s in streams if s not in pictures]
    if not videos:
        if pictures:
            raise BadVideo(ErrorCode.COVER_ART, "the only picture is cover art")
        raise BadVideo(ErrorCode.NO_VIDEO, "there is no video stream")
    # The default track, as players choose; else the first.
    return next((s for s in videos if s.disposition & Disposition.default), videos[0])


def _prepare(container: Any, stream: Any, limits: LimitsConfig) -> None:
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        name = "unknown to FFmpeg" if context is None else context.name
        raise BadVideo(ErrorCode.UNSUPPORTED_CODEC, f"video codec {name}")
    context.thread_type = ThreadType.NONE
    context.thread_count = 1
    # Options reach the decoder only by its own context, before the first frame.
    context.options = {"max_pixels": str(limits.max_pixels)}
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all


def _facts(container: Any, stream: Any) -> Facts:
    context = stream.codec_context
    base = stream.time_base or Fraction(1, av.time_base)
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    frame_s = float(1 / rate) if rate and 1 / 1000 <= 1 / rate <= 60 else 1 / 25
    return Facts(
        container=container.format.name,
        codec=context.codec.canonical_name,  # av1, whichever library decodes it
        width=context.width,
        height=context.height,
        duration_s=_duration_s(container, stream, base),
        has_audio=bool(container.streams.audio),
        time_base=base,
        frame_s=frame_s,
        claimed_frames=stream.frames,
    )


def _duration_s(container: Any, stream: Any, base: Fraction) -> float | None:
    if stream.duration is not None and stream.duration > 0:
        return float(stream.duration * base)
    if container.duration is not None and container.duration > 0:
        return float(container.duration / av.time_base)
    return None
