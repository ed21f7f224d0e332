"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray on this machine, started once for all tests that need it: two logical CPUs and a small object store."""
    from cluster.attach import attached

    with attached(object_store_bytes=300 << 20):
        yield
