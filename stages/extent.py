"""How long a media file says it is: the sizes that its outermost headers claim, read without decoding anything.

FFmpeg reads a file that was cut short to its end and, for most containers, says nothing. The outermost boxes (ISO media),
the segment (Matroska) and the RIFF chunk (AVI) carry their sizes, so a missing tail shows.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_SLACK_BYTES = 64  # writers are off by a header now and then
_MAX_BOXES = 256  # of a fragmented file, not all are walked: reading their headers is a request each on object storage
_BOX_NAMES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx", b"uuid", b"meta")
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"


def missing_bytes(file: BinaryIO, size_bytes: int) -> int:
    """Bytes that should follow the end of `file` by its own headers; 0 where nothing is missing or nothing is claimed.

    Moves the file's position. Source of the layouts: ISO/IEC 14496-12 section 4.2, RFC 8794 and RFC 9559, RIFF.
    """
    file.seek(0)
    head = file.read(64)
    if head[4:8] in _BOX_NAMES:
        end = _boxes_end(file, size_bytes)
    elif head[:4] == _EBML:
        end = _segment_end(head)
    elif head[:4] == b"RIFF":
        end = 8 + int(struct.unpack_from("<I", head, 4)[0])
    else:
        end = 0
    return end - size_bytes if end > size_bytes + _SLACK_BYTES else 0


def _boxes_end(file: BinaryIO, size_bytes: int) -> int:
    """End of the last top-level box; a box of size 0 runs to the end of the file."""
    at = 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return at
        size = int(struct.unpack_from(">I", head)[0])
        if size == 1 and len(head) == 16:
            size = int(struct.unpack_from(">Q", head, 8)[0])
        if size < 8 or not head[4:8].isalnum():  # to the end of the file, or no box at all
            return at
        at += size
        if at >= size_bytes:
            return at
    return 0


def _segment_end(head: bytes) -> int:
    """End of a Matroska segment that begins within the first bytes; 0 where its size is not known (a live recording)."""
    header_size, at = _varint(head, 4)
    if header_size is None:
        return 0
    at += header_size
    if head[at : at + 4] != _SEGMENT:
        return 0
    size, at = _varint(head, at + 4)
    return 0 if size is None else at + size


def _varint(data: bytes, at: int) -> tuple[int | None, int]:
    """An EBML length (None: unknown) and where it ends."""
    if at >= len(data) or data[at] == 0:
        return None, at
    length = 9 - data[at].bit_length()
    raw = data[at : at + length]
    if len(raw) < length:
        return None, at
    value = int.from_bytes(raw, "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length
