from __future__ import annotations

import threading

from cluster.repeated import repeated


def test_work_is_repeated_while_a_block_runs_and_no_longer() -> None:
    times, twice, before = [0], threading.Event(), set(threading.enumerate())

    def work() -> None:
        times[0] += 1
        if times[0] == 2:
            twice.set()

    with repeated(work, every_s=0.001, name="work"):
        assert twice.wait(30)
    assert set(threading.enumerate()) <= before
