from typing import Any

import pytest
from pydantic import ValidationError

from schemas.config import CaptionConfig, ClassifyConfig, ClipsConfig, EmbedConfig, JobConfig, ModelConfig, ResourcesConfig
from schemas.entries import Entry


def job(**more: Any) -> JobConfig:
    return JobConfig.model_validate({"input": {"uri": "/in"}, "output": "/out", **more})


def test_a_stage_takes_one_entry_or_several_or_none() -> None:
    assert job(classify={"model": "a/b"}).classify == (ClassifyConfig(model="a/b"),)
    assert [entry.model for entry in job(embed=[{"model": "a"}, {"model": "b"}]).embed] == ["a", "b"]
    assert job(caption=CaptionConfig(model="c")).caption == (CaptionConfig(model="c"),)
    assert job(caption=None).caption == job().caption == ()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().clips.max_s = 3  # type: ignore[misc]


@pytest.mark.parametrize("bad", [{"clips": {"shortside": 1}}, {"clip": {}}, {"embed": {"model": "a", "prompt": "x"}}])
def test_an_unknown_key_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        job(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"clips": {"max_s": 1.5, "min_s": 1}},
        {"clips": {"max_s": float("inf")}},
        {"clips": {"short_side": 8}},
        {"classify": {"model": "a", "labels": ["x", "x"]}},
        {"classify": {"model": "a", "labels": ["x"], "template": "no place"}},
        {"classify": {"model": " a"}},
        {"classify": {"model": ""}},
        {"embed": {"model": "a", "name": "Not a column"}},
        {"embed": {"model": "a", "frames": 0}},
        {"output": ""},
    ],
)
def test_values_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(**bad)


@pytest.mark.parametrize(
    "change", [{"split": "fixed"}, {"min_s": 2.0}, {"max_s": 9.0}, {"short_side": 256}, {"limits": {"unit_s": 300.0}}]
)
def test_what_changes_clips_changes_their_fingerprint(change: dict[str, Any]) -> None:
    assert ClipsConfig.model_validate(change).fingerprint() != ClipsConfig().fingerprint()


def test_promise_6_resources_change_no_fingerprint() -> None:
    fast = job(classify={"model": "a"}, resources={"actors": 7, "dtype": "float32", "batch_clips": 2})
    slow = job(classify={"model": "a"}, resources=ResourcesConfig().model_dump())
    assert fast.clips.fingerprint() == slow.clips.fingerprint()
    assert fast.classify[0].fingerprint("clips", "r") == slow.classify[0].fingerprint("clips", "r")


@pytest.mark.parametrize("change", [{"frames": 4}, {"prompt": "Who?"}, {"max_tokens": 3}, {"model": "other/model"}])
def test_promise_6_what_changes_captions_changes_their_fingerprint_alone(change: dict[str, Any]) -> None:
    before = CaptionConfig(model="a/b")
    after = before.model_copy(update=change)
    assert after.fingerprint("clips", "r") != before.fingerprint("clips", "r")


def test_a_name_is_for_people_and_in_no_fingerprint() -> None:
    assert EmbedConfig(model="a", name="x").fingerprint("c", "r") == EmbedConfig(model="a").fingerprint("c", "r")


def test_a_models_fingerprint_hangs_on_the_clips_and_on_what_was_loaded() -> None:
    config = EmbedConfig(model="a/b@main")
    assert len({config.fingerprint(clips, revision) for clips in ("c1", "c2") for revision in ("r1", "r2")}) == 4


def test_the_same_weights_by_another_spelling_of_the_revision_are_the_same_model() -> None:
    pinned, unpinned = EmbedConfig(model="a/b@0123abc"), EmbedConfig(model="a/b")
    assert pinned.fingerprint("c", "0123abc") == unpinned.fingerprint("c", "0123abc")


def test_an_entry_names_its_model_in_full_and_for_paths() -> None:
    config: ModelConfig = EmbedConfig(model="Open/CLIP@main")
    entry = Entry("embed", config, "0123abc", "abcdefgh", "embedding")  # type: ignore[arg-type]
    assert (entry.model, entry.slug) == ("Open/CLIP@main", "open--clip")


def test_a_configuration_survives_json() -> None:
    config = job(classify={"model": "a", "labels": ["x", "y"]}, preset="embedded")
    assert JobConfig.model_validate_json(config.model_dump_json()) == config
