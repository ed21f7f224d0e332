"""Looking at a file's headers from a process that may die of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.config import LimitsConfig
from schemas.errors import BadVideo, ErrorCode
from stages.probe import Prober
from stages.sources import describe
from stages.watchdog import EXIT_DEADLINE, EXIT_LOCKED
from tests.media import textured, truncate, write_video

LIMITS = LimitsConfig()
# A child whose look at a file called by one of these names ends badly, in earnest.
HOSTILE = """
import ctypes, os, sys, time
from stages.probe import answers, extent
from stages.watchdog import Watchdog

def look(source, limits, check):
    name = source["uri"].rpartition("/")[2]
    if name == "crash.mp4":
        ctypes.string_at(0)
    if name == "hang.mp4":
        time.sleep(1000)
    if name == "lock.mp4":
        ctypes.PyDLL(None).sleep(1000)
    if name == "bug.mp4":
        raise KeyError("a bug")
    if name == "memory.mp4":
        raise MemoryError
    return extent(source, limits, check)

answers(iter(sys.stdin), lambda line: print(line, end="", flush=True), look, Watchdog(2.0, grace_s=0.3))
"""


def source(path: Path, **changes: Any) -> dict[str, Any]:
    return {"uri": str(path), "size_bytes": None, "etag": None, "modified_at": None} | changes


def test_a_file_says_how_long_it_is_and_where_it_begins(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a\n\u00e9\u2603.mp4", textured(50), times_s=[1.0 + 0.04 * n for n in range(50)])
    with Prober(LIMITS) as prober:
        for _ in range(2):
            assert prober(source(path, size_bytes=describe(str(path)).size_bytes)) == (pytest.approx(2.0), pytest.approx(1.0))


def test_a_container_that_cannot_be_sought_in_exactly_says_nothing(tmp_path: Path) -> None:
    with Prober(LIMITS) as prober:
        assert prober(source(write_video(tmp_path / "a.mpg", textured(50), codec="mpeg2video"))) == (None, None)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    path = truncate(write_video(tmp_path / "a.mp4", textured(50)), 0.5)
    with Prober(LIMITS) as prober:
        with pytest.raises(BadVideo) as caught:
            prober(source(path))
        assert caught.value.code is ErrorCode.TRUNCATED
        with pytest.raises(BadVideo) as caught:
            prober(source(path, size_bytes=7))
        assert caught.value.code is ErrorCode.CHANGED


def test_promise_4_a_file_that_ends_its_prober_costs_no_other_file(tmp_path: Path) -> None:
    good = source(write_video(tmp_path / "a.mp4", textured(50)))
    expected = {"crash": -11, "hang": EXIT_DEADLINE, "lock": EXIT_LOCKED, "bug": 1}
    with Prober(LIMITS, (sys.executable, "-c", HOSTILE)) as prober:
        for name, status in expected.items():
            with pytest.raises(BadVideo) as caught:
                prober(source(tmp_path / f"{name}.mp4"))
            assert caught.value.code is ErrorCode.KILLED
            assert f"(status {status})" in caught.value.message
            assert prober(good) == (pytest.approx(2.0), 0.0)
        with pytest.raises(BadVideo) as caught:
            prober(source(tmp_path / "memory.mp4"))
        assert caught.value.code is ErrorCode.MEMORY


def test_the_child_imports_nothing_from_where_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", textured(50))
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("raise SystemExit('wrong package')")
    monkeypatch.chdir(tmp_path)
    with Prober(LIMITS) as prober:
        assert prober(source(path))[0] == pytest.approx(2.0)


def test_no_child_is_left_behind(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(50))
    with Prober(LIMITS) as prober:
        prober(source(path))
        assert prober._child is not None
        pid = prober._child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
