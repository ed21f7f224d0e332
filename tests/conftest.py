"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import S3Server, environment, serve_s3


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make test-faults` asks for; tests/faults/conftest.py says what it does."""
    parser.addoption("--long", action="store_true", help="run every case of tests/faults instead of a few of each kind")
    parser.addoption("--record", metavar="FOLDER", help="write down what tests/faults tried, for docs/reliability.md")


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
    with attached(object_store_bytes=300 << 20):
        yield
