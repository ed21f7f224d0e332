"""One suite over every line of the catalogue: what a stage promises whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from schemas.rows import CLIP_ROW
from stages.caption import Caption
from stages.classify import Classify
from stages.embed import Embed
from stages.models import catalogue
from tests.stages.checkpoints import PROCESSORS, QWEN_TEMPLATE, checkpoint
from tests.stages.clips import COLUMNS, answers, clip_row, end_row, entry, failed_row, pattern, table

STAGES: dict[str, Any] = {"classify": Classify, "embed": Embed, "caption": Caption}
CASES = [(stage, kind) for stage, kinds in catalogue.KINDS.items() for kind in kinds] + [("caption", "git-image")]
each = pytest.mark.parametrize(("stage", "kind"), CASES, ids=[f"{stage}-{kind}" for stage, kind in CASES])
_loaded: dict[tuple[str, str], Any] = {}


def stage_of(stage: str, kind: str) -> Any:
    if (stage, kind) not in _loaded:
        _loaded[stage, kind] = STAGES[stage](entry(stage, kind), batch_clips=4)
    return _loaded[stage, kind]


def run(stage: str, kind: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Structs by clip id."""
    return dict(answers(stage_of(stage, kind)(table(rows)), stage))


def numbers(structs: list[dict[str, Any]]) -> np.ndarray:
    return np.array([value for struct in structs for value in (struct.get("embedding") or [struct.get("score") or 0.0])])


def words(structs: list[dict[str, Any]]) -> list[Any]:
    return [(struct.get("label"), struct.get("caption"), struct.get("tokens"), struct["error_code"]) for struct in structs]


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert words(one) == words(other)
    np.testing.assert_allclose(numbers(one), numbers(other), atol=1e-5)


