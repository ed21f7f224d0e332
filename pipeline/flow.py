"""Steps become a Ray dataset: the one loop that knows Ray Data, and what runs in its workers."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import pyarrow as pa

from pipeline import wire
from pipeline.measured import Took
from pipeline.metering import worker_meter
from pipeline.plan import Step
from pipeline.raydata import configure, deprecations_unheard
from pipeline.worknotes import Notebook
from schemas.secrets import hidden
from stages.models.adapter import BrokenDevice
from stages.storage import Store

# A generator's rows leave its task when they pass this size: small enough that models start soon, large enough for a batch.
DECODED_BLOCK_BYTES = 24 << 20
MOST_DECODED_BLOCK_BYTES = 192 << 20  # whatever the grain: a worker holds it twice
BROKEN_DEVICE = 70  # exit status of a worker whose device is broken
GATHER_S = 0.1  # that receipts gather before they are taken in
# Of tasks, that is of decoding, of which there is always more than processors: the models' actors, which Ray keeps at 15, come
# first, or the first of them would take half a minute to load.
NICENESS = 19
END_S = 30.0  # that the end of a dataset's tasks may take before the run goes on to its own end without it


def faults_folder(run_id: str) -> str:
    """Where workers leave the tracebacks of unexpected errors."""
    return f"_runs/{run_id}/faults"


class Worker:
    """Calls a step's stage in a Ray worker; notes what it is at, and writes down an error that nobody expected."""

    def __init__(self, step: Step, root: str, run_id: str, turn: int) -> None:
        import ray

        wire.use()
        self._root, self._run_id, self._step = root, run_id, step.name
        self._notebook = Notebook(run_id, turn, ray.get_runtime_context().get_node_id(), step.name)
        with self._written_down("while the stage was built"):
            self._stage = step.stage(*step.args)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """What the stage makes of a table, whether it returns one table or yields several.

        A process whose device is broken ends: Ray makes a new one, where this one would fail at every table it is given.
        """
        try:
            yield from self._made_of(table)
        except BrokenDevice:
            os._exit(BROKEN_DEVICE)

    def _made_of(self, table: pa.Table) -> Iterator[pa.Table]:
        videos = ", ".join(sorted(set(table["video_id"].to_pylist())))
        holding = worker_meter().holding(self._step, table)
        with self._written_down(f"at videos {videos}"), self._notebook.at(table) as note, holding:
            out = self._stage(table)
            for one in [out] if isinstance(out, pa.Table) else out:
                note.handing_over(one)
                yield one
                note.going_on()

    def _written_down(self, where: str) -> _WrittenDown:
        return _WrittenDown(self._root, self._run_id, where)


class _WrittenDown:
    def __init__(self, root: str, run_id: str, where: str) -> None:
        self._root, self._run_id, self._where = root, run_id, where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        text = hidden(f"{self._where}\n{''.join(traceback.format_exception(error))}")
        Store(self._root).write(f"{faults_folder(self._run_id)}/{uuid.uuid4().hex}.txt", text.encode())


def _work(table: pa.Table, step: Step, root: str, run_id: str, turn: int) -> Iterator[pa.Table]:
    """A step that runs as tasks. A process keeps what it has built: the same worker serves many tasks of a round."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    key = pickle.dumps((step, root, run_id, turn))
    worker = _kept.pop(key, None) or Worker(step, root, run_id, turn)
    yield from worker(table)
    _kept.clear()  # one is enough: a worker that fails, or that another round needs no more, is not kept
    _kept[key] = worker


_kept: dict[bytes, Worker] = {}


def dataset(
    blocks: Iterable[pa.Table],
    steps: Sequence[Step],
    root: str,
    run_id: str,
    turn: int,
    *,
    one_by_one: bool = False,
    grain: int = 1,
) -> Any:
    """A lazy Ray dataset of `steps` over `blocks`, one input block per table: round number `turn` of a run.

    Ray repeats nothing: what is lost with a worker or a node shows in missing receipts, and Rounds knows better than Ray
    whether it is safe to try that again. An actor that dies is replaced, and only what it held is lost. `one_by_one`: the
    first step takes one block at a time. `grain`: times as much in a block that leaves a task as on one machine.
    """
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from pipeline.blocks import Blocks

    wire.use()
    configure(min(grain * DECODED_BLOCK_BYTES, MOST_DECODED_BLOCK_BYTES))
    with deprecations_unheard():
        # It asks for what the first step does, so that Ray makes one operator of the two.
        data = ray.data.read_datasource(Blocks(blocks), num_cpus=steps[0].cpus, ray_remote_args={"max_retries": 0})
    for step in steps:
        common = {"batch_format": "pyarrow", "batch_size": step.batch_rows, "num_cpus": step.cpus, "zero_copy_batch": True}
        if step.gpus:
            common["num_gpus"] = step.gpus
        if step.accelerator_type:
            common["accelerator_type"] = step.accelerator_type
        if step.actors is None:
            call: dict[str, Any] = {"fn": _work, "fn_args": (step, root, run_id, turn), "max_retries": 0}
            if most := 1 if one_by_one and step is steps[0] else step.tasks:
                call["compute"] = TaskPoolStrategy(size=most)
        else:
            fewest, most = step.actors
            call = {
                "fn": Worker,
                "fn_constructor_args": (step, root, run_id, turn),
                "compute": ActorPoolStrategy(min_size=fewest, max_size=most),
                "max_restarts": -1,
                "max_task_retries": 0,
            }
        with deprecations_unheard():
            data = data.map_batches(**call, **common)
    return data


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of several; an empty block may come without columns."""
    return pa.concat_tables([table for table in tables if table.num_rows] or tables[:1])


