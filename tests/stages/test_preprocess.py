from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from schemas.config import CaptionConfig, ClassifyConfig
from schemas.errors import BadRequest
from stages.models import preprocess, qwen_vl_captioner, smolvlm_captioner, weights
from stages.models.catalogue import check
from stages.models.resample import FILTERS, resize
from tests.stages.checkpoints import PROCESSORS, build, checkpoint, edit_json

SIZES = [(48, 80), (97, 61), (32, 32), (20, 33), (31, 200)]


def noise(seed: int, count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("number", FILTERS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((37, 53), (16, 16)),
        ((37, 53), (64, 91)),
        ((37, 53), (37, 20)),
        ((37, 53), (90, 53)),
        ((1, 5), (3, 2)),
        ((240, 426), (17, 9)),
    ],
)
def test_resize_is_pillow_s_bit_for_bit(number: int, old: tuple[int, int], new: tuple[int, int]) -> None:
    frames = noise(number, 2, *old)
    ours = resize(torch.tensor(frames).permute(0, 3, 1, 2), *new, number).permute(0, 2, 3, 1).numpy()
    theirs = np.stack([np.asarray(Image.fromarray(frame).resize(new[::-1], resample=number)) for frame in frames])
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["timesformer", "videomae", "vivit", "clip", "siglip", "git"])
@pytest.mark.parametrize("size", SIZES)
def test_frames_are_prepared_as_transformers_does(kind: str, size: tuple[int, int]) -> None:
    frames = noise(1, 3, *size)
    model = weights.resolve(str(checkpoint(kind)))
    ours = preprocess.parse(model, video=kind in ("timesformer", "videomae", "vivit"))([frames], "cpu", torch.float32)[0]
    processor = PROCESSORS[kind].from_pretrained(checkpoint(kind))
    theirs = processor(list(frames), return_tensors="pt")["pixel_values"].reshape(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "said",
    [
        {"do_resize": False, "crop_size": 24},
        {"do_center_crop": False, "size": {"height": 20, "width": 44}},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": True, "rescale_factor": 0.01, "image_mean": 0.3, "image_std": 0.7},
        {"resample": 1, "crop_size": {"height": 21, "width": 40}},
        {"do_convert_rgb": False, "data_format": "channels_first"},
    ],
)
def test_every_setting_of_a_processor_is_followed(tmp_path: Path, said: dict[str, Any]) -> None:
    folder = build("clip", tmp_path / "clip")
    edit_json(folder / "preprocessor_config.json", **said)
    frames = noise(2, 2, 47, 70)
    ours = preprocess.parse(weights.resolve(str(folder)))([frames], "cpu", torch.float32)[0]
    theirs = PROCESSORS["clip"].from_pretrained(folder)(list(frames), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs.to(torch.float32), rtol=0, atol=2e-5)


def test_vivit_can_leave_out_its_offset(tmp_path: Path) -> None:
    folder = build("vivit", tmp_path / "vivit")
    edit_json(folder / "preprocessor_config.json", offset=False, rescale_factor=1 / 255)
    frames = noise(2, 4, 47, 70)
    ours = preprocess.parse(weights.resolve(str(folder)), video=True)([frames], "cpu", torch.float32)[0]
    theirs = PROCESSORS["vivit"].from_pretrained(folder)(list(frames), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_settings_nested_by_save_pretrained_come_before_the_old_file(tmp_path: Path) -> None:
    folder = build("clip", tmp_path / "clip")
    nested = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 8},
        "crop_size": {"height": 8, "width": 8},
    }
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert preprocess.parse(weights.resolve(str(folder))).output_size(50, 60) == (8, 8)


def test_a_video_processor_s_own_file_comes_before_the_image_processor_s(tmp_path: Path) -> None:
    folder = build("timesformer", tmp_path / "timesformer")
    said = {"video_processor_type": "TimesformerVideoProcessor", "crop_size": {"height": 24, "width": 24}, "data_format": None}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(said))
    model = weights.resolve(str(folder))
    steps = preprocess.parse(model, video=True)
    assert (steps.output_size(50, 60), steps.mean) == ((24, 24), (0.485, 0.456, 0.406))
    assert preprocess.parse(model).output_size(50, 60) == (32, 32)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"do_solarize": True}, "do_solarize"),
        ({"do_pad": True}, "do_pad"),
        ({"resample": 0}, "resample 0"),
        ({"size": {"max_height": 4, "max_width": 5}}, "max_height"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "longest_edge"),
        ({"crop_size": {"shortest_edge": 4}}, "crop_size"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
        ({"feature_extractor_type": "BeitFeatureExtractor"}, "Beit"),
        ({"image_processor_type": "NovelImageProcessor"}, "Novel"),
    ],
)
def test_a_setting_that_is_not_known_is_refused_by_name(tmp_path: Path, said: dict[str, Any], named: str) -> None:
    folder = build("clip", tmp_path / "clip")
    edit_json(folder / "preprocessor_config.json", **said)
    with pytest.raises(BadRequest, match=named):
        check("classify", ClassifyConfig(model=str(folder), labels=("cat",)), weights.resolve(str(folder)))


