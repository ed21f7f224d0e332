from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from schemas.config import EmbedConfig
from schemas.entries import Entry
from schemas.errors import BadClip, ErrorCode
from stages.batches import Batches, clip_frames, due_rows
from stages.models.adapter import Answers, BrokenDevice, ClipFrames, model_errors
from tests.stages.clips import FINGERPRINT, clip_row, end_row, failed_row, pattern, table

Model = Callable[[Sequence[ClipFrames]], Answers[float]]


def mean(clip: ClipFrames) -> float:
    return float(clip.frames.mean())


def honest(clips: Sequence[ClipFrames]) -> Answers[float]:
    return [(clip.id, mean(clip)) for clip in clips]


def batches(infer: Model, frames: int = 4, batch_clips: int = 4, batch_bytes: int = 1 << 30) -> Batches[float]:
    return Batches(
        entry=Entry("embed", EmbedConfig(model="here", frames=frames), "r", FINGERPRINT, "here"),
        column="embeddings",
        infer=infer,
        structs=lambda value: [{"dim": 1, "embedding": [value]}],
        empty={"dim": None, "embedding": None},
        batch_clips=batch_clips,
        batch_bytes=batch_bytes,
    )


def outcome(out: pa.Table) -> list[float | str | None]:
    """Per row: the answer, the error's code, or None where nothing was asked."""
    return [
        None if not structs else structs[0]["error_code"] or structs[0]["embedding"][0]
        for structs in out["embeddings"].to_pylist()
    ]


def means(rows: Sequence[int]) -> list[float]:
    return [pytest.approx(float(pattern(i, 4).mean()), abs=1e-4) for i in rows]


def rows(count: int) -> list[dict[str, object]]:
    return [clip_row(i, pattern(i, 4)) for i in range(count)]


def bad(number: int) -> str:
    return str(clip_row(number)["clip_id"])


def test_batches_are_bounded_by_clips() -> None:
    sizes: list[int] = []

    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        sizes.append(len(clips))
        return honest(clips)

    assert outcome(batches(model, batch_clips=3)(table(rows(7)))) == means(range(7))
    assert sizes == [3, 3, 1]


def test_batches_are_bounded_by_the_bytes_that_the_model_sees() -> None:
    sizes: list[int] = []

    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        sizes.append(sum(clip.frames.nbytes for clip in clips))
        return honest(clips)

    one = 4 * 48 * 80 * 3
    assert outcome(batches(model, batch_bytes=2 * one + 5)(table(rows(5)))) == means(range(5))
    assert sizes == [2 * one, 2 * one, one]
    sizes.clear()
    batches(model, batch_bytes=1)(table(rows(2)))
    assert sizes == [one, one]


def test_answers_in_another_order_find_their_clips() -> None:
    assert outcome(batches(lambda clips: honest(clips)[::-1])(table(rows(4)))) == means(range(4))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda told: told[1:],
        lambda told: [*told, told[0]],
        lambda told: [told[0], *told[:-1]],
        lambda told: [("another", told[0][1]), *told[1:]],
        lambda told: told[:0],
    ],
    ids=["missing", "extra", "doubled", "wrong", "none"],
)
def test_answers_that_do_not_belong_to_the_clips_are_not_believed(tamper: Callable[[Answers[float]], Answers[float]]) -> None:
    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        return tamper(honest(clips)) if len(clips) > 1 else honest(clips)

    assert outcome(batches(model)(table(rows(4)))) == means(range(4))


@pytest.mark.parametrize("told", [[], [("another", 1.0)], [("both", 1.0), ("both", 1.0)], None, [None]])
def test_a_model_that_answers_about_another_clip_even_alone_has_no_answer(told: Any) -> None:
    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        return told if any(clip.id.startswith(bad(1)) for clip in clips) else honest(clips)

    assert outcome(batches(model)(table(rows(3)))) == [*means([0]), "model_failed", *means([2])]


def test_one_clip_met_in_two_attempts_is_two_clips() -> None:
    twice = [clip_row(0, pattern(0, 4)), clip_row(0, pattern(5, 4), attempt="second")]
    assert outcome(batches(honest)(table(twice))) == means([0, 5])


