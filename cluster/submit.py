"""Runs as jobs of a Ray cluster: sent, found again, followed and stopped through Ray's job server.

A job's id tells the output it works on, so whoever knows the output finds the job, and of two who send one at the same
instant Ray refuses the second. Nothing is kept on the caller's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import BadRequest, ClipmillError, one_line

CONNECT_S, ANSWER_S = 5.0, 60.0
QUIET_S = 60.0  # a log without a new line for so long is asked for anew: the connection may be dead
PATIENCE_S = 120.0  # that a job server may be away while a job is followed
STOP_S = 900  # that a run may take to publish what is complete before Ray kills it
ENTRYPOINT = "if command -v python >/dev/null; then exec python {0}; else exec python3 {0}; fi"
ENTRY_NAME = "clipmill_job.py"
_T = TypeVar("_T")
_TALKERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
_USUAL = "it should be that of Ray's dashboard, on the head at port 8265 as a rule"
_OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class ClusterLost(ClipmillError):
    """The cluster's job server does not answer."""


@dataclass(frozen=True)
class Job:
    """One run on a cluster, as Ray tells of it. `status`: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    id: str
    status: str
    message: str
    exit_code: int | None  # of the driver; None while it works, and where Ray lost it
    began_at: datetime | None
    ended_at: datetime | None
    metadata: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        """Whether it has ended, however."""
        return self.status in _OVER


def stem(output: str) -> str:
    """What the ids of all jobs of an output begin with; `output` is normalised. Ids end in -1, -2, ..."""
    name = re.sub(r"[^a-z0-9]+", "-", output.rstrip("/").rpartition("/")[2].lower()).strip("-")[:32]
    digest = hashlib.sha256(output.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return "-".join(part for part in ("clipmill", name, digest) if part)


def number_of(job_id: str | None, of: str) -> int | None:
    """Which job of the stem `of` an id is; None where it is none."""
    head, _, tail = (job_id or "").rpartition("-")
    return int(tail) if head == of and tail.isdecimal() else None


class Jobs:
    """The job server of a Ray cluster. Methods raise ClusterLost where it does not answer, BadRequest where it refuses."""

    def __init__(self, address: str) -> None:
        """`address`: http://HEAD:8265, as Ray's dashboard has it. Raises BadRequest, within seconds, where none answers."""
        self.address = checked_address(address)
        try:
            with self._answered():
                self._client = _client(self.address)
        except (ClusterLost, BadRequest) as error:
            if isinstance(error, BadRequest) and "Version check" not in str(error):
                raise
            raise BadRequest(f"--address {self.address}: no job server of Ray answers there; {_USUAL}") from error

    def latest(self, output: str) -> Job | None:
        """The last job that was sent for an output (normalised); None where there is none."""
        of = stem(output)
        with self._answered():
            numbered = [(number_of(found.submission_id, of), found) for found in self._client.list_jobs()]
        ours = [(number, found) for number, found in numbered if number is not None]
        return _job(max(ours, key=lambda one: one[0])[1]) if ours else None

    def send(self, output: str, folder: Path, metadata: Mapping[str, str]) -> Job:
        """Starts what lies in `folder` (a program called ENTRY_NAME, and what it needs) as the next job of an output.

        Raises BadRequest where the last one still works.
        """
        last = self.latest(output)
        if last is not None and not last.is_over:
            raise _busy(output, last)
        of = stem(output)
        job_id = f"{of}-{1 + (number_of(last.id, of) or 0 if last else 0)}"
        environment = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        runtime_env = {"working_dir": str(folder), "env_vars": environment}
        try:
            with self._answered():
                self._client.submit_job(
                    entrypoint=ENTRYPOINT.format(ENTRY_NAME),
                    submission_id=job_id,
                    runtime_env=runtime_env,
                    metadata=dict(metadata),
                )
        except BadRequest as error:
            if "already exists" in str(error):
                raise _busy(output, self.job(job_id)) from error
            if "status code 413" in str(error):
                raise BadRequest(
                    f"--address {self.address}: takes no more than 100 MB at a time; put a manifest that is larger where the "
                    "cluster can read it"
                ) from error
            raise
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        """How a job stands."""
        with self._answered():
            return _job(self._client.get_job_info(job_id))

    def stop(self, job_id: str) -> None:
        """Asks a job to end, as Ctrl-C does; it publishes what is complete."""
        with self._answered():
            self._client.stop_job(job_id)

    def forget(self, job_id: str) -> None:
        """Takes a job that is over off the cluster's list."""
        with self._answered():
            self._client.delete_job(job_id)

    def log(self, job_id: str) -> list[str]:
        """All lines of a job's log so far."""
        with self._answered():
            text: str = self._client.get_job_logs(job_id)
        return text.removesuffix("\n").split("\n")

    def lines(self, job_id: str, patience_s: float = PATIENCE_S) -> Iterator[str]:
        """The lines of a job's log from its beginning, as they come, until the job is over.

        Connects again where the connection breaks; raises ClusterLost once nothing has answered for `patience_s`.
        """
        seen = 0
        while True:
            with contextlib.suppress(*_broken()):
                for number, line in enumerate(_complete_lines(self._chunks(job_id))):
                    if number >= seen:
                        seen += 1
                        yield line
            job = _patiently(lambda: self.job(job_id), patience_s)
            if job.is_over:
                yield from _patiently(lambda: self.log(job_id), patience_s)[seen:]
                return

    def _chunks(self, job_id: str) -> Iterator[str]:
        tail = self._client.tail_job_logs(job_id)

        async def following() -> str | None:
            return await asyncio.wait_for(anext(tail, None), QUIET_S)

        with asyncio.Runner() as runner:
            try:
                while (chunk := runner.run(following())) is not None:
                    yield chunk
            finally:
                runner.run(tail.aclose())

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """What Ray's client raises, in our words."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise BadRequest(
                f"--address {self.address}: the cluster wants another token than the one sent; set RAY_AUTH_MODE=token, and "
                "the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
            ) from error
        except (requests.RequestException, OSError, ValueError) as error:
            raise ClusterLost(f"--address {self.address}: no job server answers there") from error
        except RuntimeError as error:
            raise BadRequest(f"--address {self.address}: {_reason(str(error))}") from error


def checked_address(address: str) -> str:
    """`address` of a job server, with its scheme. Raises BadRequest for those of something else."""
    scheme, separator, rest = address.partition("://")
    if address == "auto" or (separator and scheme not in ("http", "https")) or not (rest if separator else address):
        raise BadRequest(f"--address {address}: should be that of Ray's dashboard, such as http://HEAD:8265")
    return address.rstrip("/") if separator else f"http://{address.rstrip('/')}"


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):  # type: ignore[misc] # Ray is untyped
        """Ray's, which would wait for ever."""

        def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": (CONNECT_S, ANSWER_S)} | kwargs)

    # Ray prefers the environment to what it is given.
    with _environment("RAY_API_SERVER_ADDRESS", address):
        return Client(address)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _job(found: Any) -> Job:
    return Job(
        id=found.submission_id,
        status=str(getattr(found.status, "value", found.status)),
        message=found.message or "",
        exit_code=found.driver_exit_code,
        began_at=_time(found.start_time),
        ended_at=_time(found.end_time),
        metadata=dict(found.metadata or {}),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _busy(output: str, job: Job) -> BadRequest:
    since = f" since {job.began_at:%Y-%m-%d %H:%M} UTC" if job.began_at else ""
    return BadRequest(f"{output}: job {job.id} works on it{since}; --follow shows it, --stop ends it")


def _reason(said: str) -> str:
    """The last line of what a job server said, which may be a traceback."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return one_line(lines[-1].removesuffix(".")) if lines else "refused"


def _complete_lines(chunks: Iterator[str]) -> Iterator[str]:
    """Lines without their ends; one that is cut in two by chunks is put together, one without an end is left out."""
    rest = ""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split("\n")
        yield from complete


def _broken() -> tuple[type[Exception], ...]:
    """What a log raises whose connection breaks."""
    import aiohttp

    return (aiohttp.ClientError, OSError, TimeoutError, RuntimeError)


def _patiently(ask: Callable[[], _T], patience_s: float) -> _T:
    """The answer, asked for again while nobody answers. A server that does not know the job any more has lost it."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except BadRequest as error:
            raise ClusterLost(str(error)) from error
        except ClusterLost:
            if time.monotonic() >= until:
                raise
            time.sleep(2.0)
