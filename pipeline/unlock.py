"""Closing runs by hand: for when a lease has not lapsed but somebody knows that its run is dead."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.storage import Store


@dataclass(frozen=True)
class OpenRun:
    """A run that nobody has closed."""

    run: str
    opened_at: datetime
    host: str
    pid: int
    expires_at: datetime
    is_alive: bool | None  # None: its process cannot be seen from here

    def line(self) -> str:
        """What a person should know before closing it."""
        if self.is_alive is None:
            now = datetime.now(UTC)
            seen = (
                "lease lapsed" if self.expires_at < now else f"lease holds for {(self.expires_at - now).total_seconds():.0f} s"
            )
        else:
            seen = "its process IS RUNNING" if self.is_alive else "its process has ended"
        where = f" on {self.host}, process {self.pid}" if self.host else ""
        return f"run {self.run}, opened {self.opened_at:%Y-%m-%d %H:%M} UTC{where}: {seen}"


def open_runs(store: Store) -> list[OpenRun]:
    """Runs of the log that are open, oldest first. Raises PromiseBroken at a damaged log."""
    from pipeline import lease
    from pipeline.log import Log

    log = Log(store)
    log.refresh()
    found = []
    for run, state in log.runs.items():
        if not state.closed:
            held = lease.read(store, state)
            gone = held.owner.is_gone()
            is_alive = None if gone is None else not gone
            found.append(OpenRun(run, state.opened.at, held.owner.host, held.owner.pid, held.expires_at, is_alive))
    return found


def close(store: Store, runs: list[OpenRun]) -> str:
    """Closes them, finishes or takes back what they had begun to publish, and says what was done."""
    from pipeline.recovery import unlock

    done = unlock(store, [run.run for run in runs])
    closed = ", ".join(done.closed) or "none"
    return f"closed: {closed}; {len(done.committed)} epochs finished, {len(done.voided)} taken back"
