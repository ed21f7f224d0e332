"""What the model stages and the adapters of models agree on: a clip's frames in, an answer per clip id out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from schemas.errors import BadClip, ErrorCode

Frames = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClipFrames:
    """What a model sees of one clip. `id` goes through inference and comes back with the answer."""

    id: str
    frames: Frames  # RGB, shape (count, height, width, 3)
    times_s: npt.NDArray[np.float64]  # shape (count,), seconds from the clip's start
    duration_s: float


@dataclass(frozen=True)
class Ranked:
    """A label and its probability among all labels of the model."""

    label: str
    score: float


@dataclass(frozen=True)
class Said:
    """A caption: the text, its length in tokens of the model, and the prompt where the model takes one."""

    text: str
    tokens: int
    prompt: str | None


T = TypeVar("T")
# An answer per clip, in any order; BadClip where the model has none for this clip alone.
Answers = list[tuple[str, T | BadClip]]
Infer = Callable[[Sequence[ClipFrames]], Answers[T]]


class Embedder(Protocol):
    """An `Infer` of vectors that says how long they are."""

    @property
    def dim(self) -> int:
        """Length of every vector."""

    def __call__(self, clips: Sequence[ClipFrames], /) -> Answers[Vector]:
        """One unit vector per clip, shape (dim,)."""


class BrokenDevice(Exception):
    """A device whose answers end here: whatever its process asks of it from now on fails too, so the process has to end."""


def not_finite(what: str) -> BadClip:
    """The answer where a model gave NaN or infinity."""
    return BadClip(ErrorCode.NOT_FINITE, f"{what} holds NaN or infinity")


# What a device without memory says where it does not say so by the exception's type.
_NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
_BROKEN_DEVICE = "CUDA error"  # what torch before 2.8 raises as a RuntimeError


@contextmanager
def model_errors() -> Iterator[None]:
    """Wraps the calls into a model: what is raised there is about these clips and becomes BadClip.

    Whatever its type: torch and transformers raise KeyError or TypeError at odd clips as readily as ValueError. A device that
    is broken (an illegal access, a failed assertion on the GPU) is about every clip to come: BrokenDevice.
    """
    import torch

    accelerator_error = getattr(torch, "AcceleratorError", ())
    try:
        yield
    except BadClip:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in _NO_MEMORY):
            raise BadClip(ErrorCode.OUT_OF_MEMORY, text) from error
        if isinstance(error, accelerator_error) or _BROKEN_DEVICE in text:
            raise BrokenDevice(text) from error
        raise BadClip(ErrorCode.MODEL_FAILED, text) from error
