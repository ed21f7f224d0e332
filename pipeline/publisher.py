"""When epochs are planned, who publishes them, and how far publishing may lag behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.metering import worker_meter
from pipeline.publish import publish_epoch
from pipeline.rounds import StoppedEarly
from pipeline.session import EpochPlan, Session
from schemas.config import ResourcesConfig
from schemas.errors import ClipmillError

MOST_IN_FLIGHT = 2  # epochs planned and not yet published; the next one waits


class Launcher(Protocol):
    """Publishes plans somewhere."""

    def start(self, root: str, plan: EpochPlan) -> Any:
        """Begins to publish; returns a handle."""

    def wait(self, handle: Any, timeout_s: float | None) -> bool:
        """Whether it is published, after at most `timeout_s`; raises what publishing raised."""


class Here:
    """Publishes in this process, at once."""

    def start(self, root: str, plan: EpochPlan) -> None:
        """Publishes before it returns."""
        publish_epoch(root, plan)

    def wait(self, handle: None, timeout_s: float | None) -> bool:
        """True: it was published at the start."""
        del handle, timeout_s
        return True


class InRayTasks:
    """Publishes in Ray tasks, which ask for no CPU so that they never wait for decoding."""

    def __init__(self, publish: Callable[[str, EpochPlan], None] = publish_epoch) -> None:
        self._publish = publish

    def start(self, root: str, plan: EpochPlan) -> Any:
        """Submits the task."""
        import ray

        return ray.remote(num_cpus=0, max_retries=3)(_publish).options(name="publish epoch").remote(self._publish, root, plan)

    def wait(self, handle: Any, timeout_s: float | None) -> bool:
        """Raises what the task raised."""
        import ray

        done, _ = ray.wait([handle], timeout=timeout_s)
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            if isinstance(error, ClipmillError):  # Ray raises what the task raised as a RayError of that kind too
                raise
            raise StoppedEarly(f"an epoch could not be published: {error}") from error
        return bool(done)


def _publish(publish: Callable[[str, EpochPlan], None], root: str, plan: EpochPlan) -> None:
    publish(root, plan)
    worker_meter().export()


class Publisher:
    """Plans an epoch when enough has come in or enough time has passed, has it published, and commits it."""

    def __init__(
        self,
        session: Session,
        root: str,
        resources: ResourcesConfig,
        launcher: Launcher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session, self._root, self._resources = session, root, resources
        self._launcher, self._clock = launcher, clock
        self._in_flight: list[tuple[EpochPlan, Any]] = []
        self._clips = 0
        self._last_plan_s = clock()

    def received(self, clips: int) -> None:
        """Counts clips towards the next epoch."""
        self._clips += clips

    def tick(self) -> None:
        """Commits what is published, and plans where it is time to."""
        self._commit(timeout_s=0)
        waited_s = self._clock() - self._last_plan_s
        if self._clips >= self._resources.epoch_clips or waited_s >= self._resources.epoch_s:
            self._plan()

    def finish(self) -> None:
        """Publishes and commits everything that is complete."""
        self._plan()
        self._commit(timeout_s=None)

    def _plan(self) -> None:
        while len(self._in_flight) >= MOST_IN_FLIGHT:
            self._commit_first(timeout_s=None)
        plan = self._session.plan_epoch()
        self._clips, self._last_plan_s = 0, self._clock()
        if plan is not None:
            self._in_flight.append((plan, self._launcher.start(self._root, plan)))

    def _commit(self, timeout_s: float | None) -> None:
        while self._in_flight and self._commit_first(timeout_s):
            pass

    def _commit_first(self, timeout_s: float | None) -> bool:
        plan, handle = self._in_flight[0]
        if not self._launcher.wait(handle, timeout_s):
            return False
        self._session.commit(plan)
        del self._in_flight[0]
        return True
