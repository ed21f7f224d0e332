"""A run as a program of its own that somebody stops: Ctrl-C or SIGTERM, and the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.progress import Progress
from pipeline.run import Request, run
from pipeline.verify import verify
from stages.storage import Store
from tests.media import textured, write_video
from tests.pipeline.published import comparable, table

pytestmark = pytest.mark.ray
VIDEOS = 12


def clipmill(archive: Path, output: Path) -> subprocess.Popen[str]:
    where = ["--input", str(archive), "--output", str(output)]
    only_clips = ["--set", "classify=[]", "--set", "resources.object_store_bytes=200000000"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", *where, *only_clips],
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run_clips_only(archive: Path, output: Path) -> None:
    config = settings.load(input_uri=str(archive), output=str(output), sets=["classify=[]"])
    with Progress(live=False, every_s=1000) as progress:
        assert run(config, (), Request(), progress).promise_broken is None


def wait_for_a_part(output: Path, process: subprocess.Popen[str]) -> None:
    while not any(output.glob("_runs/*/parts/*.parquet")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def program() -> Iterator[Callable[[Path, Path], subprocess.Popen[str]]]:
    """Starts runs that do not outlive the test."""
    started = []

    def start(archive: Path, output: Path) -> subprocess.Popen[str]:
        started.append(clipmill(archive, output))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def by_ctrl_c(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Ray's processes get it too


def by_sigterm(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)  # as whoever takes a machine away


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("interrupt", [by_ctrl_c, by_sigterm])
def test_promise_3_after_ctrl_c_the_next_run_goes_on_and_the_tables_are_as_if_nothing_had_happened(
    interrupt: Callable[[subprocess.Popen[str]], None],
    tmp_path: Path,
    program: Callable[[Path, Path], subprocess.Popen[str]],
) -> None:
    archive, output = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    for number in range(VIDEOS):
        write_video(archive / f"{number}.mp4", textured(200, seed=number))
    interrupted = program(archive, output)
    wait_for_a_part(output, interrupted)
    interrupt(interrupted)
    _, said = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130, said
    assert "goes on from here" in said
    assert "SIGTERM" not in said  # of Ray's native code, or of another Ray that a thread would have started
    assert verify(Store(str(output))) == []

    run_clips_only(archive, output)
    run_clips_only(archive, tmp_path / "undisturbed")
    assert comparable(str(output)) == comparable(str(tmp_path / "undisturbed"))
    assert len(table(str(output), "videos")) == VIDEOS
    assert verify(Store(str(output))) == []
