"""How a video left a run: from what its units reported to its row in the ledger. Pure.

- One unit whose storage failed defers the video: nothing of it is published, it is due again.
- Without a single good clip it is quarantined where a unit ended or hung its worker, else failed.
- With good clips it is partial where a unit, a tail, a clip or a stage is missing or incomplete, else ok.
- A stage is partial where decoding lost something, or where clips have an error instead of its answer; it failed, with no rows,
  where all have. So ok means an answer for every clip of the whole video.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.recipe import Ingredient, Recipe
from schemas.errors import DEFERRING, QUARANTINING, ErrorCode, one_line
from schemas.rows import SOURCE_FIELDS
from schemas.tables import StageStatus, VideoStatus

Row = dict[str, Any]
_FROM_SOURCE = (*(f.name for f in SOURCE_FIELDS), "supersedes")
_FROM_END = ("container", "codec", "width", "height", "rotation_deg", "duration_s", "has_audio")


@dataclass(frozen=True)
class Trouble:
    """An error on its way into the ledger."""

    code: str | None
    stage: str | None
    message: str | None


@dataclass(frozen=True)
class UnitEnd:
    """A unit that is over: receipts of the one attempt that counts (RECEIPT rows as dicts, without what `source` says), or why
    it was given up.
    """

    source: Row  # its UNIT_ROW columns
    receipts: Sequence[Row] = ()
    given_up: Trouble | None = None
    tries: int = 1

    @property
    def end(self) -> Row | None:
        """The END struct; None for a unit that was given up."""
        return self.receipts[-1]["end"] if self.receipts else None

    @property
    def clips(self) -> int:
        """Clips, bad ones included."""
        return sum(receipt["clips"] for receipt in self.receipts)

    @property
    def trouble(self) -> Trouble | None:
        """Why not all of it decoded."""
        if self.given_up:
            return self.given_up
        assert self.end is not None
        code, message = self.end["error_code"], self.end["error_message"]
        return Trouble(code, "decode", self._placed(message)) if code else None

    def _placed(self, message: str | None) -> str:
        place = f"unit {self.source['unit'] + 1} of {self.source['units']}: " if self.source["units"] > 1 else ""
        return one_line(place + (message or "no message"))


@dataclass(frozen=True)
class Outcome:
    """A row of the ledger, and which fingerprints of the video are to be published, with their rows."""

    row: Row
    published: Mapping[str, int] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The video's status."""
        return str(self.row["status"])


def outcome(units: Sequence[UnitEnd], recipe: Recipe, due: Iterable[str], run_id: str, at: datetime) -> Outcome:
    """Settles a video whose units, in order, are all over. `due` are the fingerprints that this run may publish of it."""
    troubles = [unit.trouble for unit in units if unit.trouble]
    clips = sum(unit.clips for unit in units)
    good = clips - sum(receipt["bad_clips"] for unit in units for receipt in unit.receipts)
    lost = bool(troubles) or good < clips
    is_deferred = any(trouble.code in DEFERRING for trouble in troubles)
    wanted = set(due)
    stages, stage_troubles = [], []
    for ingredient in recipe.ingredients:
        if ingredient.fingerprint not in wanted:
            continue
        if is_deferred or not good:
            status, rows = (StageStatus.DEFERRED if is_deferred else StageStatus.FAILED), 0
        elif ingredient.stage == "clips":
            status, rows = (StageStatus.PARTIAL if lost else StageStatus.OK), clips
        else:
            status, rows, trouble = _answers(units, ingredient, lost)
            stage_troubles += [trouble] if trouble else []
        stages.append(_stage(ingredient, status, rows))
    left = _status(is_deferred, good, troubles, lost or bool(stage_troubles))
    trouble = _worst(left, troubles, [*_clip_troubles(units, clips), *stage_troubles])
    row = _facts(units, run_id, at) | {
        "status": left.value, "error_code": trouble.code, "error_stage": trouble.stage, "error_message": trouble.message,
        "clips": clips, "stages": stages,
    }  # fmt: skip
    return Outcome(row, {stage["fingerprint"]: stage["rows"] for stage in stages if stage["rows"]})


