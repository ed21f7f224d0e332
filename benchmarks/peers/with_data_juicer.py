"""Data-Juicer: its command over a list of videos with one operator of our own, which takes frames as its own operators do.

Its operators that cut by seconds either write files anew or leave out the end of each video, and `uniform` takes as many frames
of a long video as of a short one. So the operator asks the same function for 8 frames of each 10 seconds of the video; those
lie evenly from the first frame to the last, not in the middles of eighths.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from data_juicer.ops.base_op import OPERATORS, Mapper
from data_juicer.utils.mm_utils import close_video, extract_video_frames_uniformly, load_video
from data_juicer.utils.model_utils import MODEL_ZOO

from benchmarks.peers.task import FRAMES, WINDOW_S, Embedder, arguments

NAME = "clip_of_windows_mapper"


@OPERATORS.register_module(NAME)
class ClipOfWindowsMapper(Mapper):
    """A row for each window of a video."""

    _batched_op = True

    def __init__(self, checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checkpoint = checkpoint

    def process_batched(self, samples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        embedder = MODEL_ZOO.setdefault(self._checkpoint, None) or Embedder(self._checkpoint)
        MODEL_ZOO[self._checkpoint] = embedder
        rows: dict[str, list[Any]] = {"text": [], "videos": [], "video": [], "window": [], "embedding": []}
        for (path,) in samples["videos"]:
            for number, vector in enumerate(embedder.windows(frames_of(path))):
                for name, value in zip(rows, ("", [path], Path(path).name, number, vector.tolist()), strict=True):
                    rows[name].append(value)
        return rows


def frames_of(path: str) -> list[Any]:
    """Images, 8 for each window of the video."""
    container = load_video(path)
    stream = container.streams.video[0]
    count = FRAMES * round(float(stream.duration * stream.time_base) / WINDOW_S)
    images = [frame.to_image() for frame in extract_video_frames_uniformly(container, count)]
    close_video(container)
    return images


def main() -> None:
    args = arguments()
    work = args.output.parent
    listed = work / "videos.jsonl"
    listed.write_text("".join(json.dumps({"text": "", "videos": [path]}) + "\n" for path in args.paths()))
    recipe = {
        "project_name": "peers",
        "dataset_path": str(listed),
        "export_path": str(args.output / "embeddings.parquet"),
        "export_type": "parquet",
        "work_dir": str(work / "work"),
        "np": os.cpu_count(),
        "use_cache": False,
        "open_monitor": False,
        "custom_operator_paths": [__file__],
        "process": [{NAME: {"checkpoint": str(args.checkpoint), "batch_size": 4}}],
    }
    (work / "recipe.json").write_text(json.dumps(recipe))
    subprocess.run([Path(sys.executable).with_name("dj-process"), "--config", work / "recipe.json"], check=True)


if __name__ == "__main__":
    main()
