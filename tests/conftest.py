"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3 import S3Server, environment, serve_s3


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole session; the environment leads every client (and process started later) to it.

    Take a bucket of your own: `s3.bucket()`. Mark tests that use it with `@pytest.mark.s3`.
    """
    with serve_s3(tmp_path_factory.mktemp("s3")) as server, environment(server.env()):
        yield server
