from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.peers import archive, install
from benchmarks.peers.__main__ import CLIPMILL, PEERS, POOL, report
from benchmarks.peers.check import WorkMissing, cosines, read
from benchmarks.peers.task import Embedder, windows, write
from benchmarks.peers.watch import first_read
from benchmarks.rounds import Figure, Results, Setup
from tests.media import number_of, numbered, textured, write_video

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "stages" / "models" / "embedded" / "clip"


def test_an_archive_holds_whole_windows_of_each_usable_recording(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    write_video(recordings / "long.mkv", numbered(215, (64, 48)), fps=10)  # two windows, and 15 frames too many
    write_video(recordings / "short.mp4", numbered(120, (65, 48)), fps=24, pix_fmt="yuv444p")  # half a window: begins again
    write_video(recordings / "tiny.mp4", textured(20, size=(64, 48)))
    (recordings / "broken.mp4").write_bytes(b"no video")
    (recordings / "README.md").write_text("not a recording")
    made = archive.found_or_built(recordings, tmp_path / "archive", copies=2)
    assert sorted(path.name for path in made.folder.iterdir()) == ["long-00.mp4", "long-01.mp4", "short-00.mp4", "short-01.mp4"]
    assert (made.files, made.windows, made.frames, made.seconds) == (4, 6, 880, 60)
    assert [len(list(windows(str(made.folder / name)))) for name in ("long-01.mp4", "short-00.mp4")] == [2, 1]
    assert archive.found_or_built(recordings, tmp_path / "archive", copies=2) == made
    (small, other) = sorted(archive.smallest(made, tmp_path / "small").iterdir())
    assert small.read_bytes() == other.read_bytes() == (made.folder / "long-00.mp4").read_bytes()
    with pytest.raises(FileExistsError):
        archive.found_or_built(recordings, tmp_path / "archive", copies=3)


def test_frames_are_those_nearest_to_the_middles_of_eighths(tmp_path: Path) -> None:
    path = write_video(tmp_path / "numbered.mp4", numbered(200), fps=10)
    found = {number: [number_of(np.asarray(image)) for image in images] for number, images in windows(str(path))}
    middles_s = (np.arange(8) + 0.5) * 1.25
    nearest = [int(np.ceil(10 * middle_s - 0.5)) for middle_s in middles_s]  # of two as near, the first
    assert found == {0: nearest, 1: [100 + number for number in nearest]}


def test_rows_are_read_back_and_compared(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", textured(200, size=(96, 72), pan=3), fps=10)
    embedder = Embedder(CLIP)
    rows = [(str(path), number, embedder.windows(images)[0]) for number, images in windows(str(path))]
    write(rows, tmp_path / "pool" / "embeddings.parquet")
    write(rows[::-1], tmp_path / "other" / "deep" / "part.parquet")
    wanted = read(tmp_path / "pool")
    assert list(wanted) == [("clip.mp4", 0), ("clip.mp4", 1)]
    np.testing.assert_allclose(cosines(read(tmp_path / "other"), wanted), 1.0)
    np.testing.assert_allclose(np.linalg.norm(list(wanted.values()), axis=1), 1.0, atol=1e-6)
    write(rows[:1], tmp_path / "less" / "part.parquet")
    with pytest.raises(WorkMissing, match="1 of 2 windows are missing, 0 are extra"):
        cosines(read(tmp_path / "less"), wanted)
    write([*rows, rows[0]], tmp_path / "more" / "part.parquet")
    with pytest.raises(WorkMissing, match=r"window 0 of clip\.mp4 is there twice"):
        read(tmp_path / "more")
    other = {key: -vector for key, vector in wanted.items()}
    assert cosines(other, wanted).max() < -0.99


def test_clipmill_s_tables_are_read_by_video_and_window(tmp_path: Path) -> None:
    clips = {"clip_id": ["b", "a"], "uri": ["/x/one.mp4", "/x/one.mp4"], "start_s": [10.0, 0.0]}
    for name, columns in (("clips", clips), ("embeddings", {"clip_id": ["a", "b"], "embedding": [[1.0, 0.0], [0.0, 1.0]]})):
        (tmp_path / name / "run_date=2026-11-26").mkdir(parents=True)
        pq.write_table(pa.table(columns), tmp_path / name / "run_date=2026-11-26" / "part.parquet")
    rows = read(tmp_path)
    assert {key: vector.tolist() for key, vector in rows.items()} == {("one.mp4", 0): [1.0, 0.0], ("one.mp4", 1): [0.0, 1.0]}


def test_the_first_read_of_a_file_is_seen_and_a_listing_is_not(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"frames")
    with first_read(tmp_path) as first:
        assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
        (tmp_path / "video.mp4").stat()
        time.sleep(0.1)  # for what must not come
        assert first.at_s is None
        before_s = time.time()
        (tmp_path / "video.mp4").read_bytes()
    assert first.at_s is not None
    assert first.at_s >= before_s
    with first_read(tmp_path) as nothing:
        pass
    assert nothing.at_s is None


def test_environments_are_pinned_to_the_torch_of_this_tree() -> None:
    (ours,) = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert install.names() == ["daft", "data_juicer", "datatrove", "read_videos"]
    for name in install.names():
        assert install.version_of(name, "torch") == ours
        assert all(re.fullmatch(r"\S+==\S+", line) for line in (install.REQUIREMENTS / f"{name}.txt").read_text().splitlines())


def measured(work_s: float) -> Figure:
    return {
        "read_s": 1.0,
        "startup_s": 2.0,
        "work_s": work_s,
        "wall_s": 2.0 + work_s,
        "cpu_s": 2 * work_s,
        "rows": 360,
        "least_cosine": 0.99,
    }


def test_the_page_holds_clipmill_against_every_other_way(tmp_path: Path) -> None:
    figures = {name: {0: measured(50.0)} for name in PEERS} | {POOL: {0: measured(25.0)}, CLIPMILL: {0: measured(40.0)}}
    report(Results(Setup("a machine", "3.11", {}, "c0de", {}, [*PEERS]), "2026-11-26", figures, None), tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text().splitlines()
    rows = {line.split(" | ")[0]: line for line in page}
    assert rows["| Clipmill"].startswith("| Clipmill | 1.0 | 2.0 | 40.0 | 42.0 | 80.0 | 90 | 1.00 |")
    assert rows["| Daft"].startswith("| Daft | 1.0 | 2.0 | 50.0 | 52.0 | 100.0 | 72 | 1.25 |")
    verdicts = [line.split(" | ")[-3:] for line in page if line.startswith("| [peers]")]
    assert verdicts == [
        ["at least 1", "0.62", "**missed** |"],  # the pool
        *[["at least 1", "1.25", "met |"]] * 2,
        *[["at least 1.8", "1.25", "**missed** |"]] * 3,  # two plain jobs of Ray Data, Data-Juicer
        ["at least 1.3", "0.50", "**missed** |"],  # fast mode, against the pool
    ]
