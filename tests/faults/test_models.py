from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from schemas.entries import Entry
from schemas.rows import PART_ROW
from stages.caption import Caption
from stages.chain import Chain, Link
from stages.classify import Classify
from stages.embed import Embed
from stages.models import catalogue, weights
from stages.models.adapter import BrokenDevice
from stages.storage import Store
from tests.faults.damage import Damage
from tests.faults.record import Record
from tests.faults.troubles import LISTED, RAISED, WRONG, Troubled, code_of, honest, kinds
from tests.pipeline.faults import memory
from tests.pipeline.rows import Video, World, sources
from tests.stages.clips import COLUMNS, CONFIGS, FINGERPRINT, clip_row, end_row, failed_row, pattern, table

STAGES: dict[str, Any] = {"classify": Classify, "embed": Embed, "caption": Caption}
LOADERS: dict[str, Any] = {"classify": catalogue.classifier, "embed": catalogue.embedder, "caption": catalogue.captioner}
EMBEDDED: dict[str, dict[str, Any]] = {
    "classify": {"model": "embedded:motion", "frames": 8},
    "embed": {"model": "embedded:clip", "frames": 4},
    "caption": {"model": "embedded:git", "frames": 4, "max_tokens": 16},
}
each_stage = pytest.mark.parametrize("stage", STAGES)

Answers = dict[tuple[str, str], list[dict[str, Any]]]  # by attempt and clip


def small(stage: str) -> Entry:
    return Entry(stage, CONFIGS[stage](model="fake/fake", frames=3), "r", FINGERPRINT, "here")


def archive(rng: random.Random, clips: int, frames: int = 4) -> list[dict[str, Any]]:
    """Clips of several shapes, some of them in two attempts, with rows between them that are none of the stage's business."""
    rows: list[dict[str, Any]] = []
    for number in range(clips):
        height, width = rng.choice([(24, 40), (40, 24), (32, 32)])
        rows.append(clip_row(number, pattern(rng.randrange(1 << 30), frames, height, width)))
        if rng.random() < 0.1:
            rows.append(clip_row(number, pattern(rng.randrange(1 << 30), frames), attempt="second"))
        if rng.random() < 0.15:
            rows.append(rng.choice([failed_row(900 + number), clip_row(800 + number, due=()), end_row(700 + number)]))
    return rows


def told(out: pa.Table, stage: str) -> Answers:
    """Structs by attempt and clip; every row that should have some has some, every other row none."""
    columns = (out[name].to_pylist() for name in ("attempt", "clip_id", "error_code", "due", COLUMNS[stage]))
    found: Answers = {}
    for attempt, clip, error, due, structs in zip(*columns, strict=True):
        is_asked = clip is not None and error is None and FINGERPRINT in due
        assert bool(structs) is is_asked
        if is_asked:
            assert (attempt, clip) not in found
            found[attempt, clip] = structs
    return found


def harmed(expected: Answers, found: Answers, codes: dict[str, str | None], same: Callable[[Any, Any], bool]) -> list[str]:
    """Clips that have neither the error that is theirs nor exactly the answer of a run without trouble."""
    wrong = [str(key) for key in expected.keys() ^ found.keys()]
    for key in expected.keys() & found.keys():
        code = codes.get(key[1])
        is_right = same(expected[key], found[key]) if code is None else is_error(found[key], code)
        if not is_right:
            wrong.append(f"{key}: should be {code or expected[key]}, is {found[key]}")
    return wrong


def is_error(structs: list[dict[str, Any]], code: str) -> bool:
    (struct,) = structs
    values = {value for name, value in struct.items() if name not in ("fingerprint", "error_code", "error_message")}
    return struct["error_code"] == code and bool(struct["error_message"]) and values == {None}


