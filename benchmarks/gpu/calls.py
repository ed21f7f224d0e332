"""How often preprocessing calls the device for a clip: known without a GPU, on the device `meta`, whose tensors are empty.

A GPU is kept waiting by calls that are many and small, and more so by copies of small tensors to it, each of which waits for
what is queued.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.checkpoints import KINDS, write_processor
from stages.models import qwen_vl_captioner, smolvlm_captioner
from stages.models.preprocess import parse
from stages.models.weights import Resolved

_CLIPS = 16  # the default batch
_ARITHMETIC = torch.bfloat16
# What only looks at memory in another way, and calls nothing.
_VIEWS = frozenset({
    "view", "_unsafe_view", "permute", "transpose", "slice", "select", "expand", "unsqueeze", "t", "split", "split_with_sizes",
    "detach", "alias", "as_strided", "lift_fresh", "_reshape_alias", "unbind", "squeeze",
})  # fmt: skip


@dataclass(frozen=True)
class Calls:
    """Of one clip: kernels, and copies of tensors that were made on the CPU."""

    kernels: float
    copies: float


def preprocessing_calls(name: str) -> Calls:
    """Of KINDS[name] with 8 frames of 398x224 pixels a clip, in a batch of 16 where the preprocessing takes batches."""
    clips = 1 if KINDS[name].stage == "caption" else _CLIPS
    frames = [np.zeros((KINDS[name].frames, 224, 398, 3), np.uint8)] * clips
    with tempfile.TemporaryDirectory() as folder:
        write_processor(name, Path(folder), tiny=False)
        preprocess = _preprocess(name, Path(folder))
    with _Counting() as counting:
        preprocess(frames)
    return Calls(counting.kernels / clips, counting.copies / clips)


def _preprocess(name: str, folder: Path) -> Callable[[list[np.ndarray]], Any]:
    kind = name.split("-")[0]
    chats = {"smolvlm2": ("smolvlm", smolvlm_captioner), "qwen2.5": ("qwen2_5_vl", qwen_vl_captioner)}
    if kind in chats:
        model_type, module = chats[kind]
        pixels = module._Pixels(Resolved(name, "", folder, {"model_type": model_type}))
        return lambda clips: [pixels(frames, "meta", _ARITHMETIC) for frames in clips]
    steps = parse(Resolved(name, "", folder, {"model_type": kind}), video=kind == "timesformer")
    return lambda clips: steps(clips, "meta", _ARITHMETIC)


class _Counting(TorchDispatchMode):
    """Counts what reaches the device."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[str] = Counter()
        self.copies = 0

    @property
    def kernels(self) -> int:
        return sum(count for name, count in self._calls.items() if name not in _VIEWS)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "meta":
            self._calls[str(function).split(".")[1]] += 1
            came = any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in args)
            self.copies += came
        return out
