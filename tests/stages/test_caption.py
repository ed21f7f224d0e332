from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from schemas.config import CaptionConfig
from schemas.entries import Entry
from schemas.errors import BadRequest
from stages.caption import Caption
from stages.models import catalogue, weights
from stages.models.qwen_vl_captioner import QwenVlCaptioner
from stages.models.smolvlm_captioner import number_words
from tests.stages.checkpoints import build, checkpoint
from tests.stages.clips import FINGERPRINT, answers, clip_row, entry, table


def check(kind: str, **settings: Any) -> None:
    folder = str(checkpoint(kind))
    catalogue.check("caption", CaptionConfig(model=folder, **settings), weights.resolve(folder))


def caption(stage: Caption, number: int = 0) -> dict[str, Any]:
    ((_, (struct,)),) = answers(stage(table([clip_row(number)])), "caption")
    return struct


@pytest.mark.parametrize(("kind", "takes"), [("git", 3), ("git-image", 1)])
def test_git_takes_as_many_frames_as_it_has_embeddings_for(kind: str, takes: int) -> None:
    check(kind, frames=takes, max_tokens=64)
    with pytest.raises(BadRequest, match=rf"takes {takes} frames, caption\.frames is 8: set caption\.frames to {takes}"):
        check(kind, max_tokens=64)


def build_endless(tmp_path: Path) -> Caption:
    """A GIT that never says the end token, asked for as much as it can write."""
    folder = build("git", tmp_path / "git")
    tensors = load_file(folder / "model.safetensors")
    tensors["output.bias"][2:] += 1e4  # [UNK] [CLS] [SEP] [PAD] come first
    tensors["output.bias"][2] -= 2e4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = CaptionConfig(model=str(folder), frames=3, max_tokens=64)
    return Caption(Entry("caption", config, weights.resolve(str(folder)).revision, FINGERPRINT, "here"))


def test_git_cannot_write_more_than_it_has_places_for_and_can_write_that(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"writes 64 tokens at most, caption\.max_tokens is 65"):
        check("git", frames=3, max_tokens=65)
    endless = build_endless(tmp_path)
    assert caption(endless)["tokens"] == 64


@pytest.mark.parametrize("kind", ["smolvlm", "qwen2_5_vl"])
def test_chat_models_take_any_number_of_frames_and_are_asked_the_prompt(kind: str) -> None:
    said = {}
    for frames in (1, 2, 5):
        check(kind, frames=frames)
        said[frames] = caption(Caption(entry("caption", kind, frames=frames)))
    assert {struct["prompt"] for struct in said.values()} == {"what is seen in it ?"}
    other = caption(Caption(entry("caption", kind, prompt="a cat moving left")))
    assert other["prompt"] == "a cat moving left"
    assert other["caption"] != caption(Caption(entry("caption", kind)))["caption"]


def test_qwen_is_told_how_many_seconds_lie_between_its_pairs_of_frames() -> None:
    from stages.batches import clip_frames
    from stages.models.weights import opened

    one = entry("caption", "qwen2_5_vl", frames=8)
    model = QwenVlCaptioner(one.config, opened(one.model, one.revision, checkpoint("qwen2_5_vl")), "cpu", "float32")
    rows = table([clip_row(0), clip_row(1, end_s=14.0)])
    given = model.inputs([clip_frames(rows, row, 8) for row in range(2)])
    assert given["second_per_grid_ts"] == [0.5, 3.0]  # 2 frames of 8 in 2 s, and in 12 s
    assert given["video_grid_thw"].tolist() == [[4, 4, 6], [4, 4, 6]]
    assert given["mm_token_type_ids"].sum(1).tolist() == [2 * 24, 2 * 24]


def test_git_is_asked_nothing() -> None:
    assert caption(Caption(entry("caption", "git")))["prompt"] is None


@pytest.mark.parametrize("kind", ["git", "smolvlm", "qwen2_5_vl"])
def test_captions_are_greedy_whatever_the_checkpoint_recommends_and_stop_at_the_limit(kind: str) -> None:
    """The Qwen checkpoint recommends sampling at a high temperature, and a repetition penalty."""
    stage = Caption(entry("caption", kind, max_tokens=5))
    found = [caption(stage, number) for number in range(4) for _ in range(3)]
    assert all(found[i] == found[i - i % 3] for i in range(12))
    assert max(struct["tokens"] for struct in found) <= 5
    for number in range(4):
        longer = caption(Caption(entry("caption", kind, max_tokens=8)), number)
        assert longer["caption"].startswith(found[3 * number]["caption"])
        assert longer["tokens"] >= found[3 * number]["tokens"]


@pytest.mark.parametrize(
    ("kind", "weight"), [("git", "output.weight"), ("smolvlm", "lm_head.weight"), ("qwen2_5_vl", "lm_head.weight")]
)
def test_a_caption_from_logits_that_are_not_finite_is_an_error(tmp_path: Path, kind: str, weight: str) -> None:
    folder = build(kind, tmp_path / kind)
    tensors = load_file(folder / "model.safetensors")
    tensors[weight][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = entry("caption", kind).config.model_copy(update={"model": str(folder)})
    struct = caption(Caption(Entry("caption", config, weights.resolve(str(folder)).revision, FINGERPRINT, "here")))
    assert (struct["error_code"], struct["caption"], struct["tokens"], struct["prompt"]) == ("not_finite", None, None, None)


def test_a_prompt_that_holds_the_video_s_own_token_is_refused() -> None:
    with pytest.raises(BadRequest, match="no place for one video"):
        Caption(entry("caption", "qwen2_5_vl", prompt="what is <|video_pad|> ?"))


@pytest.mark.parametrize(
    "place", ["chat_template.jinja", "processor_config.json", "tokenizer_config.json", "chat_template.json"]
)
def test_a_chat_template_is_found_wherever_transformers_keeps_it(tmp_path: Path, place: str) -> None:
    import json

    from tests.stages.checkpoints import QWEN_TEMPLATE, edit_json

    folder = build("qwen2_5_vl", tmp_path / "qwen")
    (folder / "chat_template.json").unlink()
    if place.endswith(".jinja"):
        (folder / place).write_text(QWEN_TEMPLATE)
    elif (folder / place).exists():
        edit_json(folder / place, chat_template=QWEN_TEMPLATE)
    else:
        (folder / place).write_text(json.dumps({"chat_template": QWEN_TEMPLATE}))
    config = entry("caption", "qwen2_5_vl").config.model_copy(update={"model": str(folder)})
    struct = caption(Caption(Entry("caption", config, weights.resolve(str(folder)).revision, FINGERPRINT, "here")))
    assert struct["caption"] == caption(Caption(entry("caption", "qwen2_5_vl")))["caption"]


def test_numbers_in_words_are_those_that_smolvlm_was_trained_on() -> None:
    said = {
        1: "one",
        8: "eight",
        13: "thirteen",
        20: "twenty",
        64: "sixty-four",
        100: "one hundred",
        256: "two hundred and fifty-six",
    }
    assert {number: number_words(number) for number in said} == said
