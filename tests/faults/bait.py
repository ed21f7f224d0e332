"""What tells that somebody opened a file or a connection: the kernel's own word, not the opener's."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Self

_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_EVENT = struct.Struct("iIII")
_C = ctypes.CDLL(None, use_errno=True)


class Watched:
    """Files that nobody may open (inotify), and a port on this machine that nobody may connect to."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._notes = _C.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._notes >= 0, os.strerror(ctypes.get_errno())
        self._paths: dict[int, Path] = {}
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listening.setblocking(False)
        self.watch(paths)

    def watch(self, paths: Iterable[Path]) -> None:
        """Watches further files."""
        for path in paths:
            number = _C.inotify_add_watch(self._notes, os.fsencode(path), _IN_OPEN | _IN_ACCESS)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._paths[number] = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        os.close(self._notes)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    def opened(self) -> list[Path]:
        """The files that were opened or read since the last call."""
        found = set()
        while True:
            try:
                events = os.read(self._notes, 65536)
            except BlockingIOError:
                return sorted(found)
            at = 0
            while at < len(events):
                number, _, _, name_bytes = _EVENT.unpack_from(events, at)
                at += _EVENT.size + name_bytes
                if number in self._paths:
                    found.add(self._paths[number])

    def connections(self) -> int:
        """How many connected since the last call."""
        count = 0
        while True:
            try:
                self._listening.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1
