"""Makes the embedded checkpoints: `python -m stages.models.embedded.train`; `--evaluate` only scores what ships.

README.md beside this file tells the recipe, the seed and the scores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SEED = 2026
CLIPS = 6400
EVALUATED_CLIPS = 512
EVALUATION_SEED = 1
CHECKPOINTS = ("motion", "clip", "git")  # git begins from clip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    asked = _parser().parse_args(arguments)
    if not asked.evaluate:
        train(asked.output, asked.only or CHECKPOINTS, asked.seed, asked.clips, asked.data, asked.workers, asked.threads)
    evaluate(asked.output, asked.evaluated, asked.threads)


def train(
    output: Path, names: Sequence[str], seed: int, clips: int, data_file: Path | None, workers: int, threads: int
) -> None:
    """Renders the clips (or reads them from `data_file`, which is made where it is not) and trains the checkpoints `names`."""
    import torch

    from stages.models.embedded import data, learn_clip, learn_git, learn_motion, world

    torch.set_num_threads(threads)
    if data_file is not None and data_file.exists():
        made = data.Clips.load(data_file)
    else:
        began_s = time.monotonic()
        made = data.build(clips, seed, world.TRAINING, workers)
        _say(f"{len(made)} clips rendered in {time.monotonic() - began_s:.0f} s")
        if data_file is not None:
            made.save(data_file)
    if "motion" in names:
        learn_motion.train(made, output / "motion", seed, say=_say)
    if "clip" in names:
        learn_clip.train(made, output / "clip", seed, say=_say)
    if "git" in names:
        learn_git.train(made, output / "git", output / "clip", seed, say=_say)
    for weights in output.glob("*/model.safetensors"):
        weights.chmod(0o644)  # written for their owner alone; they go into a package


def evaluate(output: Path, clips: int, threads: int) -> None:
    """Prints the scores on so many unseen clips."""
    import torch

    from stages.models.embedded import evaluate as unseen

    torch.set_num_threads(threads)
    _say(json.dumps(unseen.scores(unseen.shown(clips, EVALUATION_SEED), output), indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stages.models.embedded.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the checkpoints' folders")
    parser.add_argument("--only", nargs="+", choices=CHECKPOINTS, help="train these alone")
    parser.add_argument("--evaluate", action="store_true", help="train nothing, print the scores of what is there")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips to render for training")
    parser.add_argument("--evaluated", type=int, default=EVALUATED_CLIPS, help="unseen clips to score with")
    parser.add_argument("--data", type=Path, help="file to keep the rendered clips in, or to read them from")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
