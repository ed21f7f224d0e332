"""Files made to be dangerous: each is a function that writes one into a folder, with what it may be called afterwards.

They point at bait: a canary file beside them, by name and by path, and a port that listens on this machine.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from schemas.errors import ErrorCode as E
from tests.media import RED, Frames, solid, textured, write_audio, write_video

Codes = tuple[str | None, ...]  # of which a file may end with one; None: without any error
REFUSED: Codes = (E.UNREADABLE, E.UNSUPPORTED_CONTAINER)
GOOD: Codes = (None,)
SIZE = (64, 48)
_X264 = {"preset": "ultrafast", "crf": "20", "threads": "1"}


@dataclass(frozen=True)
class Bait:
    """What a crafted file tries to reach."""

    folder: Path  # of the crafted file
    canary: Path  # a real video in it
    port: int  # on 127.0.0.1

    @property
    def url(self) -> str:
        """Where the port is."""
        return f"http://127.0.0.1:{self.port}/x.mp4"

    def text(self, template: str) -> bytes:
        """`template` with {name}, {path}, {url} and {port} filled in."""
        return template.format(name=self.canary.name, path=self.canary, url=self.url, port=self.port).encode()


@dataclass(frozen=True)
class Crafted:
    """One dangerous file."""

    name: str
    make: Callable[[Bait], bytes | Path]  # what it holds, or where it has written it
    codes: Codes

    def write(self, bait: Bait) -> Path:
        """The file, in the bait's folder."""
        made = self.make(bait)
        if isinstance(made, Path):
            return made
        path = bait.folder / self.name
        path.write_bytes(made)
        return path


ALL: dict[str, Crafted] = {}
_Make = Callable[[Bait], bytes | Path]


def crafted(name: str, codes: Codes) -> Callable[[_Make], _Make]:
    """Names a function that makes a file, and says how the file may end."""

    def named(make: _Make) -> _Make:
        ALL[name] = Crafted(name, make, codes)
        return make

    return named


# Texts that name other files

_TEXTS: Mapping[str, str] = {
    "ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "ffconcat-relative": "ffconcat version 1.0\nfile {name}\n",
    "ffconcat-url": "ffconcat version 1.0\nfile {url}\n",
    "ffconcat-commented": "# nothing to see\n\nffconcat version 1.0\nfile {name}\n",
    "ffconcat-marked": "\ufeffffconcat version 1.0\nfile {name}\n",
    "hls-media": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
    "hls-relative": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n",
    "hls-master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n#EXT-X-STREAM-INF:BANDWIDTH=2\n{name}\n",
    "hls-key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXT-X-MAP:URI="{name}"\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n',
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1"><BaseURL>{url}</BaseURL></Representation><Representation id="2"><BaseURL>{name}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "dash-bare": '<MPD><Period><BaseURL>{path}</BaseURL></Period></MPD>',
    "dash-entity": '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file://{path}">]><MPD><BaseURL>&a;</BaseURL></MPD>',
    "smooth": '<?xml version="1.0"?><SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{url}"/></SmoothStreamingMedia>',
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2013"><Id>{path}</Id>'
    "</CompositionPlaylist>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "rtsp": "RTSPtextRTSP://127.0.0.1:{port}/x\nrtsp://127.0.0.1:{port}/x\n",
    "url": "[InternetShortcut]\nURL={url}\n",
    "bare-url": "{url}\n",
    "subrip": "1\n00:00:00,000 --> 00:00:09,000\n<img src='{url}'> {path}\n\n",
    "ass": "[Script Info]\nScriptType: v4.00+\nVideo File: {path}\n[Events]\nDialogue: 0,0:00:00.00,0:00:09.00,,,,,,,{path}\n",
    "webvtt": "WEBVTT\n\nSTYLE\n::cue {{ background: url({url}) }}\n\n00:00.000 --> 00:09.000\n{path}\n",
    "m3u": "{name}\n{path}\n{url}\n",
    "pls": "[playlist]\nNumberOfEntries=2\nFile1={path}\nFile2={url}\n",
    "xspf": '<?xml version="1.0"?><playlist xmlns="http://xspf.org/ns/0/"><trackList><track><location>{url}</location></track>'
    "</trackList></playlist>",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "asf-reference": "[Reference]\nRef1={url}\nRef2={path}\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{path}"/>'
    '<image href="{url}"/></svg>',
    "avisynth": 'DirectShowSource("{path}")\n',
    "vapoursynth": "import vapoursynth\nvapoursynth.core.ffms2.Source('{path}').set_output()\n",
    "script": "#!/bin/sh\ncat '{path}' | nc 127.0.0.1 {port}\n",
    "ffmetadata": ";FFMETADATA1\ntitle={path}\n[STREAM]\nurl={url}\n",
}  # fmt: skip


def _text(template: str) -> _Make:
    return lambda bait: bait.text(template)


for _name, _template in _TEXTS.items():
    crafted(f"{_name}.mp4", REFUSED)(_text(_template))

# Pictures, archives and programs


def _picture(codec: str, pix_fmt: str, size: tuple[int, int] = SIZE) -> bytes:
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt, context.framerate = *size, pix_fmt, 1
    picture = textured(1, 1, size)[0] if size == SIZE else solid(RED, 1, size)[0]
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


