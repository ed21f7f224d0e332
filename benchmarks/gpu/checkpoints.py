"""Checkpoints of the architectures and sizes that people run, with random weights: no network, the same arithmetic.

Sizes are those of the models on the hub that the names say. Tokenizers are made up, with as many tokens as the real ones have,
so that the last layer is as wide and every token that is generated is a word. `tiny` makes the same architectures small enough
for a test on a CPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_NARROW_LLM = {**_NARROW, "num_key_value_heads": 2}
_PROMPT_WORDS = tuple("abcdefghijklmnopqrstuvwxyz")
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """A model to measure: the stage that uses it, what builds it (given `tiny`), frames of a clip that it sees."""

    stage: str
    build: Callable[[Path, bool], None]
    frames: int = 8


def checkpoint(name: str, root: Path, device: str, tiny: bool) -> Path:
    """The folder of the checkpoint of KINDS[name] below `root`, made there on `device` where it is missing."""
    folder = root / (f"{name}-tiny" if tiny else name)
    if (folder / "config.json").exists():
        return folder
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    with torch.device(device):
        KINDS[name].build(making, tiny)
    write_processor(name, making, tiny)
    making.rename(folder)
    return folder


def _save(net: Any, folder: Path) -> None:
    net.to(torch.bfloat16).save_pretrained(folder)


def write_processor(name: str, folder: Path, tiny: bool) -> None:
    """Only what says how frames are preprocessed."""
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(name, tiny)))


def _processor(name: str, tiny: bool) -> dict[str, Any]:
    side = 32 if tiny else 512 if name.startswith("smolvlm") else 224
    cropped = {"size": {"shortest_edge": side}, "crop_size": _square(side)}
    if name.startswith("timesformer"):
        return {"image_processor_type": "VideoMAEImageProcessor", **cropped}
    if name.startswith("clip"):
        return {"image_processor_type": "CLIPImageProcessor", "resample": 3, **cropped}
    if name.startswith("siglip"):
        return {"image_processor_type": "SiglipImageProcessor", "resample": 3, "size": _square(side)}
    if name.startswith("qwen"):
        most = 28 * 28 * (16 if tiny else 16384)
        return {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56 * 56, "max_pixels": most}
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}
    sizes = {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
    return {"image_processor_type": "SmolVLMImageProcessor", "resample": 1, "video_sampling": sampling, **sizes}


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _words(folder: Path, size: int, special: Mapping[str, int], **roles: str) -> None:
    """A tokenizer of `size` words, a word a token; `special` tokens have the numbers that they are given."""
    free = iter(sorted(set(range(size)) - set(special.values())))
    words = [*_PROMPT_WORDS, *(f"w{i}" for i in range(size - len(special) - len(_PROMPT_WORDS)))]
    vocabulary = {**special, **dict(zip(words, free, strict=True))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=roles["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    extra = [token for token in special if token not in roles.values()]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=extra, padding_side="left", **roles
    ).save_pretrained(folder)


def _timesformer(folder: Path, tiny: bool) -> None:
    side = 32 if tiny else 224
    size = {**_NARROW, "image_size": side, "patch_size": 8} if tiny else {}
    config = transformers.TimesformerConfig(**size, num_frames=8, id2label={i: f"action {i}" for i in range(400)})
    _save(transformers.TimesformerForVideoClassification(config), folder)


def _clip(folder: Path, tiny: bool, large: bool) -> None:
    side = 32 if tiny else 224
    text: dict[str, Any] = _NARROW if tiny else {}
    vision: dict[str, Any] = {**_NARROW, "image_size": side, "patch_size": 8} if tiny else {}
    if large and not tiny:
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        vision = {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "patch_size": 14,
        }  # fmt: skip
    projection = 24 if tiny else 768 if large else 512
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    _save(transformers.CLIPModel(config), folder)


def _siglip(folder: Path, tiny: bool) -> None:
    side = 32 if tiny else 224
    vision = {**_NARROW, "image_size": side, "patch_size": 8} if tiny else {}
    config = transformers.SiglipConfig(text_config=_NARROW if tiny else {}, vision_config=vision)
    _save(transformers.SiglipModel(config), folder)


def _smolvlm(folder: Path, tiny: bool) -> None:
    """SmolVLM2-500M: SmolLM2-360M beside a SigLIP-sized tower of 512 pixels, 64 tokens a frame."""
    vocabulary, side = (512, 32) if tiny else (49280, 512)
    special = {"<|endoftext|>": 0, "<|im_start|>": 1, "<unk>": 2, "<end_of_utterance>": vocabulary - 1}
    special |= {"<fake_token_around_image>": vocabulary - 91, "<image>": vocabulary - 90, "<global-img>": vocabulary - 89}
    _words(
        folder,
        vocabulary,
        special,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|endoftext|>",
    )
    wide = {
        "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5, "head_dim": 64,
    }  # fmt: skip
    text = {
        **(_NARROW_LLM if tiny else wide), "model_type": "llama", "vocab_size": vocabulary, "max_position_embeddings": 8192,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": vocabulary - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": side,
        "patch_size": 16, **({**_NARROW, "patch_size": 8} if tiny else {}),
    }  # fmt: skip
    config = transformers.SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=2 if tiny else 4, image_token_id=special["<image>"], pad_token_id=0
    )
    _save(transformers.SmolVLMForConditionalGeneration(config), folder)


def _qwen(folder: Path, tiny: bool) -> None:
    """Qwen2.5-VL-3B."""
    vocabulary = 512 if tiny else 151936
    names = (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    numbers = (0, 1, 2, 9, 10, 12, 13)
    first = 256 if tiny else 151643
    special = {**{name: first + number for name, number in zip(names, numbers, strict=True)}, "<unk>": vocabulary - 1}
    _words(folder, vocabulary, special, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wide = {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6,
    }  # fmt: skip
    rope = {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}}
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    small = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **({**_NARROW_LLM, **rope} if tiny else wide), "vocab_size": vocabulary, "max_position_embeddings": 32768,
            "pad_token_id": special["<|endoftext|>"], "eos_token_id": special["<|im_end|>"],
        },
        vision_config={
            **(small if tiny else tower), "patch_size": 14, "window_size": 112, "tokens_per_second": 2,
            "fullatt_block_indexes": [1] if tiny else [7, 15, 23, 31],
        },
        **{f"{name}_token_id": special[f"<|{name}|>"] for name in ("vision_start", "vision_end")},
        image_token_id=special["<|image_pad|>"], video_token_id=special["<|video_pad|>"],
    )  # fmt: skip
    _save(transformers.Qwen2_5_VLForConditionalGeneration(config), folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_TEMPLATE}))


KINDS: Mapping[str, Kind] = {
    "timesformer-base": Kind("classify", _timesformer),
    "clip-vit-b-32": Kind("embed", lambda folder, tiny: _clip(folder, tiny, large=False)),
    "clip-vit-l-14": Kind("embed", lambda folder, tiny: _clip(folder, tiny, large=True)),
    "siglip-base": Kind("embed", _siglip),
    "smolvlm2-500m": Kind("caption", _smolvlm),
    "qwen2.5-vl-3b": Kind("caption", _qwen),
}
