"""What the ledger knows, in a few bytes a video: which fingerprints are settled, and whom a replaced file supersedes.

The ledger is read in the order of the log, by the columns that matter, a batch at a time. A video costs 16 bytes of id, 1 to 8
of state and 16 to find it by its uri; one that supersedes another costs 32 more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.idtable import Ids, IdTable, first_of_each, hashes, packed, unpacked
from pipeline.log import EpochState, Log, PromiseBroken
from pipeline.parallel import mapped
from schemas.errors import BadRequest
from schemas.tables import TIMESTAMP, StageStatus, VideoStatus
from stages.storage import Store

_COLUMNS = ["video_id", "uri", "supersedes", "status", "stages"]
_DONE = pa.array([StageStatus.OK.value, StageStatus.PARTIAL.value])
_GAVE_UP = pa.array([VideoStatus.FAILED.value, VideoStatus.QUARANTINED.value])
MOST_FINGERPRINTS = 31
_BATCH_ROWS = 1 << 16
SMALL_BYTES = 256 << 10
AHEAD = 16  # small epochs in memory at a time


class Known:
    """State of every video in the ledger, for the fingerprints asked about (clips first).

    Of a video and a fingerprint, two bits. Done: some row has it as ok or partial; this stays. Given up: the last row that
    speaks of it has it as failed, and the video as failed or quarantined; where such a row gives up the clips, it gives up all
    that follows from them.
    """

    def __init__(self, fingerprints: Sequence[str]) -> None:
        if len(fingerprints) > MOST_FINGERPRINTS:
            raise BadRequest(f"a run can have {MOST_FINGERPRINTS - 1} models, not {len(fingerprints) - 1}")
        self.fingerprints = tuple(fingerprints)
        self._count = len(fingerprints)
        self._all = (1 << self._count) - 1
        state = next(kind for kind, bits in (("u1", 8), ("u2", 16), ("u4", 32), ("u8", 64)) if bits >= 2 * self._count)
        self._state = IdTable("S16", state)
        self._by_uri = IdTable("i8", "S8")  # hash of the uri -> first half of the id that had it last
        self._superseded = IdTable("S16", "S16")

    def __len__(self) -> int:
        return len(self._state)

    @property
    def bytes(self) -> int:
        """Memory of it all."""
        return self._state.bytes + self._by_uri.bytes + self._superseded.bytes

    def add(self, rows: pa.Table) -> None:
        """Takes in rows of the ledger (VIDEOS columns) of one epoch, later ones after earlier ones."""
        if not rows.num_rows:
            return
        ids = packed(rows["video_id"])
        done, spoken, given_up = self._bits(rows)
        state = self._state.get(ids)[1].astype(np.uint64)
        count = np.uint64(self._count)
        was_done, was_given_up = state & np.uint64(self._all), state >> count
        now = (was_done | done) | (((was_given_up & ~spoken) | given_up) << count)
        self._state.put(ids, now)
        self._add_uris(ids, rows)

    def _bits(self, rows: pa.Table) -> tuple[npt.NDArray[np.uint64], ...]:
        """Per row: fingerprints that are done, that the row speaks of, and that it gives up."""
        stages = rows["stages"].combine_chunks()
        flat = pc.list_flatten(stages)
        place = pc.index_in(flat.field("fingerprint"), pa.array(self.fingerprints))
        ours = place.is_valid()
        parent = pc.list_parent_indices(stages).filter(ours).to_numpy()
        status = flat.field("status").filter(ours)
        bit = np.left_shift(np.uint64(1), place.filter(ours).to_numpy().astype(np.uint64))
        reach = np.where(bit == 1, np.uint64(self._all), bit)
        is_done = pc.is_in(status, _DONE).to_numpy(zero_copy_only=False)
        gave_up = pc.is_in(rows["status"].combine_chunks(), _GAVE_UP).to_numpy(zero_copy_only=False)[parent]
        gave_up &= pc.equal(status, StageStatus.FAILED.value).to_numpy(zero_copy_only=False)

        def gathered(mask: npt.NDArray[np.bool_], bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
            out = np.zeros(rows.num_rows, dtype=np.uint64)
            np.bitwise_or.at(out, parent[mask], bits[mask])
            return out

        everything = np.ones(len(bit), dtype=bool)
        return gathered(is_done, bit), gathered(everything, np.where(gave_up, reach, bit)), gathered(gave_up, reach)

    def _add_uris(self, ids: Ids, rows: pa.Table) -> None:
        names = hashes(rows["uri"].to_pylist())
        # Of one uri that has several rows the last counts, so the order is turned before the first of each is kept.
        last = first_of_each(names[::-1])[::-1]
        self._by_uri.put(names[last], _halves(ids)[last])
        replaced = rows["supersedes"].is_valid()
        if pc.any(replaced).as_py():
            self._superseded.put(ids[replaced.to_numpy()], packed(rows["supersedes"].filter(replaced)))

    def done(self, ids: Ids) -> npt.NDArray[np.uint64]:
        """Bits of the fingerprints that are published or about to be, shape (n,)."""
        return self._state.get(ids)[1].astype(np.uint64) & np.uint64(self._all)

    def given_up(self, ids: Ids) -> npt.NDArray[np.uint64]:
        """Bits of the fingerprints that failed for good, shape (n,)."""
        return self._state.get(ids)[1].astype(np.uint64) >> np.uint64(self._count)

    def names(self, bits: npt.NDArray[np.uint64]) -> pa.Array:
        """Bits, shape (n,) -> list<string> of their fingerprints."""
        kinds, which = np.unique(bits, return_inverse=True)
        lists = [[name for place, name in enumerate(self.fingerprints) if int(kind) >> place & 1] for kind in kinds]
        return pa.array(lists, pa.list_(pa.string())).take(pa.array(which.reshape(-1)))

    def supersedes(self, ids: Ids, uris: Sequence[str]) -> pa.Array:
        """The video that each one replaces: as its own rows have it, else the last other one at its uri, else null."""
        recorded, earlier = self._superseded.get(ids)
        found, halves = self._by_uri.get(hashes(uris))
        found &= (halves != _halves(ids)) & ~recorded
        earlier[found] = self._state.starting_with(halves[found])
        names = pa.array(unpacked(earlier), pa.string())
        return pc.if_else(pa.array(recorded | found), names, pa.scalar(None, pa.string()))


def _halves(ids: Ids) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(ids.view("S8").reshape(len(ids), 2)[:, 0])


def rows_of(store: Store, epoch: EpochState, columns: Sequence[str] = _COLUMNS) -> Iterator[pa.Table]:
    """The ledger's rows of an epoch, a batch at a time: from the table once it is published, else as planned.

    Raises PromiseBroken where the log names an object that is not there.
    """
    plan = epoch.plan.body["ledger"]
    key = plan["key"] if epoch.commit else plan["planned"]
    try:
        with store.known(key), store.open_read(key) as file:
            # In this thread: what Arrow's pool of threads allocates, they keep. It was half of the memory of a known video.
            batches = pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False)
            for batch in batches:
                yield pa.Table.from_batches([batch])
    except FileNotFoundError:
        raise PromiseBroken(
            f"{store.uri(key)} is gone, but the log counts on it; `clipmill verify` tells what else is"
        ) from None


class Reader:
    """Keeps a `Known` up with a log."""

    def __init__(self, log: Log, known: Known) -> None:
        self._log, self.known = log, known
        self._next = 0

    def read_on(self, without: Collection[int] = ()) -> None:
        """Takes in the epochs that the log has beyond those read, but for void ones and `without`. The log is not refreshed."""
        found = (self._log.epochs.get(number) for number in range(self._next, self._log.length) if number not in without)
        epochs = [epoch for epoch in found if epoch is not None and not epoch.void]
        for epoch, tables in zip(epochs, mapped(self._fetched, epochs, ahead=AHEAD), strict=True):
            for rows in rows_of(self._log.store, epoch) if tables is None else tables:
                self.known.add(rows)
        self._next = self._log.length

    def _fetched(self, epoch: EpochState) -> list[pa.Table] | None:
        """The rows of a small epoch, of which there are many; None for one that is worth a stream. Of one that was put together
        from others, the rows of each of them by itself, oldest first: what was said last of a video counts.
        """
        if epoch.plan.body.get("origins"):
            rows = pa.concat_tables(rows_of(self._log.store, epoch, [*_COLUMNS, "finished_at"]))
            times = sorted(pc.unique(rows["finished_at"]).to_pylist())
            return [rows.filter(pc.equal(rows["finished_at"], pa.scalar(at, TIMESTAMP))) for at in times]
        is_small = epoch.plan.body["ledger"]["size_bytes"] <= SMALL_BYTES
        return list(rows_of(self._log.store, epoch)) if is_small else None
