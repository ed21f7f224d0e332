"""What may be opened, what is refused and by which name, and that nothing else is ever opened."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import pytest

from schemas.config import LimitsConfig
from schemas.errors import BadVideo, ErrorCode
from stages import media
from stages.extent import missing_bytes
from stages.media import Facts, open_media
from tests.media import RED, solid, textured, truncate, write_audio, write_video

LIMITS = LimitsConfig()


def facts_of(path: Path, limits: LimitsConfig = LIMITS) -> Facts:
    with path.open("rb") as file, open_media(file, limits) as opened:
        return opened.facts


def code_of(path: Path, limits: LimitsConfig = LIMITS) -> ErrorCode:
    with pytest.raises(BadVideo) as caught:
        facts_of(path, limits)
    assert "\n" not in caught.value.message
    assert "none>" not in caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.mp4", "libx264", "mov"),
        ("a.mov", "libx264", "mov"),
        ("a.mkv", "libx264", "matroska"),
        ("a.webm", "libvpx", "webm"),
        ("a.avi", "mpeg4", "avi"),
        ("a.ts", "mpeg2video", "mpegts"),
        ("a.mpg", "mpeg2video", "mpeg"),
        ("a.flv", "libx264", "flv"),
        ("a.wmv", "wmv2", "asf"),
        ("a.ogv", "libx264", "ogg"),
    ],
)
def test_every_usual_container_opens(tmp_path: Path, name: str, codec: str, container: str) -> None:
    if name.endswith("ogv"):  # Theora has no encoder here; Ogg with VP8 is read by the same demuxer
        path = write_video(tmp_path / name, textured(5), codec="libvpx", format="ogg")
    else:
        path = write_video(tmp_path / name, textured(5), codec=codec)
    facts = facts_of(path)
    assert container in facts.container.split(",")
    assert (facts.width, facts.height, facts.has_audio) == (160, 90, False)
    assert facts.frame_s == pytest.approx(1 / 25)


def test_facts_tell_of_audio_and_of_the_claimed_duration(tmp_path: Path) -> None:
    facts = facts_of(write_video(tmp_path / "a.mp4", textured(50), audio=True))
    assert facts.has_audio
    assert facts.duration_s == pytest.approx(2.0)
    assert facts.codec == "h264"


def test_the_codec_is_called_by_its_own_name_not_by_its_decoders(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", textured(3), codec="libsvtav1", options={"preset": "12"})
    assert facts_of(path).codec == "av1"
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # the encoder leaves the process as it found it


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {other}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{other}</BaseURL></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "hls after spaces": "\n \n#EXTM3U\n#EXTINF:10,\n{other}\n",
}


@pytest.mark.parametrize("kind", sorted(PLAYLISTS))
def test_promise_5_what_names_other_files_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    other = write_video(tmp_path / "other.mp4", textured(5))
    path = tmp_path / "list.mp4"
    path.write_text(PLAYLISTS[kind].format(other=other))
    assert code_of(path) == ErrorCode.UNSUPPORTED_CONTAINER


def test_promise_5_a_concat_script_that_hides_its_head_is_still_refused(tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.mp4", textured(5))
    path = tmp_path / "list.mp4"
    path.write_text(f"# a comment\nffconcat version 1.0\nfile {other}\n")
    assert code_of(path) in (ErrorCode.UNSUPPORTED_CONTAINER, ErrorCode.UNREADABLE)


def with_external_samples(path: Path, other: Path) -> Path:
    """A MOV whose track says, by a Macintosh alias record, that its samples stand in another file."""
    data = path.read_bytes()
    target = str(other).encode()
    target += bytes(len(target) % 2)
    absolute = (2).to_bytes(2, "big") + len(target).to_bytes(2, "big") + target
    record = bytes(150) + absolute + b"\xff\xff\0\0" + bytes(8)
    entry = (12 + len(record)).to_bytes(4, "big") + b"alis" + bytes(4) + record  # flags 0: not in this file
    old = data.index(b"dref") - 4
    size = int.from_bytes(data[old : old + 4], "big")
    dref = (16 + len(entry)).to_bytes(4, "big") + b"dref" + bytes(4) + (1).to_bytes(4, "big") + entry
    grown = bytearray(data[:old] + dref + data[old + size :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = grown.index(box) - 4
        grown[at : at + 4] = (int.from_bytes(grown[at : at + 4], "big") + len(dref) - size).to_bytes(4, "big")
    path.write_bytes(grown)
    return path


def test_promise_5_a_movie_whose_samples_stand_elsewhere_opens_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_video(tmp_path / "other.mov", textured(5))
    path = with_external_samples(write_video(tmp_path / "a.mov", textured(5)), other)
    asked: list[str] = []

    def refuse(url: str, _flags: int, _options: dict[str, str]) -> None:
        asked.append(url)
        raise PermissionError(url)

    monkeypatch.setattr("stages.media._refuse", refuse)
    with path.open("rb") as file, open_media(file, LIMITS):
        assert asked == []
    # Without those options FFmpeg does ask, so the test above can fail; and then it is refused.
    monkeypatch.setitem(media._CONTAINER_OPTIONS, "enable_drefs", "1")
    monkeypatch.setitem(media._CONTAINER_OPTIONS, "use_absolute_path", "1")
    with path.open("rb") as file, contextlib.suppress(PermissionError), open_media(file, LIMITS):
        pass
    assert asked == [str(other)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", ErrorCode.EMPTY),
        (b"hello world\n" * 500, ErrorCode.UNREADABLE),
        (b"# A title\n\nSome *text*.\n", ErrorCode.UNREADABLE),
        (b"\0" * 100_000, ErrorCode.UNREADABLE),
        (np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes(), ErrorCode.UNREADABLE),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), ErrorCode.UNSUPPORTED_CONTAINER),
    ],
    ids=["empty", "text", "markdown", "zeros", "noise", "png"],
)
def test_what_is_no_video_is_refused_by_name(tmp_path: Path, content: bytes, code: ErrorCode) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert code_of(path) == code


@pytest.mark.parametrize("name", ["a.m4a", "a.mp3"])
@pytest.mark.parametrize("cover", [False, True])
def test_audio_is_refused_by_name_with_and_without_cover_art(tmp_path: Path, name: str, cover: bool) -> None:
    code = code_of(write_audio(tmp_path / name, cover=cover))
    assert code == (ErrorCode.COVER_ART if cover else ErrorCode.NO_VIDEO)


def test_a_codec_that_is_not_whitelisted_is_refused_by_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.flv", solid(RED, 2), codec="flashsv", pix_fmt="bgr24")
    assert code_of(path) == ErrorCode.UNSUPPORTED_CODEC


def test_a_video_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(2))
    assert code_of(path, LimitsConfig(max_pixels=160 * 90 - 1)) == ErrorCode.TOO_LARGE
    assert facts_of(path, LimitsConfig(max_pixels=160 * 90)).width == 160


def test_a_decoder_that_is_shown_larger_frames_than_its_header_said_refuses_them(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.ts", textured(10, size=(160, 90)), codec="mpeg2video")
    large = write_video(tmp_path / "large.ts", textured(10, size=(640, 360)), codec="mpeg2video")
    path = tmp_path / "grows.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())

    def sizes(limits: LimitsConfig) -> set[int]:
        seen = set()
        with path.open("rb") as file, open_media(file, limits) as opened:
            for packet in opened.container.demux(opened.stream):
                try:
                    seen |= {frame.width for frame in packet.decode()}
                except av.FFmpegError:
                    continue
        return seen

    assert sizes(LIMITS) == {160, 640}
    assert sizes(LimitsConfig(max_pixels=20_000)) == {160}


def test_what_reading_the_file_raises_is_raised(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", textured(50)).read_bytes()

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise BadVideo(ErrorCode.STORAGE, "the store went away")
            return super().read(min(size or -1, 4096))

    with pytest.raises(BadVideo, match="the store went away"), open_media(cast(BinaryIO, Failing(data)), LIMITS):
        pass


def test_headers_that_point_to_where_no_file_ends_are_for_ffmpeg_to_deal_with(tmp_path: Path) -> None:
    """A disk refuses to seek there, and what a callback raises PyAV would raise again, of a call that went well."""
    path = write_video(tmp_path / "a.wmv", textured(5), codec="wmv2")
    data = bytearray(path.read_bytes())
    data[46:54] = (1 << 62).to_bytes(8, "little")  # size of the first object in the header
    path.write_bytes(data)

    class Disk(io.FileIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            if offset >= 1 << 44:
                raise OSError(errno.EINVAL, "Invalid argument")
            return super().seek(offset, whence)

    with Disk(path) as file, contextlib.suppress(BadVideo), open_media(file, LIMITS):
        pass


def test_metadata_that_is_no_text_does_not_matter(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", textured(3))
    data = path.read_bytes()
    at = data.index(b"Lavf")
    path.write_bytes(data[:at] + b"\xff\xfe\xfd\xfc" + data[at + 4 :])
    assert facts_of(path).width == 160


def extent_of(path: Path) -> int:
    with path.open("rb") as file:
        return missing_bytes(file, path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
        ("a.webm", {}),
        ("a.avi", {}),
    ],
    ids=str,
)
def test_a_file_says_how_many_of_its_bytes_are_missing(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = write_video(tmp_path / name, textured(60), codec=codec, mux_options=options)
    assert extent_of(path) == 0
    size = path.stat().st_size
    truncate(path, 0.6)
    assert 0 < extent_of(path) <= size - path.stat().st_size


@pytest.mark.parametrize("name", ["a.ts", "a.mpg", "a.flv"])
def test_a_file_that_claims_no_length_misses_nothing(tmp_path: Path, name: str) -> None:
    codec = "libx264" if name.endswith("flv") else "mpeg2video"
    assert extent_of(truncate(write_video(tmp_path / name, textured(30), codec=codec), 0.6)) == 0


@pytest.mark.parametrize("content", [b"", b"\0\0\0\x08", b"\0\0\0\x01mdat", b"\x1a\x45\xdf\xa3\0", b"RIFF\0\0\0\0AVI "])
def test_a_head_that_makes_no_sense_misses_nothing(content: bytes) -> None:
    assert missing_bytes(io.BytesIO(content), len(content)) == 0


def test_a_live_recording_of_unknown_length_misses_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", textured(20), mux_options={"live": "1"})
    assert extent_of(truncate(path, 0.5)) == 0


def test_a_truncated_file_whose_index_was_at_its_end_is_called_so(tmp_path: Path) -> None:
    assert code_of(truncate(write_video(tmp_path / "a.mp4", textured(30)), 0.7)) == ErrorCode.TRUNCATED


def test_the_container_is_closed_even_when_the_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []

    class Container:
        streams: Any = type("Streams", (), {"video": ()})

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(av, "open", lambda *_args, **_options: Container())
    with pytest.raises(BadVideo), open_media(cast(BinaryIO, io.BytesIO(b"anything")), LIMITS):
        pass
    assert len(closed) == 1
