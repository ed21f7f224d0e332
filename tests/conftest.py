"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import S3Server, environment, serve_s3


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make test-faults` and `make test-cluster` ask for; tests/faults/conftest.py says more."""
    parser.addoption("--long", action="store_true", help="every case of tests/faults, and what is marked cluster")
    parser.addoption("--record", metavar="FOLDER", help="write down what tests/faults tried, for docs/reliability.md")


def pytest_configure() -> None:
    """Ctrl-C reaches programs that tests interrupt: a shell has what runs behind it ignore it, and they would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --long, tests marked `cluster` are left out."""
    left_out = [] if config.getoption("long") else [item for item in items if item.get_closest_marker("cluster")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole session; the environment leads every client (and process started later) to it.

    Take a bucket of your own: `s3.bucket()`. Mark tests that use it with `@pytest.mark.s3`.
    """
    with serve_s3(tmp_path_factory.mktemp("s3")) as server, environment(server.env()):
        yield server


@pytest.fixture(scope="session")
def ray_session(s3: S3Server) -> Iterator[None]:
    """Ray on this machine, started once for all tests that need it, with a small object store.

    After the S3 server, because workers have the environment that Ray was started in.
    """
    del s3
    from cluster.attach import attached

    # Stages that stand in tests are imported by their module's name in the workers too.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    os.environ["RAY_metrics_report_interval_ms"] = "2000"  # noqa: SIM112 - Ray's spelling; figures come sooner
    with attached(object_store_bytes=300 << 20):
        yield