_PICTURES = {
    "png": "rgb24",
    "mjpeg": "yuvj420p",
    "gif": "bgr8",
    "tiff": "rgb24",
    "bmp": "bgr24",
    "ppm": "rgb24",
    "jpeg2000": "rgb24",
}
for _name, _format in _PICTURES.items():
    crafted(f"{_name}.mp4", REFUSED)(lambda _bait, name=_name, pixels=_format: _picture(name, pixels))  # type: ignore[misc]


@crafted("webp.mp4", REFUSED)
def _webp(_bait: Bait) -> bytes:
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f\0\0\0\0\x88\x88\x08" + bytes(10)


@crafted("ico.mp4", REFUSED)
def _ico(_bait: Bait) -> bytes:
    png = _picture("png", "rgb24", (16, 16))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png


@crafted("frame%03d.mp4", REFUSED)
def _pattern(bait: Bait) -> bytes:
    """A name that FFmpeg's picture readers take for all its numbers, and a canary called by one of them."""
    shutil.copy(bait.canary, bait.folder / "frame001.mp4")
    return _picture("png", "rgb24")


@crafted("zip.mp4", REFUSED)
def _zip(bait: Bait) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../x.mp4", bait.canary.read_bytes())
    return out.getvalue()


@crafted("tar.mp4", REFUSED)
def _tar(bait: Bait) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("x.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, str(bait.canary)
        archive.addfile(link)
    return out.getvalue()


crafted("gzip.mp4", REFUSED)(lambda bait: gzip.compress(bait.canary.read_bytes()))
crafted("iso.mp4", REFUSED)(lambda _: bytes(32768) + b"\x01CD001\x01\0LINUX" + bytes(40_000))
crafted("elf.mp4", REFUSED)(lambda _: b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 62, 1) + bytes(4000))
crafted("pdf.mp4", REFUSED)(lambda bait: b"%PDF-1.7\n" + bait.text("1 0 obj <</F ({path})>> endobj\n"))
crafted("wasm.mp4", REFUSED)(lambda _: b"\0asm\1\0\0\0" + bytes(2000))
crafted("empty.mp4", (E.EMPTY,))(lambda _: b"")
crafted("one-byte.mp4", REFUSED)(lambda _: b"\0")
crafted("spaces.mp4", REFUSED)(lambda _: b" \n" * 5000)


# ISO media


def box(name: str, *parts: bytes) -> bytes:
    """A box with its size."""
    payload = b"".join(parts)
    return struct.pack(">I4s", 8 + len(payload), name.encode()) + payload


def _full(name: str, *parts: bytes) -> bytes:
    return box(name, bytes(4), *parts)


FTYP = box("ftyp", b"isom", bytes(4), b"isommp42")
_QT = box("ftyp", b"qt  ", bytes(4), b"qt  ")
_MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def _mvhd(duration: int = 1000) -> bytes:
    return _full("mvhd", struct.pack(">IIIIIH", 0, 0, 1000, duration, 1 << 16, 256), bytes(10), _MATRIX, bytes(24), b"\0\0\0\2")


def _entry(codec: str, width: int, height: int, *inner: bytes) -> bytes:
    fixed = bytes(6) + b"\0\1" + bytes(16) + struct.pack(">HH", width, height) + struct.pack(">IIIH", 72 << 16, 72 << 16, 0, 1)
    return box(codec, fixed, bytes(32), b"\0\x18\xff\xff", *inner)


def _trak(
    entry: bytes, tables: bytes, *, dref: bytes | None = None, size: tuple[int, int] = SIZE, duration: int = 1000
) -> bytes:
    width, height = size
    head = struct.pack(">IIIII", 0, 0, 1, 0, duration) + bytes(16) + _MATRIX + struct.pack(">II", width << 16, height << 16)
    tkhd = box("tkhd", b"\0\0\0\7", head)
    mdhd = _full("mdhd", struct.pack(">IIIIHH", 0, 0, 25000, min(duration * 25, (1 << 32) - 1), 0, 0))
    hdlr = _full("hdlr", bytes(4), b"vide", bytes(13))
    dinf = box("dinf", _full("dref", b"\0\0\0\1", dref or box("url ", b"\0\0\0\1")))
    stbl = box("stbl", _full("stsd", b"\0\0\0\1", entry), tables)
    return box("trak", tkhd, box("mdia", mdhd, hdlr, box("minf", box("vmhd", b"\0\0\0\1", bytes(8)), dinf, stbl)))


def _tables(sizes: list[int], offset: int, delta: int = 1000) -> bytes:
    """Sample tables of samples that stand one after the other."""
    return b"".join(
        (
            _full("stts", struct.pack(">III", 1, len(sizes), delta)),
            _full("stsc", struct.pack(">IIII", 1, 1, max(1, len(sizes)), 1)),
            _full("stsz", struct.pack(">II", 0, len(sizes)), *(struct.pack(">I", size) for size in sizes)),
            _full("stco", struct.pack(">II", 1, offset)),
        )
    )


