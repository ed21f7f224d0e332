from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from schemas.config import ClassifyConfig, EmbedConfig
from schemas.entries import Entry
from schemas.errors import BadRequest
from stages.classify import Classify
from stages.models import catalogue, weights
from tests.stages.checkpoints import build, checkpoint, edit_json
from tests.stages.clips import FINGERPRINT, answers, clip_row, entry, pattern, table


def check(kind: str, **settings: object) -> None:
    folder = str(checkpoint(kind))
    catalogue.check("classify", ClassifyConfig(model=folder, **settings), weights.resolve(folder))  # type: ignore[arg-type]


def labels(stage: Classify, number: int = 0) -> list[dict[str, object]]:
    ((_, structs),) = answers(stage(table([clip_row(number)])), "classify")
    return structs


@pytest.mark.parametrize(("kind", "takes"), [("timesformer", 4), ("videomae", 6), ("vivit", 4)])
def test_another_number_of_frames_than_the_classifier_takes_is_refused_with_both(kind: str, takes: int) -> None:
    check(kind, frames=takes)
    with pytest.raises(BadRequest, match=rf"takes {takes} frames, classify\.frames is 8: set classify\.frames to {takes}"):
        check(kind, frames=8)


def test_labels_and_models_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"give yours as classify\.labels"):
        check("clip")
    with pytest.raises(BadRequest, match=r"classify\.labels needs an image-text model"):
        check("timesformer", frames=4, labels=("cat",))


def test_a_kind_that_is_not_known_is_named_beside_the_known_ones(tmp_path: Path) -> None:
    folder = build("clip", tmp_path / "clip")
    edit_json(folder / "config.json", model_type="novel")
    with pytest.raises(
        BadRequest, match=r"does not know kind novel \(known: timesformer, videomae, vivit, clip, siglip\)"
    ) as caught:
        catalogue.check("classify", ClassifyConfig(model=str(folder)), weights.resolve(str(folder)))
    assert str(folder) in str(caught.value)
    git = str(checkpoint("git"))
    with pytest.raises(BadRequest, match="it is one for caption"):
        catalogue.check("classify", ClassifyConfig(model=git), weights.resolve(git))


def test_a_checkpoint_that_was_never_taught_to_classify_is_refused(tmp_path: Path) -> None:
    folder = build("videomae", tmp_path / "videomae")
    edit_json(folder / "config.json", architectures=["VideoMAEForPreTraining"])
    with pytest.raises(BadRequest, match="VideoMAEForPreTraining, which has no classifier"):
        catalogue.check("classify", ClassifyConfig(model=str(folder), frames=6), weights.resolve(str(folder)))


def test_one_tower_of_an_image_text_model_is_refused(tmp_path: Path) -> None:
    folder = build("clip", tmp_path / "clip")
    edit_json(folder / "config.json", architectures=["CLIPVisionModel"])
    with pytest.raises(BadRequest, match="CLIPVisionModel, not both towers"):
        catalogue.check("embed", EmbedConfig(model=str(folder)), weights.resolve(str(folder)))


def test_a_tokenizer_that_needs_a_package_we_lack_is_said_before_the_run(tmp_path: Path) -> None:
    folder = build("siglip", tmp_path / "siglip")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    with pytest.raises(BadRequest, match="pip install sentencepiece"):
        catalogue.check("classify", ClassifyConfig(model=str(folder), labels=("cat",)), weights.resolve(str(folder)))
    catalogue.check("embed", EmbedConfig(model=str(folder)), weights.resolve(str(folder)))  # which reads no text


def test_the_best_labels_are_kept_in_order_and_scores_are_shares_of_all() -> None:
    best = labels(Classify(entry("classify", "timesformer", top_k=3)))
    every = labels(Classify(entry("classify", "timesformer", top_k=1000)))
    assert [label["rank"] for label in every] == [1, 2, 3, 4, 5, 6, 7]
    assert [label["label"] for label in best] == [label["label"] for label in every[:3]]
    scores = [label["score"] for label in every]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0, abs=1e-5)


def test_labels_of_a_zero_shot_classifier_are_put_into_its_template() -> None:
    plain = labels(Classify(entry("classify", "clip", template="{}")))
    framed = labels(Classify(entry("classify", "clip", template="a photo of {}")))
    assert (
        {label["label"] for label in plain}
        == {label["label"] for label in framed}
        == {"red circle", "blue square", "cat", "dog"}
    )
    scores = [{label["label"]: label["score"] for label in found} for found in (plain, framed)]
    assert max(abs(scores[0][name] - scores[1][name]) for name in scores[0]) > 1e-3


def test_a_label_that_a_checkpoint_has_twice_stays_two(tmp_path: Path) -> None:
    folder = build("timesformer", tmp_path / "timesformer")
    edit_json(folder / "config.json", id2label={str(i): "same" if i < 2 else f"action {i}" for i in range(7)})
    config = ClassifyConfig(model=str(folder), frames=4, top_k=7)
    stage = Classify(Entry("classify", config, weights.resolve(str(folder)).revision, FINGERPRINT, "here"))
    assert {label["label"] for label in labels(stage)} == {"same #0", "same #1", *(f"action {i}" for i in range(2, 7))}


def test_answers_that_are_not_finite_are_errors_and_not_scores(tmp_path: Path) -> None:
    folder = build("timesformer", tmp_path / "timesformer")
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"][3] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = ClassifyConfig(model=str(folder), frames=4)
    stage = Classify(Entry("classify", config, weights.resolve(str(folder)).revision, FINGERPRINT, "here"))
    (struct,) = labels(stage)
    assert (struct["error_code"], struct["label"], struct["score"], struct["rank"]) == ("not_finite", None, None, None)


def test_a_clip_of_which_the_model_chokes_costs_no_other_clip() -> None:
    """A frame of no height cannot be resized: the model's own code raises, and the rows beside it are answered."""
    flat = clip_row(1, pattern(1, 4)[:, :0])
    out = Classify(entry("classify", "timesformer"), batch_clips=8)(table([clip_row(0), flat, clip_row(2)]))
    codes = [structs[0]["error_code"] for _, structs in answers(out, "classify")]
    assert codes == [None, "model_failed", None]
