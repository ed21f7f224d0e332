"""A function in a fresh process: nothing of what a client keeps (connections, patience, its endpoint) is left from before.

The processes are forked from one that has imported everything and used nothing, so that each costs little.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.faults.storage_runs"])


class Hung(Exception):
    """A process that did not end in time; it was killed."""


@dataclass(frozen=True)
class Done:
    """What the function returned, and all that its process has printed or logged."""

    value: Any
    said: str


def in_fresh_process(
    function: Callable[..., Any], *args: Any, env: Mapping[str, str], log: Path, timeout_s: float = 240.0
) -> Done:
    """Calls a function of a module. Raises Hung, and RuntimeError where the function raised anything or its process died."""
    ours, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_run, args=(theirs, log, dict(env), function, args), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            raise Hung(f"{function.__name__} had not ended after {timeout_s:.0f} s: {log.read_text()[-2000:]}")
        is_good, value = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} died with {process.exitcode}: {log.read_text()[-2000:]}") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if not is_good:
        raise RuntimeError(value)
    return Done(value, log.read_text())


def _run(answer: Connection, log: Path, env: Mapping[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        os.environ.update(env)
        from fsspec.config import conf, set_conf_env

        set_conf_env(conf)  # it was read when everything was imported
        try:
            told = True, function(*args)
        except BaseException:  # noqa: BLE001 - told to whoever waits
            told = False, traceback.format_exc()
        sys.stderr.flush()
        answer.send(told)
