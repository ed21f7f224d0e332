"""`clipmill submit`: sends a run to a cluster, follows it, stops it, says how it stands."""

from __future__ import annotations

import platform
import secrets
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.submit import ClusterLost, Job, Jobs
from pipeline import summary
from pipeline.progress import Figures, describe
from pipeline.watch import TOKEN, Watch, account_of, code_of
from schemas.errors import BadRequest
from schemas.secrets import redacted

if TYPE_CHECKING:
    from pipeline.parcel import Parcel


@dataclass(frozen=True)
class Desk:
    """Where a person asks for the job of one output: `out` prints a result, `note` a line beside it."""

    jobs: Jobs
    output: str  # normalised
    out: Callable[[str], None]
    note: Callable[[str], None]
    as_json: bool = False  # whoever follows wants JSON lines

    def send(self, parcel: Parcel) -> int:
        """Sends a run and follows it. A job that is refused there leaves no trace on the cluster."""
        with tempfile.TemporaryDirectory(prefix="clipmill-job-") as folder:
            token = secrets.token_hex(8)
            parcel.pack(Path(folder), token)
            metadata = {TOKEN: token, "clipmill_output": self.output, "clipmill_from": platform.node()}
            job = self.jobs.send(self.output, Path(folder), metadata)
        self.note(f"job {job.id} on {self.jobs.address}; Ctrl-C leaves it running")
        code = self._watch(job)
        if code == summary.BAD_REQUEST:
            self.jobs.forget(job.id)
        return code

    def follow(self) -> int:
        """Follows the run that works on the output, or tells of the last one."""
        return self._watch(self._job())

    def stop(self) -> int:
        """Ends the run that works on the output, and waits until it has published what is complete."""
        job = self._job()
        if job.is_over:
            raise BadRequest(f"{self.output}: no run works on it; job {job.id} ended {_ago(job)}")
        self.jobs.stop(job.id)
        self.note(f"job {job.id} stops; what is complete is published first")
        return self._watch(job, shows=False)

    def status(self) -> dict[str, Any]:
        """The state of the last run, plain values."""
        job = self._job()
        account = account_of(job)
        for line in self.jobs.log(job.id):
            account.hear(line)
        return {
            "job": job.id,
            "cluster": redacted(self.jobs.address),
            "output": self.output,
            "state": "ended" if job.is_over else "waiting" if job.status == "PENDING" else "running",
            "exit_code": code_of(job, account) if job.is_over else None,
            "began_at": job.began_at.isoformat(" ", "seconds") if job.began_at else None,
            "ended_at": job.ended_at.isoformat(" ", "seconds") if job.ended_at and job.is_over else None,
            "so_far": None if account.figures is None else vars(account.figures),
            "result": list(account.result),
            "trouble": account.trouble,
        }

    def _job(self) -> Job:
        job = self.jobs.latest(self.output)
        if job is None:
            raise BadRequest(f"{self.output}: no run was sent to {self.jobs.address} for it")
        return job

    def _watch(self, job: Job, *, shows: bool = True) -> int:
        try:
            return Watch(self.jobs, job, self.out, self.note, as_json=self.as_json).until_over(shows=shows)
        except KeyboardInterrupt:
            self.note(f"clipmill: left; the run {'goes on' if shows else 'still comes to its end'}")
            self.note("\n".join(self._ways()))
            return summary.INTERRUPTED
        except ClusterLost as error:
            self.note(f"clipmill: {error}; the run may go on there")
            self.note("\n".join(self._ways()))
            return summary.STOPPED

    def _ways(self) -> list[str]:
        command = f"clipmill submit --output {shlex.quote(self.output)} --address {self.jobs.address}"
        return [f"  follow it  {command} --follow", f"  stop it    {command} --stop"]


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """For people what `Desk.status` says."""
    code = found["exit_code"]
    figures = Figures(**found["so_far"]) if found["so_far"] and not found["result"] else None
    if figures is not None and code is not None:
        figures = replace(figures, total_videos=None)  # no time is left
    rows = [
        ("job", f"{found['job']} on {found['cluster']}"),
        ("state", found["state"] if code is None else f"{found['state']} with exit code {code}"),
        ("began", (found["began_at"] or "").replace("+00:00", " UTC")),
        ("ended", (found["ended_at"] or "").replace("+00:00", " UTC")),
        ("so far", describe(figures) if figures is not None else None),
        ("tables", found["output"]),
        ("trouble", found["trouble"]),
    ]
    return [*(f"{name:<8} {value}" for name, value in rows if value), *found["result"]]


def _ago(job: Job) -> str:
    return f"{job.ended_at:%Y-%m-%d %H:%M} UTC" if job.ended_at else "already"
