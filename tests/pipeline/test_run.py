"""Whole runs: real videos, real Ray workers, the embedded models, disk and S3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings, verify
from pipeline.preflight import preflight
from pipeline.progress import Progress
from pipeline.query import opened
from pipeline.run import Request, run
from pipeline.summary import RunResult, exit_code
from stages.storage import Store
from tests.media import flip_bits, packets, textured, write_audio, write_video
from tests.pipeline.published import OF_THE_RUN, OF_THE_STORE, comparable, table
from tests.s3 import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

BAD = {"empty.mp4": "empty", "text.mp4": "unreadable", "sound.mp4": "no_video"}


def annotate(archive: str, output: str, *sets: str, request: Request = Request()) -> RunResult:  # noqa: B008 - frozen
    config = settings.load(preset="embedded", input_uri=archive, output=output, sets=["resources.epoch_clips=4", *sets])
    with Progress(live=False, every_s=1000) as progress:
        return run(config, preflight(config).entries, request, progress)


def make_archive(folder: Path) -> Path:
    """Two good videos, one that lost a packet, three that are none."""
    folder.mkdir(parents=True)
    write_video(folder / "one.mp4", [*textured(40, seed=1), *textured(40, seed=2)])
    write_video(folder / "two.mkv", textured(60, seed=3), audio=True)
    hurt = write_video(folder / "sub hurt.mp4", textured(90, seed=4))
    offset, size, _ = packets(hurt)[40]
    flip_bits(hurt, offset, size)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("ceci n'est pas une vidéo\n" * 100)
    write_audio(folder / "sound.m4a").rename(folder / "sound.mp4")
    (folder / "notes.txt").write_text("not listed")
    return folder


@dataclass(frozen=True)
class Done:
    archive: Path
    output: str
    result: RunResult


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Done:
    folder = tmp_path_factory.mktemp("a run")
    archive = make_archive(folder / "archive with spaces")
    output = str(folder / "tables")
    return Done(archive, output, annotate(str(archive), output))


def statuses(output: str) -> dict[str, tuple[str, str | None]]:
    return {Path(row["uri"]).name: (row["status"], row["error_code"]) for row in table(output, "videos")}


def assert_verified(output: str) -> None:
    assert verify.verify(Store(output)) == []


def test_promise_1_every_source_has_one_ledger_row_that_says_how_it_went(done: Done) -> None:
    found = statuses(done.output)
    assert found.keys() == {"one.mp4", "two.mkv", "sub hurt.mp4", *BAD}
    assert found["one.mp4"] == found["two.mkv"] == ("ok", None)
    assert found["sub hurt.mp4"] == ("partial", "damaged")
    assert {name: found[name] for name in BAD} == {name: ("failed", code) for name, code in BAD.items()}
    assert done.result.counts == {"ok": 2, "partial": 1, "failed": 3}
    assert done.result.promise_broken is None


def test_many_failures_are_an_exit_code_of_their_own(done: Done) -> None:
    assert exit_code(done.result, max_failed=0.05) == 3
    assert exit_code(done.result, max_failed=0.6) == 0


def test_every_clip_has_labels_of_both_classifiers_a_caption_and_a_unit_vector(done: Done) -> None:
    clips = {row["clip_id"] for row in table(done.output, "clips")}
    assert len(clips) == done.result.clips >= 4
    labels = Counter((row["clip_id"], row["model"]) for row in table(done.output, "labels"))
    assert set(labels) == {(clip, model) for clip in clips for model in ("embedded-motion", "embedded-clip")}
    assert {row["clip_id"] for row in table(done.output, "captions")} == clips
    vectors = {row["clip_id"]: row["embedding"] for row in table(done.output, "embeddings")}
    assert vectors.keys() == clips
    assert all(sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-5) for vector in vectors.values())


def test_what_is_published_verifies_and_is_one_annotation_a_clip(done: Done) -> None:
    assert_verified(done.output)
    with opened(Store(done.output)) as connection:
        rows = connection.execute("SELECT count(*), count(DISTINCT clip_id), count(action), count(caption) FROM annotations")
        assert set(rows.fetchone()) == {done.result.clips}


def test_a_second_run_finds_nothing_due_and_writes_no_row(done: Done) -> None:
    before = comparable(done.output, without=set())
    again = annotate(str(done.archive), done.output)
    assert (again.videos, again.not_due, again.clips) == (0, 6, 0)
    assert comparable(done.output, without=set()) == before


def test_promise_6_another_prompt_recomputes_captions_and_nothing_else(tmp_path: Path) -> None:
    archive, output = tmp_path / "archive", str(tmp_path / "out")
    archive.mkdir()
    write_video(archive / "one.mp4", [*textured(40, seed=1), *textured(40, seed=2)])
    annotate(str(archive), output)
    first = {name: table(output, name) for name in ("clips", "labels", "embeddings", "captions")}
    result = annotate(str(archive), output, "caption.prompt=What is it?")
    assert result.counts == {"ok": 1}
    for name in ("clips", "labels", "embeddings"):
        assert table(output, name) == first[name]
    captions = table(output, "captions")
    assert len({row["fingerprint"] for row in captions}) == 2
    assert {row["clip_id"] for row in captions} == {row["clip_id"] for row in first["clips"]}
    assert_verified(output)


def test_a_replaced_file_is_a_new_video_that_names_the_old_one(tmp_path: Path) -> None:
    archive, output = tmp_path / "archive", str(tmp_path / "out")
    archive.mkdir()
    write_video(archive / "one.mp4", textured(30, seed=1))
    annotate(str(archive), output)
    (old,) = table(output, "videos")
    write_video(archive / "one.mp4", textured(45, seed=2))
    annotate(str(archive), output)
    (new,) = [row for row in table(output, "videos") if row["video_id"] != old["video_id"]]
    assert new["supersedes"] == old["video_id"]
    with opened(Store(output)) as connection:
        shown = connection.execute("SELECT DISTINCT video_id FROM annotations").fetchall()
    assert shown == [(new["video_id"],)]


def test_limits_leave_the_rest_to_the_next_run(tmp_path: Path) -> None:
    archive, output = tmp_path / "archive", str(tmp_path / "out")
    archive.mkdir()
    for number in range(3):
        write_video(archive / f"{number}.mp4", textured(30, seed=number))
    assert annotate(str(archive), output, request=Request(limit=2)).counts == {"ok": 2}
    assert annotate(str(archive), output, request=Request(limit=2)).counts == {"ok": 1}


def test_an_empty_folder_is_done(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    result = annotate(str(tmp_path / "archive"), str(tmp_path / "out"))
    assert (result.videos, exit_code(result)) == (0, 0)


def test_failed_videos_are_due_again_only_when_asked_for(done: Done, tmp_path: Path) -> None:
    archive, output = tmp_path / "archive", str(tmp_path / "out")
    archive.mkdir()
    (archive / "text.mp4").write_text("no video")
    assert annotate(str(archive), output).counts == {"failed": 1}
    assert annotate(str(archive), output).videos == 0
    assert annotate(str(archive), output, request=Request(retry_failed=True)).counts == {"failed": 1}


@pytest.mark.s3
def test_the_same_archive_on_s3_gives_the_same_rows(done: Done, s3: S3Server) -> None:
    bucket = s3.bucket()
    s3.upload(f"{bucket}/archive", {path.name: path for path in done.archive.iterdir()})
    output = f"{bucket}/tables"
    result = annotate(f"{bucket}/archive", output)
    assert result.counts == done.result.counts
    assert comparable(output, without=OF_THE_RUN | OF_THE_STORE) == comparable(done.output, without=OF_THE_RUN | OF_THE_STORE)
    assert_verified(output)
    assert annotate(f"{bucket}/archive", output).videos == 0


@pytest.fixture
def tables_of(done: Done) -> Callable[[str], Any]:
    return lambda name: Path(done.output) / name


@pytest.mark.parametrize("name", ["videos", "clips", "labels", "captions", "embeddings"])
def test_the_tables_open_in_pandas_pyarrow_polars_and_duckdb_with_their_partitions(
    tables_of: Callable[[str], Path], name: str
) -> None:
    import duckdb
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds

    folder = tables_of(name)
    rows = ds.dataset(folder, partitioning="hive").count_rows()
    assert rows > 0
    as_pandas = pd.read_parquet(folder)
    as_polars = pl.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=True)
    as_duckdb = duckdb.sql(f"SELECT * FROM read_parquet('{folder}/**/*.parquet', hive_partitioning=true)")
    assert len(as_pandas) == len(as_polars) == len(as_duckdb) == rows
    for columns in (as_pandas.columns, as_polars.columns, as_duckdb.columns):
        assert "run_date" in columns