def _movie(
    samples: list[bytes],
    entry: bytes,
    *,
    dref: bytes | None = None,
    extra: bytes = b"",
    size: tuple[int, int] = SIZE,
    tables: bytes | None = None,
    duration: int = 1000,
    moov_extra: bytes = b"",
) -> bytes:
    """A QuickTime movie with these samples, in one track."""
    data = b"".join(samples)
    offset = len(_QT) + 8
    made = _tables([len(sample) for sample in samples], offset) if tables is None else tables
    moov = box("moov", _mvhd(duration), _trak(entry, made + extra, dref=dref, size=size, duration=duration), moov_extra)
    return _QT + box("mdat", data) + moov


def _jpegs(*sizes: tuple[int, int]) -> list[bytes]:
    return [_picture("mjpeg", "yuvj420p", size) for size in sizes]


def _jpeg_movie(**options: object) -> bytes:
    return _movie(_jpegs(SIZE) * 10, _entry("jpeg", *SIZE), **options)  # type: ignore[arg-type]


def _alias(target: str) -> bytes:
    """The payload of an `alis` that leads to a path, as Macintosh aliases do."""
    name = target.encode()
    name += bytes(len(name) % 2)
    record = bytearray(150)
    for kind in (2, 18):  # of the whole path, and of its Unix spelling
        record += struct.pack(">HH", kind, len(name)) + name
    return bytes(4) + bytes(record) + b"\xff\xff\0\0" + bytes(8)


crafted("dref-url.mov", (*GOOD, *REFUSED, E.NO_FRAMES, E.DAMAGED))(
    lambda bait: _jpeg_movie(dref=box("url ", bytes(4), bait.text("{url}\0")))
)
crafted("dref-file-url.mov", (*GOOD, *REFUSED, E.NO_FRAMES, E.DAMAGED))(
    lambda bait: _jpeg_movie(dref=box("url ", bytes(4), bait.text("file://{path}\0")))
)
crafted("dref-alias.mov", (*GOOD, *REFUSED, E.NO_FRAMES, E.DAMAGED))(
    lambda bait: _jpeg_movie(dref=box("alis", _alias(str(bait.canary))))
)
crafted("dref-alias-relative.mov", (*GOOD, *REFUSED, E.NO_FRAMES, E.DAMAGED))(
    lambda bait: _jpeg_movie(dref=box("alis", _alias(bait.canary.name)))
)


def _reference_movie(kind: bytes, target: bytes) -> bytes:
    rdrf = _full("rdrf", kind, struct.pack(">I", len(target)), target)
    return _QT + box("moov", box("rmra", box("rmda", rdrf)))


crafted("reference-url.mov", (*REFUSED, E.NO_VIDEO))(lambda bait: _reference_movie(b"url ", bait.text("{url}\0")))
crafted("reference-alias.mov", (*REFUSED, E.NO_VIDEO))(lambda bait: _reference_movie(b"alis", _alias(str(bait.canary))))


