"""Whether a file without an extension is a video, by the first bytes of its container."""

from __future__ import annotations

HEAD_BYTES = 1024

_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01",  # MXF
)
_MP4_BOXES = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})  # QuickTime files older than `ftyp`
_NO_VIDEO_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P ", b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"crx "})
_TS_PACKET_BYTES = ((188, 0), (192, 4))  # bytes of a packet, offset of its sync byte: plain, and with a time code (M2TS)


def looks_like_video(head: bytes) -> bool:
    """`head`: the first HEAD_BYTES bytes of a file, fewer where it is shorter. What decodes is for decode to say."""
    return head.startswith(_STARTS) or _is_mp4(head) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") or _is_mpeg_ts(head)


def _is_mp4(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] not in _NO_VIDEO_BRANDS
    return head[4:8] in _MP4_BOXES


def _is_mpeg_ts(head: bytes) -> bool:
    for packet_bytes, offset in _TS_PACKET_BYTES:
        syncs = head[offset::packet_bytes]
        if len(syncs) >= 3 and set(syncs) == {0x47}:
            return True
    return False