def fails_on(number: int, error: Exception) -> Model:
    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        with model_errors():
            if any(clip.id.startswith(bad(number)) for clip in clips):
                raise error
        return honest(clips)

    return model


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("shapes\ndo not match"), "model_failed"),
        (ValueError("too long"), "model_failed"),
        (IndexError("index 9 is out of range"), "model_failed"),
        (ZeroDivisionError("division by zero"), "model_failed"),
        (KeyError("pixel_values"), "model_failed"),
        (TypeError("'NoneType' object is not iterable"), "model_failed"),
        (AssertionError(), "model_failed"),
        (StopIteration(), "model_failed"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_promise_4_a_clip_that_fails_gets_its_error_and_its_neighbours_their_answers(error: Exception, code: str) -> None:
    out = batches(fails_on(2, error))(table([*rows(6), end_row(6)]))
    assert outcome(out) == [*means([0, 1]), code, *means([3, 4, 5]), None]
    (struct,) = out["embeddings"][2].as_py()
    assert struct["fingerprint"] == FINGERPRINT
    assert struct["error_message"].startswith(type(error).__name__)
    assert "\n" not in struct["error_message"]
    assert out["error_code"].null_count == 7  # the clip itself is fine: only this stage has no answer


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_a_broken_device_is_loud_because_every_clip_after_it_would_fail(kind: type[Exception]) -> None:
    with pytest.raises(BrokenDevice, match="illegal memory access"):
        batches(fails_on(1, kind("CUDA error: an illegal memory access was encountered")))(table(rows(3)))


def test_while_a_batch_is_tried_again_nothing_holds_the_memory_of_the_first_try() -> None:
    held: list[weakref.ref[np.ndarray]] = []

    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        assert not [here for here in held if here() is not None], "what a failed try had allocated is still there"
        activations = np.zeros(1000)
        held.append(weakref.ref(activations))
        if len(clips) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(clips)

    assert outcome(batches(model)(table(rows(4)))) == means(range(4))


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    sizes: list[int] = []

    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        sizes.append(len(clips))
        with model_errors():
            if len(clips) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(clips)

    assert outcome(batches(model, batch_clips=8)(table(rows(8)))) == means(range(8))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_a_batch_is_halved_down_to_the_one_clip_that_does_not_fit_alone() -> None:
    sizes: list[int] = []

    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        sizes.append(len(clips))
        if any(clip.id.startswith(bad(5)) for clip in clips):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return honest(clips)

    out = batches(model, batch_clips=8)(table(rows(8)))
    assert outcome(out) == [*means(range(5)), "out_of_memory", *means([6, 7])]
    assert sizes == [8, 4, 4, 2, 1, 1, 2]


def test_a_clip_whose_answer_is_spoiled_by_a_neighbour_is_asked_about_alone() -> None:
    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        spoiled = any(clip.id.startswith(bad(1)) for clip in clips)
        return [(i, BadClip(ErrorCode.NOT_FINITE, "NaN")) for i, _ in honest(clips)] if spoiled else honest(clips)

    assert outcome(batches(model)(table(rows(3)))) == [*means([0]), "not_finite", *means([2])]


def test_an_answer_that_its_column_cannot_hold_costs_its_clip_alone() -> None:
    def model(clips: Sequence[ClipFrames]) -> Answers[Any]:
        return [(i, "text" if i.startswith(bad(1)) else value) for i, value in honest(clips)]

    assert outcome(batches(model)(table(rows(3)))) == [*means([0]), "model_failed", *means([2])]


def test_an_answer_that_is_an_error_is_that_clip_s_alone() -> None:
    def model(clips: Sequence[ClipFrames]) -> Answers[float]:
        return [(i, BadClip(ErrorCode.NOT_FINITE, "NaN") if i.startswith(bad(1)) else value) for i, value in honest(clips)]

    assert outcome(batches(model)(table(rows(3)))) == [*means([0]), "not_finite", *means([2])]


def test_a_clip_is_due_when_it_is_a_good_clip_and_names_the_fingerprint() -> None:
    mixed = [clip_row(0), failed_row(1), clip_row(2, due=("bcdefghi",)), clip_row(3, due=()), end_row(4), clip_row(5)]
    assert due_rows(table(mixed), FINGERPRINT) == [0, 5]


def test_a_model_sees_its_own_frames_at_the_mid_bins() -> None:
    frames = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    seen = clip_frames(table([clip_row(3, frames)]), 0, 4)
    assert seen.frames[:, 0, 0, 0].tolist() == [0, 2, 4, 6]  # of two equally near the earlier
    assert seen.times_s.tolist() == pytest.approx([0.125, 0.625, 1.125, 1.625])
    assert seen.duration_s == 2.0


def test_frames_are_not_copied_where_a_model_takes_them_all() -> None:
    parts = [table([clip_row(0, pattern(0, 4)), clip_row(1, pattern(1, 4))]), table([clip_row(2, pattern(2, 4))])]
    whole = pa.concat_tables([parts[0].slice(1), parts[1]])
    for row, number in enumerate((1, 2)):
        seen = clip_frames(whole, row, 4).frames
        np.testing.assert_array_equal(seen, pattern(number, 4))
        assert not seen.flags.owndata
        data = whole["frames"].chunk(row).buffers()[2]
        assert data.address <= seen.ctypes.data < data.address + data.size


def test_a_row_whose_frames_and_times_disagree_is_loud() -> None:
    with pytest.raises(ValueError, match="times of frames"):
        batches(honest)(table([clip_row(0, frame_times_s=[0.5])]))
