from __future__ import annotations

import subprocess
import sys
import time

import pytest

from benchmarks.sampler import DRIVER, IDLE, MODELS, PUBLISHING, RAY, TASKS, Peak, Usage, Watched, kind_of, watched

MB = 1 << 20
STATUS = "Name:\tx\nVmHWM:\t    3072 kB\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\nRssShmem:\t     512 kB\n"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ray::MapBatches(_work)", TASKS),
        ("ray::ReadUnits->MapBatches(_work)", TASKS),
        ("ray::ReadUnits->SplitBlocks(4)", TASKS),
        ("ray::MapWorker(MapBatches(Worker)).submit", MODELS),
        ("ray::publish epoch", PUBLISHING),
        ("ray::IDLE", IDLE),
        ("python -u /x/ray/_private/workers/default_worker.py --node-ip-address=1", IDLE),
        ("/x/ray/core/src/ray/raylet/raylet --python_worker_command=default_worker.py", RAY),
        ("ray::DashboardAgent", RAY),
        ("python -m pipeline run --input x", DRIVER),
        ("sleep 5", None),
    ],
)
def test_processes_are_told_apart_by_their_names(command: str, kind: str | None) -> None:
    assert kind_of(command) == kind


def test_usage_is_read_as_linux_writes_it() -> None:
    assert Usage.of(STATUS) == Usage(rss=2 * MB, shared=MB // 2, anonymous=MB, high_water=3 * MB)
    assert Usage.of("Name:\tx\nState:\tZ (zombie)\n") == Usage(0, 0, 0, 0)


def test_a_peak_between_two_looks_counts_and_shared_memory_does_not() -> None:
    peak = Peak()
    peak.add(Usage(rss=100, shared=40, anonymous=50, high_water=100))
    assert peak.own == 60
    peak.add(Usage(rss=90, shared=40, anonymous=50, high_water=150))
    assert peak.own == 110
    peak.add(Usage(rss=140, shared=130, anonymous=10, high_water=150))  # an old peak, beside what is shared only now
    assert peak.own == 110


def test_a_worker_is_of_the_kind_of_its_largest_task() -> None:
    found = Watched()
    one, other = (1, 0.0), (2, 0.0)
    found.look([(one, "ray::IDLE", Usage(10, 0, 10, 10)), (other, "ray::IDLE", Usage(30, 20, 10, 30))])
    found.look([(one, "ray::MapBatches(_work)", Usage(50, 20, 30, 50)), (other, "ray::IDLE", Usage(30, 20, 10, 30))])
    found.look([(one, "ray::IDLE", Usage(5, 0, 5, 50))])
    assert (found.most(TASKS), found.count(TASKS)) == (30, 1)
    assert found.most(IDLE) == 10
    assert found.together == 20 + 30 + 10


def test_what_is_started_is_watched() -> None:
    program = "import sys, time; held = bytearray(60 << 20); time.sleep(60)"
    command = [sys.executable, "-c", program, " pipeline run"]
    with watched() as found:
        process = subprocess.Popen(command)
        ends_s = time.monotonic() + 60
        while found.most(DRIVER) < 60 * MB and time.monotonic() < ends_s:
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert 60 * MB < found.most(DRIVER) < 300 * MB
