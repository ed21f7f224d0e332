"""Decoders that kill: files that do to their worker, in earnest, what a broken decoder does, by the name they have."""

from __future__ import annotations

import ctypes
import io
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import numpy as np
import pyarrow as pa

from schemas.config import ClipsConfig
from stages.decode import Decode
from stages.sources import open_source
from stages.watchdog import Watchdog

DEADLINE_S, GRACE_S = 2.0, 0.5
_C = ctypes.CDLL(None)  # lets go of the interpreter's lock for each call, as FFmpeg's wrapper does
_C.malloc.restype = ctypes.c_void_p
_C.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_C_LOCKED = ctypes.PyDLL(None)  # keeps it


def _crash() -> None:
    ctypes.string_at(0)


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as by the kernel when memory is out


def _overflow_stack() -> None:
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def deeper(_one: int, _two: int) -> int:
        return sort()

    pair = (ctypes.c_int * 2)(2, 1)

    def sort() -> int:
        _C.qsort(pair, 2, 4, deeper)
        return 0

    import sys

    sys.setrecursionlimit(1 << 30)
    sort()


def _hang() -> None:
    _C.sleep(10_000)


def _hang_locked() -> None:
    _C_LOCKED.sleep(10_000)


def _spin() -> None:
    while True:
        pass


def _eat_in_c() -> None:
    """Asks for more until there is no more, and writes to what it was not given."""
    while True:
        place = _C.malloc(8 << 20)
        _C.memset(place, 1, 8 << 20)


def _eat() -> None:
    held = []
    while True:
        held.append(np.ones(8 << 20, np.uint8))


def _raiser(error: type[BaseException]) -> Callable[[], None]:
    def throw() -> NoReturn:
        raise error("as a broken library might")

    return throw


# While FFmpeg reads: these end the process.
DEADLY: Mapping[str, Callable[[], None]] = {
    "segfault": _crash,
    "abort": os.abort,
    "exit": lambda: os._exit(9),
    "killed": _killed,
    "stack": _overflow_stack,
    "hang": _hang,
    "hang-locked": _hang_locked,
    "spin": _spin,
    "eat-in-c": _eat_in_c,
}
# Where Python opens the file: these end the task.
RAISING: Mapping[str, Callable[[], None]] = {
    "exit-raised": _raiser(SystemExit),
    "interrupt": _raiser(KeyboardInterrupt),
    "recursion": _raiser(RecursionError),
    "bug": _raiser(KeyError),
}
# Ends in order, as an error of the video.
BOUNDED: Mapping[str, Callable[[], None]] = {"eat": _eat, "memory": _raiser(MemoryError)}
KINDS = (*DEADLY, *RAISING, *BOUNDED)


class _Trap(io.RawIOBase):
    """A file that acts when its media is read: with the second read, after the one that looks at its first bytes."""

    def __init__(self, file: BinaryIO, act: Callable[[], None]) -> None:
        super().__init__()
        self._file, self._act, self._reads = file, act, 0

    def read(self, size: int = -1, /) -> bytes:
        self._reads += 1
        if self._reads > 1:
            self._act()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def open_hostile(uri: str, size_bytes: int | None, etag: str | None, modified_at: datetime | None) -> BinaryIO:
    """`open_source`, but a file called `KIND.mp4` does what its kind does."""
    kind = Path(uri).stem
    if kind in RAISING:
        RAISING[kind]()
    file = open_source(uri, size_bytes, etag, modified_at)
    act = DEADLY.get(kind) or BOUNDED.get(kind)
    return cast(BinaryIO, _Trap(file, act)) if act else file


class HostileDecode:
    """The decode stage over such files, with little patience."""

    def __init__(self, clips: ClipsConfig, frame_counts: Mapping[str, int], memory_bytes: int) -> None:
        watchdog = Watchdog(DEADLINE_S, GRACE_S)
        self._decode = Decode(clips, frame_counts, DEADLINE_S, memory_bytes, open_file=open_hostile, watchdog=watchdog)

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        return self._decode(units)
