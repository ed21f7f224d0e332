"""Ways to spoil a published output, each of which `clipmill verify` must notice.

`raw` ones change what lies in the store; `forged` ones leave rows as a faulty publisher of ours would have: with a log, digests
and footers that agree with them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.log import key_of
from schemas.tables import TABLES
from stages.storage import Store
from tests.pipeline.faults import memory
from tests.pipeline.rows import Steps, Video, World

Edit = Callable[[pa.Table, random.Random], pa.Table | None]  # None: not with this object
ARCHIVE = (
    Video("a", (3,)), Video("b", (2, 2)), Video("c", (2,), failing={"embed": (1,)}), Video("d", (0,), error="empty"),
    Video("e", (3,), bad_clips=(1,)), Video("f", missing=True),
    Video("g", (2,), failing={"classify": (0,), "caption": (1,)}),
)  # fmt: skip


def output() -> tuple[dict[str, bytes], Steps]:
    """Every object of a good output, which has seen two prompts and a replaced file, and the clock that it was made by."""
    store, now = Store(memory()), None
    for number, (videos, prompt) in enumerate(
        ((ARCHIVE, "Say it."), (ARCHIVE, "Sing it."), ((replace(ARCHIVE[0], version="2"),), "Say it."))
    ):
        made = World(store, videos, Steps(str(number)), epoch_videos=3, caption=prompt)
        made.steps.now = now or made.steps.now
        made.steps.advance(1000)
        made.run()
        now = made.steps.now
    return {info.key: store.read(info.key) for info in store.list()}, made.steps


# --- raw ---


def _any(store: Store, rng: random.Random) -> str:
    table = rng.choice(sorted(TABLES))
    return rng.choice(sorted(info.key for info in store.list(table)))


def _two(store: Store, rng: random.Random) -> tuple[str, str]:
    table = rng.choice(sorted(TABLES))
    one, two = rng.sample(sorted(info.key for info in store.list(table)), 2)
    return one, two


def delete_an_object(store: Store, rng: random.Random) -> None:
    store.delete(_any(store, rng))


def double_an_object(store: Store, rng: random.Random) -> None:
    key = _any(store, rng)
    store.create(key.replace("part-", rng.choice(["part-copy-", "run_date=2026-01-09/part-", "part-0"])), store.read(key))


def move_an_object(store: Store, rng: random.Random) -> None:
    key = _any(store, rng)
    data = store.read(key)
    store.delete(key)
    store.create(key.replace("run_date=2026-01-0", "run_date=2027-01-0"), data)


def cut_an_object(store: Store, rng: random.Random) -> None:
    key = _any(store, rng)
    data = store.read(key)
    store.write(key, data[: rng.randrange(len(data))])


def lengthen_an_object(store: Store, rng: random.Random) -> None:
    key = _any(store, rng)
    store.write(key, store.read(key) + rng.randbytes(rng.randint(1, 100)))


def flip_a_bit(store: Store, rng: random.Random) -> None:
    key = _any(store, rng)
    data = bytearray(store.read(key))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    store.write(key, bytes(data))


def swap_two_objects(store: Store, rng: random.Random) -> None:
    one, two = _two(store, rng)
    first, second = store.read(one), store.read(two)
    store.write(one, second)
    store.write(two, first)


def replace_an_object_by_another(store: Store, rng: random.Random) -> None:
    one, two = _two(store, rng)
    store.write(one, store.read(two))


def put_something_else_there(store: Store, rng: random.Random) -> None:
    folder = _any(store, rng).rpartition("/")[0]
    store.create(f"{folder}/{rng.choice(['notes.txt', '_SUCCESS', 'part-x.parquet'])}", b"something")


def rewrite_rows_in_another_order(store: Store, rng: random.Random) -> None:
    key = _any(store, rng)
    found = pq.ParquetFile(io.BytesIO(store.read(key)))
    table = found.read()
    order = list(range(table.num_rows))
    rng.shuffle(order)
    store.write(key, _parquet(table.take(order), found))


def drop_an_entry_of_the_log(store: Store, rng: random.Random) -> None:
    entries = _log(store)
    last = max(entries)  # says only that a closed run was cleared away; without it the next run does that again
    store.delete(key_of(rng.choice([number for number in entries if number != last])))


def swap_two_entries_of_the_log(store: Store, rng: random.Random) -> None:
    one, two = rng.sample(sorted(_log(store)), 2)
    first, second = store.read(key_of(one)), store.read(key_of(two))
    store.write(key_of(one), second)
    store.write(key_of(two), first)


def cut_an_entry_of_the_log(store: Store, rng: random.Random) -> None:
    key = key_of(rng.choice(sorted(_log(store))))
    data = store.read(key)
    store.write(key, data[: rng.randrange(len(data) - 1)])


# What a value of the log must not be; `*` is any of a list or a dict.
_LEAVES = (
    ("plan", "objects", "*", "rows"), ("plan", "objects", "*", "key"), ("plan", "objects", "*", "fingerprint"),
    ("plan", "objects", "*", "table"), ("plan", "objects", "*", "model"), ("plan", "videos"), ("plan", "clips"),
    ("plan", "token"), ("plan", "run_date"), ("plan", "at"), ("plan", "run"), ("plan", "ledger", "digest"),
    ("plan", "ledger", "rows"), ("plan", "kind"),
    ("commit", "objects", "*", "digest"), ("commit", "objects", "*", "rows"), ("commit", "objects", "*", "size_bytes"),
    ("commit", "objects", "*", "key"), ("commit", "epoch"), ("commit", "kind"), ("commit", "objects"),
    ("close", "sums", "rows"), ("close", "sums", "listed"), ("close", "sums", "not_due"), ("close", "sums"), ("close", "run"),
    ("open", "recipe", "clips"), ("open", "recipe", "entries", "*", "fingerprint"), ("open", "recipe", "entries", "*", "slug"),
    ("open", "recipe", "entries", "*", "revision"), ("open", "recipe"), ("open", "run"),
)  # fmt: skip


def edit_a_value_of_the_log(store: Store, rng: random.Random) -> None:
    kind, *path = rng.choice(_LEAVES)
    number = rng.choice([number for number, body in _log(store).items() if body["kind"] == kind])
    body = json.loads(store.read(key_of(number)))
    inner: Any = body
    for name in path[:-1]:
        inner = rng.choice(inner) if name == "*" else inner[name]
    while inner is not None and inner.get(path[-1]) is None:  # the ledger's object has neither model nor fingerprint
        inner = rng.choice(body["objects"])
    was = inner[path[-1]]
    if rng.random() < 0.25 and path[-1] not in ("model", "sums"):  # without sums, a run was closed by somebody else
        del inner[path[-1]]
    else:
        inner[path[-1]] = was + 1 if isinstance(was, int) else f"{was[:-1]}z" if isinstance(was, str) else 7
    store.write(key_of(number), json.dumps(body).encode())


def _record(store: Store, rng: random.Random) -> str:
    return rng.choice(sorted(info.key for info in store.list("_runs") if info.key.endswith("run.json")))


def lose_the_record_of_a_run(store: Store, rng: random.Random) -> None:
    store.delete(_record(store, rng))


def edit_the_record_of_a_run(store: Store, rng: random.Random) -> None:
    key = _record(store, rng)
    body = json.loads(store.read(key))
    body["sums"]["rows"] += 1
    store.write(key, rng.choice([json.dumps(body).encode(), b"{", b"7"]))


def name_another_configuration(store: Store, rng: random.Random) -> None:
    body = json.loads(store.read("_current.json"))
    entry = rng.choice(body["entries"])
    entry[rng.choice(["fingerprint", "slug", "model"])] = "abcdefgh"
    store.write("_current.json", json.dumps(body).encode())


def name_an_older_run(store: Store, rng: random.Random) -> None:
    opened = [body for body in _log(store).values() if body["kind"] == "open"]
    older = rng.choice(opened[:-1])
    store.write("_current.json", json.dumps({"run": older["run"], "at": older["at"], **older["recipe"]}).encode())


def lose_the_current_configuration(store: Store, rng: random.Random) -> None:
    if rng.random() < 0.5:
        store.delete("_current.json")
    else:
        store.write("_current.json", b"[]")


def leave_something_of_a_run_that_is_over(store: Store, rng: random.Random) -> None:
    folder = _record(store, rng).rpartition("/")[0]
    name = rng.choice(["lease.json", f"parts/{'ab' * 16}-0000.a1.000000-000000.parquet", "epochs/00000099.x.parts.parquet"])
    store.create(f"{folder}/{name}", b"{}")


# --- forged ---


def forge(store: Store, table: str, edit: Edit, rng: random.Random) -> bool:
    """Rewrites an object, with a plan and a commit that agree; False where no object of the table can be edited so."""
    keys = sorted(info.key for info in store.list(table))
    rng.shuffle(keys)
    for key in keys:
        found = pq.ParquetFile(io.BytesIO(store.read(key)))
        before = found.read()
        made = edit(before, rng)
        if made is None or made.equals(before):
            continue
        data = _parquet(made, found)
        store.write(key, data)
        for number, body in _log(store).items():
            if _agree(body, key, made.num_rows, data):
                store.write(key_of(number), json.dumps(body).encode())
        return True
    return False


def _agree(body: dict[str, Any], key: str, rows: int, data: bytes) -> bool:
    written = {"size_bytes": len(data), "digest": hashlib.blake2b(data, digest_size=16).hexdigest()}
    items = [item for item in body.get("objects", []) if item["key"] == key]
    for item in items:
        item.update({"rows": rows} | (written if "digest" in item else {}))
    if items and body.get("ledger", {}).get("key") == key:
        body["ledger"].update({"rows": rows} | written)
    return bool(items)


def _parquet(table: pa.Table, like: pq.ParquetFile) -> bytes:
    sink = io.BytesIO()
    properties = {k.decode(): v.decode() for k, v in like.metadata.metadata.items() if k.startswith(b"clipmill")}
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.add_key_value_metadata(properties | {"clipmill.rows": str(table.num_rows)})
        writer.write_table(table)
    return sink.getvalue()


def _log(store: Store) -> dict[int, dict[str, Any]]:
    keys = sorted(info.key for info in store.list("_log"))
    return {int(key[5:13]): json.loads(store.read(key)) for key in keys}


def value(
    name: str, make: Callable[[Any, random.Random], Any], where: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> Edit:
    """Another value of a column in some row for which `where` holds."""

    def edit(table: pa.Table, rng: random.Random) -> pa.Table | None:
        rows = table.to_pylist()
        fitting = [index for index, row in enumerate(rows) if where(row)]
        if not fitting:
            return None
        index = rng.choice(fitting)
        rows[index] = rows[index] | {name: make(rows[index][name], rng)}
        return pa.Table.from_pylist(rows, schema=table.schema)

    return edit


def drop_a_row(table: pa.Table, rng: random.Random) -> pa.Table | None:
    at = rng.randrange(table.num_rows)
    return pa.concat_tables([table.slice(0, at), table.slice(at + 1)]) if table.num_rows > 1 else None


def double_a_row(table: pa.Table, rng: random.Random) -> pa.Table:
    at = rng.randrange(table.num_rows)
    return pa.concat_tables([table.slice(0, at + 1), table.slice(at)])


def swap_two_rows(table: pa.Table, rng: random.Random) -> pa.Table | None:
    if table.num_rows < 2:
        return None
    order = list(range(table.num_rows))
    one, two = rng.sample(order, 2)
    order[one], order[two] = order[two], order[one]
    return table.take(order)


def _other_hex(text: str, rng: random.Random) -> str:
    at = rng.randrange(32)
    return text[:at] + rng.choice(sorted(set("0123456789abcdef") - {text[at]})) + text[at + 1 :]


def _other_start(text: str, rng: random.Random) -> str:
    return f"{text[:-9]}{int(text[-9:]) + rng.randint(1, 999):09d}"


def stage(name: str, make: Callable[[Any], Any]) -> Edit:
    """Another value of one of a video's stages."""

    def edit(stages: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
        at = rng.randrange(len(stages))
        return [*stages[:at], stages[at] | {name: make(stages[at][name])}, *stages[at + 1 :]]

    return value("stages", edit, where=lambda row: bool(row["stages"]))


def _good(row: Mapping[str, Any]) -> bool:
    return row["error_code"] is None


_EVERY: dict[str, Edit] = {
    "drop a row": drop_a_row, "double a row": double_a_row, "swap two rows": swap_two_rows,
    "another run": value("run_id", lambda old, _: f"{old[:-1]}z"),
    "another video": value("video_id", _other_hex),
    "an unknown error": value("error_code", lambda _, rng: rng.choice(["splendid", ""])),
}  # fmt: skip
_MODEL: dict[str, Edit] = _EVERY | {
    "another clip": value("clip_id", _other_start),
    "another configuration's clip": value("clip_id", lambda old, _: f"{old[:33]}abcdefgh{old[41:]}"),
    "an error beside an answer": value("error_code", lambda *_: "not_finite", _good),
    "no error where there is no answer": value("error_code", lambda *_: None, lambda row: not _good(row)),
}
_NAN = math.nan
FORGED: dict[str, dict[str, Edit]] = {
    "clips": _EVERY | {
        "another start in its name": value("clip_id", _other_start),
        "another start": value("start_s", lambda old, rng: old + rng.uniform(0.01, 1.0)),
        "no start": value("start_s", lambda *_: _NAN),
        "an end before its start": value("end_s", lambda old, _: old - 1000),
        "another place": value("clip_index", lambda old, rng: old + rng.randint(1, 9)),
        "no known boundary": value("boundary", lambda *_: "whim"),
        "no width": value("width", lambda *_: 0),
        "an impossible fps": value("fps", lambda _, rng: rng.choice([-1.0, _NAN, math.inf])),
        "a frame of another clip": value("frame_times_s", lambda old, _: [*old, 9_999.0]),
        "frames out of order": value("frame_times_s", lambda old, _: old[::-1], lambda row: len(row["frame_times_s"]) > 1),
        "too much motion": value("motion", lambda _, rng: rng.choice([1.5, -0.5, _NAN])),
        "another uri": value("uri", lambda old, _: f"{old}x"),
        "a clip that failed": value("error_code", lambda *_: "damaged", _good),
    },
    "labels": _MODEL | {
        "no label": value("label", lambda *_: None, _good),
        "the same label": value("label", lambda *_: "label 1", lambda row: row["label"] == "label 2"),
        "no probability": value("score", lambda _, rng: rng.choice([-0.1, 1.1, _NAN, math.inf]), _good),
        "no score": value("score", lambda *_: None, _good),
        "another rank": value("rank", lambda old, rng: old + rng.choice([-1, 1, 7]), _good),
        "another stage": value("stage", lambda *_: "embed"),
        "a better score at a lower rank": value("score", lambda *_: 0.99, lambda row: row["rank"] == 2),
    },
    "captions": _MODEL | {
        "no caption": value("caption", lambda *_: None, _good),
        "fewer than no tokens": value("tokens", lambda *_: -1, _good),
        "no tokens": value("tokens", lambda *_: None, _good),
    },
    "embeddings": _MODEL | {
        "no vector": value("embedding", lambda *_: None, _good),
        "not of unit length": value("embedding", lambda old, rng: [x * rng.choice([0.0, 0.5, 1.1]) for x in old], _good),
        "not a number": value("embedding", lambda old, _: [_NAN, *old[1:]], _good),
        "a shorter vector": value("embedding", lambda old, _: old[:-1], _good),
        "another dim": value("dim", lambda old, _: old + 1, _good),
    },
    "videos": _EVERY | {
        "no status that there is": value("status", lambda *_: "splendid"),
        "a failure that published": value("status", lambda *_: "failed", lambda row: row["status"] == "ok"),
        "trouble without a reason": value("error_code", lambda *_: None, lambda row: not _good(row)),
        "a reason without a stage": value("error_stage", lambda *_: None, lambda row: not _good(row)),
        "a reason without a message": value("error_message", lambda *_: None, lambda row: not _good(row)),
        "more rows of a stage": stage("rows", lambda old: old + 1),
        "no rows of a stage": stage("rows", lambda old: 0 if old else 1),
        "another model": stage("model", lambda old: f"{old}x"),
        "another fingerprint": stage("fingerprint", lambda _: "abcdefgh"),
        "no status of a stage": stage("status", lambda _: "splendid"),
        "a stage twice": value("stages", lambda old, _: [*old, old[0]], lambda row: bool(row["stages"])),
        "more clips": value("clips", lambda old, _: old + 1, lambda row: row["clips"] is not None),
        "fewer than no attempts": value("attempts", lambda *_: -1),
        "it supersedes nobody": value("supersedes", lambda *_: "ab" * 16),
        "it supersedes itself": lambda table, _: table.set_column(
            table.column_names.index("supersedes"), table.schema.field("supersedes"), table["video_id"]
        ),
        "another uri": value("uri", lambda old, _: f"{old}x", lambda row: row["status"] == "ok" and len(row["stages"]) > 1),
    },
}  # fmt: skip
RAW: dict[str, Callable[[Store, random.Random], None]] = {
    made.__name__.replace("_", " "): made
    for made in (
        delete_an_object, double_an_object, move_an_object, cut_an_object, lengthen_an_object, flip_a_bit, swap_two_objects,
        replace_an_object_by_another, put_something_else_there, rewrite_rows_in_another_order, drop_an_entry_of_the_log,
        swap_two_entries_of_the_log, cut_an_entry_of_the_log, edit_a_value_of_the_log, edit_a_value_of_the_log,
        lose_the_record_of_a_run, edit_the_record_of_a_run, name_another_configuration, name_an_older_run,
        lose_the_current_configuration, leave_something_of_a_run_that_is_over,
    )
}  # fmt: skip
ALL = [("raw", name) for name in RAW] + [(table, name) for table, edits in FORGED.items() for name in edits]


def tamper(store: Store, case: int) -> str:
    """Does tampering number `case` to a good output; what it was."""
    rng = random.Random(f"tamper-{case}")
    kind, name = ALL[(case * 37) % len(ALL)]
    if kind == "raw":
        before = {info.key: store.read(info.key) for info in store.list()}
        while before == {info.key: store.read(info.key) for info in store.list()}:
            RAW[name](store, rng)
    else:
        assert forge(store, kind, FORGED[kind][name], rng), f"no object of {kind} can have: {name}"
    return f"{kind}: {name}"