def differs(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return words(one) != words(other) or float(np.abs(numbers(one) - numbers(other)).max()) > 1e-3


@each
def test_an_empty_table_stays_an_empty_table(stage: str, kind: str) -> None:
    out = stage_of(stage, kind)(CLIP_ROW.empty_table())
    assert (out.num_rows, out.schema) == (0, CLIP_ROW)


@each
def test_rows_that_are_not_its_business_pass_untouched(stage: str, kind: str) -> None:
    rows = [failed_row(0), clip_row(1, due=("bcdefghi",)), end_row(2)]
    assert stage_of(stage, kind)(table(rows)).equals(table(rows))


@each
def test_in_a_mixed_table_the_good_rows_are_filled_and_nothing_else_changes(stage: str, kind: str) -> None:
    rows = [clip_row(0), failed_row(1), clip_row(2, pattern(2, 8, 70, 50)), clip_row(3, due=()), clip_row(4), end_row(5)]
    before, after = table(rows), stage_of(stage, kind)(table(rows))
    assert after.schema == CLIP_ROW
    assert after.drop_columns(COLUMNS[stage]).equals(before.drop_columns(COLUMNS[stage]))
    assert [bool(structs) for _, structs in answers(after, stage)] == [True, False, True, False, True, False]
    for _, structs in answers(after, stage):
        assert all(struct["fingerprint"] == "abcdefgh" and struct["error_code"] is None for struct in structs or ())


@each
@pytest.mark.parametrize("kept", [1, 3, 7, 11])
def test_clips_with_any_number_of_kept_frames_are_answered(stage: str, kind: str, kept: int) -> None:
    (structs,) = run(stage, kind, [clip_row(0, pattern(0, kept))]).values()
    assert structs
    assert structs[0]["error_code"] is None


@each
def test_a_clip_is_answered_alike_alone_in_a_batch_and_in_another_order(stage: str, kind: str) -> None:
    rows = [clip_row(i, pattern(i, 8, *((48, 80), (64, 64))[i % 2])) for i in range(6)]
    together = run(stage, kind, rows)
    shuffled = run(stage, kind, [rows[i] for i in (3, 0, 5, 1, 4, 2)])
    assert any(differs(together[rows[0]["clip_id"]], together[row["clip_id"]]) for row in rows[1:])
    for row in rows:
        assert_same(together[row["clip_id"]], shuffled[row["clip_id"]])
        assert_same(together[row["clip_id"]], run(stage, kind, [row])[row["clip_id"]])


@each
def test_a_second_entry_s_structs_stand_beside_the_first_s(stage: str, kind: str) -> None:
    other = STAGES[stage](entry(stage, kind, fingerprint="bcdefghi"))
    out = other(stage_of(stage, kind)(table([clip_row(0, due=("abcdefgh", "bcdefghi")), end_row(1)])))
    structs = answers(out, stage)[0][1]
    assert sorted({struct["fingerprint"] for struct in structs}) == ["abcdefgh", "bcdefghi"]
    assert_same(structs[: len(structs) // 2], structs[len(structs) // 2 :])


@each
def test_red_is_not_blue(stage: str, kind: str) -> None:
    found = [run(stage, kind, [clip_row(0, frames)]) for s in range(4) for frames in (pattern(s), pattern(s)[..., ::-1].copy())]
    pairs = [(next(iter(found[i].values())), next(iter(found[i + 1].values()))) for i in range(0, 8, 2)]
    assert any(differs(one, other) for one, other in pairs)


@each
def test_what_was_first_comes_first(stage: str, kind: str) -> None:
    count = entry(stage, kind).config.frames
    both = [frames for seed in range(6) for frames in (pattern(seed, count), pattern(seed, count)[::-1].copy())]
    found = [run(stage, kind, [clip_row(0, frames)]) for frames in both]
    pairs = [(next(iter(found[i].values())), next(iter(found[i + 1].values()))) for i in range(0, 12, 2)]
    sees_order = kind not in ("clip", "siglip", "git-image")  # those average frames, or see one
    assert any(differs(one, other) for one, other in pairs) is sees_order


# What transformers itself makes of the same frames, with its own processor and its own forward pass.


def frames_seen(stage: str, kind: str, row: dict[str, Any]) -> list[np.ndarray]:
    """The frames that the stage must pick of a row of 8 frames, found independently of it."""
    count = entry(stage, kind).config.frames
    kept = np.frombuffer(row["frames"], np.uint8).reshape(row["frame_count"], row["frame_height"], row["frame_width"], 3)
    middles = row["start_s"] + (np.arange(count) + 0.5) * (row["end_s"] - row["start_s"]) / count
    return [kept[int(np.argmin(np.abs(np.array(row["frame_times_s"]) - middle + 1e-9)))] for middle in middles]


def theirs_video_classifier(kind: str, frames: list[np.ndarray]) -> np.ndarray:
    net = transformers.AutoModelForVideoClassification.from_pretrained(checkpoint(kind)).eval()
    pixels = PROCESSORS[kind].from_pretrained(checkpoint(kind))(frames, return_tensors="pt")
    return net(**pixels).logits.softmax(-1)[0].numpy()


def theirs_embedding(kind: str, frames: list[np.ndarray]) -> torch.Tensor:
    net = transformers.AutoModel.from_pretrained(checkpoint(kind)).eval()
    pixels = PROCESSORS[kind].from_pretrained(checkpoint(kind))(frames, return_tensors="pt")
    vectors = torch.nn.functional.normalize(net.get_image_features(**pixels).pooler_output, dim=-1)
    return torch.nn.functional.normalize(vectors.mean(0), dim=-1)


def theirs_zero_shot(kind: str, frames: list[np.ndarray]) -> np.ndarray:
    """For one frame: the model's own logits_per_image."""
    net = transformers.AutoModel.from_pretrained(checkpoint(kind)).eval()
    pixels = PROCESSORS[kind].from_pretrained(checkpoint(kind))(frames[:1], return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(kind))
    texts = [f"a photo of {label}" for label in entry("classify", kind).config.labels]
    if kind == "siglip":
        rows = {"input_ids": tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]}
    else:
        rows = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        rows.pop("token_type_ids", None)
    return net(**pixels, **rows).logits_per_image.softmax(-1)[0].numpy()


def theirs_git(kind: str, frames: list[np.ndarray]) -> str:
    net = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(kind)).eval()
    pixels = PROCESSORS[kind].from_pretrained(checkpoint(kind))(frames, return_tensors="pt")["pixel_values"]
    ids = net.generate(pixel_values=pixels if kind == "git-image" else pixels[None], max_new_tokens=8, do_sample=False)
    return transformers.AutoTokenizer.from_pretrained(checkpoint(kind)).decode(ids[0], skip_special_tokens=True)


def greedy(kind: str, text: str, inputs: dict[str, Any]) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(kind))
    net = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint(kind)).eval()
    plain = transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    net.generation_config = plain
    rows = dict(tokenizer([text], add_special_tokens=False, return_tensors="pt"))
    rows.pop("token_type_ids", None)
    if kind == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = (rows["input_ids"] == net.config.video_token_id).int() * 2
    ids = net.generate(**rows, **inputs, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(ids[0, rows["input_ids"].shape[1] :], skip_special_tokens=True))


