"""The log: one order of events, whoever writes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pipeline.log import Log, PromiseBroken, key_of, parse
from schemas.errors import ClipmillError
from stages.storage import ObjectInfo, StorageUnavailable, Store
from tests.pipeline.faults import memory

AT = "2026-01-02T03:04:05+00:00"


def body(token: str, **more: object) -> dict[str, object]:
    return {"token": token, "at": AT, **more}


def opened(root: str, run: str = "r1") -> Log:
    log = Log(Store(root))
    log.append("open", run, lambda _: body(f"open {run}"))
    return log


def test_events_are_numbered_in_the_order_in_which_they_were_made() -> None:
    root = memory()
    one, two = opened(root, "r1"), opened(root, "r2")
    one.append("close", "r1", lambda _: body("c1"))
    two.append("close", "r2", lambda _: body("c2"))
    kinds = [parse(n, Store(root).read(key_of(n))) for n in range(4)]
    assert [(event.kind, event.run) for event in kinds] == [("open", "r1"), ("open", "r2"), ("close", "r1"), ("close", "r2")]
    assert one.length == 3
    one.refresh()
    assert one.length == 4
    assert one.runs["r2"].closed


def test_whoever_comes_second_decides_again_knowing_the_first() -> None:
    root = memory()
    log, other = opened(root), Log(Store(root))
    other.refresh()
    asked = []

    def make(number: int) -> dict[str, object] | None:
        asked.append(number)
        if len(asked) == 1:  # somebody else is quicker
            other.append("plan", "r1", lambda _: body("theirs"))
        return body("ours") if 1 not in log.epochs else None

    assert log.append("plan", "r1", make) is None
    assert asked == [1, 2]


def test_an_entry_whose_answer_was_lost_is_known_as_our_own() -> None:
    root = memory()

    class Lossy(Store):
        def create(self, key: str, data: bytes) -> None:
            super().create(key, data)
            super().create(key, data)  # as a client does that tries again

    log = Log(Lossy(root))
    event = log.append("open", "r1", lambda _: body("t"))
    assert event is not None
    assert event.number == 0
    assert Log(Store(root)).length == 0
    assert log.length == 1


def test_a_missing_entry_is_loud() -> None:
    root = memory()
    log = opened(root)
    log.append("close", "r1", lambda _: body("c"))
    log.append("clean", "r1", lambda _: body("d"))
    Store(root).delete(key_of(1))
    with pytest.raises(PromiseBroken, match="00000001"):
        Log(Store(root)).refresh()


def test_an_entry_that_a_listing_leaves_out_is_not_missing() -> None:
    """A folder that grows while it is listed may show a later entry and not the one before."""
    root = memory()
    log = opened(root)
    log.append("close", "r1", lambda _: body("c"))
    log.append("clean", "r1", lambda _: body("d"))

    class Growing(Store):
        def list(self, prefix: str = "", recursive: bool = True) -> Iterator[ObjectInfo]:
            return (info for info in super().list(prefix, recursive) if info.key != key_of(1))

    late = Log(Growing(root))
    late.refresh()
    assert late.runs["r1"].clean


@pytest.mark.parametrize(
    ("kind", "run", "more"),
    [
        ("open", "r1", {}),
        ("plan", "nobody", {}),
        ("plan", "closed", {}),
        ("close", "closed", {}),
        ("clean", "r1", {}),
        ("commit", "r1", {"epoch": 99}),
        ("commit", "closed", {"epoch": 2}),
        ("abandon", "closed", {"epoch": 2}),
        ("void", "closed", {"epoch": 2}),
        ("dance", "r1", {"epoch": 2}),
    ],
)
def test_an_entry_that_contradicts_the_ones_before_it_is_loud(kind: str, run: str, more: dict[str, object]) -> None:
    root = memory()
    log = opened(root, "r1")
    log.append("open", "closed", lambda _: body("o"))
    log.append("plan", "closed", lambda _: body("p"))
    log.append("commit", "closed", lambda _: body("q", epoch=2))
    log.append("close", "closed", lambda _: body("c"))
    Store(root).create(key_of(5), json.dumps({"kind": kind, "run": run, **body("x", **more)}).encode())
    with pytest.raises(PromiseBroken):
        log.refresh()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"{", b'{"kind": "open"}', "ä".encode("latin-1")])
def test_what_is_no_entry_is_loud(data: bytes) -> None:
    with pytest.raises(PromiseBroken):
        parse(0, data)


def test_trouble_with_the_store_is_not_taken_for_an_end_of_the_log() -> None:
    class Down(Store):
        def read(self, key: str) -> bytes:
            raise StorageUnavailable(f"{key} is out of reach")

    with pytest.raises(ClipmillError):
        Log(Down(memory())).refresh()