class Receipts:
    """Runs a dataset in a thread, so that whoever waits for receipts can also watch the clock."""

    def __init__(self, data: Any, gather_s: float = GATHER_S) -> None:
        self._data, self._gather_s = data, gather_s
        self._queue: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=256)
        self._held: deque[Any] = deque()  # what was taken from the queue and not told yet
        self._thread = threading.Thread(target=self._pump, name="receipts", daemon=True)
        self._stopped, self._is_over = threading.Event(), threading.Event()
        self._thread.start()

    def _pump(self) -> None:
        try:
            for table in self._data.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
                if not self._put(table):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._put(error)
        finally:
            self._is_over.set()

    def _put(self, item: pa.Table | BaseException | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=1.0)
                return True
        return False

    def wait(self, timeout_s: float) -> pa.Table | None:
        """All receipts of `gather_s`; None after `timeout_s` without any; raises StopIteration at the end.

        Tables are put together: taking in a few receipts costs a driver as much as taking in hundreds.
        """
        if not self._held:
            try:
                self._held.append(self._queue.get(timeout=timeout_s))
            except queue.Empty:
                return None
            self._is_over.wait(self._gather_s)
        with contextlib.suppress(queue.Empty):
            while True:
                self._held.append(self._queue.get_nowait())
        tables = list(takewhile(lambda item: isinstance(item, pa.Table), self._held))
        if tables:
            for _ in tables:
                self._held.popleft()
            return _together(tables)
        last = self._held.popleft()
        if last is None:
            raise StopIteration
        raise last

    def took(self, steps: Sequence[Step]) -> dict[str, Took]:
        """What the steps took, once the dataset has come to its end; empty where Ray's figures do not match the steps."""
        summary = getattr(self._data, "get_stats_summary", None)  # of Ray 2.60; others may call it otherwise
        operators = _operators(summary()) if summary else []
        if len(operators) != len(steps):
            return {}
        return {step.name: _took(operator) for step, operator in zip(steps, operators, strict=True)}

    def stop(self) -> None:
        """Takes no more receipts and ends the dataset's tasks and actors, those that hang too.

        Ray Data ends with whoever iterates over it, but that is a thread that may wait for ever. So its executor is told, by
        the only name it has in Ray 2.60; without it the tasks end with the driver. The thread is waited for, too: it may be
        the one that ends the executor, and Ray ends the whole process where a thread is at it while it is shut down.
        """
        self._stopped.set()
        until_s = time.monotonic() + END_S
        executor = getattr(self._data, "_current_executor", None)
        if executor is not None and self._thread.is_alive():
            ending = threading.Thread(target=executor.shutdown, kwargs={"force": True}, name="end of receipts", daemon=True)
            ending.start()
            ending.join(END_S)
        self._thread.join(max(0.0, until_s - time.monotonic()))


def _operators(summary: Any) -> list[Any]:
    """Figures of the operators that work, the first one first. Reading is one more where Ray splits few blocks into many."""
    before = [operator for parent in summary.parents for operator in _operators(parent)]
    own = [one for one in summary.operators_stats if one.wall_time and "MapBatches" in one.operator_name]
    return [*before, *own]


def _took(operator: Any) -> Took:
    return Took(operator.cpu_time.sum if operator.cpu_time else 0.0, operator.wall_time.sum)
