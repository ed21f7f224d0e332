"""Small archives for whole runs: cheap to decode, several clips a video, and some that are none."""

from __future__ import annotations

from pathlib import Path

from tests.media import textured, truncate, write_video

SIZE = (64, 48)
BAD = 4


def make_archive(folder: Path, videos: int = 14, frames: int = 40) -> Path:
    """`videos` files, BAD of them bad: cut short, empty, of garbage, and with a name that needs care."""
    folder.mkdir(parents=True)
    for number in range(videos - BAD):
        shots = [frame for shot in range(1 + number % 3) for frame in textured(frames, seed=10 * number + shot, size=SIZE)]
        write_video(folder / f"v{number:02d}.mp4", shots)
    truncate(write_video(folder / "cut.mp4", textured(60, seed=99, size=SIZE)), 0.6)
    truncate(write_video(folder / "it's 100% cut.mkv", textured(60, seed=98, size=SIZE)), 0.5)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("nothing\n" * 50)
    return folder
