"""What ends a decoder that does not end by itself."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from schemas.errors import BadVideo, ErrorCode

EXIT_DEADLINE = 75  # status of a worker that was ended past a unit's deadline,
EXIT_LOCKED = 1  # and of one in which no thread of Python's got a turn to end it
_GRACE_FACTOR = 1.25  # of the deadline, and
_GRACE_S = 10.0  # what decoding gets on top to return to Python, where it ends in order
_LOCKED_S = 2.0  # after which a thread of C's ends the process, if none of Python's has
_STDERR = 2
_IDLE_S = 30.0  # after which the thread goes, until it is needed again
_log = logging.getLogger(__name__)


class Watchdog:
    """Counts the time that a unit is being worked on, which leaves out the time its consumer takes between two tables.

    `check` raises BadVideo(DEADLINE) past the deadline. Where Python does not get to call it, because FFmpeg or a read hangs,
    a daemon thread calls `end` after some grace. By default (None) the process exits at once with EXIT_DEADLINE, and where C
    code hangs while it holds the interpreter's lock, so that the daemon thread gets no turn, soon after with EXIT_LOCKED, its
    stacks printed. The clock for that belongs to the process (`faulthandler`): one such watchdog runs at a time.
    """

    def __init__(
        self,
        deadline_s: float,
        grace_s: float | None = None,
        end: Callable[[int], object] | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        self._grace_s = deadline_s * (_GRACE_FACTOR - 1) + _GRACE_S if grace_s is None else grace_s
        self._end = end or os._exit
        self._ends_process = end is None
        self._used_s = 0.0
        self._running_since: float | None = None
        self._what = ""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, what: str) -> None:
        """A new unit, called `what` in the log; its time starts with `resume`."""
        with self._changed:
            self._used_s, self._running_since, self._what = 0.0, None, what

    def resume(self) -> None:
        """The unit is worked on from now."""
        with self._changed:
            self._running_since = time.monotonic()
            if self._thread is None or not self._thread.is_alive():  # it may have died of a worker's lack of memory
                self._thread = threading.Thread(target=self._watch, name="clipmill-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()
            if self._ends_process:
                left_s = max(0.0, self._deadline_s + self._grace_s - self._used_s)
                with suppress(RuntimeError):  # a worker at its cap has no memory for a thread: then without this one
                    faulthandler.dump_traceback_later(left_s + _LOCKED_S, exit=True, file=_STDERR)

    def pause(self) -> None:
        """The unit is not worked on from now; also when it is done."""
        with self._changed:
            if self._running_since is not None:
                self._used_s += time.monotonic() - self._running_since
                self._running_since = None
                self._changed.notify()
                if self._ends_process:
                    faulthandler.cancel_dump_traceback_later()

    def check(self) -> None:
        """Raises BadVideo(DEADLINE) when the unit's time is up. Cheap: called for every packet."""
        since = self._running_since
        if since is not None and self._used_s + time.monotonic() - since > self._deadline_s:
            raise BadVideo(ErrorCode.DEADLINE, f"not decoded within {self._deadline_s:g} s")

    def _watch(self) -> None:
        with self._changed:
            while True:
                if self._running_since is None:
                    if not self._changed.wait(_IDLE_S) and self._running_since is None:
                        self._thread = None
                        return
                    continue
                left_s = self._deadline_s + self._grace_s - self._used_s - (time.monotonic() - self._running_since)
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
                _log.error("decoding hangs, ending this worker: %s", self._what)
                sys.stderr.flush()
                self._end(EXIT_DEADLINE)
                self._running_since = None  # only where `end` returns