def test_a_checkpoint_without_processor_config_is_refused(tmp_path: Path) -> None:
    folder = build("clip", tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BadRequest, match=r"no preprocessor_config\.json"):
        preprocess.parse(weights.resolve(str(folder)))


def test_clips_of_many_sizes_come_back_in_their_order_whatever_is_beside_them() -> None:
    steps = preprocess.parse(weights.resolve(str(checkpoint("clip"))))
    clips = [noise(i, 1 + i % 3, *SIZES[i % len(SIZES)]) for i in range(12)]
    together = steps(clips, "cpu", torch.float32)
    for clip, tensor in zip(clips, together, strict=True):
        assert torch.equal(steps([clip], "cpu", torch.float32)[0], tensor)


def test_many_large_frames_are_prepared_as_few_are() -> None:
    """More pixels than are resized at a time."""
    steps = preprocess.parse(weights.resolve(str(checkpoint("clip"))))
    clips = [noise(0, 5, 400, 500), noise(1, 2, 400, 500), noise(2, 1, 1000, 900)]
    assert clips[0].size // 3 > preprocess._PIXELS_AT_A_TIME
    together = steps(clips, "cpu", torch.float32)
    for clip, tensor in zip(clips, together, strict=True):
        one_by_one = [steps([clip[i : i + 1]], "cpu", torch.float32)[0] for i in range(len(clip))]
        assert torch.equal(torch.cat(one_by_one), tensor)


@pytest.mark.parametrize("size", [(48, 80), (97, 61), (64, 64)])
def test_smolvlm_frames_are_those_of_its_own_processor(size: tuple[int, int]) -> None:
    folder = checkpoint("smolvlm")
    frames = noise(3, 3, *size)
    ours = smolvlm_captioner._Pixels(weights.resolve(str(folder)))(frames, "cpu", torch.float32)
    processor = SmolVLMImageProcessorPil.from_pretrained(folder, do_image_splitting=False)
    theirs = processor([list(frames)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(48, 80), (97, 61), (300, 200), (20, 20)])
def test_qwen_patches_are_those_of_its_own_processor(size: tuple[int, int]) -> None:
    folder = checkpoint("qwen2_5_vl")
    still = noise(3, 2, *size)
    ours = qwen_vl_captioner._Pixels(weights.resolve(str(folder)))(np.repeat(still, 2, axis=0), "cpu", torch.float32)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    theirs = processor(list(still), return_tensors="pt")  # an image is a video of one frame, doubled
    assert ours.grid == (2, *theirs["image_grid_thw"][0][1:].tolist())
    assert ours.places == theirs["image_grid_thw"].prod(-1).sum() // 4
    torch.testing.assert_close(ours.patches, theirs["pixel_values"], rtol=0, atol=2e-6)


def test_qwen_patches_hold_two_frames_in_their_order_and_repeat_the_last_of_an_odd_number() -> None:
    pixels = qwen_vl_captioner._Pixels(weights.resolve(str(checkpoint("qwen2_5_vl"))))
    frames = noise(3, 3, 56, 56)
    odd, even = pixels(frames, "cpu", torch.float32), pixels(frames[[0, 1, 2, 2]], "cpu", torch.float32)
    assert torch.equal(odd.patches, even.patches)
    swapped = pixels(frames[[1, 0, 2, 2]], "cpu", torch.float32).patches.view(-1, 3, 2, 14, 14).flip(2).flatten(1)
    assert torch.equal(swapped[:16], even.patches[:16])
    assert not torch.equal(pixels(frames[[1, 0, 2, 2]], "cpu", torch.float32).patches, even.patches)


@pytest.mark.parametrize(
    ("kind", "said", "named"),
    [
        ("smolvlm", {"do_solarize": True}, "do_solarize"),
        ("smolvlm", {"do_resize": False}, "do_resize"),
        ("smolvlm", {"max_image_size": {"height": 3}}, "max_image_size"),
        ("smolvlm", {"image_processor_type": "Idefics9ImageProcessor"}, "Idefics9"),
        ("qwen2_5_vl", {"cap_pixels_per_frame": True}, "cap_pixels_per_frame"),
        ("qwen2_5_vl", {"image_processor_type": "CLIPImageProcessor"}, "CLIP"),
    ],
)
def test_chat_models_refuse_what_is_not_known_too(tmp_path: Path, kind: str, said: dict[str, Any], named: str) -> None:
    folder = build(kind, tmp_path / kind)
    edit_json(folder / "preprocessor_config.json", **said)
    with pytest.raises(BadRequest, match=named):
        check("caption", CaptionConfig(model=str(folder)), weights.resolve(str(folder)))
