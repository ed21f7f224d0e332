"""Leases: how a run says that it lives, and how others find out that it does not.

The log alone keeps two runs from publishing the same; a lease only decides how soon a dead run is cleared away. A run that
is taken for dead by mistake (stopped for long, clocks far apart) loses time, never rows.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.log import RunState, timestamp
from stages.storage import Store

LEASE_S = 120.0
RENEW_S = 30.0  # renew at least this often


@dataclass(frozen=True)
class Owner:
    """A process, told apart from others of its machine and from its successors of the same number."""

    host: str
    machine: str | None  # id of the boot and of the pid namespace; None where the system has none
    pid: int
    started: str | None  # ticks since the boot

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()))

    def is_gone(self) -> bool | None:
        """True: ended. False: runs. None: cannot be seen from here."""
        if self.machine is None or self.machine != _machine():
            return None
        return _started(self.pid) != self.started


def _machine() -> str | None:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie process has ended


@dataclass(frozen=True)
class Lease:
    """The word of a run that it lives until `expires_at`, unless it renews it."""

    run: str
    owner: Owner
    expires_at: datetime

    def is_dead(self, now: datetime) -> bool:
        """Whether its run is over: its process is gone, or nobody can see the process and the time is up."""
        gone = self.owner.is_gone()
        return gone is True or self.expires_at < now


def key_of(run: str) -> str:
    """Key of a run's lease."""
    return f"_runs/{run}/lease.json"


def write(store: Store, lease: Lease) -> None:
    """Makes or renews a lease."""
    body = {"run": lease.run, "owner": asdict(lease.owner), "expires_at": timestamp(lease.expires_at)}
    store.write(key_of(lease.run), json.dumps(body, indent=1).encode())


def read(store: Store, run: RunState) -> Lease:
    """A run's lease as it stands; where there is none that can be read, one that began when the run was opened."""
    name = run.opened.run
    return find(store, name) or Lease(name, Owner("", None, 0, None), run.opened.at + timedelta(seconds=LEASE_S))


def find(store: Store, run: str) -> Lease | None:
    """A run's lease as it stands; None where there is none that can be read."""
    try:
        body = json.loads(store.read(key_of(run)))
        return Lease(run, Owner(**body["owner"]), datetime.fromisoformat(body["expires_at"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
