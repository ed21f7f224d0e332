"""Loading models and tokenizers from a local folder: weights only, nothing executed, nothing initialised at random."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from schemas.errors import BadRequest
from stages.models.weights import Resolved

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def dtype_of(name: str) -> torch.dtype:
    """torch's type of a name in DTYPES."""
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not one of {DTYPES}")
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def load(auto_class: str, model: Resolved, device: str, dtype: str) -> Any:
    """The model in `model.folder`, ready for inference, through the class of transformers called `auto_class`.

    Attention is transformers' default (sdpa where the architecture has it). Safetensors are taken before pickles, and
    pickles are read with weights_only. Raises BadRequest when weights are missing: transformers would fill them in at random.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        net, report = getattr(transformers, auto_class).from_pretrained(
            model.folder,
            dtype=dtype_of(dtype),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # of any type: files that are no weights, pickles that want to run something
        raise BadRequest(f"model {model.model}: transformers cannot load it: {type(error).__name__}: {error}") from error
    wrong = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if wrong:
        lacks = f"its weights lack {len(wrong)} tensors that {auto_class} needs, such as {wrong[0]}"
        raise BadRequest(f"model {model.model}: {lacks}")
    return net.eval().requires_grad_(False).to(device)


def load_tokenizer(model: Resolved) -> Any:
    """The checkpoint's tokenizer. BadRequest where it has none, or one that needs a package that is not installed."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise BadRequest(f"model {model.model}: its tokenizer cannot be loaded: {error}") from error


def check_tokenizer(model: Resolved) -> None:
    """BadRequest where the tokenizer needs sentencepiece and that is not installed."""
    kind = (model.read("tokenizer_config.json") or {}).get("tokenizer_class")
    if kind == "SiglipTokenizer" and importlib.util.find_spec("sentencepiece") is None:
        raise BadRequest(f"model {model.model}: its tokenizer needs sentencepiece: pip install sentencepiece")
