"""`make demo-cluster` from outside: what it prints, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.nodes import NodeFailed, started

ROOT = Path(__file__).parents[2]
VIDEOS, END_S = 14, 30.0  # with fewer a fast machine may be done before a node can be killed
pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(1500)]


# Whoever starts the tests in the background has them, and what they start, ignore Ctrl-C.
PROGRAM = "import signal; signal.signal(2, signal.default_int_handler); from pipeline.cli import main; main()"


def demo(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-P", "-c", PROGRAM, "demo", "--videos", str(VIDEOS), "--output", str(folder), *options]


def own(marker: str) -> list[psutil.Process]:
    """Processes with a word in their environment: those that a program has started, and what they have."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CLIPMILL_TEST") == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def marked(marker: str) -> dict[str, str]:
    return {**os.environ, "CLIPMILL_TEST": marker}


@contextmanager
def nothing_left(marker: str) -> Iterator[None]:
    """Whatever is left is a failure, and is ended; Python's own helpers need a moment to see that their parent has gone."""
    before = set(Path("/tmp").glob("clipmill-node-*"))
    yield
    until = time.monotonic() + END_S
    while (left := own(marker)) and time.monotonic() < until:
        time.sleep(0.2)
    for process in left:
        process.kill()
    assert not left
    assert not {folder for folder in set(Path("/tmp").glob("clipmill-node-*")) - before if has_no_owner(folder)}


def has_no_owner(folder: Path) -> bool:
    """Whether no process uses it: others may run such a demo at the same time."""
    return not any(str(folder) in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))


def test_a_demo_that_loses_a_node_half_way_has_the_score_of_one_left_alone_and_leaves_nothing_running(tmp_path: Path) -> None:
    subprocess.run(demo(tmp_path / "alone"), check=True, cwd=tmp_path, timeout=900, capture_output=True)
    with nothing_left(str(tmp_path)):
        command = demo(tmp_path / "cluster", "--nodes", "3")
        done = subprocess.run(
            command, cwd=tmp_path, env=marked(str(tmp_path)), timeout=1200, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done
    assert re.search(r"^half way: node [123] of 3 is killed, in .+ of video-", done.stderr, re.MULTILINE), done.stderr
    scores = [json.loads((tmp_path / name / "score.json").read_text()) for name in ("alone", "cluster")]
    assert scores[0] == scores[1]
    assert f"videos   {VIDEOS} ok" in done.stdout


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_running(way: signal.Signals, tmp_path: Path) -> None:
    with nothing_left(str(tmp_path)):
        process = subprocess.Popen(demo(tmp_path / "demo", "--nodes", "2"), cwd=tmp_path, env=marked(str(tmp_path)))
        while len(own(str(tmp_path))) < 10:  # Ray is starting
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(way)
        assert process.wait(300) in (130, 128 + way)


def test_what_fails_on_the_nodes_leaves_nothing_running_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_TEST", str(tmp_path))
    with nothing_left(""):  # this process has the mark only now, so it is not found itself
        with pytest.raises(ZeroDivisionError), started(1):
            raise ZeroDivisionError
        assert [one.pid for one in own(str(tmp_path)) if one.pid != os.getpid()] == []


def test_a_node_that_cannot_start_is_told_and_the_others_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.nodes.STORE_BYTES", 1)  # Ray wants more
    monkeypatch.setenv("CLIPMILL_TEST", str(tmp_path))
    with pytest.raises(NodeFailed, match="a Ray node did not start"), started(1):
        pass
    assert [one.pid for one in own(str(tmp_path)) if one.pid != os.getpid()] == []
