"""Small checkpoints of the real architectures with random weights and real tokenizers, written as transformers writes them.

Weights are drawn wider than transformers initialises them, so that answers differ from clip to clip.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vivit.image_processing_vivit import VivitImageProcessor

torch.set_num_threads(1)  # these models are too small to share out, and tests run beside others
WORDS = [
    *(f"word{i}" for i in range(40)), "a", "photo", "of", "red", "blue", "green", "circle", "square", "cat", "dog", "moving",
    "left", "right", "what", "is", "seen", "in", "it", ".", ":", ",", "?", "User", "Assistant",
]  # fmt: skip
SIDE = 32
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

# transformers' own processor of each kind; AutoImageProcessor no longer reads the names that old checkpoints have
PROCESSORS = {
    "timesformer": VideoMAEImageProcessorPil,
    "videomae": VideoMAEImageProcessorPil,
    "vivit": VivitImageProcessor,
    "clip": CLIPImageProcessorPil,
    "siglip": SiglipImageProcessorPil,
    "git": CLIPImageProcessorPil,
    "git-image": CLIPImageProcessorPil,
}


@functools.cache
def checkpoint(kind: str) -> Path:
    """The checkpoint of `kind` in a folder that lives as long as the tests. Do not write into it: `build` another."""
    root = Path(tempfile.mkdtemp(prefix="clipmill-checkpoints-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return build(kind, root / kind)


def build(kind: str, folder: Path) -> Path:
    """Writes the checkpoint of `kind` (a key of BUILDERS) and returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(sum(map(ord, kind)))
    BUILDERS[kind](folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; a key set to None is removed."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def _save(net: Any, folder: Path, scale: float = 4.0) -> None:
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "time_emb" in name or "temporal_emb" in name:  # zeros in new models, and then order does not matter
                weight.add_(torch.randn_like(weight))
            elif weight.ndim >= 2:
                weight.mul_(scale)
            elif name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.2)
    net.save_pretrained(folder)


def _processor(folder: Path, processor: str, **said: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": processor, **said}))


def _words(folder: Path, ids: Mapping[str, str], template: str | None, extra: tuple[str, ...] = (), **more: Any) -> Any:
    """A word-level tokenizer. `ids` are special tokens by role, `template` says where they go around a text."""
    special = list(dict.fromkeys([*ids.values(), *extra]))
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=ids["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    if template is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, vocabulary[token]) for token in special if token in template]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(extra), padding_side="right", **ids, **more
    )
    fast.save_pretrained(folder)
    return fast


def _timesformer(folder: Path) -> None:
    config = transformers.TimesformerConfig(
        **NARROW, image_size=SIDE, patch_size=8, num_frames=4, id2label={i: f"action {i}" for i in range(7)}
    )
    _save(transformers.TimesformerForVideoClassification(config), folder)
    _processor(
        folder, "VideoMAEImageProcessor", size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.45, 0.4, 0.5], image_std=[0.225, 0.25, 0.2],
    )  # fmt: skip


