"""How many cases run, and the record of them.

`make test` runs a few cases of each kind; `make test-faults` (pytest --long --record FOLDER) all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.record import Record

_records: dict[str, Record] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`@pytest.mark.cases(quick=3, long=40)` gives a test's argument `case` the numbers 0, 1, ..."""
    marker = metafunc.definition.get_closest_marker("cases")
    if marker:
        metafunc.parametrize("case", range(marker.kwargs["long" if metafunc.config.getoption("long") else "quick"]))


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether this is `make test-faults`."""
    return bool(request.config.getoption("long"))


def _record_of(module: str) -> Record:
    part = module.rpartition(".")[2].removeprefix("test_")
    return _records.setdefault(part, Record(part))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Counts what this module tries."""
    return _record_of(request.module.__name__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Notes failures by the name that runs them again."""
    report = yield
    if report.failed and "record" in getattr(item, "fixturenames", ()):
        _record_of(item.module.__name__).failures.append(item.nodeid)  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="module", autouse=True)
def _written(request: pytest.FixtureRequest) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    folder = request.config.getoption("record")
    found = _records.get(request.module.__name__.rpartition(".")[2].removeprefix("test_"))
    if folder and found:
        found.wall_s = time.monotonic() - began_s
        found.write(Path(folder))
