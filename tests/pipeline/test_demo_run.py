import inspect
import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cli, demo
from pipeline.demo_run import Demo, score_lines, too_low
from pipeline.summary import RunResult
from schemas.errors import BadRequest
from stages.storage import Store
from tests.pipeline import tables as made

PERFECT = {**dict.fromkeys(demo.TARGETS, 1.0), "videos": 2, "shots": 5, "clips": 5, "boundaries": 3, "queries": 4}


def test_rendering_again_what_is_there_does_nothing_and_another_demo_is_refused(tmp_path: Path) -> None:
    notes: list[str] = []
    Demo(tmp_path / "demo", 1, 3).render(notes.append)
    [video] = (tmp_path / "demo" / "archive").iterdir()
    before = video.stat().st_mtime_ns
    Demo(tmp_path / "demo", 1, 3).render(notes.append)
    assert len(notes) == 1
    assert video.stat().st_mtime_ns == before
    with pytest.raises(BadRequest, match="holds the demo of 1 videos with seed 3; choose another folder"):
        Demo(tmp_path / "demo", 1, 4).render(notes.append)


def test_a_rendering_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "video-0000.mp4").write_bytes(b"half a vid")
    Demo(tmp_path, 1, 3).render(lambda _: None)
    assert (tmp_path / "archive" / "video-0000.mp4").stat().st_size > 1000


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(BadRequest, match="is not empty; choose another folder"):
        Demo(tmp_path, 1, 3).render(lambda _: None)


def test_the_query_that_is_printed_runs_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Demo(tmp_path / "it's a demo", 2, 0)
    store = Store(str(shown.tables))
    made.write_small(store)
    made.write_log(store, ("open", "r1"), ("close", "r1"))
    program, *args = shlex.split(shown.command())
    assert program == "clipmill"
    assert cli.call(args) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "video,start_s,object,action,caption"
    assert len(out) == 5


def test_the_last_words_have_summary_score_places_and_the_query(tmp_path: Path) -> None:
    shown = Demo(tmp_path, 2, 0)
    text = "\n".join(shown.lines(RunResult("r1", str(shown.tables), counts={"ok": 2}, clips=5, wall_s=30), PERFECT))
    assert "run r1 done in 30.0 s" in text
    assert "score against the truth (2 videos, 5 shots)" in text
    assert str(tmp_path / "score.json") in text
    assert text.endswith(shown.command())


def test_the_score_compares_the_published_tables_with_the_truth_and_is_kept(tmp_path: Path) -> None:
    shown = Demo(tmp_path, 2, 0)
    made.write_small(Store(str(shown.tables)))
    shots = [
        {"video": video, "start_s": start_s, "end_s": start_s + 3.5, "action": action, "shape": "circle", "color": "red"}
        for video in ("a.mp4", "b.mp4")
        for start_s, action in ((0.0, "left"), (3.5, "right"))
    ]
    truth = [{**shot, "caption": f"a red circle moving {shot['action']}"} for shot in shots]
    pq.write_table(pa.Table.from_pylist(truth, schema=demo.TRUTH), tmp_path / "truth.parquet")
    scores = shown.score(lambda texts: np.tile(np.float32([0.6, 0.8]), (len(texts), 1)))
    assert (scores["shot_f1"], scores["action_top1"], scores["object_top1"]) == (1.0, 0.5, 1.0)
    assert (scores["caption_exact"], scores["text_to_clip_recall1"]) == (0.5, 1.0)
    assert json.loads((tmp_path / "score.json").read_text()) == scores


def test_scores_stand_beside_what_they_should_reach() -> None:
    lines = score_lines({**PERFECT, "caption_exact": 0.5})
    assert len(lines) == 1 + len(demo.TARGETS)
    assert len({line.index("  0." if "0.500" in line else "  1.") for line in lines[1:]}) == 1
    assert "captions right, word by word        0.500  LOW, should be 0.90 or more" in "\n".join(lines)
    assert too_low(PERFECT) == []
    assert too_low({**PERFECT, "shots": 100, "caption_exact": 0.5, "shot_f1": 0.96}) == ["shot_f1", "caption_exact"]


def test_one_shot_alone_does_not_make_a_small_demo_fail() -> None:
    assert too_low({**PERFECT, "shots": 8, "caption_exact": 7 / 8}) == []
    assert "0.875  near" in "\n".join(score_lines({**PERFECT, "shots": 8, "caption_exact": 7 / 8}))
    assert too_low({**PERFECT, "shots": 8, "caption_exact": 6 / 8}) == ["caption_exact"]


def test_the_command_line_renders_as_many_videos_as_the_demo_is_made_for() -> None:
    assert inspect.signature(cli.demo).parameters["videos"].default == demo.DEFAULT_VIDEOS
