"""A whole run in a process of its own, attached to a running Ray: `python -m tests.faults.driver SPEC` (JSON).

The same code as `clipmill run`, with some parts replaced by those of tests/faults/doubles.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Spec:
    """What to run, and how it misbehaves."""

    input: str
    output: str
    address: str
    sets: Sequence[str] = ()
    preset: str | None = None
    decode_pause_s: float | None = None
    evil_deadline_s: float | None = None  # EvilDecode, and what its watchdog allows
    is_poisoned: bool = False  # EvilStage
    model_pause_s: float | None = None
    stage_pause_s: float | None = None
    publish_pause_s: float | None = None
    marks: str = ""  # folder for SlowPublish
    kill_at: int | None = None  # the driver kills itself at this write
    after: bool = False
    writes: str | None = None  # file for the list of the driver's writes

    def start(self, **popen: Any) -> subprocess.Popen[str]:
        """Starts the program."""
        command = [sys.executable, "-m", "tests.faults.driver", json.dumps(asdict(self))]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(command, env=environment, text=True, **popen)


@dataclass
class Ended:
    """How a run ended."""

    code: int
    said: str
    trouble: str = field(default="", repr=False)


def finish(process: subprocess.Popen[str], timeout_s: float = 420.0) -> Ended:
    """Waits; a run that takes longer counts as one that hangs: TimeoutExpired, after killing it."""
    try:
        said, trouble = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, said or "", trouble or "")


def differences(expected: Mapping[str, Sequence[Any]], found: Mapping[str, Sequence[Any]]) -> str:
    """For whoever reads of a test that failed."""
    rows = {sign: {f"{name} {row}" for name in of for row in of[name]} for sign, of in (("-", expected), ("+", found))}
    return "\n".join(f"{sign} {row}" for sign, own in rows.items() for row in sorted(own - rows["-" if sign == "+" else "+"]))


def main(spec: Spec) -> int:
    """Runs; the exit code of `clipmill run --max-failed 100%`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from cluster.sizing import Sizing
    from pipeline import plan, run, settings, summary
    from pipeline.preflight import preflight
    from pipeline.progress import Progress
    from pipeline.publish import publish_epoch
    from schemas.config import JobConfig
    from schemas.entries import Entry
    from tests.faults.doubles import DyingStore, EvilDecode, EvilStage, SlowDecode, SlowPublish, SlowStage

    config = settings.load(preset=spec.preset, input_uri=spec.input, output=spec.output, sets=list(spec.sets))
    opened: list[DyingStore] = []

    def open_store(root: str) -> DyingStore:
        opened.append(DyingStore(root, spec.kill_at, after=spec.after))
        return opened[-1]

    def steps(config: JobConfig, entries: Sequence[Entry], sizing: Sizing, output: str, run_id: str) -> list[plan.Step]:
        found = {step.name: step for step in plan.steps(config, entries, sizing, output, run_id)}
        for name, step in found.items():
            pause_s = {"decode": spec.decode_pause_s, "stage parts": spec.stage_pause_s}.get(name, spec.model_pause_s)
            if name == "decode" and spec.evil_deadline_s is not None:
                found[name] = replace(step, stage=EvilDecode, args=(spec.evil_deadline_s, *step.args))
            elif step.actors is not None and spec.is_poisoned:
                found[name] = replace(step, stage=EvilStage, args=(step.stage, *step.args))
            elif name == "decode" and pause_s is not None:
                found[name] = replace(step, stage=SlowDecode, args=(pause_s, *step.args))
            elif pause_s is not None:
                found[name] = replace(step, stage=SlowStage, args=(pause_s, step.stage, *step.args))
        return list(found.values())

    publish = publish_epoch if spec.publish_pause_s is None else SlowPublish(spec.marks, spec.publish_pause_s)
    parts = run.Parts(open_store=open_store, steps=steps, publish=publish)
    try:
        with Progress(live=False, every_s=1000) as progress:
            result = run.run(config, preflight(config).entries, run.Request(address=spec.address), progress, parts)
    except KeyboardInterrupt:
        return summary.INTERRUPTED
    print("\n".join(summary.lines(result)))
    if spec.writes:
        Path(spec.writes).write_text("\n".join(opened[0].writes))
    return summary.exit_code(result, 1.0)


if __name__ == "__main__":
    sys.exit(main(Spec(**json.loads(sys.argv[1]))))
