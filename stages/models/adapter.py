"""What the model stages and the adapters of models agree on: a clip's frames in, an answer per clip id out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

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


def not_finite(what: str) -> BadClip:
    """The answer where a model gave NaN or infinity."""
    return BadClip(ErrorCode.NOT_FINITE, f"{what} holds NaN or infinity")


@contextmanager
def model_errors() -> Iterator[None]:
    """Wraps the calls into a model: what torch and transformers raise there is about these clips and becomes BadClip.

    A device that is broken (an illegal access, a failed assertion on the GPU) fails whatever comes next too, so that
    stays loud, and so do TypeError, KeyError and the like, which mean that we called the model wrongly.
    """
    import torch

    broken_device = getattr(torch, "AcceleratorError", ())
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BadClip(ErrorCode.OUT_OF_MEMORY, f"{type(error).__name__}: {error}") from error
    except broken_device:
        raise
    except MemoryError as error:
        raise BadClip(ErrorCode.OUT_OF_MEMORY, f"MemoryError: {error}") from error
    except (RuntimeError, ValueError, ArithmeticError, IndexError) as error:
        text = f"{type(error).__name__}: {error}"
        code = ErrorCode.OUT_OF_MEMORY if "can't allocate memory" in text else ErrorCode.MODEL_FAILED
        raise BadClip(code, text) from error
