"""The renderer of the little world: what it says it shows is what is there."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from stages.models.embedded import world

PHASES = np.linspace(0, 1, 9, dtype=np.float32)


def shot(index: int = 0, **given: str) -> world.Shot:
    return world.random_shot(world.rng_of(7, world.EVALUATION, index), **given)


def saturated(frame: world.Frames) -> np.ndarray:
    """Where the shape is: the ground has next to no colour."""
    wide = frame.astype(int)
    return np.asarray(wide.max(2) - wide.min(2) > 90)


def test_the_same_key_gives_the_same_frames_and_another_key_others() -> None:
    frames = world.render(shot(3), 90, 120, PHASES)
    assert frames.shape == (9, 90, 120, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, world.render(shot(3), 90, 120, PHASES))
    assert (frames != world.render(shot(4), 90, 120, PHASES)).any()


def test_frames_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np; from stages.models.embedded import world as w;"
        "s = w.random_shot(w.rng_of(7, w.EVALUATION, 3));"
        "print(hashlib.sha1(w.render(s, 60, 80, np.linspace(0, 1, 3, dtype=np.float32)).tobytes()).hexdigest())"
    )
    answers = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"}
    assert len(answers) == 1


def test_training_evaluation_and_demo_never_share_random_numbers() -> None:
    drawn = [world.rng_of(5, tag, 0).integers(2**63) for tag in (world.TRAINING, world.EVALUATION, world.DEMO)]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(
    ("action", "dx", "dy"), [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1), ("still", 0, 0)]
)
def test_moves_go_where_their_name_says(action: str, dx: int, dy: int) -> None:
    for index in range(12):
        made = shot(index, action=action, color="red")
        frames = world.render(made, 120, 160, PHASES[[0, -1]])
        first, last = (np.argwhere(saturated(frame)).mean(0) for frame in frames)
        moved_y, moved_x = (last - first) / 120
        assert moved_x == pytest.approx(dx * made.amount, abs=0.02)
        assert moved_y == pytest.approx(dy * made.amount, abs=0.02)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_growing_and_shrinking_change_the_area_by_the_square(shape: str) -> None:
    for action in ("growing", "shrinking"):
        made = shot(2, action=action, color="red", shape=shape)
        first, last = (saturated(frame).sum() for frame in world.render(made, 240, 240, PHASES[[0, -1]]))
        assert last / first == pytest.approx(made.amount**2, rel=0.25)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_shape_shows_that_it_spins_because_of_its_mark(shape: str) -> None:
    made = shot(5, action="spinning", shape=shape, color="yellow")
    before, after = world.render(made, 120, 120, np.array([0, 1 / 3], np.float32))
    turned = abs(world.poses(made, np.array([0, 1 / 3], np.float32))[:, 3] @ [-1, 1])
    assert 0.3 < turned < 3
    dark = [frame.max(2) < 45 for frame in (before * saturated_box(before), after * saturated_box(after))]
    assert (dark[0] != dark[1]).sum() > 20


def saturated_box(frame: world.Frames) -> np.ndarray:
    rows, columns = np.nonzero(saturated(frame))
    box = np.zeros((*frame.shape[:2], 1), np.uint8)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    return box


@pytest.mark.parametrize("color", [color for color in world.COLORS if color != "white"])
def test_a_shape_has_the_colour_that_it_is_called_by(color: str) -> None:
    for index in range(8):
        frame = world.render(shot(index, color=color, action="still"), 120, 160, PHASES[:1])[0]
        painted = np.median(frame[saturated(frame)], axis=0)
        distances = {name: np.linalg.norm(painted - rgb) for name, rgb in world.COLORS.items()}
        assert min(distances, key=lambda name: distances[name]) == color


def test_everything_stays_in_the_central_square_of_wide_and_tall_frames() -> None:
    for index in range(60):
        for pose in world.poses(shot(index), PHASES):
            assert np.abs(pose[:2]).max() + pose[2] < 0.5


def test_frames_at_other_sizes_show_the_same_thing() -> None:
    small, large = (world.render(shot(1, color="red"), side, side, PHASES[:1])[0] for side in (80, 240))
    at_small, at_large = (np.argwhere(saturated(frame)).mean(0) / len(frame) for frame in (small, large))
    np.testing.assert_allclose(at_small, at_large, atol=0.015)


def test_grounds_have_texture_and_next_to_no_colour() -> None:
    made = shot(9)
    frame = world.render(made, 120, 160, PHASES[:1])[0].astype(float)
    corner = frame[:25, :20]
    assert corner.std() > 1
    assert (corner.max(2) - corner.min(2)).mean() < 30


def test_sentences_follow_the_grammar() -> None:
    assert world.sentence("red", "circle", "left") == "a red circle moving left"
    assert world.sentence("blue", "star", "growing") == "a blue star growing"
    assert world.sentence("green", "square", "spinning") == "a green square spinning"
    assert world.sentence("yellow", "triangle", "still") == "a yellow triangle standing still"
    assert len(world.OBJECTS) == len(set(world.OBJECTS)) == 35
    assert world.TEMPLATE.format(world.OBJECTS[0]) == "a red circle"
