from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from schemas.config import EmbedConfig
from schemas.entries import Entry
from schemas.errors import BadRequest
from stages.embed import Embed
from stages.models import catalogue, weights
from tests.stages.checkpoints import build, checkpoint
from tests.stages.clips import FINGERPRINT, answers, clip_row, entry, pattern, table

TEXTS = ["red circle", "a photo of blue square moving left", "cat"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.inference_mode()
def test_texts_are_embedded_as_transformers_does(kind: str) -> None:
    folder = checkpoint(kind)
    ours = catalogue.text_encoder(str(folder))(TEXTS)
    net = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    rows = dict(tokenizer(TEXTS, return_tensors="pt", **padding))
    rows.pop("token_type_ids", None)
    if kind == "siglip":
        rows.pop("attention_mask")
    theirs = torch.nn.functional.normalize(net.get_text_features(**rows).pooler_output, dim=-1).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_text_s_embedding_does_not_depend_on_what_is_beside_it(kind: str) -> None:
    encode = catalogue.text_encoder(str(checkpoint(kind)))
    together = encode([*TEXTS, *(f"word{i % 40}" for i in range(300))])
    assert together.shape == (303, encode(TEXTS).shape[1])
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(encode([text])[0], together[i], atol=1e-5)
    assert encode([]).shape == (0, together.shape[1])
    np.testing.assert_allclose(encode(["word1 " * 90]), encode(["word1 " * 80]), atol=1e-6)  # cut, not refused


def test_texts_and_clips_meet_in_one_space() -> None:
    encode = catalogue.text_encoder(str(checkpoint("clip")), entry("embed", "clip").revision)
    ((_, (struct,)),) = answers(Embed(entry("embed", "clip"))(table([clip_row(0)])), "embed")
    cosines = encode(TEXTS) @ np.array(struct["embedding"], np.float32)
    assert cosines.shape == (3,)
    assert float(np.abs(cosines).max()) <= 1.0 + 1e-6


def test_a_model_without_a_text_side_is_refused_for_search() -> None:
    with pytest.raises(BadRequest, match="embeds no texts"):
        catalogue.text_encoder(str(checkpoint("git")))


def test_a_clip_is_the_mean_of_its_frames() -> None:
    embed = {frames: Embed(entry("embed", "clip", frames=frames)) for frames in (1, 4)}
    clip = pattern(0, 4)

    def vector(frames: int, part: np.ndarray) -> np.ndarray:
        ((_, (struct,)),) = answers(embed[frames](table([clip_row(0, part)])), "embed")
        return np.array(struct["embedding"])

    mean = np.mean([vector(1, clip[i : i + 1]) for i in range(4)], axis=0)
    np.testing.assert_allclose(vector(4, clip), mean / np.linalg.norm(mean), atol=1e-5)


def test_an_embedding_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    folder = build("clip", tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"].fill_(0.0)  # a vector of length nothing has no direction
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    one = Entry("embed", EmbedConfig(model=str(folder)), weights.resolve(str(folder)).revision, FINGERPRINT, "here")
    ((_, (struct,)),) = answers(Embed(one)(table([clip_row(0)])), "embed")
    assert (struct["error_code"], struct["dim"], struct["embedding"]) == ("not_finite", None, None)