def _videomae(folder: Path) -> None:
    config = transformers.VideoMAEConfig(
        **NARROW, image_size=SIDE, patch_size=8, num_frames=6, tubelet_size=2, id2label={i: f"action {i}" for i in range(7)}
    )
    _save(transformers.VideoMAEForVideoClassification(config), folder)
    # as old checkpoints have it: whole numbers for sizes, and the class under its former name
    said = {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": SIDE, "crop_size": SIDE, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def _vivit(folder: Path) -> None:
    config = transformers.VivitConfig(
        **NARROW, image_size=SIDE, num_frames=4, tubelet_size=[2, 8, 8], id2label={i: f"action {i}" for i in range(7)}
    )
    _save(transformers.VivitForVideoClassification(config), folder)
    _processor(folder, "VivitImageProcessor", size={"shortest_edge": 40}, crop_size={"height": SIDE, "width": SIDE})


def _clip(folder: Path) -> None:
    ids = {"unk_token": "<|unk|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    tokens = _words(folder, ids, "<|startoftext|> $A <|endoftext|>", model_max_length=16)
    ends = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
    config = transformers.CLIPConfig(
        text_config={
            **NARROW, "vocab_size": len(tokens), "max_position_embeddings": 16, **ends},
        vision_config={**NARROW, "image_size": SIDE, "patch_size": 8},
        projection_dim=24,
    )  # fmt: skip
    _save(transformers.CLIPModel(config), folder)
    # as openai/clip-vit-base-patch32 has it: most is left to the processor's defaults
    said = {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE, "crop_size": SIDE, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def _siglip(folder: Path) -> None:
    ids = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    tokens = _words(folder, ids, "$A </s>", model_max_length=16)
    config = transformers.SiglipConfig(
        text_config={**NARROW, "vocab_size": len(tokens), "max_position_embeddings": 16},
        vision_config={**NARROW, "image_size": SIDE, "patch_size": 8},
    )
    net = transformers.SiglipModel(config)
    with torch.no_grad():
        net.logit_scale.fill_(2.0)
        net.logit_bias.fill_(-3.0)
    net.logit_bias.requires_grad_(False)
    _save(net, folder)
    _processor(folder, "SiglipImageProcessor", size={"height": SIDE, "width": SIDE}, resample=3)


def _git(folder: Path, frames: int | None = 3) -> None:
    ids = {
        "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "bos_token": "[CLS]",
        "eos_token": "[SEP]",
    }  # fmt: skip
    tokens = _words(folder, ids, "[CLS] $A [SEP]", model_max_length=64)
    config = transformers.GitConfig(
        **NARROW, vocab_size=len(tokens), max_position_embeddings=64, num_image_with_embedding=frames,
        bos_token_id=tokens.cls_token_id, eos_token_id=tokens.sep_token_id, pad_token_id=tokens.pad_token_id,
        vision_config={**NARROW, "image_size": SIDE, "patch_size": 16},
    )  # fmt: skip
    net = transformers.GitForCausalLM(config)
    _save(net, folder, scale=8.0)
    _processor(folder, "CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _smolvlm(folder: Path) -> None:
    ids = {"unk_token": "<unk>", "bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|endoftext|>"}
    tokens = _words(folder, ids, None, extra=("<fake_token_around_image>", "<image>", "<global-img>"))
    text = {
        **NARROW, "model_type": "llama", "vocab_size": len(tokens), "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "pad_token_id": tokens.pad_token_id, "bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id,
    }  # fmt: skip
    config = transformers.SmolVLMConfig(
        text_config=text,
        vision_config={**NARROW, "image_size": SIDE, "patch_size": 8},
        scale_factor=2,
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        pad_token_id=tokens.pad_token_id,
    )
    _save(transformers.SmolVLMForConditionalGeneration(config), folder, scale=8.0)
    _processor(
        folder, "SmolVLMImageProcessor", size={"longest_edge": 48}, max_image_size={"longest_edge": SIDE}, resample=1,
        do_image_splitting=True, do_pad=True, video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": SIDE}},
    )  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 4, "processor_class": "SmolVLMProcessor"}))


QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen2_5_vl(folder: Path) -> None:
    ids = {"unk_token": "<unk>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    extra = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokens = _words(folder, ids, None, extra=extra)
    number = {
        name: tokens.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end", "image_pad", "video_pad")
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **NARROW, "vocab_size": len(tokens), "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
            "pad_token_id": tokens.pad_token_id, "eos_token_id": tokens.eos_token_id,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32, "patch_size": 14,
            "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        vision_start_token_id=number["vision_start"],
        vision_end_token_id=number["vision_end"],
        image_token_id=number["image_pad"],
        video_token_id=number["video_pad"],
    )  # fmt: skip
    _save(transformers.Qwen2_5_VLForConditionalGeneration(config), folder, scale=8.0)
    _processor(folder, "Qwen2VLImageProcessor", min_pixels=56 * 56, max_pixels=28 * 28 * 16)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_TEMPLATE}))
    # a checkpoint that recommends sampling: we do not
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 2.0, "repetition_penalty": 1.5, "eos_token_id": [tokens.eos_token_id]})
    )


BUILDERS: dict[str, Callable[[Path], None]] = {
    "timesformer": _timesformer,
    "videomae": _videomae,
    "vivit": _vivit,
    "clip": _clip,
    "siglip": _siglip,
    "git": _git,
    "git-image": lambda folder: _git(folder, frames=None),
    "smolvlm": _smolvlm,
    "qwen2_5_vl": _qwen2_5_vl,
}
