"""A remote object as a seekable file that fetches byte ranges."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable

BLOCK_BYTES = 4 << 20
BLOCKS_KEPT = 4  # a container's index, and places of audio and video that lie apart


class RangeFile(io.RawIOBase):
    """Reads `size_bytes` bytes through `fetch(start, end) -> bytes`, in blocks of which the last few are kept.

    A request longer than a block is fetched as it is, so a reader of columns pays one request for one column. Like a file on
    disk, and unlike many raw files, it returns fewer bytes than asked for only at its end. Whatever `fetch` raises passes.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size_bytes: int,
        block_bytes: int = BLOCK_BYTES,
        blocks_kept: int = BLOCKS_KEPT,
    ) -> None:
        super().__init__()
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._block_bytes = block_bytes
        self._blocks_kept = blocks_kept
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position, bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves and returns the position; ValueError before the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, fewer only at the end; all that is left for None or a negative size."""
        if self.closed:
            raise ValueError("the file is closed")
        left = max(0, self._size_bytes - self._at)
        end = self._at + (left if size is None or size < 0 else min(size, left))
        data = self._fetch(self._at, end) if end - self._at > self._block_bytes else self._from_blocks(self._at, end)
        self._at = end
        return data

    def readall(self) -> bytes:
        """All that is left."""
        return self.read(-1)

    def readinto(self, buffer: memoryview | bytearray, /) -> int:  # type: ignore[override]
        """Fills `buffer`, shorter only at the end."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Forgets the blocks."""
        self._blocks.clear()
        super().close()

    def _from_blocks(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        first, last = start // self._block_bytes, (end - 1) // self._block_bytes
        base = first * self._block_bytes
        if first == last:
            return self._block(first)[start - base : end - base]
        return b"".join((self._block(first), self._block(last)))[start - base : end - base]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * self._block_bytes
            self._blocks[number] = self._fetch(start, min(start + self._block_bytes, self._size_bytes))
            while len(self._blocks) > self._blocks_kept:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]


def exact(data: bytes, start: int, end: int) -> bytes:
    """`data`, once it is sure that it is the whole range; OSError where the store sent less."""
    if len(data) != end - start:
        raise OSError(f"asked for bytes {start} to {end}, got {len(data)}")
    return data