def near(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Alike but for rounding, which depends on what else is in a batch."""

    def numbers(structs: list[dict[str, Any]]) -> Any:
        return np.array([value for s in structs for value in (s.get("embedding") or [s.get("score") or 0.0])], np.float64)

    def rest(structs: list[dict[str, Any]]) -> Any:
        return [{name: value for name, value in s.items() if name not in ("embedding", "score")} for s in structs]

    return (
        rest(one) == rest(other)
        and numbers(one).shape == numbers(other).shape
        and np.allclose(*map(numbers, (one, other)), atol=1e-5)
    )


@each_stage
@pytest.mark.cases(quick=4, long=60)
def test_promise_4_whatever_a_model_does_at_some_clips_the_others_have_exactly_their_answers(
    stage: str, case: int, record: Record
) -> None:
    name = f"models-{stage}-{case}"
    rng = random.Random(name)
    rows = archive(rng, clips=rng.randrange(6, 30))
    ids = sorted({row["clip_id"] for row in rows if row.get("frames")})
    everything = kinds(stage)
    # Every kind of trouble has its turn; the rest is left to chance.
    turn = [everything[(case * 5 + n) % len(everything)] for n in range(5)]
    plan = dict(zip(rng.sample(ids, 5), turn, strict=True)) | {i: rng.choice(everything) for i in ids if rng.random() < 0.1}

    def run(model: Any, batch_clips: int) -> Answers:
        make = STAGES[stage](small(stage), batch_clips=batch_clips, batch_bytes=rng.choice([1, 20_000, 1 << 30]), load=model)
        return told(make(table(rows)), stage)

    right = honest(stage)
    expected = run(lambda *_: Troubled(right, stage, {}, 99, random.Random(0)), batch_clips=1)
    assert len({str(structs) for structs in expected.values()}) == len(expected)  # or a mix-up would not show
    rng.shuffle(rows)
    troubled = Troubled(right, stage, plan, most_clips=rng.choice([1, 2, 3, 5, 99]), random=rng)
    found = run(lambda *_: troubled, batch_clips=rng.choice([2, 4, 8, 16]))
    wrong = harmed(expected, found, {clip: code_of(stage, kind) for clip, kind in plan.items()}, lambda a, b: a == b)
    damage = Damage(harmed=len(wrong))
    record(f"clips at which a model fails ({stage})", damage, count=len(plan))
    damage.check(f"{name} {plan} {wrong[:3]}")


@each_stage
def test_every_kind_of_trouble_alone_costs_its_clip_alone(stage: str, record: Record) -> None:
    rows = [clip_row(n, pattern(n, 3, 24, 32)) for n in range(4)]
    expected = told(
        STAGES[stage](small(stage), load=lambda *_: Troubled(honest(stage), stage, {}, 99, random.Random(0)))(table(rows)),
        stage,
    )
    for kind in kinds(stage):
        bad = rows[1]["clip_id"]
        troubled = Troubled(honest(stage), stage, {bad: kind}, 99, random.Random(kind))
        found = told(STAGES[stage](small(stage), load=lambda *_, model=troubled: model)(table(rows)), stage)
        wrong = harmed(expected, found, {bad: code_of(stage, kind)}, lambda a, b: a == b)
        damage = Damage(harmed=len(wrong))
        record("kinds of trouble with a model", damage)
        damage.check(f"{kind}: {wrong}")


_loaded: dict[str, tuple[Entry, Any]] = {}


def embedded(stage: str) -> tuple[Entry, Any]:
    """A checkpoint of the package and its real adapter, loaded once."""
    if stage not in _loaded:
        torch.set_num_threads(1)
        config = CONFIGS[stage](**EMBEDDED[stage])
        found = Entry(stage, config, weights.resolve(config.model).revision, FINGERPRINT, "here")
        _loaded[stage] = (found, LOADERS[stage](found, "cpu", "float32"))
    return _loaded[stage]


@pytest.mark.cases(quick=3, long=60)
def test_promise_4_real_models_in_a_chain_that_fail_at_some_clips_leave_the_others_as_they_were(
    case: int, record: Record
) -> None:
    name = f"chain-{case}"
    rng = random.Random(name)
    rows = archive(rng, clips=rng.randrange(5, 9), frames=8)
    ids = sorted({row["clip_id"] for row in rows if row.get("frames")})
    plans = {stage: {i: rng.choice(kinds(stage)) for i in rng.sample(ids, 2)} for stage in STAGES}

    def chain(is_troubled: bool, most_clips: int = 99) -> pa.Table:
        links = []
        for stage in rng.sample(list(STAGES), 3):
            entry, adapter = embedded(stage)
            dim = adapter.dim if stage == "embed" else 0
            model = Troubled(adapter, stage, plans[stage] if is_troubled else {}, most_clips, rng, dim)
            load = partial(lambda model, *_: model, model)
            links.append(Link(partial(STAGES[stage], load=load), (entry, "cpu", "float32", rng.choice([3, 5]))))
        out = Chain(links)(table(rows))
        assert out.schema == PART_ROW
        return out

    expected = chain(is_troubled=False)
    rng.shuffle(rows)
    found = chain(is_troubled=True, most_clips=rng.choice([1, 2, 99]))
    for stage in STAGES:
        codes = {clip: code_of(stage, kind) for clip, kind in plans[stage].items()}
        wrong = harmed(told(expected, stage), told(found, stage), codes, near)
        damage = Damage(harmed=len(wrong))
        record("clips at which an embedded model fails, in a chain of three", damage, count=len(codes))
        damage.check(f"{name} {stage} {plans[stage]} {wrong[:3]}")


@each_stage
@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_a_broken_device_is_loud_and_no_clip_gets_an_answer_from_it(stage: str, kind: type[Exception], record: Record) -> None:
    def broken(_clips: Any) -> Any:
        raise kind("CUDA error: device-side assert triggered")

    broken.dim = 3  # type: ignore[attr-defined]
    record("broken devices")
    with pytest.raises(BrokenDevice, match="device-side assert"):
        STAGES[stage](small(stage), load=lambda *_: broken)(table([clip_row(0)]))


def test_a_model_that_fails_at_every_clip_is_counted_for_its_videos_and_due_again(record: Record) -> None:
    videos = [
        Video("a", failing={"embed": (0, 1, 2)}),
        Video("b", failing={"embed": (1,)}),
        Video("c"),
        Video("d", error="damaged"),
    ]
    world = World(Store(memory()), videos)
    sums = world.run().sums
    assert (sums.unanswered, dict(sums.statuses)) == (1, {"ok": 1, "partial": 3})
    found = world.open().due(sources(videos)).to_pylist()
    assert [(row["uri"], len(row["due"])) for row in found] == [(videos[0].uri, 1)]
    record("models that fail at every clip of a video")


def test_the_troubles_are_those_that_the_record_counts(record: Record) -> None:
    record.figure(
        "kinds of trouble with a model",
        f"{len(RAISED)} exceptions, {len(LISTED)} wrong lists, {sum(map(len, WRONG.values()))} wrong answers",
    )
    assert {code_of("embed", kind) for kind in kinds("embed")} == {None, "model_failed", "out_of_memory", "not_finite"}
