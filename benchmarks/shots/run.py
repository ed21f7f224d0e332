"""Compares the shot detector with PySceneDetect on montages of known truth, by one scorer.

    python -m benchmarks.shots.run --seeds 2 4 --real ../shared/videos

Thresholds were chosen on odd seeds and, of the recordings, on the half that odd seeds draw from: report even seeds.
Times are processor seconds of one thread, decoding included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, detect

from benchmarks.shots.montage import Montage, Recipe, build, real_shots, synthetic_shots
from benchmarks.shots.score import Score, score
from stages.shots import boundaries

_SLOW = Recipe(shots=30, shot_frames=(14, 40), fps=12, dissolve_frames=5, fade_frames=4)
_FAST = Recipe(shots=20, shot_frames=(72, 160), fps=60, dissolve_frames=20, fade_frames=16)
_REAL_SIZE = (270, 480)

Detector = Callable[[Path], list[int]]


def montages(seeds: Sequence[int], recordings: Path | None) -> Iterator[tuple[str, Montage]]:
    """Montages by name: made in code at about 12, 25 and 60 frames a second, and from recordings at full and half rate."""
    usual = Recipe(shots=40)
    for seed in seeds:
        for name, recipe, step in (("made, 25 fps", usual, 1.0), ("made, 12 fps", _SLOW, 2.2), ("made, 60 fps", _FAST, 0.45)):
            yield f"{name}, seed {seed}", build(synthetic_shots(recipe.size, step), seed, recipe)
        if recordings is not None:
            for name, recipe, every in (("real", replace(usual, shots=60), 1), ("real, half rate", _SLOW, 2)):
                shots = real_shots(recordings, _REAL_SIZE, every, part=seed % 2)
                yield f"{name}, seed {seed}", build(shots, seed, replace(recipe, size=_REAL_SIZE))


def ours(path: Path) -> list[int]:
    """Frame numbers at which ShotDetector sees a new shot begin."""
    times: list[float] = []

    def timed(container: av.container.InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
        for frame in container.decode(video=0):
            times.append(float(frame.time))
            yield times[-1], frame

    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        cuts = boundaries(timed(container))
    return [int(np.abs(np.array(times) - cut.time_s).argmin()) for cut in cuts]


def decoded(path: Path) -> list[int]:
    """Nothing: what bare decoding costs."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass
    return []


def adaptive(path: Path) -> list[int]:
    """PySceneDetect's AdaptiveDetector as it comes."""
    return [start.frame_num for start, _ in detect(str(path), AdaptiveDetector())[1:]]


def content(path: Path) -> list[int]:
    """PySceneDetect's ContentDetector as it comes."""
    return [start.frame_num for start, _ in detect(str(path), ContentDetector())[1:]]


DETECTORS: dict[str, Detector] = {"ours": ours, "adaptive": adaptive, "content": content}
_HEAD = f"{'F1@0':>42}{'@1':>6}{'@2':>6}{'cuts':>9}{'false':>6}{'flash':>6}{'dissolves':>10}{'fades':>8}{'us/frame':>9}"


def line(name: str, detector: str, scores: Sequence[Score], us: float | None = None) -> str:
    """A row of the table; counts are those at a tolerance of one frame."""
    at_1 = scores[1]
    return (
        f"{name:26}{detector:10}{scores[0].f1:6.3f}{at_1.f1:6.3f}{scores[2].f1:6.3f}{at_1.found:5}/{at_1.cuts:<3}"
        f"{at_1.false:6}{at_1.at_flash:6}{at_1.dissolves_found:7}/{at_1.dissolves:<2}"
        f"{at_1.fades_found:5}/{at_1.fades:<2}" + ("" if us is None else f"{us:9.0f}")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--real", type=Path, help="folder of the real recordings")
    parsed = parser.parse_args(arguments)
    totals: dict[tuple[str, str], list[Score]] = {}
    print(_HEAD)
    for name, montage in montages(parsed.seeds, parsed.real):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "montage.mp4")
            path.write_bytes(montage.video)
            decoded(path)  # once, so that nobody pays for the cold start
            began = time.process_time()
            decoded(path)
            us = 1e6 * (time.process_time() - began) / montage.frames
            print(f"{name:26}{'decoding':10}{montage.frames:10} frames{us:52.0f}")
            for detector, found in DETECTORS.items():
                began = time.process_time()
                boundaries = found(path)
                us = 1e6 * (time.process_time() - began) / montage.frames
                scores = [score(boundaries, montage.transitions, montage.flashes, tolerance) for tolerance in (0, 1, 2)]
                print(line(name, detector, scores, us), flush=True)
                key = (name.split(", seed")[0], detector)
                totals[key] = [a + b for a, b in zip(totals.get(key, [Score()] * 3), scores, strict=True)]
    print("\nall seeds")
    for (name, detector), scores in totals.items():
        print(line(name, detector, scores))


if __name__ == "__main__":
    main()