def h264_parameters(width: int, height: int) -> tuple[bytes, bytes]:
    """(SPS, PPS) that announce pictures of this size (multiples of 16)."""
    bits = "01000010" + "00000000" + format(52, "08b")  # baseline, level 5.2
    for value in (0, 0, 0, 0, 1):  # id, frame numbers, order of pictures of type 0, references
        bits += _golomb(value)
    bits += "0" + _golomb(width // 16 - 1) + _golomb(height // 16 - 1) + "1100"  # frames only, no crop, no VUI
    sps = b"\x67" + _packed(bits)
    return sps, b"\x68" + _packed("11" + "0" * 2 + _golomb(0) + _golomb(0) * 2 + "000" + _golomb(0) * 3 + "000")


def _golomb(value: int) -> str:
    code = format(value + 1, "b")
    return "0" * (len(code) - 1) + code


def _packed(bits: str) -> bytes:
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def _avc(width: int, height: int, samples: int = 3) -> bytes:
    sps, pps = h264_parameters(width, height)
    config = b"\1" + sps[1:4] + b"\xff\xe1" + struct.pack(">H", len(sps)) + sps + b"\1" + struct.pack(">H", len(pps)) + pps
    slice_ = b"\x65" + _packed(_golomb(0) + _golomb(7) + _golomb(0) + "0000" + _golomb(0) + "1" * 200)
    entry = _entry("avc1", min(width, 65535), min(height, 65535), box("avcC", config))
    return _movie([struct.pack(">I", len(slice_)) + slice_] * samples, entry, size=(width & 0xFFFF, height & 0xFFFF))


_HUGE: Codes = (E.TOO_LARGE, E.NO_FRAMES, E.MEMORY, *REFUSED)
crafted("avc-30000x30000.mp4", _HUGE)(lambda _: _avc(30000, 30000))
crafted("avc-65520x16.mp4", (*_HUGE, E.DAMAGED, None))(lambda _: _avc(65520, 16))
crafted("avc-16384x16384.mp4", _HUGE)(lambda _: _avc(16384, 16384))


@crafted("avc-small-header-huge-pictures.mp4", _HUGE)
def _liar(_bait: Bait) -> bytes:
    data = _avc(16000, 16000)
    return data.replace(struct.pack(">HH", 16000, 16000), struct.pack(">HH", *SIZE))


@crafted("png-30000x30000.mov", _HUGE)
def _png_bomb(_bait: Bait) -> bytes:
    return _movie([_png(30000, 30000, 1000)] * 3, _entry("png ", 30000, 30000), size=(30000, 30000))


@crafted("png-bomb.mov", (*_HUGE, None, E.DAMAGED))
def _png_large(_bait: Bait) -> bytes:
    """100 MB of one colour in each of a few kilobytes, within the limit on pixels."""
    return _movie([_png(8192, 4352, 4352)] * 3, _entry("png ", 8192, 4352), size=(8192, 4352))


def _png(width: int, height: int, rows: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    picture = zlib.compress(bytes((1 + 3 * width) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", picture) + chunk(b"IEND", b"")


@crafted("mjpeg-30000x30000.avi", _HUGE)
def _mjpeg_huge(bait: Bait) -> bytes:
    path = write_video(bait.folder / "_.avi", solid(RED, 3, SIZE), codec="mjpeg", pix_fmt="yuvj420p")
    data = path.read_bytes()
    path.unlink()
    width, height = SIZE
    data = data.replace(struct.pack(">HH", height, width), struct.pack(">HH", 30000, 30000))
    return data.replace(struct.pack("<II", width, height), struct.pack("<II", 30000, 30000))


@crafted("every-frame-another-size.mov", (None, E.DAMAGED, E.MEMORY))
def _resizing(_bait: Bait) -> bytes:
    rng = np.random.default_rng(1)
    sizes = [(16, 16)] + [(int(w) & ~1, int(h) & ~1) for w, h in rng.integers(16, 1200, (40, 2))]
    return _movie(_jpegs(*sizes), _entry("jpeg", 16, 16), size=(16, 16))


@crafted("small-then-all-the-pixels-allowed.mov", (None, E.DAMAGED, E.MEMORY))
def _grows(_bait: Bait) -> bytes:
    """How many frames are held is decided by the first one."""
    small, large = _jpegs((16, 16)), _jpegs((8192, 4352))
    return _movie(small + large * 40, _entry("jpeg", 16, 16), size=(16, 16))


@crafted("billion-frames.mov", (E.NO_FRAMES, E.MEMORY, *REFUSED))
def _billion(_bait: Bait) -> bytes:
    return _counted(1_000_000_000)


@crafted("ten-million-frames.mov", (None, E.NO_FRAMES, E.DAMAGED, E.TRUNCATED))
def _ten_million(_bait: Bait) -> bytes:
    """An index that FFmpeg does build, for a file that holds one of its frames."""
    return _counted(10_000_000)


def _counted(frames: int) -> bytes:
    sample = _jpegs(SIZE)[0]
    tables = b"".join(
        (
            _full("stts", struct.pack(">III", 1, frames, 1)),
            _full("stsc", struct.pack(">IIII", 1, 1, frames, 1)),
            _full("stsz", struct.pack(">II", len(sample), frames)),
            _full("stco", struct.pack(">II", 1, len(_QT) + 8)),
        )
    )
    return _movie([sample], _entry("jpeg", *SIZE), tables=tables, duration=(1 << 32) - 2)


def _endless_table(name: str) -> _Make:
    """A table that says it has 2^32 - 1 entries."""

    def make(_bait: Bait) -> bytes:
        data = bytearray(_jpeg_movie(extra=_full("ctts", struct.pack(">III", 1, 10, 0))))
        at = data.index(name.encode()) + (12 if name == "stsz" else 8)
        data[at : at + 4] = b"\xff\xff\xff\xff"
        return bytes(data)

    return make


for _name in ("stts", "ctts", "stsz", "stco", "stsc"):
    _ends: Codes = (*GOOD, E.DAMAGED, E.NO_FRAMES, E.MEMORY, E.NO_VIDEO, *REFUSED)
    crafted(f"endless-{_name}.mov", _ends)(_endless_table(_name))


def _zeros_deflated(count: int) -> bytes:
    """`count` zeros (a multiple of 16 MB) as zlib packs them, made of one piece many times."""
    step = 16 << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    return b"\x78\xda" + piece * (count // step) + last + struct.pack(">HH", count % 65521, 1)


@crafted("compressed-header-bomb.mov", (*REFUSED, E.MEMORY, E.NO_VIDEO))
def _cmov(_bait: Bait) -> bytes:
    count = 640 << 20
    cmov = box("cmov", box("dcom", b"zlib"), box("cmvd", struct.pack(">I", count), _zeros_deflated(count)))
    return _QT + box("moov", cmov)


@crafted("compressed-header-of-4-gigabytes.mov", (*REFUSED, E.MEMORY, E.NO_VIDEO))
def _cmov_huge(_bait: Bait) -> bytes:
    cmov = box("cmov", box("dcom", b"zlib"), box("cmvd", b"\xff\xff\xff\xf0", zlib.compress(bytes(1000))))
    return _QT + box("moov", cmov)


@crafted("boxes-in-boxes.mov", (*REFUSED, E.NO_VIDEO, E.TRUNCATED))
def _nested(_bait: Bait) -> bytes:
    depth = 20_000
    sizes = (struct.pack(">I4s", 8 * (depth - level), b"trak" if level else b"moov") for level in range(depth))
    return _QT + b"".join(sizes)


@crafted("extradata-of-100-megabytes.mov", (*REFUSED, None, E.MEMORY, E.NO_FRAMES, E.DAMAGED))
def _extradata(_bait: Bait) -> bytes:
    esds = box("glbl", bytes(100 << 20))
    return _movie(_jpegs(SIZE) * 3, _entry("jpeg", *SIZE, esds))


@crafted("tags-of-100-megabytes.mov", (None, E.MEMORY, *REFUSED))
def _tags(_bait: Bait) -> bytes:
    text = struct.pack(">HH", 0xFFFF, 0) + b"a" * 0xFFFF
    ilst = b"".join(box("\u00a9nam".encode("latin-1").decode("latin-1").replace("\u00a9", "x"), text) for _ in range(16))
    data = box("data", b"\0\0\0\1", bytes(4), b"a" * (100 << 20))
    meta = _full("meta", _full("hdlr", bytes(4), b"mdir", bytes(13)), box("ilst", box("desc", data)))
    return _jpeg_movie(moov_extra=box("udta", ilst, meta))


@crafted("10000-tracks.mov", (*REFUSED, None, E.MEMORY, E.NO_FRAMES, E.NO_VIDEO, E.DAMAGED, E.UNSUPPORTED_CODEC))
def _tracks(_bait: Bait) -> bytes:
    samples = _jpegs(SIZE) * 3
    trak = _trak(_entry("jpeg", *SIZE), _tables([len(sample) for sample in samples], len(_QT) + 8))
    return _QT + box("mdat", *samples) + box("moov", _mvhd(), trak * 10_000)


@crafted("no-frame-rate.mov", (None, E.DAMAGED, E.NO_FRAMES))
def _no_rate(_bait: Bait) -> bytes:
    samples = _jpegs(SIZE) * 10
    tables = _tables([len(sample) for sample in samples], len(_QT) + 8, delta=0)
    return _movie(samples, _entry("jpeg", *SIZE), tables=tables, duration=0)


@crafted("a-frame-an-hour.mov", (None, E.TOO_LONG))
def _slow(_bait: Bait) -> bytes:
    samples = _jpegs(SIZE) * 30
    tables = _tables([len(sample) for sample in samples], len(_QT) + 8, delta=25000 * 3600)
    return _movie(samples, _entry("jpeg", *SIZE), tables=tables)


@crafted("zero-turn.mp4", GOOD)
def _zero_turn(bait: Bait) -> bytes:
    data = _rendered(bait, "_.mp4", textured(10, 1, SIZE))
    at = data.index(b"tkhd") + 44
    return data[:at] + bytes(36) + data[at + 36 :]


@crafted("subtitles-only.mp4", (E.NO_VIDEO, *REFUSED))
def _no_picture(_bait: Bait) -> bytes:
    data = _jpeg_movie()
    return data.replace(b"vide", b"sbtl").replace(b"jpeg", b"tx3g")


@crafted("audio.mp4", (E.NO_VIDEO,))
def _audio(bait: Bait) -> bytes:
    path = write_audio(bait.folder / "_.m4a", 0.2)
    data = path.read_bytes()
    path.unlink()
    return data


@crafted("encrypted.mp4", (E.NO_FRAMES, E.DAMAGED, E.UNSUPPORTED_CODEC))
def _encrypted(bait: Bait) -> bytes:
    return _rendered(bait, "_.mp4", textured(10, 1, SIZE)).replace(b"avc1", b"encv")


def _rendered(bait: Bait, name: str, frames: Frames, **options: object) -> bytes:
    path = write_video(bait.folder / name, frames, **options)  # type: ignore[arg-type]
    data = path.read_bytes()
    path.unlink()
    return data


crafted("one-pixel.mkv", GOOD)(lambda bait: _rendered(bait, "_.mkv", solid(RED, 10, (1, 1)), codec="ffv1", pix_fmt="yuv444p"))
crafted("one-line.mkv", GOOD)(lambda bait: _rendered(bait, "_.mkv", solid(RED, 10, (4000, 1)), codec="ffv1", pix_fmt="yuv444p"))
crafted("odd.mkv", GOOD)(lambda bait: _rendered(bait, "_.mkv", textured(10, 1, (17, 13)), codec="ffv1", pix_fmt="yuv444p"))


SPARSE_BYTES = 10 << 30


def _sparse(name: str, **options: object) -> _Make:
    """A small video, or nothing, and then ten gigabytes that take no room on the disk."""

    def make(bait: Bait) -> Path:
        data = _rendered(bait, f"_{Path(name).suffix}", textured(10, 1, SIZE), **options) if options else b""
        if data[4:8] == b"ftyp":  # the last box runs to the end of the file
            data = data.replace(data[data.index(b"mdat") - 4 :][:8], bytes(4) + b"mdat")
        path = bait.folder / name
        path.write_bytes(data)
        os.truncate(path, SPARSE_BYTES)
        return path

    return make


_SEARCHED: Codes = (None, E.DAMAGED, E.DEADLINE, E.TRUNCATED)  # however long FFmpeg looks for another packet
crafted("sparse.mp4", REFUSED)(_sparse("sparse.mp4"))
crafted("sparse-after-video.mp4", GOOD)(_sparse("sparse-after-video.mp4", mux_options={"movflags": "faststart"}))
crafted("sparse-after-video.mkv", _SEARCHED)(_sparse("sparse-after-video.mkv", codec="mpeg4"))
crafted("sparse-after-video.ts", _SEARCHED)(_sparse("sparse-after-video.ts", codec="mpeg2video"))
crafted("sparse-after-video.mpg", _SEARCHED)(_sparse("sparse-after-video.mpg", codec="mpeg1video"))
crafted("sparse-after-video.avi", _SEARCHED)(_sparse("sparse-after-video.avi", codec="mpeg4"))
crafted("sparse-after-video.flv", _SEARCHED)(_sparse("sparse-after-video.flv", codec="flv"))

# Matroska


def element(name: int, *parts: bytes) -> bytes:
    """An EBML element with its size in 8 bytes."""
    payload = b"".join(parts)
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + (1 << 56 | len(payload)).to_bytes(8, "big") + payload


def _number(name: int, value: int) -> bytes:
    return element(name, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


_EBML = element(0x1A45DFA3, element(0x4282, b"matroska"), _number(0x4287, 4), _number(0x4285, 2))


def _matroska(codec: bytes, blocks: list[bytes], *track: bytes, info: bytes = b"", more: bytes = b"") -> bytes:
    width, height = SIZE
    video = element(0xE0, _number(0xB0, width), _number(0xBA, height))
    entry = element(0xAE, _number(0xD7, 1), _number(0x73C5, 1), _number(0x83, 1), element(0x86, codec), video, *track)
    simple = [element(0xA3, b"\x81", struct.pack(">h", 40 * n), b"\x80", block) for n, block in enumerate(blocks)]
    cluster = element(0x1F43B675, _number(0xE7, 0), *simple)
    segment = (element(0x1549A966, _number(0x2AD7B1, 1_000_000), info), element(0x1654AE6B, entry), more, cluster)
    return _EBML + element(0x18538067, *segment)


def _packed_blocks(method: int, setting: bytes = b"") -> bytes:
    """What a track says whose blocks are compressed."""
    return element(0x6D80, element(0x6240, element(0x5034, _number(0x4254, method), setting)))


_BOMBED: Codes = (E.NO_FRAMES, E.DAMAGED, E.MEMORY, *REFUSED)
crafted("zlib-blocks.mkv", _BOMBED)(lambda _: _matroska(b"V_MJPEG", [_zeros_deflated(256 << 20)] * 4, _packed_blocks(0)))
crafted("bzip2-blocks.mkv", _BOMBED)(lambda _: _matroska(b"V_MJPEG", [bz2.compress(bytes(64 << 20))] * 4, _packed_blocks(1)))
crafted("stripped-headers.mkv", (*_BOMBED, None))(
    lambda _: _matroska(b"V_MJPEG", [b"x"] * 50, _packed_blocks(3, element(0x4255, _jpegs(SIZE)[0] + bytes(1 << 20))))
)


@crafted("zlib-private-data.mkv", (*_BOMBED, None))
def _private(_bait: Bait) -> bytes:
    encoding = element(0x6D80, element(0x6240, _number(0x5032, 2), element(0x5034, _number(0x4254, 0))))
    return _matroska(b"V_MJPEG", _jpegs(SIZE), element(0x63A2, _zeros_deflated(256 << 20)), encoding)


@crafted("linked-segments.mkv", (None, E.DAMAGED))
def _linked(bait: Bait) -> bytes:
    """A segment that goes on in others: by its ids, by file names, and by chapters that are to be played from elsewhere."""
    name = str(bait.canary).encode()
    info = element(0x73A4, b"a" * 16) + element(0x3CB923, b"b" * 16) + element(0x3EB923, b"c" * 16)
    info += element(0x3C83AB, name) + element(0x3E83BB, name) + element(0x7384, name)
    atom = element(0xB6, _number(0x73C4, 1), _number(0x91, 0), element(0x6E67, b"b" * 16), _number(0x6EBC, 1))
    chapters = element(0x1043A770, element(0x45B9, _number(0x45DD, 1), atom))
    url = element(0x1254C367, element(0x7373, element(0x67C8, element(0x45A3, b"URL"), element(0x4487, bait.text("{url}")))))
    return _matroska(b"V_MJPEG", _jpegs(SIZE) * 5, info=info, more=chapters + url)


@crafted("attachments.mkv", (None, E.DAMAGED))
def _attached(bait: Bait) -> bytes:
    def attached(name: bytes, kind: bytes, data: bytes, uid: int) -> bytes:
        return element(0x61A7, element(0x466E, name), element(0x4660, kind), element(0x465C, data), _number(0x46AE, uid))

    files = (
        attached(b"../../../../x.mp4", b"video/mp4", bait.canary.read_bytes(), 1),
        attached(str(bait.canary).encode(), b"application/x-truetype-font", bytes(1 << 20), 2),
        attached(b"cover.png", b"image/png", _png(30000, 30000, 10), 3),
    )
    return _matroska(b"V_MJPEG", _jpegs(SIZE) * 5, more=element(0x1941A469, *files))


@crafted("nested.mkv", (*REFUSED, E.NO_VIDEO, E.TRUNCATED, E.NO_FRAMES))
def _deep(_bait: Bait) -> bytes:
    tags = b""
    for _ in range(3000):
        tags = element(0x67C8, element(0x45A3, b"x"), tags)
    chapters = b""
    for _ in range(3000):
        chapters = element(0xB6, chapters)
    inner = element(0x1254C367, element(0x7373, tags)) + element(0x1043A770, element(0x45B9, chapters))
    return _EBML + element(0x18538067, inner)


@crafted("10000-tracks.mkv", (*REFUSED, None, E.NO_VIDEO, E.NO_FRAMES, E.MEMORY, E.DAMAGED))
def _matroska_tracks(_bait: Bait) -> bytes:
    video = element(0xE0, _number(0xB0, 64), _number(0xBA, 48))
    tracks = (
        element(0xAE, _number(0xD7, n), _number(0x73C5, n), _number(0x83, 1), element(0x86, b"V_MJPEG"), video)
        for n in range(1, 10_001)
    )
    jpeg = element(0xA3, b"\x81", bytes(2), b"\x80", _jpegs(SIZE)[0])
    return _EBML + element(0x18538067, element(0x1654AE6B, *tracks), element(0x1F43B675, _number(0xE7, 0), jpeg))


@crafted("tag-of-100-megabytes.mkv", (None, E.MEMORY, *REFUSED))
def _matroska_tag(_bait: Bait) -> bytes:
    tag = element(0x67C8, element(0x45A3, b"COMMENT"), element(0x4487, b"a" * (100 << 20)))
    return _matroska(b"V_MJPEG", _jpegs(SIZE) * 5, more=element(0x1254C367, element(0x7373, tag)))


# Others


@crafted("index-that-leads-elsewhere.avi", (None, E.DAMAGED, E.NO_FRAMES, E.TRUNCATED, *REFUSED))
def _open_dml(bait: Bait) -> bytes:
    """An OpenDML super index whose chunks lie beyond the file, before it, and in the index itself."""
    data = _rendered(bait, "_.avi", solid(RED, 5, SIZE), codec="mjpeg", pix_fmt="yuvj420p")
    at = data.index(b"strf")
    places = (1 << 62, (1 << 64) - 4096, at, 8)
    entries = b"".join(struct.pack("<QII", place, 1 << 30, 1 << 30) for place in places)
    index = struct.pack("<HBBI4s", 4, 0, 0, len(places), b"00dc") + bytes(12) + entries
    chunk = b"indx" + struct.pack("<I", len(index)) + index
    head = data.index(b"hdrl") - 8
    stream = data.index(b"strl") - 8
    changed = bytearray(data[:at] + chunk + data[at:])
    for place in (4, head + 4, stream + 4):
        struct.pack_into("<I", changed, place, struct.unpack_from("<I", changed, place)[0] + len(chunk))
    return bytes(changed)


@crafted("lists-in-lists.avi", (*REFUSED, E.NO_VIDEO, E.TRUNCATED, E.NO_FRAMES))
def _riff(_bait: Bait) -> bytes:
    depth = 30_000
    lists = b"".join(b"LIST" + struct.pack("<I", 12 * (depth - n) - 8) + b"hdrl" for n in range(depth))
    return b"RIFF" + struct.pack("<I", len(lists) + 4) + b"AVI " + lists


@crafted("objects-in-objects.flv", (*REFUSED, E.NO_VIDEO, E.NO_FRAMES))
def _amf(_bait: Bait) -> bytes:
    """Metadata of a hundred thousand objects, each in the one before."""
    body = b"\x02\0\x0aonMetaData\x08\0\0\0\1" + b"\0\1a\x03" * 100_000
    tag = b"\x12" + len(body).to_bytes(3, "big") + bytes(7) + body
    return b"FLV\1\5\0\0\0\x09\0\0\0\0" + tag + (len(tag)).to_bytes(4, "big")


@crafted("8000-programs.ts", (*REFUSED, E.NO_VIDEO, E.NO_FRAMES, None, E.UNSUPPORTED_CODEC, E.MEMORY))
def _programs(_bait: Bait) -> bytes:
    """A packet of video on every PID that there is."""
    pes = b"\0\0\1\xe0\0\0\x80\x80\5\x21\0\1\0\1" + b"\0\0\1\xb3" + bytes(160)
    return b"".join(
        b"\x47" + struct.pack(">H", 0x4000 | pid) + b"\x10" + pes[:184].ljust(184, b"\xff") for pid in range(32, 8191)
    )


@crafted("objects-without-end.wmv", (*REFUSED, E.NO_VIDEO, E.NO_FRAMES, E.TRUNCATED, E.UNSUPPORTED_CODEC, None, E.DAMAGED))
def _asf(bait: Bait) -> bytes:
    data = bytearray(_rendered(bait, "_.wmv", textured(10, 1, SIZE), codec="wmv2"))
    data[46:54] = (1 << 62).to_bytes(8, "little")
    return bytes(data)


@crafted("loops.mxf", (*REFUSED, E.NO_VIDEO, E.NO_FRAMES, E.TRUNCATED, E.MEMORY))
def _mxf(_bait: Bait) -> bytes:
    """A partition whose predecessor and footer are itself, and a metadata set that is its own child."""
    key = bytes.fromhex("060e2b34020501010d01020101020400")
    pack = struct.pack(">HHIQQQQQIQI", 1, 3, 1, 0, 0, 0, 1 << 40, 0, 0, 0, 0) + bytes(16) + struct.pack(">II", 0, 16)
    local = bytes.fromhex("060e2b34025301010d01010101012f00")
    uid = b"u" * 16
    tags = struct.pack(">HH", 0x3C0A, 16) + uid + struct.pack(">HHII", 0x3B08, 24, 1, 16) + uid
    sets = local + b"\x83" + len(tags).to_bytes(3, "big") + tags
    return (key + b"\x83" + len(pack).to_bytes(3, "big") + pack + sets) * 200


@crafted("ten-thousand-streams.ogv", (*REFUSED, E.NO_VIDEO, E.NO_FRAMES, E.MEMORY, E.UNSUPPORTED_CODEC))
def _ogg(_bait: Bait) -> bytes:
    head = b"\x80theora\3\2\1" + struct.pack(">HH", 4, 3) + bytes(30)
    pages = (
        b"OggS\0\2" + bytes(8) + struct.pack("<III", serial, 0, 0) + bytes([1, len(head)]) + head for serial in range(10_000)
    )
    return b"".join(pages)


# What is no file


@crafted("folder.mp4", (E.UNREADABLE,))
def _folder(bait: Bait) -> Path:
    path = bait.folder / "folder.mp4"
    path.mkdir()
    return path


@crafted("pipe.mp4", (E.UNREADABLE,))
def _pipe(bait: Bait) -> Path:
    path = bait.folder / "pipe.mp4"
    os.mkfifo(path)
    return path


@crafted("socket.mp4", (E.UNREADABLE,))
def _socket(bait: Bait) -> Path:
    path = bait.folder / "socket.mp4"
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(bait.folder)  # such an address holds 107 bytes
        listening.bind(path.name)
        os.chdir(here)
    return path


def _link(name: str, target: str) -> _Make:
    def make(bait: Bait) -> Path:
        path = bait.folder / name
        path.symlink_to(target)
        return path

    return make


crafted("nowhere.mp4", (E.VANISHED,))(_link("nowhere.mp4", "gone.mp4"))
crafted("circle.mp4", (E.UNREADABLE,))(_link("circle.mp4", "circle.mp4"))
crafted("zeros.mp4", (E.UNREADABLE,))(_link("zeros.mp4", "/dev/zero"))
crafted("terminal.mp4", (E.UNREADABLE,))(_link("terminal.mp4", "/dev/tty"))
crafted("kernel.mp4", (*REFUSED, E.EMPTY))(_link("kernel.mp4", "/proc/self/environ"))

# Names that some program somewhere would read as something else than a name.
NAMES: tuple[bytes, ...] = (
    b"new\nline.mp4", b"tab\tand return\r.mp4", b"quote'.mp4", b'double".mp4', b"back\\slash.mp4", b"semi;colon.mp4",
    b"$(reboot).mp4", b"`reboot`.mp4", b"&& x.mp4", b"| x.mp4", b"%41.mp4", b"%2e%2e%2fcanary.mp4", b"star*.mp4",
    b"question?.mp4",
    b"[abc].mp4", b"{a,b}.mp4", b"-i.mp4", b"--help.mp4", b"~.mp4", b"#hash.mp4", b"a?b=c#d.mp4", b"http:x.mp4", b"file:x.mp4",
    b"concat:canary.mp4", b"pipe:0.mp4", b"data:text,x.mp4", b"subfile,,start,0,end,9,,:canary.mp4", b"..mp4.mp4", b"...mp4",
    b" leading.mp4", b"trailing .mp4", b"e\xcc\x81 decomposed.mp4", b"\xc3\xa9 composed.mp4", "\u202egnp.mp4".encode(),
    "\u2603\U0001f3ac.mp4".encode(), b"invalid \xff\xfe.mp4", b"latin \xe9.mp4", b"escape \x1b[31m.mp4", b"null\\0.mp4",
    b"frame%03d.mp4", b"%s%n%p.mp4", b"a" * 251 + b".mp4", b"\xef\xbb\xbfmark.mp4", b"comma, and, more.mp4", b"CON.mp4",
    b"a:b.mp4",
)  # fmt: skip


def names(folder: Path, data: bytes) -> Iterator[bytes]:
    """Makes a video of every such name and gives its path; each has a size of its own, by which it is known."""
    for number, name in enumerate(NAMES):
        path = os.fsencode(folder) + b"/" + name
        with open(path, "wb") as file:
            file.write(data + bytes(number))
        yield path