def theirs_smolvlm(kind: str, frames: list[np.ndarray]) -> str:
    """The texts are transformers' own, the frames go through its image processor, which treats them as its video one does."""
    from transformers.models.smolvlm import processing_smolvlm as own

    processor = SmolVLMImageProcessorPil.from_pretrained(checkpoint(kind), do_image_splitting=False)
    pixels = processor([frames], return_tensors="pt")["pixel_values"]
    place = own.get_image_prompt_string(0, 0, 4, "<fake_token_around_image>", "<image>", "<global-img>")
    media = own.DEFAULT_VIDEO_INTRO.format(frame_count="three", video_duration="0:00:02")
    media += "".join(own.FRAME_TIMESTAMP_MESSAGE.format(timestamp=time) + place for time in ("00:00", "00:00", "00:01"))
    media += own.DEFAULT_MEDIA_OUTTRO
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is seen in it ?"}]}
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(kind))
    text = tokenizer.apply_chat_template(
        [message], chat_template=own.DEFAULT_CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    return greedy(kind, text.replace("<video>", media), {"pixel_values": pixels})


def theirs_qwen2_5_vl(kind: str, frames: list[np.ndarray]) -> str:
    """Patches of two frames are made of those of each frame, doubled: the one has its first half, the other its second."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint(kind))
    out = processor([*frames, frames[-1]], return_tensors="pt")
    grid = out["image_grid_thw"][0]
    stills = out["pixel_values"].view(len(frames) + 1, int(grid.prod()), 3, 2, 14, 14)
    pairs = torch.stack([stills[0::2, :, :, 0], stills[1::2, :, :, 1]], dim=3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(kind))
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is seen in it ?"}]}
    text = tokenizer.apply_chat_template([message], chat_template=QWEN_TEMPLATE, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|video_pad|>", "<|video_pad|>" * (len(pairs) * int(grid.prod()) // 4))
    inputs = {
        "pixel_values_videos": pairs.reshape(-1, 3 * 2 * 14 * 14),
        "video_grid_thw": torch.tensor([[len(pairs), *grid[1:].tolist()]]),
        "second_per_grid_ts": [2 * 2.0 / len(frames)],
    }
    return greedy(kind, text, inputs)


CAPTIONS: dict[str, Callable[[str, list[np.ndarray]], str]] = {
    "git": theirs_git,
    "git-image": theirs_git,
    "smolvlm": theirs_smolvlm,
    "qwen2_5_vl": theirs_qwen2_5_vl,
}


def comparable(stage: str, kind: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    rows = [clip_row(i, pattern(i, 8, *((48, 80), (75, 51), (224, 398))[i % 3])) for i in range(6)]
    found = run(stage, kind, rows)
    return [(row, found[row["clip_id"]]) for row in rows]


@pytest.mark.parametrize("kind", ["timesformer", "videomae", "vivit"])
@torch.inference_mode()
def test_video_classifiers_say_what_transformers_says(kind: str) -> None:
    for row, structs in comparable("classify", kind):
        theirs = theirs_video_classifier(kind, frames_seen("classify", kind, row))
        best = np.argsort(-theirs)[:5]
        assert [struct["label"] for struct in structs] == [f"action {i}" for i in best]
        assert [struct["rank"] for struct in structs] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose([struct["score"] for struct in structs], theirs[best], atol=2e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.inference_mode()
def test_embeddings_are_transformers_s(kind: str) -> None:
    for row, (struct,) in comparable("embed", kind):
        theirs = theirs_embedding(kind, frames_seen("embed", kind, row)).numpy()
        ours = np.array(struct["embedding"])
        assert struct["dim"] == len(ours) == len(theirs)
        assert float(ours @ theirs) > 0.999999
        assert np.linalg.norm(ours) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.inference_mode()
def test_zero_shot_scores_of_a_single_frame_are_the_model_s_own(kind: str) -> None:
    classify = Classify(entry("classify", kind, frames=1))
    for seed in range(4):
        row = clip_row(0, pattern(seed, 1))
        ((_, structs),) = answers(classify(table([row])), "classify")
        theirs = theirs_zero_shot(kind, [pattern(seed, 1)[0]])
        labels = entry("classify", kind).config.labels
        assert [struct["label"] for struct in structs] == [labels[i] for i in np.argsort(-theirs)]
        np.testing.assert_allclose([struct["score"] for struct in structs], np.sort(theirs)[::-1], atol=1e-4)


@pytest.mark.parametrize("kind", CAPTIONS)
@torch.inference_mode()
def test_captions_are_word_for_word_transformers_s(kind: str) -> None:
    said = set()
    for row, (struct,) in comparable("caption", kind):
        assert struct["caption"] == CAPTIONS[kind](kind, frames_seen("caption", kind, row)).strip()
        said.add(struct["caption"])
    assert len(said) > 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@each
def test_half_precision_works_and_stays_near(stage: str, kind: str, dtype: str) -> None:
    row = clip_row(0)
    half = STAGES[stage](entry(stage, kind), dtype=dtype)
    ((_, structs),) = answers(half(table([row])), stage)
    full = run(stage, kind, [row])[row["clip_id"]]
    assert structs[0]["error_code"] is None
    if stage == "embed":
        assert float(numbers(structs) @ numbers(full)) > 0.999
    if stage == "classify":
        np.testing.assert_allclose(numbers(structs), numbers(full), atol=0.05)
