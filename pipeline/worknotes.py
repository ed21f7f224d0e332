"""What workers are at, in small files on their own node: where a run that stands still is stuck, and what a worker was at
when it died. Nothing of this crosses the network until somebody asks (pipeline/witness.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipeline.lease import Owner
from schemas.errors import one_line
from schemas.identity import unit_id

SUFFIX = ".json"
KEPT_S = 7 * 86400.0  # longer than a round may take, after which its notes are read
State = Literal["working", "waiting", "failed"]
_NEEDED = ("video_id", "unit", "units", "uri")


@dataclass(frozen=True)
class AtUnit:
    """A unit as people look for it."""

    name: str  # unit_id
    uri: str
    unit: int
    units: int


@dataclass(frozen=True)
class Note:
    """What one worker is at. `waiting`: it has handed something over and the next step has not taken it yet."""

    run: str
    turn: int  # number of the run's round
    node: str
    step: str
    owner: Owner
    since: float  # seconds since 1970, when the first of `units` was begun
    units: tuple[AtUnit, ...]
    state: State = "working"
    error: str | None = None  # what it failed with, `KeyError: 'x'`
    is_storage: bool = False  # whether that was the storage's fault

    @property
    def has_died(self) -> bool:
        """Whether its worker ended while it worked."""
        return self.state == "working" and self.owner.is_gone() is True


def folder(base: Path | None = None) -> Path:
    """This node's notes, of this user, below `base` (its temporary folder); made where it is not there.

    OSError where somebody else sits in its place.
    """
    found = (base or Path(tempfile.gettempdir())) / f"clipmill-work-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        found.mkdir(mode=0o700)
    info = found.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise PermissionError(f"{found} is not a folder of ours")
    return found


class Notebook:
    """Keeps the note of one worker. Trouble with the disk costs the note, never the work."""

    def __init__(self, run: str, turn: int, node: str, step: str, base: Path | None = None) -> None:
        self._run, self._turn, self._node, self._step, self._owner = run, turn, node, step, Owner.here()
        self._base = base
        with contextlib.suppress(OSError):
            _sweep(folder(base), run)

    @contextlib.contextmanager
    def at(self, table: pa.Table) -> Iterator[_Page]:
        """A page for as long as a table of rows is worked on; it stays where that ends in an exception."""
        page = _Page(Note(self._run, self._turn, self._node, self._step, self._owner, time.time(), _units(table)), self._base)
        try:
            yield page
        except Exception as error:
            page.failed(error)
            raise
        except BaseException:
            page.tear_out()
            raise
        else:
            page.tear_out()


class _Page:
    def __init__(self, note: Note, base: Path | None) -> None:
        self._note = note
        self._file: int | None = None
        self._path: Path | None = None
        with contextlib.suppress(OSError):
            self._path = folder(base) / f"{note.run}.{secrets.token_hex(8)}{SUFFIX}"
            self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._write()

    def handing_over(self, table: pa.Table) -> None:
        """A table leaves: what it ends is done, and for the rest its worker may have to wait."""
        ended = _ended(table)
        left = tuple(unit for unit in self._note.units if unit.name not in ended)
        self._note = replace(self._note, units=left, state="waiting", since=time.time() if ended else self._note.since)
        self._write()

    def going_on(self) -> None:
        """The table was taken."""
        self._note = replace(self._note, state="working")
        self._write()

    def failed(self, error: Exception) -> None:
        """The work ended in an exception; whoever asks next finds out at what."""
        from stages.storage import StorageUnavailable

        text = one_line(f"{type(error).__name__}: {error}")
        self._note = replace(self._note, state="failed", error=text, is_storage=isinstance(error, StorageUnavailable))
        self._write()
        self._close()

    def tear_out(self) -> None:
        """The work is done."""
        self._close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _write(self) -> None:
        """One line over the old one; what is left behind it of a longer one does not count."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._file, json.dumps(asdict(self._note)).encode() + b"\n", 0)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _units(table: pa.Table) -> tuple[AtUnit, ...]:
    rows = zip(*(table[name].to_pylist() for name in _NEEDED), strict=True)
    return tuple(AtUnit(unit_id(video, unit), uri, unit, units) for video, unit, units, uri in dict.fromkeys(rows))


def _ended(table: pa.Table) -> set[str]:
    if "end" not in table.column_names:
        return set()
    over = table.select(["video_id", "unit"]).filter(table["end"].is_valid()).to_pylist()
    return {unit_id(row["video_id"], row["unit"]) for row in over}


def read(run: str, nodes: Sequence[str] | None = None, base: Path | None = None) -> list[tuple[Path, Note]]:
    """The notes of a run on this machine; of some Ray nodes only, where `nodes` names them."""
    found = []
    for path in sorted(folder(base).glob(f"{run}.*{SUFFIX}")):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # done, or not begun, in this moment
            note = _from_json(json.loads(path.read_bytes().partition(b"\n")[0]))
            if nodes is None or note.node in nodes:
                found.append((path, note))
    return found


def _from_json(body: dict[str, Any]) -> Note:
    units = tuple(AtUnit(**unit) for unit in body["units"])
    return Note(**{**body, "owner": Owner(**body["owner"]), "units": units})


def _sweep(there: Path, run: str) -> None:
    """Clears away what workers of runs of long ago left when they died. Younger notes may be another run's evidence."""
    for path in there.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if not path.name.startswith(f"{run}.") and path.stat().st_mtime < time.time() - KEPT_S:
                path.unlink()
