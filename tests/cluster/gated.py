"""Runs whose steps wait for a gate, so that something can happen while they hold work: `python -m tests.cluster.gated JSON`.

The same code as `clipmill run`, but a step that has a gate works on a table only once a file of its name is in a folder. GPUs
are what Ray was told there are: models run on CPUs whatever was sized.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.sizing import Sizing
from pipeline.plan import Step
from schemas.config import JobConfig
from schemas.entries import Entry

ROOT = Path(__file__).parents[2]
POLL_S = 0.05


@dataclass(frozen=True)
class Gated:
    """What to run, and which steps have gates in the folder `gates`. An open gate still takes `pause_s` to pass."""

    input: str
    output: str
    address: str | None
    gates: str
    steps: Sequence[str] = ()
    preset: str | None = None
    sets: Sequence[str] = ()
    pause_s: float = 0.0

    def open(self, step: str) -> None:
        """Lets a step go on."""
        (Path(self.gates) / step).touch()

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        """The run, which is killed at the end of the block if it is not over."""
        command = [sys.executable, "-m", "tests.cluster.gated", json.dumps(asdict(self))]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


class Waiting:
    """A stage that waits for its gate."""

    def __init__(self, gate: str, pause_s: float, stage: Callable[..., Any], *args: Any) -> None:
        self._gate, self._pause_s, self._stage = Path(gate), pause_s, stage(*args)

    def __call__(self, rows: pa.Table) -> Any:
        while not self._gate.exists():
            time.sleep(POLL_S)
        time.sleep(self._pause_s)
        return self._stage(rows)


def main(asked: Gated) -> int:
    """The exit code of `clipmill run --max-failed 100%`."""
    from pipeline import plan, run, settings, summary
    from pipeline.preflight import preflight
    from pipeline.progress import Progress

    def steps(config: JobConfig, entries: Sequence[Entry], sizing: Sizing, output: str, run_id: str) -> list[plan.Step]:
        found = plan.steps(config, entries, replace(sizing, device="cpu", dtype="float32"), output, run_id)
        return [_gated(step, asked) if step.name in asked.steps else step for step in found]

    config = settings.load(preset=asked.preset, input_uri=asked.input, output=asked.output, sets=list(asked.sets))
    with Progress(live=False, every_s=1000) as progress:
        entries = preflight(config).entries
        result = run.run(config, entries, run.Request(address=asked.address), progress, run.Parts(steps=steps))
    print("\n".join(summary.lines(result)))
    return summary.exit_code(result, 1.0)


def _gated(step: Step, asked: Gated) -> Step:
    from tests.cluster.gated import Waiting  # by a name that workers know: here it may be that of the program

    return replace(step, stage=Waiting, args=(str(Path(asked.gates) / step.name), asked.pause_s, step.stage, *step.args))


if __name__ == "__main__":
    sys.exit(main(Gated(**json.loads(sys.argv[1]))))