def rejected(source: Row, recipe: Recipe, run_id: str, at: datetime) -> Outcome:
    """Settles a source (SOURCE_ROW columns, `supersedes`, `due`) that was known to be bad when it was listed."""
    is_deferred = source["error_code"] in DEFERRING
    stage_status = StageStatus.DEFERRED if is_deferred else StageStatus.FAILED
    row = {name: source[name] for name in _FROM_SOURCE} | {
        "status": (VideoStatus.DEFERRED if is_deferred else VideoStatus.FAILED).value,
        "error_code": source["error_code"], "error_stage": "discover", "error_message": source["error_message"],
        "stages": [_stage(part, stage_status, 0) for part in recipe.ingredients if part.fingerprint in set(source["due"])],
        "run_id": run_id, "attempts": 0, "finished_at": at,
    }  # fmt: skip
    return Outcome(row)


def _answers(units: Sequence[UnitEnd], ingredient: Ingredient, lost: bool) -> tuple[StageStatus, int, Trouble | None]:
    staged = [
        found
        for unit in units
        for receipt in unit.receipts
        for found in receipt["staged"]
        if found["fingerprint"] == ingredient.fingerprint
    ]
    good, failed = sum(found["good"] for found in staged), sum(found["failed"] for found in staged)
    if not failed and good:
        return StageStatus.PARTIAL if lost else StageStatus.OK, sum(found["rows"] for found in staged), None
    first = next((found for found in staged if found["error_code"]), None)
    code = first["error_code"] if first else ErrorCode.NO_CLIPS.value
    message = one_line(f"{failed} of {good + failed} clips: {(first or {}).get('error_message')}")
    trouble = Trouble(code, ingredient.stage, message)
    if not good:
        return StageStatus.FAILED, 0, trouble
    return StageStatus.PARTIAL, sum(found["rows"] for found in staged), trouble


def _stage(ingredient: Ingredient, status: StageStatus, rows: int) -> Row:
    return {
        "stage": ingredient.stage, "model": ingredient.model, "revision": ingredient.revision,
        "fingerprint": ingredient.fingerprint, "status": status.value, "rows": rows,
    }  # fmt: skip


def _status(is_deferred: bool, good: int, troubles: Sequence[Trouble], is_incomplete: bool) -> VideoStatus:
    if is_deferred:
        return VideoStatus.DEFERRED
    if not good:
        killed = any(trouble.code in QUARANTINING for trouble in troubles)
        return VideoStatus.QUARANTINED if killed else VideoStatus.FAILED
    return VideoStatus.PARTIAL if is_incomplete else VideoStatus.OK


def _worst(status: VideoStatus, troubles: Sequence[Trouble], others: Sequence[Trouble]) -> Trouble:
    """The one error of several that explains the status; decoding comes before what follows it."""
    telling = {VideoStatus.DEFERRED: DEFERRING, VideoStatus.QUARANTINED: QUARANTINING}.get(status, frozenset())
    first = [trouble for trouble in troubles if trouble.code in telling]
    found = [*first, *troubles, *others]
    if found:
        return found[0]
    if status is VideoStatus.FAILED:
        return Trouble(ErrorCode.NO_FRAMES.value, "decode", "no clip came out of it")
    return Trouble(None, None, None)


def _clip_troubles(units: Sequence[UnitEnd], clips: int) -> list[Trouble]:
    bad = [receipt for unit in units for receipt in unit.receipts if receipt["bad_clips"]]
    if not bad:
        return []
    count = sum(receipt["bad_clips"] for receipt in bad)
    return [Trouble(bad[0]["error_code"], "decode", one_line(f"{count} of {clips} clips: {bad[0]['error_message']}"))]


def _facts(units: Sequence[UnitEnd], run_id: str, at: datetime) -> Row:
    ends = [unit.end for unit in units if unit.end]
    described: Row = next((end for end in ends if end["container"] is not None), ends[0] if ends else {})
    frames, decoded_s = sum(end["frames"] for end in ends), sum((end["decoded_s"] for end in ends), start=0.0)
    return (
        {name: units[0].source[name] for name in _FROM_SOURCE}
        | {name: described.get(name) for name in _FROM_END}
        | {
            "fps": frames / decoded_s if decoded_s > 0 else None,
            "decoded_s": decoded_s if ends else None,
            "run_id": run_id,
            "attempts": max(unit.tries for unit in units),
            "started_at": min((end["started_at"] for end in ends), default=None),
            "finished_at": at,
        }
    )
