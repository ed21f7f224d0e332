"""Following a submitted run from here: what its log tells, how that is shown, and which exit code it comes to."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from cluster.submit import Job, Jobs
from pipeline import summary
from pipeline.entry import EVENT
from pipeline.progress import Figures, Progress
from schemas.errors import one_line

TOKEN = "clipmill_token"  # in a job's metadata
LAST_LINES = 15  # of what a job printed besides its events, shown where it ended without a word
_CODES = frozenset({summary.DONE, summary.BROKEN, summary.MANY_FAILED, summary.STOPPED, summary.INTERRUPTED})
_FIGURES = frozenset(each.name for each in fields(Figures))  # another version may tell more
_NO_PYTHON = frozenset({126, 127})  # what a shell answers


class _JobClock:
    """The job's own seconds, from the last figures that it told; 0 before any."""

    def __init__(self) -> None:
        self._elapsed_s, self._at_s = 0.0, time.monotonic()
        self._runs = False

    def set(self, elapsed_s: float) -> None:
        self._elapsed_s, self._at_s, self._runs = elapsed_s, time.monotonic(), True

    def __call__(self) -> float:
        return self._elapsed_s + (time.monotonic() - self._at_s if self._runs else 0.0)


@dataclass
class Account:
    """What a job has told so far. Its log may begin with that of one of the same id that was taken off the cluster's list."""

    token: str
    is_begun: bool = False
    figures: Figures | None = None
    notes: list[str] = field(default_factory=list)
    log: str | None = None  # the last JSON line
    result: Sequence[str] = ()
    trouble: str | None = None
    code: int | None = None
    other: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def hear(self, line: str) -> str | None:
        """Takes in a line of the log; the kind of event that it was, if any."""
        event = _event(line)
        if "begin" in event:
            self.is_begun = event["begin"] == self.token
            self.other.clear()
        elif not event:
            self.other.append(line)
        elif self.is_begun:
            self._take(event)
            return next(iter(event))
        return None

    def _take(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"figures": dict(figures)}:
                self.figures = Figures(**{name: value for name, value in figures.items() if name in _FIGURES})
            case {"note": str(text)}:
                self.notes.append(text)
            case {"log": str(text)}:
                self.log = text
            case {"result": list(lines)}:
                self.result = [str(one) for one in lines]
            case {"refused": str(text)} | {"failed": str(text)}:
                self.trouble = text
            case {"exit": int(code)}:
                self.code = code


def account_of(job: Job) -> Account:
    """An empty one."""
    return Account(job.metadata.get(TOKEN, ""))


def _event(line: str) -> Mapping[str, Any]:
    if not line.startswith(EVENT):
        return {}
    try:
        found = json.loads(line.removeprefix(EVENT))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def code_of(job: Job, account: Account) -> int:
    """The exit code of a job that is over, as section "Exit codes" of docs/submit.md has it."""
    if account.code is not None:
        return account.code
    if account.trouble is not None or job.exit_code in _NO_PYTHON or job.message.startswith("runtime_env"):
        return summary.BAD_REQUEST
    if job.status == "STOPPED":
        return summary.INTERRUPTED
    return job.exit_code if job.exit_code in _CODES and job.exit_code else summary.STOPPED


class Watch:
    """Follows one job: shows its figures and notes as a run of this machine would, and says how it ended."""

    def __init__(
        self, jobs: Jobs, job: Job, out: Callable[[str], None], note: Callable[[str], None], *, as_json: bool = False
    ) -> None:
        """`as_json`: the run's JSON lines, on stderr, in place of figures and notes for people."""
        self._jobs, self._job, self._out, self._note, self._as_json = jobs, job, out, note, as_json

    def until_over(self, *, shows: bool = True) -> int:
        """The exit code of the run; `shows=False` leaves out everything before its end. Raises ClusterLost."""
        account, clock = account_of(self._job), _JobClock()
        with Progress(clock=clock) as progress:
            for line in self._jobs.lines(self._job.id):
                kind = account.hear(line)
                if kind == "log" and self._as_json:
                    print(account.log, file=sys.stderr, flush=True)
                elif kind == "figures" and shows and not self._as_json:
                    _show(progress, account.figures or Figures(), clock)
                elif kind == "note" and shows and not self._as_json:
                    progress.note(account.notes[-1])
        return self._end(account, shows)

    def _end(self, account: Account, shows: bool) -> int:
        job = self._jobs.job(self._job.id)
        code = code_of(job, account)
        if not shows and account.notes:
            self._note(account.notes[-1])
        if account.result:
            self._out("\n".join(account.result))
        elif account.trouble is not None:
            self._note(f"clipmill: {account.trouble}")
        elif account.code is None:
            self._note("\n".join([*account.other, f"clipmill: {how_it_ended(job)}"]))
        return code


def _show(progress: Progress, now: Figures, clock: _JobClock) -> None:
    before = progress.figures()
    progress.start(now.total_videos)
    clock.set(now.elapsed_s)
    progress.update(
        videos=now.videos - before.videos,
        clips=now.clips - before.clips,
        video_s=now.video_s - before.video_s,
        failures=now.failures - before.failures,
    )


def how_it_ended(job: Job) -> str:
    """One line about a job that ended without telling."""
    if job.status == "STOPPED":
        return f"job {job.id} was stopped before it could say how far it came; the next run goes on from there"
    if job.exit_code in _NO_PYTHON:
        return f"job {job.id}: the cluster's Ray finds no python; `ray start` it with that of its environment on PATH"
    if job.exit_code is None:
        how = f"ended ({one_line(job.message) or 'Ray does not say why'})"
    elif job.exit_code < 0:
        how = f"was killed (signal {-job.exit_code})"
    else:
        how = f"ended with exit code {job.exit_code} without a word"
    return f"job {job.id} {how}; the next run goes on from there"
