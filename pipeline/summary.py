"""How a run ended: the figures, the exit code they mean, and how a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# As in schemas.tables.VideoStatus, which brings Arrow along: `--help` should not wait for it.
STATUSES = ("ok", "partial", "failed", "deferred", "quarantined")
DONE, BROKEN, BAD_REQUEST, MANY_FAILED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 4, 130
DEFAULT_MAX_FAILED = 0.05


@dataclass(frozen=True)
class RunResult:
    """What one run did.

    `counts` holds videos by status that got a ledger row in this run. `not_due` videos were complete already, `left_out` were
    due but beyond --limit, `duplicates` are entries of the input that named a video a second time. `unanswered` videos have
    clips, to none of which one of the models had an answer. `video_s` is the time that
    decoded, `first_receipt_s` the wall time to the first unit that came through every stage. `stopped_details` says, of a run
    that stopped early, where to look.
    """

    run_id: str
    output: str
    counts: Mapping[str, int] = field(default_factory=dict)
    not_due: int = 0
    left_out: int = 0
    duplicates: int = 0
    clips: int = 0
    unanswered: int = 0
    video_s: float = 0.0
    wall_s: float = 0.0
    first_receipt_s: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    stopped_reason: str | None = None
    stopped_details: Sequence[str] = ()
    promise_broken: str | None = None

    @property
    def videos(self) -> int:
        """Videos that got a ledger row."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """Videos that will not be tried again by themselves."""
        return self.counts.get("failed", 0) + self.counts.get("quarantined", 0)

    @property
    def usable(self) -> int:
        """Videos of which there is something in the tables."""
        return self.counts.get("ok", 0) + self.counts.get("partial", 0)


def exit_code(result: RunResult, max_failed: float = DEFAULT_MAX_FAILED) -> int:
    """0 done; 1 a promise is broken; 3 more than `max_failed` (a share) of the videos failed, or none is usable; 4 stopped.

    A video for which a model failed on every clip counts as failed here: where that is many, the model is at fault.
    """
    if result.promise_broken:
        return BROKEN
    if result.stopped_reason:
        return STOPPED
    if result.videos and (result.failed + result.unanswered > max_failed * result.videos or not result.usable):
        return MANY_FAILED
    return DONE


def lines(result: RunResult) -> list[str]:
    """The summary, one string a line, aligned in two columns."""
    rows = [("videos", _videos(result)), ("clips", f"{result.clips:,}")]
    if result.not_due:
        rows.insert(1, ("not due", f"{result.not_due:,} were complete already"))
    if result.left_out:
        rows.insert(1, ("left out", f"{result.left_out:,} are due but beyond --limit"))
    if result.unanswered:
        rows.append(("silent", f"{result.unanswered:,} videos: one of the models had no answer to any of their clips"))
    if result.duplicates:
        rows.insert(1, ("doubled", f"{result.duplicates:,} entries of the input name a video a second time"))
    if result.video_s > 0:
        rows.append(("footage", f"{duration(result.video_s)}, {speed(result.video_s, result.wall_s)}"))
    if result.errors:
        rows.append(("errors", _counted(dict(sorted(result.errors.items(), key=lambda item: (-item[1], item[0]))))))
    rows.append(("tables", result.output))
    details = [f"  - {detail}" for detail in result.stopped_details]
    return [_headline(result), *details, *(f"  {name:<8} {value}" for name, value in rows)]


def _headline(result: RunResult) -> str:
    took = f"in {duration(result.wall_s)}"
    if result.first_receipt_s is not None:
        took += f", the first video done after {duration(result.first_receipt_s)}"
    if result.promise_broken:
        return f"run {result.run_id} broke a promise: {result.promise_broken}"
    if result.stopped_reason:
        return f"run {result.run_id} stopped early ({result.stopped_reason}) {took}; the next run goes on from here"
    if not result.videos:
        return f"run {result.run_id}: nothing was due, {took}"
    return f"run {result.run_id} done {took}"


def _videos(result: RunResult) -> str:
    present = {status: result.counts[status] for status in STATUSES if result.counts.get(status)}
    return _counted(present) if present else "none"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def speed(video_s: float, wall_s: float) -> str:
    """Seconds of footage per second, in the words `12 hours of video per hour`."""
    if wall_s <= 0:
        return "speed unknown"
    rate = video_s / wall_s
    return f"{rate:,.0f} hours of video per hour" if rate >= 10 else f"{rate:.1f} hours of video per hour"


def duration(seconds: float) -> str:
    """`7.3 s`, `2 min 05 s`, `3 h 12 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
