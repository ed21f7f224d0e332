"""The embedded checkpoints: that training teaches, and that what ships knows the little world through plain transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.models.embedded import augment, data, evaluate, learn_clip, learn_git, learn_motion, train, world
from stages.models.embedded.fitting import Schedule, fit
from stages.models.embedded.lessons import Lessons, lesson, masks
from stages.models.embedded.processors import OPENAI, normalised

HERE = Path(evaluate.__file__).parent
SEED = 404  # of evaluation sequences that neither training nor the README's scores used
SWAPPED = {"red": "blue", "blue": "red"}
REVERSED = {"left": "right", "right": "left", "up": "down", "down": "up", "growing": "shrinking", "shrinking": "growing"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clips() -> data.Clips:
    return data.build(16, seed=1, tag=world.EVALUATION, workers=1)


@pytest.fixture(scope="module")
def shown() -> evaluate.Shown:
    return evaluate.shown(56, SEED)


def values(shown: evaluate.Shown, name: str, count: int, **changes: bool) -> torch.Tensor:
    return evaluate.pixel_values(HERE / name, shown.at(count), **changes)


def swapped(shown: evaluate.Shown) -> evaluate.Shown:
    """The red and blue channels of every frame changed places."""
    return replace(shown, frames=[frames[..., ::-1].copy() for frames in shown.frames])


def objects_of(shown: evaluate.Shown) -> list[str]:
    return [f"{shot.color} {shot.shape}" for shot in shown.shots]


# --- what ships ---


def test_the_checkpoints_know_unseen_clips_after_h264(shown: evaluate.Shown) -> None:
    scores = evaluate.scores(shown)
    assert scores["action_top1"] >= 0.95
    assert scores["object_top1"] >= 0.95
    assert scores["caption_exact"] >= 0.90


def test_a_text_finds_a_clip_that_shows_it(shown: evaluate.Shown) -> None:
    vectors = evaluate.embedded(values(shown, "clip", evaluate.CLIP_FRAMES))
    there = sorted(set(objects_of(shown)))
    nearest = (evaluate.embedded_texts([world.TEMPLATE.format(name) for name in there]) @ vectors.T).argmax(1)
    found = [objects_of(shown)[index] for index in nearest]
    assert evaluate.agreement(found, there) >= 0.95


def test_swapping_red_and_blue_turns_red_things_into_blue_ones(shown: evaluate.Shown) -> None:
    at = [index for index, shot in enumerate(shown.shots) if shot.color in SWAPPED]
    other = swapped(evaluate.Shown([shown.shots[i] for i in at], [shown.frames[i] for i in at]))
    assert len(at) >= 8
    named = evaluate.objects(evaluate.embedded(values(other, "clip", evaluate.CLIP_FRAMES)))
    said = evaluate.captions(values(other, "git", evaluate.GIT_FRAMES))
    assert evaluate.agreement(named, objects_of(other)) == 0
    assert evaluate.agreement(said, [shot.sentence for shot in other.shots]) == 0
    assert evaluate.agreement([name.split()[0] for name in named], [SWAPPED[shot.color] for shot in other.shots]) >= 0.8


def test_reversing_time_reverses_what_is_seen_to_happen(shown: evaluate.Shown) -> None:
    backwards = replace(shown, frames=[frames[::-1].copy() for frames in shown.frames])
    turned = [REVERSED.get(shot.action, shot.action) for shot in shown.shots]
    seen = evaluate.actions(values(backwards, "motion", evaluate.MOTION_FRAMES))
    said = evaluate.captions(values(backwards, "git", evaluate.GIT_FRAMES))
    assert evaluate.agreement(seen, turned) >= 0.95
    assert evaluate.agreement(
        said, [world.sentence(s.color, s.shape, a) for s, a in zip(shown.shots, turned, strict=True)]
    ) >= 0.9  # fmt: skip


def test_frames_in_the_wrong_order_are_not_understood(shown: evaluate.Shown) -> None:
    mixed = values(shown, "motion", evaluate.MOTION_FRAMES)[:, [3, 6, 1, 4, 0, 7, 2, 5]]
    assert evaluate.agreement(evaluate.actions(mixed), [shot.action for shot in shown.shots]) < 0.7


def test_skipping_normalisation_is_noticed(shown: evaluate.Shown) -> None:
    named = evaluate.objects(evaluate.embedded(values(shown, "clip", evaluate.CLIP_FRAMES, do_normalize=False)))
    assert evaluate.agreement(named, objects_of(shown)) < 0.8


def test_the_checkpoints_are_complete_transformers_folders_of_at_most_12_mb() -> None:
    from transformers import AutoModel, AutoModelForVideoClassification, AutoProcessor, GitForCausalLM

    for name in ("clip", "git"):
        processor = AutoProcessor.from_pretrained(HERE / name)
        ids = processor(text=["a red circle moving left"])["input_ids"][0]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "a red circle moving left"
        assert len(ids) == 7  # a word is a token, between the two that begin and end
        assert processor.tokenizer.unk_token_id not in ids[1:-1]
    models = [
        AutoModelForVideoClassification.from_pretrained(HERE / "motion"),
        AutoModel.from_pretrained(HERE / "clip"),
        GitForCausalLM.from_pretrained(HERE / "git"),
    ]
    for model in models:
        assert 300_000 < sum(p.numel() for p in model.parameters()) < 700_000
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert tuple(models[0].config.id2label.values()) == world.ACTIONS
    assert models[0].config.num_frames == evaluate.MOTION_FRAMES
    assert models[2].config.num_image_with_embedding == evaluate.GIT_FRAMES
    files = [file for name in ("motion", "clip", "git") for file in (HERE / name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 12 << 20
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt"}  # what the package takes along


def test_the_processors_files_make_the_pixels_that_training_saw(shown: evaluate.Shown) -> None:
    small = np.stack([data.processed(frames) for frames in shown.at(1)[:8]])
    trained_on = normalised(torch.from_numpy(small).permute(0, 1, 4, 2, 3).float() / 255, OPENAI)
    served = evaluate.pixel_values(HERE / "clip", shown.at(1)[:8])
    torch.testing.assert_close(served, trained_on, atol=1e-5, rtol=0)
    assert json.loads((HERE / "motion" / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": data.PIXELS}


def test_the_command_line_prints_the_scores_of_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--evaluate", "--evaluated", "8", "--threads", "1"])
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"action_top1", "object_top1", "caption_exact"}
    assert min(scores.values()) >= 0.75


# --- training ---


def test_clips_do_not_depend_on_how_many_are_made(clips: data.Clips) -> None:
    frames, poses, kinds = data.one_clip(1, world.EVALUATION, 5)
    np.testing.assert_array_equal(frames, clips.frames[5])
    np.testing.assert_array_equal(poses, clips.poses[5])
    assert kinds == (clips.actions[5], clips.colors[5], clips.shapes[5])
    assert set(clips.actions) == set(range(len(world.ACTIONS)))


def test_h264_changes_frames_a_little_and_keeps_their_count_and_order() -> None:
    shot = world.random_shot(world.rng_of(2, world.EVALUATION, 0), action="right", color="red")
    frames = world.render(shot, 180, 240, np.linspace(0, 1, 12, dtype=np.float32))
    direct, coded = data.scaled(frames), data.recoded(frames, crf=30)
    assert coded.shape == direct.shape == (12, 224, 299, 3)
    direct, coded = (some[:, ::4, ::4].astype(np.int16) for some in (direct, coded))
    error = np.abs(direct[:, None] - coded[None]).mean((2, 3, 4))
    np.testing.assert_array_equal(error.argmin(1), np.arange(12))
    assert 0.2 < error.diagonal().mean() < 8


@pytest.mark.parametrize("seed", range(24))
def test_symmetries_change_frames_poses_and_names_together(clips: data.Clips, seed: int) -> None:
    batch = augment.take(clips, np.arange(16), data.MOTION_AT)
    changed = augment.augmented(batch, np.random.default_rng(seed))
    for number in range(16):
        moved = changed.poses[number, -1] - changed.poses[number, 0]
        action = world.ACTIONS[int(changed.actions[number])]
        assert action == _action_of(moved), f"clip {number}"
        rgb = changed.pixels[number, 0]
        colored = (rgb.amax(0) - rgb.amin(0)) > 0.3
        if colored.sum() > 60 and world.SHAPES[int(batch.shapes[number])] != "triangle":  # whose middle is not its centroid
            y, x = colored.nonzero().float().mean(0)
            seen = torch.stack([x, y]) * 2 / data.PIXELS - 1
            torch.testing.assert_close(seen, changed.poses[number, 0, :2], atol=0.09, rtol=0)


def _action_of(moved: torch.Tensor) -> str:
    """What happened between two poses."""
    x, y, size, cos, sin = (float(number) for number in moved)
    if abs(size) > 0.2:
        return "growing" if size > 0 else "shrinking"
    if abs(x) > 0.2 or abs(y) > 0.2:
        return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
    return "spinning" if abs(cos) + abs(sin) > 0.05 else "still"


def test_a_few_steps_teach_something_and_leave_averaged_weights_in_eval_mode(clips: data.Clips) -> None:
    torch.manual_seed(0)
    shares: list[float] = []
    pupil = learn_clip.Pupil(learn_clip.tokenizer(), np.random.default_rng(0), shares.append)
    batch = augment.augmented(augment.take(clips, np.arange(6), learn_clip.FRAMES_AT[0]), np.random.default_rng(0))

    before = float(pupil.loss(batch).detach())
    trained = fit(pupil, repeat(batch), pupil.loss, Schedule(12, 2e-3, 16, warmup=3))
    assert isinstance(trained, learn_clip.Pupil)
    assert float(pupil.loss(batch).detach()) < 0.85 * before
    assert float(trained.loss(batch).detach()) < 0.95 * before
    assert len(shares) == 15  # of every step and of the three losses here
    assert not trained.training
    assert any((a != b).any() for a, b in zip(trained.parameters(), pupil.parameters(), strict=True))


def test_every_recipe_writes_a_folder_that_loads(clips: data.Clips, tmp_path: Path) -> None:
    said: list[str] = []
    short = Schedule(steps=1, rate=1e-4, batch_clips=8, log_every=1)
    learn_motion.train(clips, tmp_path / "motion", 0, short, said.append)
    learn_clip.train(clips, tmp_path / "clip", 0, (short, short), said.append)
    learn_git.train(clips, tmp_path / "git", tmp_path / "clip", 0, (short, short), said.append)
    scores = evaluate.scores(evaluate.shown(8, SEED), tmp_path)
    assert set(scores) == {"action_top1", "object_top1", "caption_exact"}
    assert max(scores.values()) < 0.8  # a step teaches next to nothing, so the scores above are the weights' own
    assert len([line for line in said if "loss" in line]) == 5


def test_lessons_get_as_hard_as_the_clips_once_they_are_understood() -> None:
    lessons = Lessons(8, np.random.default_rng(0))
    first = next(lessons)
    assert first.poses[:, 0, :2].abs().max() < 0.2  # in the middle
    lessons.understood(0.2)
    assert lessons.difficulty == 0
    for _ in range(200):
        lessons.understood(1.0)
    assert lessons.difficulty == 1
    last = next(lessons)
    assert last.poses[..., 2].mean() < first.poses[..., 2].mean() - 0.5  # smaller
    assert last.poses[:, 0, :2].abs().max() > 0.3


def test_masks_lie_where_the_shapes_are() -> None:
    batch = lesson(0.5, 24, np.random.default_rng(1))
    colored = (batch.pixels[:, 0].amax(1) - batch.pixels[:, 0].amin(1)) > 0.35
    drawn = masks(batch, data.PIXELS) > 0.5
    for number in range(24):
        if list(world.COLORS)[int(batch.colors[number])] != "white":
            outside = colored[number] & ~drawn[number]
            assert outside.sum() <= 0.05 * drawn[number].sum()
            assert (colored[number] & drawn[number]).sum() > 0.6 * drawn[number].sum()  # the mark is dark


def test_schedules_rise_and_fall() -> None:
    schedule = Schedule(steps=100, rate=1.0, batch_clips=1, warmup=10)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[-1] < 0.03


def test_what_was_rendered_can_be_kept(clips: data.Clips, tmp_path: Path) -> None:
    clips.save(tmp_path / "clips.npz")
    again = data.Clips.load(tmp_path / "clips.npz")
    for name, array in vars(clips).items():
        np.testing.assert_array_equal(vars(again)[name], array)
