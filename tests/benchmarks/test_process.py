from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import pytest

from benchmarks.process import ProgramFailed, run

PR_GET_CHILD_SUBREAPER = 37
BUSY = """
import os, time
def work(cpu_s):
    while time.process_time() < cpu_s: pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        work(0.6)
    os._exit(0)
work(0.2)
print("done")
"""


def test_what_a_program_leaves_running_counts_too(tmp_path: Path) -> None:
    cost = run([sys.executable, "-c", BUSY], log=tmp_path / "log")
    assert cost.tail == "done\n"
    assert 0.75 < cost.cpu_s < 2.0


UNWAITED = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    while time.process_time() < 1.0: pass
    os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
"""


def test_children_that_nobody_waits_for_count_too(tmp_path: Path) -> None:
    assert 0.6 < run([sys.executable, "-c", UNWAITED], log=tmp_path / "log").cpu_s < 2.0


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"(?s)ended with 1:.*ZeroDivisionError"):
        run([sys.executable, "-c", "1 / 0"], log=tmp_path / "log")


def test_a_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    began_s = time.monotonic()
    with pytest.raises(ProgramFailed, match="ended with -9"):
        run(["sleep", "60"], log=tmp_path / "log", timeout_s=0.3)
    assert time.monotonic() - began_s < 30


def test_orphans_of_others_are_none_of_ours_afterwards(tmp_path: Path) -> None:
    run([sys.executable, "-c", ""], log=tmp_path / "log")
    is_reaper = ctypes.c_int(1)
    assert ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(is_reaper), 0, 0, 0) == 0
    assert not is_reaper.value
