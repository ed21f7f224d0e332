"""Clipmill: `clipmill run` with clips of 10 seconds and one embedder. Publishes its tables of videos and clips as well."""

from __future__ import annotations

import json
import os
import sys

from benchmarks.peers.task import FRAMES, WINDOW_S, arguments


def main(effort: str = "exact") -> None:
    args = arguments()
    config = args.output.parent / "job.yaml"
    clips = {"split": "fixed", "max_s": WINDOW_S, "effort": effort}
    job = {"clips": clips, "embed": {"model": str(args.checkpoint), "frames": FRAMES}}
    config.write_text(json.dumps(job))
    command = ["run", "--input", str(args.videos), "--output", str(args.output), "--config", str(config)]
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *command])


if __name__ == "__main__":
    main()
