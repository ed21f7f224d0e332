"""Very many tiny videos, some of them bad, in one run: every one is accounted for, and the driver does not grow with them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from pipeline.verify import verify
from schemas.config import ClipsConfig
from stages.storage import Store
from tests.faults.damage import Damage
from tests.faults.record import Record
from tests.media import solid, truncate, write_video
from tests.stages.units import decoded

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]
CLIPS = ClipsConfig(short_side=32)
BAD_EVERY = 20
BOUND_BYTES = 50 << 20
SAMPLE_S = 0.25
FOLDER_FILES = 1000


def originals(folder: Path) -> dict[str, list[Path]]:
    """Tiny files, good and bad ones, by what decode alone says of them: a code, or ok."""
    folder.mkdir()
    for name in ("good", "other", "cut"):
        write_video(folder / f"{name}.mp4", solid((10 * len(name), 30, 200), 6, (32, 32)))
    truncate(folder / "cut.mp4", 0.5)
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    (folder / "script.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        found[decoded(path, CLIPS)[1]["error_code"] or "ok"].append(path)
    return found


def archive(folder: Path, videos: int, files: dict[str, list[Path]]) -> Counter[str]:
    """Links `videos` files into `folder`, one in BAD_EVERY bad; how many of each kind."""
    kinds: Counter[str] = Counter()
    codes = sorted(set(files) - {"ok"})
    for number in range(videos):
        below = folder / f"{number // FOLDER_FILES:03d}"
        below.mkdir(parents=True, exist_ok=True)
        kind = "ok" if number % BAD_EVERY else codes[number // BAD_EVERY % len(codes)]
        os.link(files[kind][number % len(files[kind])], below / f"{number:06d}.mp4")
        kinds[kind] += 1
    return kinds


@dataclass
class Done:
    said: str
    peak_bytes: int  # of the driver's own memory; what it shares with the object store aside


def run(folder: Path, output: Path) -> Done:
    """`clipmill run` in a process of its own, watched."""
    command = [sys.executable, "-m", "pipeline", "run", "--input", str(folder), "--output", str(output), "--max-failed", "50%"]
    command += ["--set", "classify=[]", "--set", "clips.short_side=32", "--set", "resources.object_store_bytes=200000000"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    peak_bytes, over = 0, threading.Event()

    def sample() -> None:
        nonlocal peak_bytes
        while not over.wait(SAMPLE_S):
            peak_bytes = max(peak_bytes, _own_bytes(process.pid))

    watcher = threading.Thread(target=sample)
    watcher.start()
    said, _ = process.communicate()
    over.set()
    watcher.join()
    assert process.returncode == 0, said
    return Done(said, peak_bytes)


def _own_bytes(pid: int) -> int:
    """Memory that a process has for itself; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def accounted(output: Path, kinds: Counter[str]) -> Damage:
    """The ledger and the clips against what was put into the archive."""
    ledger = ds.dataset(output / "videos", partitioning="hive").to_table(columns=["uri", "status", "error_code"]).to_pylist()
    rows = Counter(row["uri"] for row in ledger)
    told = Counter(row["error_code"] or row["status"] for row in ledger)
    clips = Counter(ds.dataset(output / "clips", partitioning="hive").to_table(columns=["uri"])["uri"].to_pylist())
    good = {row["uri"] for row in ledger if row["status"] == "ok"}
    return Damage(
        lost_rows=kinds.total() - len(rows) + len(good - clips.keys()),
        doubled_rows=rows.total() - len(rows) + clips.total() - len(clips),
        harmed=sum(((kinds - told) + (told - kinds)).values()) + len(clips.keys() - good),
    )


def test_promise_1_and_7_every_one_of_very_many_is_accounted_for_in_memory_that_hardly_grows(
    tmp_path: Path, record: Record, is_long: bool
) -> None:
    files = originals(tmp_path / "originals")
    assert set(files) - {"ok"}
    few, many = (2_000, 20_000) if is_long else (100, 400)
    peaks = {}
    for videos in (few, many):
        kinds = archive(tmp_path / f"archive of {videos}", videos, files)
        output = tmp_path / f"out {videos}"
        done = run(tmp_path / f"archive of {videos}", output)
        peaks[videos] = done.peak_bytes
        damage = accounted(output, kinds)
        record("tiny sources in one run, one in 20 bad", damage, videos)
        damage.check(done.said)
        assert verify(Store(str(output))) == []
    grown = peaks[many] - peaks[few]
    record.figure(
        f"driver's memory, {few:,} and {many:,} sources",
        f"{peaks[few] / 1e6:.0f} and {peaks[many] / 1e6:.0f} MB; may differ by {BOUND_BYTES / 1e6:.0f} MB",
    )
    assert grown < BOUND_BYTES, peaks
