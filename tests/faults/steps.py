"""What the killed processes do: the real publishing code over a real store, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import lease
from pipeline.log import Log
from pipeline.publish import publish
from pipeline.receipts import parts_folder
from pipeline.recovery import Recovery
from pipeline.verify import verify
from stages.storage import Store, _backend
from tests.faults.killed import Deadly
from tests.pipeline.faults import tables
from tests.pipeline.rows import Steps, Video, World

# Videos whose rows do not depend on how often a run begins again: none is deferred, and no stage fails as a whole.
ARCHIVE = (
    Video("plain", (2,)),
    Video("long", (1, 2)),
    Video("unreadable", (0,), error="unreadable"),
    Video("torn", (2,), error="truncated", failing={"embed": (1,)}),
    Video("absent", missing=True),
)


class DeadlyStore(Store):
    """A store on disk or on S3 whose process dies at one of its writes."""

    def __init__(self, root: str, at: int | None, when: str) -> None:
        super().__init__(root)
        self.deadly = Deadly(_backend(self.root), at, when)

    @property
    def _backend(self) -> Any:  # type: ignore[override]
        return self.deadly


def world(store: Store, number: int) -> World:
    """The archive, for the run that begins as number `number`: once the leases of those before have lapsed."""
    made = World(store, ARCHIVE, Steps(str(number)), epoch_videos=3, batch_rows=6)
    made.steps.advance(number * (lease.LEASE_S + 1))
    return made


def run(root: str, out: str, number: int, at: int | None = None, when: str = "before") -> None:
    """A whole run; where it comes to its end it tells what it wrote, what is published then, and what verify says."""
    store = DeadlyStore(root, at, when)
    made = world(store, number)
    made.run()
    found = [str(finding) for finding in verify(Store(root), made.steps.now)]
    left = [info.key for info in Store(root).list("_runs") if "/parts/" in info.key or info.key.endswith("lease.json")]
    current = json.loads(Store(root).read("_current.json"))["entries"]
    is_named = current == json.loads(json.dumps(_recipe(made)))
    tell(out, writes=store.deadly.writes, tables=tables(Store(root)), verify=found, left=left, is_named=is_named)


def _recipe(made: World) -> list[dict[str, Any]]:
    from pipeline.recipe import Recipe

    return list(Recipe.of(made.config.clips.fingerprint(), made.entries).to_json()["entries"])


def half(root: str, out: str, number: int) -> None:
    """A run that dies with one epoch half published, one not begun, and staged videos that no epoch has."""
    store = Store(root)
    made = World(store, ARCHIVE, Steps(str(number)), batch_rows=6)
    session = made.open()
    found = made.expect(session)
    session.receive(made.stage(session, found.slice(0, 1)))
    plan = session.plan_epoch()
    assert plan is not None
    session.receive(made.stage(session, found.slice(1, 2)))
    session.plan_epoch()
    made.stage(session, found.slice(3))
    tell(out, run=session.run_id)
    publish(DeadlyStore(root, 1, "after"), plan)


def vanished(root: str, out: str, number: int, run: str) -> None:
    """What that run staged is gone."""
    store = Store(root)
    for info in list(store.list(parts_folder(run))):
        store.delete(info.key)
    tell(out, number=number)


def recover(root: str, out: str, number: int, at: int | None = None, when: str = "before") -> None:
    """Somebody finds that run dead."""
    store = DeadlyStore(root, at, when)
    Recovery(store, Log(store), world(store, number).steps.clock(), "finder").recover()
    tell(out, writes=store.deadly.writes)


def tell(out: str, **found: Any) -> None:
    """Leaves what was found, whole or not at all."""
    written = Path(f"{out}.new")
    written.write_text(json.dumps(found))
    written.replace(out)


JOBS = {"run": run, "half": half, "vanished": vanished, "recover": recover}
