"""A map from ids to small integers in a few bytes an entry: sorted arrays instead of a dict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
Ids = Array  # dtype S16, a video each
_SMALLEST_MERGE = 1 << 16
_HEX = np.full(256, 255, dtype=np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


def packed(video_ids: pa.ChunkedArray | pa.Array) -> Ids:
    """Video ids of 32 hex digits -> 16 bytes each, shape (n,). ValueError for anything else."""
    column = video_ids.combine_chunks() if isinstance(video_ids, pa.ChunkedArray) else video_ids
    if not len(column):
        return np.empty(0, dtype="S16")
    text = np.array(column.to_pylist(), dtype="S33")
    digits = _HEX[text.view(np.uint8).reshape(len(text), 33)[:, :32]]
    if (np.char.str_len(text) != 32).any() or (digits > 15).any():
        raise ValueError("a video id is not made of 32 hex digits")
    return np.ascontiguousarray(digits[:, ::2] << 4 | digits[:, 1::2]).view("S16").reshape(len(text))


def unpacked(ids: Ids) -> list[str]:
    """Reverse of `packed`."""
    text = np.ascontiguousarray(ids).tobytes().hex()
    return [text[begin : begin + 32] for begin in range(0, len(text), 32)]


class IdTable:
    """Unique keys with one value each. Costs the bytes of a key and a value; as much again for a moment while it grows.

    New keys gather in a small table of their own that is merged into the large one now and then.
    """

    def __init__(self, key_type: str, value_type: str) -> None:
        self._large = _Sorted(np.empty(0, dtype=key_type), np.empty(0, dtype=value_type))
        self._small = _Sorted(np.empty(0, dtype=key_type), np.empty(0, dtype=value_type))

    def __len__(self) -> int:
        return len(self._large.keys) + len(self._small.keys)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(array.nbytes for level in (self._large, self._small) for array in (level.keys, level.values))

    def get(self, keys: Array) -> tuple[npt.NDArray[np.bool_], Array]:
        """(known, values) of `keys`; the value of an unknown key is zero or empty."""
        known = np.zeros(len(keys), dtype=bool)
        values = np.zeros(len(keys), dtype=self._large.values.dtype)
        for level in (self._large, self._small):
            place, found = level.find(keys)
            values[found] = level.values[place[found]]
            known |= found
        return known, values

    def starting_with(self, halves: Array) -> Ids:
        """For tables of ids: to each 8 bytes, the first id that begins with them; empty where none does."""
        out = np.zeros(len(halves), dtype="S16")
        for level in (self._large, self._small):
            if not len(level.keys):
                continue
            place = np.minimum(np.searchsorted(level.keys, halves.astype("S16")), len(level.keys) - 1)
            found = np.ascontiguousarray(level.keys[place]).view("S8").reshape(len(halves), 2)[:, 0] == halves
            out[found] = level.keys[place[found]]
        return out

    def put(self, keys: Array, values: Array) -> None:
        """Sets the values of `keys`, which must be unique among themselves."""
        unknown = np.ones(len(keys), dtype=bool)
        for level in (self._large, self._small):
            place, found = level.find(keys)
            level.values[place[found]] = values[found]
            unknown &= ~found
        self._small = self._small.merged(keys[unknown], values[unknown])
        if len(self._small.keys) > max(_SMALLEST_MERGE, len(self._large.keys) // 8):
            self._large = self._large.merged(self._small.keys, self._small.values)
            self._small = _Sorted(self._small.keys[:0].copy(), self._small.values[:0].copy())


class _Sorted:
    def __init__(self, keys: Array, values: Array) -> None:
        self.keys, self.values = keys, values

    def find(self, keys: Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.intp), np.zeros(len(keys), dtype=bool)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return place, np.asarray(self.keys[place] == keys, dtype=bool)

    def merged(self, keys: Array, values: Array) -> _Sorted:
        if not len(keys):
            return self
        order = np.argsort(keys, kind="stable")
        place = np.searchsorted(self.keys, keys[order])
        return _Sorted(np.insert(self.keys, place, keys[order]), np.insert(self.values, place, values[order]))


def first_of_each(keys: Array) -> npt.NDArray[np.bool_]:
    """Mask that keeps the first of equal keys."""
    _, first = np.unique(keys, return_index=True)
    mask = np.zeros(len(keys), dtype=bool)
    mask[first] = True
    return mask


def hashes(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """64-bit hashes, stable within the process."""
    return np.fromiter((hash(text) for text in texts), dtype=np.int64)
