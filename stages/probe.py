"""Asking FFmpeg about a file from a process that no file may harm: each question goes to a child that may die of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO, Self

from schemas.config import LimitsConfig
from schemas.errors import BadVideo, ErrorCode
from stages.roots import ANYWHERE, Roots
from stages.sources import open_source
from stages.watchdog import Watchdog

PROBE_S = 60.0  # for one file, after which its child ends
PROBE_MEMORY_BYTES = 2 << 30
# Containers in which a frame has the same time whether one reads on to it or seeks to it. Others (MPEG program streams, Ogg,
# ASF) carry a time for some packets only, and FFmpeg guesses the rest from where it began.
EXACT_SEEKING = frozenset({"mov", "matroska", "mpegts", "flv"})
_SOURCE = ("uri", "size_bytes", "etag", "modified_at")
Source = dict[str, Any]
Open = Callable[[str, int | None, str | None, datetime | None], BinaryIO]
Extent = tuple[float | None, float | None]


def extent(source: Source, limits: LimitsConfig, check: Callable[[], None], open_file: Open = open_source) -> Extent:
    """(claimed duration, container time of the first frame) in seconds; None where not known or not to be relied on.

    Reads as far as the first frames that decode, in this process. Raises BadVideo.
    """
    from stages.media import open_media
    from stages.reader import Reader, Span

    with open_file(*(source[name] for name in _SOURCE)) as file, open_media(file, limits, check) as media:
        if EXACT_SEEKING.isdisjoint(media.facts.container.split(",")) or media.facts.duration_s is None:
            return None, None
        reader = Reader(media, limits, Span(), check, handful=1)
        next(reader.bursts(), None)
        return media.facts.duration_s, reader.origin_s


class Prober:
    """`extent` by a child process, started with the first question and again after one that ended it."""

    # -P: it never imports from the folder that it is started in.
    COMMAND = (sys.executable, "-P", "-m", "stages.probe")

    def __init__(self, limits: LimitsConfig, command: tuple[str, ...] = COMMAND, roots: Roots = ANYWHERE) -> None:
        self._limits, self._command = limits, (*command, *roots.uris)
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, source: Source) -> Extent:
        """As `extent`. Raises BadVideo: what the child says of the file, or KILLED where it ended of it."""
        line = self._asked(json.dumps([source[name] for name in _SOURCE], default=datetime.isoformat))
        if not line.endswith("\n"):
            raise BadVideo(ErrorCode.KILLED, f"ended the process that looked at its headers (status {self._end()})")
        answer = json.loads(line)
        if "code" in answer:
            raise BadVideo(ErrorCode(answer["code"]), str(answer["message"]))
        return answer["duration_s"], answer["origin_s"]

    def _asked(self, question: str) -> str:
        """The child's line of answer; short of its end where the child is over."""
        child = self._child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(f"{question}\n")
            child.stdin.flush()
            return child.stdout.readline()
        except BrokenPipeError:
            return ""

    def _start(self) -> subprocess.Popen[str]:
        # In a session of its own: a Ctrl-C is for whoever asks.
        child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert child.stdin is not None
        with suppress(BrokenPipeError):
            child.stdin.write(f"{self._limits.model_dump_json()}\n")
        return child

    def _end(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        try:
            return child.wait(0.1)  # it is over, and may just not have said so
        except subprocess.TimeoutExpired:
            child.kill()
        with suppress(BrokenPipeError):
            child.communicate()
        return child.returncode


def answers(
    questions: Iterator[str],
    say: Callable[[str], object],
    look: Callable[[Source, LimitsConfig, Callable[[], None]], Extent] = extent,
    watchdog: Watchdog | None = None,
) -> None:
    """The child: a line of limits, then a line for each source, and to each of those a line of answer."""
    watchdog = watchdog or Watchdog(PROBE_S)
    limits = LimitsConfig.model_validate_json(next(questions))
    for question in questions:
        source = dict(zip(_SOURCE, json.loads(question), strict=True))
        if source["modified_at"] is not None:
            source["modified_at"] = datetime.fromisoformat(source["modified_at"])
        watchdog.start(source["uri"])
        watchdog.resume()
        try:
            duration_s, origin_s = look(source, limits, watchdog.check)
            answer: dict[str, Any] = {"duration_s": duration_s, "origin_s": origin_s}
        except BadVideo as error:
            answer = {"code": error.code.value, "message": error.message}
        except MemoryError:
            answer = {"code": ErrorCode.MEMORY.value, "message": "the file wants more memory than looking at it may take"}
        finally:
            watchdog.pause()
        say(f"{json.dumps(answer)}\n")


def main() -> None:
    """What `Prober` starts. What libraries print goes to stderr: stdout is for answers."""
    from stages.memory import cap_memory

    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)
        cap_memory(PROBE_MEMORY_BYTES)
        opener = partial(open_source, roots=Roots(tuple(sys.argv[1:])))
        answers(iter(sys.stdin), out.write, partial(extent, open_file=opener))


if __name__ == "__main__":
    main()
