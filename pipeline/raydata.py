"""What Ray Data is told before it runs a dataset, and what it is kept from doing."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator


def configure(block_bytes: int) -> None:
    """For datasets of this process from now on. `block_bytes`: what a block holds before it leaves its task."""
    from ray.data import DataContext

    _send_fewer_figures()
    context = DataContext.get_current()
    context.target_max_block_size = block_bytes
    context.max_errored_blocks = -1  # a block lost with its worker shows in missing receipts; those units run again
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What Ray Data would print of a failed block, its worker has written down (faults_folder), and the run reports.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _send_fewer_figures() -> None:
    """Ray Data sends figures to an actor, a process of its own, that feeds Ray's dashboard."""
    with contextlib.suppress(ImportError, AttributeError):  # of Ray 2.60
        from ray._private.worker import get_dashboard_url
        from ray.data._internal.block_batching.iter_batches import BatchIterator
        from ray.data._internal.stats import _StatsManager

        # Those of all blocks so far, every five seconds: nobody asks for them.
        BatchIterator.UPDATE_METRICS_INTERVAL_S = math.inf
        if not get_dashboard_url():
            for name in ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"):
                getattr(_StatsManager, name)  # AttributeError where there is none to replace
                setattr(_StatsManager, name, staticmethod(_sends_nothing))


def _sends_nothing(*_: object, **__: object) -> None:
    return None


@contextlib.contextmanager
def deprecations_unheard() -> Iterator[None]:
    """Ray 2.60 announces the end of `max_retries` and has no other name for it; pyproject.toml stays below that end."""
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield
