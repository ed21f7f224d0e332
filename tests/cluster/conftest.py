"""Fixtures of tests that need a cluster with a job server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.heads import Head, head


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """One head for all of them."""
    with head() as started:
        yield started
