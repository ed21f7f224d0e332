"""Steps become a Ray dataset: the one loop that knows Ray Data, and what runs in its workers."""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.plan import Step
from stages.storage import Store

# A generator's rows leave its task when they pass this size: small enough that models start soon, large enough for a batch.
DECODED_BLOCK_BYTES = 24 << 20


def faults_folder(run_id: str) -> str:
    """Where workers leave the tracebacks of unexpected errors."""
    return f"_runs/{run_id}/faults"


class Worker:
    """Calls a stage in a Ray worker and writes down an error that nobody expected before Ray sees it."""

    def __init__(self, stage: Callable[..., Any], args: tuple[Any, ...], root: str, run_id: str) -> None:
        self._root, self._run_id = root, run_id
        with self._written_down("while the stage was built"):
            self._stage = stage(*args)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """What the stage makes of a table, whether it returns one table or yields several."""
        with self._written_down(f"at videos {', '.join(sorted(set(table['video_id'].to_pylist())))}"):
            out = self._stage(table)
            if isinstance(out, pa.Table):
                yield out
            else:
                yield from out

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
        text = f"{self._where}\n{''.join(traceback.format_exception(error))}"
        Store(self._root).write(f"{faults_folder(self._run_id)}/{uuid.uuid4().hex}.txt", text.encode())


def _work(table: pa.Table, stage: Callable[..., Any], args: tuple[Any, ...], root: str, run_id: str) -> Iterator[pa.Table]:
    """A step that runs as tasks. A process keeps what it has built: the same worker serves many tasks of a run."""
    key = pickle.dumps((stage, args, root, run_id))
    worker = _kept.pop(key, None) or Worker(stage, args, root, run_id)
    yield from worker(table)
    _kept.clear()  # one is enough: a worker that fails, or that another run needs no more, is not kept
    _kept[key] = worker


_kept: dict[bytes, Worker] = {}


def dataset(blocks: Iterable[pa.Table], steps: Sequence[Step], root: str, run_id: str, *, retries: int) -> Any:
    """A lazy Ray dataset of `steps` over `blocks`, one input block per table; `retries` of a task whose worker died."""
    import ray
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    _configure_ray_data()
    data = ray.data.from_arrow(list(blocks))
    for step in steps:
        common = {"batch_format": "pyarrow", "batch_size": step.batch_rows, "num_cpus": step.cpus, "zero_copy_batch": True}
        if step.gpus:
            common["num_gpus"] = step.gpus
        if step.actors is None:
            call: dict[str, Any] = {"fn": _work, "fn_args": (step.stage, step.args, root, run_id)}
            call["max_retries"] = retries
        else:
            fewest, most = step.actors
            call = {
                "fn": Worker,
                "fn_constructor_args": (step.stage, step.args, root, run_id),
                "compute": ActorPoolStrategy(min_size=fewest, max_size=most),
            }
        with warnings.catch_warnings():
            # Ray 2.60 announces the end of `max_retries` and has no other name for it; pyproject.toml stays below that end.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            data = data.map_batches(**call, **common)
    return data


def _configure_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = DECODED_BLOCK_BYTES
    context.max_errored_blocks = -1  # a block lost with its worker shows in missing receipts; those units run again
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What Ray Data would print of a failed block, its worker has written down (faults_folder), and the run reports.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


class Receipts:
    """Runs a dataset in a thread, so that whoever waits for receipts can also watch the clock."""

    def __init__(self, data: Any) -> None:
        self._queue: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=256)
        self._thread = threading.Thread(target=self._pump, args=(data,), name="receipts", daemon=True)
        self._stopped = threading.Event()
        self._thread.start()

    def _pump(self, data: Any) -> None:
        try:
            for table in data.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
                if self._stopped.is_set():
                    return
                self._queue.put(table)
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._queue.put(error)

    def wait(self, timeout_s: float) -> pa.Table | None:
        """The next receipts, or an empty list of them (`None`) after `timeout_s`; raises StopIteration at the end."""
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """Takes no more receipts; the dataset's tasks end with the next receipt or with the driver."""
        self._stopped.set()
