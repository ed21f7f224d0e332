"""The archive that all contestants work on: real recordings as MP4 files of 10, 20, 30... seconds, each several times.

Every recording is encoded anew at a constant rate that puts a whole number of frames into 10 seconds, so that "8 frames of
each 10 seconds" means the same frames to all. One that is shorter than 10 seconds begins again at its end.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av

WINDOW_S = 10
_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")
_FEWEST_FRAMES = 100  # of a recording that is taken
_CRF = "23"


@dataclass(frozen=True)
class Archive:
    """`windows`: pieces of 10 seconds in all files together."""

    folder: Path
    files: int
    windows: int
    frames: int

    @property
    def seconds(self) -> int:
        """Of video in all files together."""
        return self.windows * WINDOW_S


def found_or_built(recordings: Path, folder: Path, copies: int) -> Archive:
    """The archive in `folder` where one was finished with as many copies; otherwise it is made there, as by `build`."""
    note = folder.with_suffix(".json")
    if note.exists() and (said := json.loads(note.read_text()))["copies"] == copies:
        return Archive(folder, **said["archive"])
    archive = build(recordings, folder, copies)
    counts = {name: value for name, value in asdict(archive).items() if name != "folder"}
    note.write_text(json.dumps({"copies": copies, "archive": counts}))
    return archive


def build(recordings: Path, folder: Path, copies: int) -> Archive:
    """Writes `copies` files of each usable recording into `folder`, which must be empty or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    files = windows = frames = 0
    for path in sorted(path for path in recordings.iterdir() if path.suffix in _SUFFIXES):
        pictures = list(_pictures(path))
        if len(pictures) < _FEWEST_FRAMES:
            continue
        per_window = round(_rate(path) * WINDOW_S)
        count = max(1, len(pictures) // per_window)
        first = folder / f"{path.stem}-00.mp4"
        _encode(list(itertools.islice(itertools.cycle(pictures), count * per_window)), Fraction(per_window, WINDOW_S), first)
        for copy in range(1, copies):
            shutil.copy(first, folder / f"{path.stem}-{copy:02d}.mp4")
        files, windows, frames = files + copies, windows + copies * count, frames + copies * count * per_window
    if not files:
        raise FileNotFoundError(f"{recordings} holds no recording of {_FEWEST_FRAMES} frames or more")
    return Archive(folder, files, windows, frames)


def smallest(archive: Archive, folder: Path) -> Path:
    """A folder with the smallest recording of the archive alone, once for each of two processors; made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recording = min(archive.folder.glob("*-00.mp4"), key=lambda path: path.stat().st_size)
    for number in range(2):
        shutil.copy(recording, folder / f"{number}.mp4")
    return folder


def _pictures(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a recording; none of one that does not decode whole. In one pixel format, with even sides."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = [
                frame.reformat(frame.width // 2 * 2, frame.height // 2 * 2, "yuv420p") for frame in container.decode(stream)
            ]
    except av.FFmpegError:
        return
    sizes = {(frame.width, frame.height) for frame in frames}
    if len(sizes) == 1:
        yield from frames


def _rate(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return Fraction(container.streams.video[0].average_rate or 25)


def _encode(pictures: list[av.VideoFrame], rate: Fraction, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF, "preset": "faster"})
        stream.width, stream.height, stream.pix_fmt = pictures[0].width, pictures[0].height, "yuv420p"
        for number, picture in enumerate(pictures):
            picture.pts, picture.time_base, picture.pict_type = number, 1 / rate, av.video.frame.PictureType.NONE
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
