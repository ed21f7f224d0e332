from __future__ import annotations

import io
import itertools
from dataclasses import replace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.shots.montage import Montage, Recipe, Transition, build, synthetic_shots
from benchmarks.shots.run import adaptive, content, line, main, ours
from benchmarks.shots.score import Score, score

CUTS = (Transition("cut", 50, 50), Transition("cut", 100, 100))
DISSOLVE = (Transition("dissolve", 150, 160),)


def cut_at(*frames: int) -> tuple[Transition, ...]:
    return tuple(Transition("cut", at, at) for at in frames)


@pytest.mark.parametrize(
    ("boundaries", "tolerance", "found", "false"),
    [
        ([50, 100], 0, 2, 0),
        ([], 2, 0, 0),
        ([51, 98], 0, 0, 2),
        ([51, 98], 1, 1, 1),
        ([51, 98], 2, 2, 0),
        ([49, 50, 51], 2, 1, 2),  # one cut pays for one boundary only
        ([70], 2, 0, 1),
        ([100, 50], 0, 2, 0),
    ],
)
def test_a_boundary_finds_one_cut_within_the_tolerance(boundaries: list[int], tolerance: int, found: int, false: int) -> None:
    result = score(boundaries, CUTS, (), tolerance)
    assert (result.found, result.false, result.cuts) == (found, false, 2)


@pytest.mark.parametrize(
    ("boundaries", "found", "doubled", "false"),
    [
        ([155], 1, 0, 0),
        ([149], 1, 0, 0),
        ([161], 1, 0, 0),
        ([148], 0, 0, 1),
        ([162], 0, 0, 1),
        ([151, 158], 1, 1, 0),
        ([], 0, 0, 0),
    ],
)
def test_a_gradual_transition_is_found_by_a_boundary_within_it(
    boundaries: list[int], found: int, doubled: int, false: int
) -> None:
    result = score(boundaries, DISSOLVE, (), 1)
    assert (result.dissolves_found, result.doubled, result.false) == (found, doubled, false)
    assert (result.cuts, result.dissolves, result.f1) == (0, 1, 1.0 if not false else 0.0)


def test_a_false_boundary_at_a_flash_is_counted_as_such() -> None:
    result = score([30, 33, 70], CUTS, (30,), 1)
    assert (result.false, result.at_flash) == (3, 2)


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    result = Score(cuts=8, found=6, false=4)
    assert result.precision == 0.6
    assert result.recall == 0.75
    assert result.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert (result + result).f1 == result.f1
    assert (result + Score(cuts=2, dissolves=3)).cuts == 10


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 12), max_size=4),
    st.lists(st.integers(0, 12), max_size=4, unique=True),
    st.integers(0, 2),
)
def test_no_other_matching_finds_more_cuts(boundaries: list[int], cuts: list[int], tolerance: int) -> None:
    padded = [*boundaries, *[-100] * len(cuts)]
    best = max(
        sum(abs(b - c) <= tolerance for b, c in zip(order, cuts, strict=False))
        for order in itertools.permutations(padded, len(cuts))
    )
    result = score(boundaries, cut_at(*cuts), (), tolerance)
    assert result.found == best
    assert result.false == len(boundaries) - best


RECIPE = Recipe(shots=6, shot_frames=(30, 36), size=(72, 128), flash_chance=1.0)


def decode(montage: Montage) -> np.ndarray:
    with av.open(io.BytesIO(montage.video)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)]).astype(float)


@pytest.fixture(scope="module")
def montage() -> Montage:
    return build(synthetic_shots(RECIPE.size, cameras=("still",)), 9, replace(RECIPE, kinds=("cut", "dissolve", "fade")))


def test_a_montage_is_as_long_as_it_says_and_has_all_kinds(montage: Montage) -> None:
    assert len(decode(montage)) == montage.frames
    assert len(montage.transitions) == RECIPE.shots - 1
    assert {t.kind for t in montage.transitions} == {"cut", "dissolve", "fade"}
    starts = [0, *(t.end for t in montage.transitions)]
    ends = [*(t.start for t in montage.transitions), montage.frames]
    assert all(30 <= end - start <= 36 for start, end in zip(starts, ends, strict=True))


def test_the_truth_of_a_montage_is_what_its_frames_show(montage: Montage) -> None:
    frames = decode(montage)
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2))
    for transition in montage.transitions:
        if transition.kind == "cut":
            assert transition.start == transition.end
            assert change[transition.start - 1] > 3 * max(change[transition.start - 2], change[transition.start])
        if transition.kind == "dissolve":
            assert transition.end - transition.start == RECIPE.dissolve_frames
            a, b = frames[transition.start - 1], frames[transition.end]
            middle = frames[(transition.start + transition.end) // 2]
            assert np.abs(middle - (a + b) / 2).mean() < 0.25 * np.abs(a - b).mean()
        if transition.kind == "fade":
            assert transition.end - transition.start == 2 * RECIPE.fade_frames + 2
            assert frames[transition.start : transition.end].mean(axis=(1, 2)).min() < 20
    for flash in montage.flashes:
        assert frames[flash].mean() > frames[flash - 1].mean() + 10


def test_the_same_seed_makes_the_same_montage(montage: Montage) -> None:
    shots = synthetic_shots(RECIPE.size, cameras=("still",))
    recipe = replace(RECIPE, kinds=("cut", "dissolve", "fade"))
    assert build(shots, 9, recipe).video == montage.video
    assert build(shots, 10, recipe).transitions != montage.transitions


def test_shots_are_never_found_worse_than_by_pyscenedetect(tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = Recipe(shots=14, shot_frames=(30, 45), size=(90, 160))
    made = build(synthetic_shots(recipe.size), 204, recipe)
    path = tmp_path_factory.mktemp("montage") / "montage.mp4"
    path.write_bytes(made.video)
    scores = {f: score(f(path), made.transitions, made.flashes, 1) for f in (ours, adaptive, content)}
    assert scores[ours].cuts >= 5
    assert scores[adaptive].found >= 3  # the comparison itself works
    for other in (adaptive, content):
        assert scores[ours].f1 >= scores[other].f1
        assert scores[ours].dissolves_found >= scores[other].dissolves_found


def test_a_line_of_the_table_holds_the_counts() -> None:
    text = line("made", "ours", [Score(cuts=4, found=3, false=2, dissolves=7, dissolves_found=5)] * 3, 41.6)
    assert text.split() == ["made", "ours", "0.667", "0.667", "0.667", "3/4", "2", "0", "5/7", "0/0", "42"]


def test_the_comparison_asks_for_whole_numbers_as_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", "two"])
    assert "invalid int value" in capsys.readouterr().err
