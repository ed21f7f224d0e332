import pytest

from pipeline import summary
from pipeline.summary import RunResult, exit_code
from schemas.tables import VideoStatus


def result(**values: object) -> RunResult:
    return RunResult(**{"run_id": "r1", "output": "/out", **values})  # type: ignore[arg-type]


def text(found: RunResult) -> str:
    return "\n".join(summary.lines(found))


def test_the_statuses_are_those_of_the_ledger() -> None:
    assert tuple(VideoStatus) == summary.STATUSES


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({}, 0),
        ({"ok": 95, "failed": 5}, 0),
        ({"ok": 94, "failed": 6}, 3),
        ({"ok": 94, "failed": 3, "quarantined": 3}, 3),
        ({"ok": 94, "partial": 6}, 0),
        ({"ok": 94, "deferred": 6}, 0),
        ({"partial": 1}, 0),
        ({"failed": 1}, 3),
        ({"deferred": 4}, 3),
    ],
)
def test_too_many_failures_are_code_3(counts: dict[str, int], code: int) -> None:
    assert exit_code(result(counts=counts)) == code


def test_the_share_that_may_fail_is_the_callers() -> None:
    half = result(counts={"ok": 1, "failed": 1})
    assert exit_code(half, 0.5) == 0
    assert exit_code(half, 0.49) == 3
    assert exit_code(result(counts={"failed": 2}), 1.0) == 3  # all did


def test_a_model_that_answers_nothing_about_too_many_videos_is_code_3_and_said() -> None:
    found = result(counts={"partial": 94, "ok": 6}, unanswered=6)
    assert exit_code(found) == 3
    assert exit_code(found, 0.06) == 0
    assert "  silent   6 videos: one of the models had no answer to any of their clips\n" in text(found)


def test_a_broken_promise_outweighs_an_early_stop_and_that_outweighs_failures() -> None:
    bad = {"counts": {"failed": 1}}
    assert exit_code(result(**bad, stopped_reason="stalled", promise_broken="sums differ")) == 1
    assert exit_code(result(**bad, stopped_reason="stalled")) == 4


def test_the_summary_is_aligned_and_says_everything_that_there_is() -> None:
    found = result(
        counts={"failed": 2, "ok": 1040}, not_due=12, left_out=5, duplicates=3, clips=20345, video_s=7200, wall_s=720,
        first_receipt_s=8.25, errors={"no_video": 1, "truncated": 2},
    )  # fmt: skip
    assert summary.lines(found) == [
        "run r1 done in 12 min 00 s, the first video done after 8.2 s",
        "  videos   1,040 ok, 2 failed",
        "  doubled  3 entries of the input name a video a second time",
        "  left out 5 are due but beyond --limit",
        "  not due  12 were complete already",
        "  clips    20,345",
        "  footage  2 h 00 min, 10 hours of video per hour",
        "  errors   2 truncated, 1 no_video",
        "  tables   /out",
    ]


def test_a_run_with_nothing_to_do_says_so() -> None:
    assert summary.lines(result(not_due=7, wall_s=2))[0] == "run r1: nothing was due, in 2.0 s"


def test_an_early_stop_says_why_and_that_the_next_run_goes_on() -> None:
    assert "stopped early (--max-hours 2)" in text(result(stopped_reason="--max-hours 2"))
    assert "the next run goes on" in text(result(stopped_reason="--max-hours 2"))
    assert "broke a promise: 3 sources in, 2 out" in text(result(promise_broken="3 sources in, 2 out"))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (11520, "3 h 12 min"),
    ],
)
def test_durations_never_say_sixty(seconds: float, said: str) -> None:
    assert summary.duration(seconds) == said


def test_speed_without_time_is_unknown() -> None:
    assert summary.speed(10, 0) == "speed unknown"
    assert summary.speed(10, 4) == "2.5 hours of video per hour"
