"""How much memory a decoding process may take, and what it does with memory that a video has left."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MMAP_BYTES = 32 << 20  # the most that glibc allows
_KEPT_BYTES = 512 << 20
_LARGE_BYTES = 128 << 10
_capped_process: int | None = None


def cap_memory(extra_bytes: int) -> None:
    """Lets this process allocate about `extra_bytes` more than it has now; beyond that allocations fail (Linux).

    The soft limit of RLIMIT_DATA, relative to what is mapped: libraries map a lot before any video is opened. Shared memory,
    such as an object store's, is not counted. Once a process: a second call changes nothing, so that what one video left in
    use does not raise the cap for the next.
    """
    global _capped_process
    if _capped_process == os.getpid():
        return
    _capped_process = os.getpid()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    pa.allocate_buffer(1)  # Arrow sets a gigabyte of addresses aside with its first one: not the decoder's memory
    wanted = _data_bytes() + extra_bytes
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def keep_freed_memory() -> None:
    """Has malloc keep freed frames for the next video instead of giving them back to the kernel (glibc; elsewhere nothing).

    Frames are large, so by default each video's come as fresh pages, and zeroing those took up to a fifth of the time that
    decoding a short 480p file takes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Has malloc give freed memory back to the kernel as soon as it can (glibc; elsewhere nothing): for a process that holds
    much for a long time, and little at the end. `trim_memory` returns what lies between things in use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)  # left alone, glibc raises it up to 32 MB, and then keeps what is freed
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def trim_memory() -> None:
    """Gives free pages back to the kernel: Arrow's, and malloc's (glibc; elsewhere nothing). Takes milliseconds."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmData in /proc/self/status")
