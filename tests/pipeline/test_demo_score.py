"""The demo's archive and its score: full marks for the truth itself, fewer for every way of being wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import demo
from stages.models.embedded import world

SHARES = ("shot_f1", "action_top1", "object_top1", "caption_exact", "text_to_clip_recall1")


def embed_text(texts: Sequence[str]) -> np.ndarray:
    """One axis per object, so that a text is near its own object alone."""
    objects = [world.TEMPLATE.format(name) for name in world.OBJECTS]
    return np.eye(len(objects), dtype=np.float32)[[objects.index(text) for text in texts]]


def truth_rows() -> list[dict[str, Any]]:
    rows = []
    for number, lengths_s in enumerate([(2.0, 1.5, 3.0), (1.6, 2.2), (2.5,)]):
        start_s = 0.0
        for place, length_s in enumerate(lengths_s):
            shot = world.random_shot(world.rng_of(1, world.DEMO, number, place))
            rows.append(
                {
                    "video": f"video-{number:04d}.mp4", "start_s": start_s, "end_s": start_s + length_s,
                    "action": shot.action, "shape": shot.shape, "color": shot.color, "caption": shot.sentence,
                }
            )  # fmt: skip
            start_s += length_s
    return rows


def truth() -> pa.Table:
    return pa.Table.from_pylist(truth_rows(), schema=demo.TRUTH)


def perfect() -> list[dict[str, Any]]:
    """What a run without any mistake would publish; more columns than are needed, and rows in no order."""
    rows = [
        {
            "uri": f"file:///archive/{row['video']}", "start_s": row["start_s"], "end_s": row["end_s"], "fps": 25.0,
            "clip_id": str(number), "action": row["action"], "caption": row["caption"],
            "object": f"{row['color']} {row['shape']}",
            "embedding": embed_text([f"a {row['color']} {row['shape']}"])[0].tolist(),
        }
        for number, row in enumerate(truth_rows())
    ]  # fmt: skip
    return rows[::-1]


def score(rows: list[dict[str, Any]]) -> dict[str, float | int]:
    return demo.score(truth(), pa.Table.from_pylist(rows), embed_text)


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, float | int]:
    return score([{**row, **change(row)} for row in perfect()])


def test_the_truth_itself_gets_full_marks_and_is_counted() -> None:
    scored = score(perfect())
    assert [scored[name] for name in SHARES] == [1.0] * 5
    objects = {f"{row['color']} {row['shape']}" for row in truth_rows()}
    counts = {"videos": 3, "shots": 6, "clips": 6, "boundaries": 3, "queries": len(objects)}
    assert {name: scored[name] for name in counts} == counts
    assert set(demo.TARGETS) == set(SHARES)


def test_one_wrong_word_of_each_kind_costs_that_score_alone() -> None:
    first = perfect()[0]["clip_id"]
    wrong = {"action": "sideways", "object": "grey cube", "caption": "a grey cube"}
    for column, share in (("action", "action_top1"), ("object", "object_top1"), ("caption", "caption_exact")):
        scored = changed(lambda row: {column: wrong[column]} if row["clip_id"] == first else {})  # noqa: B023
        assert scored[share] == pytest.approx(5 / 6)
        assert all(scored[name] == 1 for name in SHARES if name != share)


def test_missing_answers_are_wrong_answers() -> None:
    nothing = dict.fromkeys(["action", "object", "caption", "embedding", "fps"])
    scored = score([{**row, **nothing} for row in perfect()])
    assert [scored[name] for name in SHARES] == [0.0] * 5


def test_a_boundary_counts_within_one_frame_and_not_beyond() -> None:
    def moved(frames: float) -> float:
        return changed(lambda row: {"start_s": row["start_s"] + frames / 25} if row["start_s"] else {})["shot_f1"]

    assert moved(1) == moved(-1) == 1.0
    assert moved(1.2) == moved(-1.2) == 0.0


def test_a_boundary_is_found_once_however_often_it_is_claimed() -> None:
    rows = perfect()
    twins = [{**row, "start_s": row["start_s"] + 0.02} for row in rows if row["start_s"]]
    assert score(rows + twins)["shot_f1"] == pytest.approx(2 * 3 / (6 + 3))


def test_missed_cuts_lower_recall_and_leave_one_of_two_shots_wrong() -> None:
    whole = [{**row, "start_s": 0.0, "end_s": 9.0} for row in perfect() if row["start_s"] == 0]
    scored = score(whole)
    assert scored["shot_f1"] == 0.0
    assert scored["action_top1"] < 1
    assert scored["clips"] == 3


def test_a_shot_is_judged_by_the_clip_that_shares_most_time_with_it() -> None:
    rows = perfect()
    wrong = {"action": "sideways", "object": "grey cube", "caption": "a grey cube", "embedding": None}
    slivers = [{**row, **wrong, "start_s": row["end_s"] - 0.1} for row in rows]
    for both in (rows + slivers, slivers + rows):
        scored = score(both)
        assert scored["action_top1"] == scored["caption_exact"] == 1.0


def test_a_video_without_clips_loses_its_shots() -> None:
    scored = score([row for row in perfect() if not row["uri"].endswith("0000.mp4")])
    assert scored["action_top1"] == pytest.approx(3 / 6)
    assert scored["shot_f1"] == pytest.approx(2 * 1 / (1 + 3))


def test_answers_of_another_video_do_not_count() -> None:
    swap = {"0000": "0001", "0001": "0000", "0002": "0003"}
    scored = changed(lambda row: {"uri": row["uri"].replace(row["uri"][-8:-4], swap[row["uri"][-8:-4]])})
    assert scored["caption_exact"] < 0.5
    assert scored["text_to_clip_recall1"] < 0.5


def test_search_looks_at_what_the_found_clip_really_shows() -> None:
    rows = perfect()
    vectors = [row["embedding"] for row in rows]
    shifted = [{**row, "embedding": vector} for row, vector in zip(rows, vectors[1:] + vectors[:1], strict=True)]
    assert score(shifted)["text_to_clip_recall1"] < 0.5
    nothing = pa.Table.from_pylist(perfect()).slice(0, 0)
    assert demo.score(truth(), nothing, embed_text)["text_to_clip_recall1"] == 0.0


def test_the_archive_is_what_its_truth_says(tmp_path: Path) -> None:
    path = demo.render_archive(tmp_path, videos=2, seed=11, workers=1)
    assert path == tmp_path / "truth.parquet"
    rows = pq.read_table(path).to_pylist()
    assert pq.read_schema(path).names == ["video", "start_s", "end_s", "action", "shape", "color", "caption"]
    files = sorted(file.name for file in (tmp_path / "archive").iterdir())
    assert files == ["video-0000.mp4", "video-0001.mp4"] == sorted({row["video"] for row in rows})
    for file in files:
        own = [row for row in rows if row["video"] == file]
        times_s, lumas = decoded(tmp_path / "archive" / file)
        cuts = [times_s[i + 1] for i in np.flatnonzero(np.abs(np.diff(lumas)) > 20)]
        assert cuts == pytest.approx([row["start_s"] for row in own[1:]], abs=1e-3)
        assert own[-1]["end_s"] == pytest.approx(times_s[-1] + (times_s[1] - times_s[0]), abs=1e-3)
        assert all(row["end_s"] - row["start_s"] >= 1.2 for row in own)
        assert all(row["caption"] == world.sentence(row["color"], row["shape"], row["action"]) for row in own)


def decoded(path: Path) -> tuple[list[float], list[float]]:
    """Times from the first frame and mean lumas of all frames."""
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = [
            (float(frame.time or 0), float(frame.to_ndarray(format="gray").mean())) for frame in container.decode(video=0)
        ]
    return [time_s - frames[0][0] for time_s, _ in frames], [luma for _, luma in frames]


def test_the_same_seed_gives_the_same_archive_in_two_processes_and_another_seed_another(tmp_path: Path) -> None:
    here = demo.render_archive(tmp_path / "a", videos=2, seed=3, workers=1)
    there = demo.render_archive(tmp_path / "b", videos=2, seed=3, workers=2)
    other = demo.render_archive(tmp_path / "c", videos=2, seed=4, workers=1)
    assert pq.read_table(here).equals(pq.read_table(there))
    assert not pq.read_table(here).equals(pq.read_table(other))
    for name in ("video-0000.mp4", "video-0001.mp4"):
        assert (tmp_path / "a/archive" / name).read_bytes() == (tmp_path / "b/archive" / name).read_bytes()
