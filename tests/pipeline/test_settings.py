from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from schemas.config import JobConfig
from schemas.errors import BadRequest
from stages.models.embedded import evaluate, world


def load(*sets: str, yaml: str | None = None, folder: Path | None = None, **options: Any) -> JobConfig:
    if yaml is not None:
        assert folder is not None
        options["config_path"] = folder / "job.yaml"
        options["config_path"].write_text(yaml)
    return settings.load(sets=sets, **{"input_uri": "/in", "output": "/out", **options})


def refusal(*sets: str, **options: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        load(*sets, **options)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


# --- sources and their order ---


def test_a_later_source_goes_over_an_earlier_one(tmp_path: Path) -> None:
    yaml = "clips: {max_s: 7, min_s: 2}\ninput: {uri: /file}\noutput: /file\n"
    found = load("clips.max_s=8", "clips.max_s=9", preset="embedded", yaml=yaml, folder=tmp_path)
    assert (found.clips.max_s, found.clips.min_s, found.clips.short_side) == (9, 2, 224)
    assert (found.input.uri, found.output) == ("/in", "/out")
    assert found.preset == "embedded"


def test_a_files_stage_replaces_the_presets_and_leaves_the_others(tmp_path: Path) -> None:
    found = load(preset="embedded", yaml="classify: {model: me/mine}", folder=tmp_path)
    assert [entry.model for entry in found.classify] == ["me/mine"]
    assert found.caption == load(preset="embedded").caption


def test_a_file_may_name_the_preset_and_the_option_goes_over_it(tmp_path: Path) -> None:
    assert load(yaml="preset: standard", folder=tmp_path).preset == "standard"
    assert load(yaml="preset: standard", folder=tmp_path, preset="embedded").preset == "embedded"


def test_a_file_may_write_the_input_as_a_string(tmp_path: Path) -> None:
    found = load(preset="embedded", yaml="input: s3://bucket/x\noutput: /o", folder=tmp_path, input_uri=None, output=None)
    assert (found.input.uri, found.output) == ("s3://bucket/x", "/o")


def test_there_is_no_silent_default_of_models(tmp_path: Path) -> None:
    for said in (refusal(), refusal(yaml="clips: {max_s: 4}", folder=tmp_path)):
        assert "--preset embedded" in said
        assert "noise" in said


def test_a_run_without_any_model_is_asked_for_by_an_empty_stage(tmp_path: Path) -> None:
    found = load(yaml="classify: []", folder=tmp_path)
    assert not (*found.classify, *found.embed, *found.caption)
    assert load("caption=null", preset="embedded").caption == ()


@pytest.mark.parametrize("missing", ["input", "output"])
def test_input_and_output_are_asked_for_by_the_name_of_their_option(missing: str) -> None:
    option = {"input": "input_uri"}.get(missing, missing)
    assert refusal(preset="embedded", **{option: None}).startswith(f"--{missing} is missing")


def test_no_such_preset_says_which_there_are() -> None:
    assert (
        refusal(preset="standart")
        == "--preset standart: no such preset; there are embedded and standard; did you mean standard?"
    )


# --- presets ---


def test_every_preset_is_a_configuration_with_all_three_stages() -> None:
    for preset in settings.PRESETS:
        assert all(isinstance(settings._preset(preset)[stage], list) for stage in settings.MODEL_STAGES)  # a file replaces them
        found = load(preset=preset)
        assert found.classify
        assert found.embed
        assert found.caption
        assert found.clips == JobConfig.model_validate({"input": {"uri": "x"}, "output": "y"}).clips


def test_the_embedded_preset_asks_about_the_whole_little_world_as_its_models_learned_it() -> None:
    _, objects = load(preset="embedded").classify
    assert objects.labels == world.OBJECTS
    assert objects.template == world.TEMPLATE
    frames = [entry.frames for entry in (*load(preset="embedded").classify, *load(preset="embedded").embed)]
    assert frames == [evaluate.MOTION_FRAMES, evaluate.CLIP_FRAMES, evaluate.CLIP_FRAMES]
    assert load(preset="embedded").caption[0].frames == evaluate.GIT_FRAMES
    assert list(settings.entry_names(load(preset="embedded")).values()) == ["action", "object", "embedding", "caption"]


# --- --set ---


def test_set_reads_values_as_yaml() -> None:
    found = load(
        "classify.action.labels=[a, b]", "resources.actors=null", "clips.min_s=.5", "caption.0.frames=3", preset="embedded"
    )
    assert found.classify[0].labels == ("a", "b")
    assert (found.resources.actors, found.clips.min_s, found.caption[0].frames) == (None, 0.5, 3)


@pytest.mark.parametrize("text", ["What: a day?", "yes", "12", "{odd", "'quoted'", ""])
def test_set_takes_text_for_a_text_key_as_it_stands(text: str) -> None:
    assert load(f"caption.prompt={text}", preset="embedded").caption[0].prompt == text.strip("'")


def test_set_changes_a_single_entry_by_its_stage_and_one_of_several_by_number_or_name() -> None:
    assert load("embed.model=me/x@abc", preset="embedded").embed[0].model == "me/x@abc"
    found = load("classify.1.frames=2", "classify.action.frames=3", preset="embedded")
    assert [entry.frames for entry in found.classify] == [3, 2]
    said = refusal("classify.frames=2", preset="embedded")
    assert said == "classify.frames: classify has 2 entries; say classify.0.frames or classify.1.frames"


def test_set_makes_entries_where_there_are_none_and_next_to_those_there_are() -> None:
    assert [entry.model for entry in load("embed.model=me/x").embed] == ["me/x"]
    assert [entry.model for entry in load("embed.1.model=me/x", preset="embedded").embed] == ["embedded:clip", "me/x"]
    assert "the next one is embed.1" in refusal("embed.2.model=me/x", preset="embedded")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clips.shortside=3", "clips.shortside: no such key; did you mean short_side?"),
        ("clips.limits.max_pixel=3", "clips.limits.max_pixel: no such key; did you mean max_pixels?"),
        ("classify.action.topk=3", "classify.action.topk: no such key; did you mean top_k?"),
        ("clips.short_side.x=3", "clips.short_side.x: no such key; clips.short_side has nothing below it"),
        ("zzz=3", "zzz: no such key; there are input, output, clips, classify, embed, caption, resources"),
        ("preset=standard", "preset: say --preset NAME instead of --set"),
        ("clips.short_side=3", "clips.short_side: should be greater than or equal to 16, not 3"),
        ("clips.short_side=big", "clips.short_side: should be a valid integer"),
        ("clips.split=shot", "clips.split: should be 'shots', 'fixed' or 'none'"),
        ("classify.action.frames=0", "classify.action.frames: should be greater than or equal to 1, not 0"),
        ("clips=3", "clips: should be a mapping of keys, not 3"),
        ("classify=3", "classify: should be an entry or a list of entries, not 3"),
        ("clips.max_s=1.5", "clips: max_s must be at least twice min_s, or a long shot cannot be cut"),
        ("embed.frames={a: ]", "embed.frames: is not a YAML value"),
        ("clips.max_s", "--set: should look like clips.max_s=8"),
        ("=3", "--set: should look like clips.max_s=8"),
    ],
)
def test_set_refuses_in_one_line_that_names_the_key_as_it_was_typed(text: str, said: str) -> None:
    assert refusal(text, preset="embedded") == said


