"""A Ray that a run starts for itself alone, with no more processes than that takes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """While Ray starts: without the server of its dashboard (whose pages `include_dashboard` leaves out, not the server), the
    autoscaler's monitor, and the process that sends what workers print to a driver, who does not listen.

    Four of the ten CPU seconds that the start of Ray takes, one after the other. `ray.init` has no switch for any of them.
    """
    try:
        from ray._private import services
        from ray._private.parameter import RayParams

        start_server, init = services.start_api_server, RayParams.__init__
    except (ImportError, AttributeError):  # of another Ray than 2.60, which then starts them all
        yield
        return

    @functools.wraps(init)
    def lean(params: Any, *args: Any, **options: Any) -> None:
        init(params, *args, **options)
        params.no_monitor, params.include_log_monitor = True, False

    def no_server(*_: Any, **__: Any) -> tuple[str, None]:
        return "", None  # as where it does not start

    services.start_api_server, RayParams.__init__ = no_server, lean
    try:
        yield
    finally:
        services.start_api_server, RayParams.__init__ = start_server, init
