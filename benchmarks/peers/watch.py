"""When the first video was read: how long a program took to start, seen from outside and alike for all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_ACCESS, _IS_FOLDER = 0x1, 0x40000000  # of inotify(7)
_EVENT = struct.Struct("iIII")


class FirstRead:
    """`at_s`: time.time() of the first read of a file in the folder; None before that."""

    def __init__(self) -> None:
        self.at_s: float | None = None


@contextlib.contextmanager
def first_read(folder: Path) -> Iterator[FirstRead]:
    """Watches the files of `folder` while it is entered."""
    libc = ctypes.CDLL(None, use_errno=True)
    events = libc.inotify_init1(os.O_CLOEXEC)
    if events < 0 or libc.inotify_add_watch(events, os.fsencode(folder), _ACCESS) < 0:
        raise OSError(ctypes.get_errno(), "cannot watch", str(folder))
    found = FirstRead()
    thread = threading.Thread(target=_wait, args=(events, found), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        libc.inotify_rm_watch(events, 1)  # an event, which ends the thread
        thread.join()
        os.close(events)


def _wait(events: int, found: FirstRead) -> None:
    while True:
        data = os.read(events, 1 << 16)
        place = 0
        while place < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size + length
            if not mask & _ACCESS:  # the watch was removed
                return
            if not mask & _IS_FOLDER:
                found.at_s = time.time()
                return