# --- files ---


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("clips: {shortside: 3}", "clips.shortside: no such key; did you mean short_side?"),
        ("clip: {max_s: 3}", "clip: no such key; did you mean clips?"),
        ("classify: {modle: a/b}", "classify.modle: no such key; did you mean model? (and 1 more)"),
        ("classify: {frames: 3}", "classify.model: is missing"),
        ("classify: [{model: a/b, frames: 0}]", "classify.0.frames: should be greater than or equal to 1, not 0"),
        ("classify: a/b", "classify: should be an entry or a list of entries"),
        ("clips: 3", "clips: should be a mapping of keys, not 3"),
        ("classify: {model: a, labels: [yes, x]}", "classify.labels.0: should be a valid string (put it in quotes), not true"),
        ("preset: [1]", "--preset [1]: no such preset; there are embedded and standard"),
    ],
)
def test_a_file_is_refused_in_one_line_that_names_the_key_as_it_stands(yaml: str, said: str, tmp_path: Path) -> None:
    yaml = yaml if "preset" in yaml else f"preset: embedded\n{yaml}"
    assert refusal(yaml=yaml, folder=tmp_path) == said


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("a: [", "line 1: expected the node content"),
        ("clips:\n  max_s: 3\n  max_s: 4", "line 3: max_s is given twice"),
        ("- x", "should be a mapping of keys"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_with_its_line(yaml: str, said: str, tmp_path: Path) -> None:
    found = refusal(yaml=yaml, folder=tmp_path)
    assert found.startswith(f"--config {tmp_path / 'job.yaml'}: ")
    assert said in found


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(config_path=tmp_path / "none.yaml") == f"--config {tmp_path / 'none.yaml'}: no such file or directory"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(config_path=tmp_path / "binary.yaml")


def test_a_merge_key_in_yaml_is_no_doubled_key(tmp_path: Path) -> None:
    yaml = "embed:\n- &base {model: a/b, frames: 3}\n- {<<: *base, model: a/c}"
    assert [(entry.model, entry.frames) for entry in load(yaml=yaml, folder=tmp_path).embed] == [("a/b", 3), ("a/c", 3)]


# --- names ---


def test_entries_without_a_name_are_numbered_around_those_that_have_one() -> None:
    found = load(
        "classify=[{model: a}, {model: b}, {model: c, name: label}]", "embed=[{model: a}, {model: b}]", "caption.model=d"
    )
    assert settings.entry_names(found) == {
        ("classify", 0): "label_2", ("classify", 1): "label_3", ("classify", 2): "label",
        ("embed", 0): "embedding", ("embed", 1): "embedding_2", ("caption", 0): "caption",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("embed.name=motion", "embed.0.name: motion is already a column of clips; give this entry another name"),
        ("embed.name=run_date", "embed.0.name: run_date is already a column of clips; give this entry another name"),
        (
            "caption.name=object_score",
            "caption.0.name: object_score is already the column of classify.1; give this entry another name",
        ),
        ("classify.1.name=action", "classify.1.name: action is already the column of classify.0; give this entry another name"),
    ],
)
def test_a_name_that_is_taken_is_refused(text: str, said: str) -> None:
    assert refusal(text, preset="embedded") == said
