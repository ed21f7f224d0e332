"""What Ray Data is told before it runs a dataset, and what it is kept from doing."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

# How long Ray Data keeps an actor that it has added, however little there is to do; its own 10 s are over before a model is
# loaded, and where decoding is the limit it would add one, end it, and load the model again all the time.
KEEP_ACTOR_S = 120.0
# How often Ray Data looks whether there is output; by itself a hundred times a second, a fifth of what a driver of a local run
# does in Python. Receipts are gathered for longer.
OUTPUT_POLL_S = 0.1


def configure(block_bytes: int) -> None:
    """For datasets of this process from now on. `block_bytes`: what a block holds before it leaves its task."""
    from ray.data import DataContext

    _send_fewer_figures()
    _keep_actors()
    _poll_seldom()
    _coordinate(nothing=_is_our_own())
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


def _keep_actors() -> None:
    """At a dataset's end Ray Data ends actors at once all the same."""
    with contextlib.suppress(ImportError, AttributeError):  # of Ray 2.60
        from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorPool

        init = _ActorPool.__init__
        if hasattr(init, "__wrapped__"):
            return

        @functools.wraps(init)
        def patient(pool: Any, *args: Any, **options: Any) -> None:
            init(pool, *args, **options)
            pool._debounce_period_s = KEEP_ACTOR_S

        _ActorPool.__init__ = patient


def _poll_seldom() -> None:
    """Ray Data asks its queue of outputs and sleeps for 10 ms, over and over."""
    with contextlib.suppress(ImportError):  # of Ray 2.60
        from ray.data._internal.execution import streaming_executor_state

        if getattr(streaming_executor_state, "time", None) is time:
            streaming_executor_state.time = _Unhurried


class _Unhurried:
    """What that module has of `time`."""

    time = staticmethod(time.time)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(max(seconds, OUTPUT_POLL_S))


def _is_our_own() -> bool:
    """Whether this process has started the Ray that it is connected to, which then is one node and has no other driver."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return bool(node is not None and node.head and not node.address_info.get("webui_url"))


def _coordinate(*, nothing: bool) -> None:
    """Ray Data has an actor that divides a cluster among datasets, and one that knows on which node actors are: on one node
    that one dataset has, two processes more, each of which imports all of Ray Data. A process may attach to a cluster later.
    """
    with contextlib.suppress(ImportError, AttributeError):  # of Ray 2.60
        from ray.data._internal.cluster_autoscaler import DefaultAutoscalingCoordinator
        from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
        from ray.data._internal.execution.node_trackers import get_or_create_actor_location_tracker
        from ray.data._internal.execution.operators import actor_pool_map_operator as actors
        from ray.data._internal.utils.cached_ray_internals import get_actor_locations

        autoscaler.DefaultAutoscalingCoordinator = WholeNode if nothing else DefaultAutoscalingCoordinator
        actors.get_actor_locations = _locates_nothing if nothing else get_actor_locations
        actors.get_or_create_actor_location_tracker = NoTracker if nothing else get_or_create_actor_location_tracker


class WholeNode:
    """Ray Data's coordinator of resources where all there are belong to one dataset."""

    def __init__(self, *_: object, **__: object) -> None:
        import ray

        kinds = ("CPU", "GPU", "memory", "object_store_memory")
        self._nodes = {
            node["NodeID"]: {kind: node["Resources"][kind] for kind in kinds if kind in node["Resources"]}
            for node in ray.nodes()
            if node["Alive"]
        }

    def request_resources(self, *_: object, **__: object) -> None:
        """Nobody could bring more."""

    def cancel_request(self) -> None:
        """Nothing was asked for."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """By node, the resources of all."""
        return {node: dict(resources) for node, resources in self._nodes.items()}


class NoTracker:
    """What an actor of a dataset tells its node: nobody, by the call that it would make of a remote actor."""

    class _Call:
        def remote(self, *_: object, **__: object) -> None:
            return None

    update_actor_location = _Call()


def _locates_nothing(_actors: object) -> dict[str, str]:
    """No news: Ray Data goes by where an actor was when it started."""
    return {}


def _sends_nothing(*_: object, **__: object) -> None:
    return None


@contextlib.contextmanager
def deprecations_unheard() -> Iterator[None]:
    """Ray 2.60 announces the end of `max_retries` and has no other name for it; pyproject.toml stays below that end."""
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield
