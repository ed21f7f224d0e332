"""Models that misbehave: an adapter that goes wrong at chosen clips in a chosen way, and answers rightly about the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from schemas.errors import BadClip, ErrorCode
from stages.models.adapter import ClipFrames, Ranked, Said

FAILED, MEMORY, NAN = ErrorCode.MODEL_FAILED.value, ErrorCode.OUT_OF_MEMORY.value, ErrorCode.NOT_FINITE.value
DIM = 6
AMONG = "among others: "
SPOILS = "spoils all"  # NaN for every clip of the batch
Told = list[tuple[Any, Any]]

# What a model may raise at one clip, and the code that the clip gets.
RAISED: Mapping[str, tuple[Callable[[], BaseException], str]] = {
    "runtime": (lambda: RuntimeError("shapes do\nnot match"), FAILED),
    "value": (lambda: ValueError("too long"), FAILED),
    "key": (lambda: KeyError("pixel_values"), FAILED),
    "type": (lambda: TypeError("'NoneType' object is not iterable"), FAILED),
    "assertion": (AssertionError, FAILED),
    "index": (lambda: IndexError("index out of range in self"), FAILED),
    "stop": (StopIteration, FAILED),
    "os": (lambda: OSError(5, "Input/output error"), FAILED),
    "unicode": (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), FAILED),
    "recursion": (RecursionError, FAILED),
    "out of memory": (lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MEMORY),
    "host memory": (MemoryError, MEMORY),
    "cublas": (lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), MEMORY),
    "bad clip": (lambda: BadClip(ErrorCode.NOT_FINITE, "NaN"), NAN),
}
# What a model may answer about one clip instead of an answer, by stage.
WRONG: Mapping[str, Mapping[str, tuple[Callable[[Any], Any], str]]] = {
    "embed": {
        "NaN": (lambda v: np.where(np.arange(len(v)) == 1, np.nan, v), NAN),
        "infinity": (lambda v: np.where(np.arange(len(v)) == 1, np.inf, v), NAN),
        "zero vector": (lambda v: v * 0, FAILED),
        "not of unit length": (lambda v: v * 2, FAILED),
        "short": (lambda v: v[:-1], FAILED),
        "long": (lambda v: np.append(v, v[0]), FAILED),
        "two vectors": (lambda v: np.stack([v, v]), FAILED),
        "no vector": (lambda v: v[:0], FAILED),
        "words": (lambda v: np.array([str(x) for x in v]), FAILED),
        "whole numbers": (lambda v: np.eye(len(v), dtype=np.int64)[0], FAILED),
        "complex": (lambda v: v.astype(np.complex64), FAILED),
        "None": (lambda _: None, FAILED),
        "half a tensor": (lambda v: torch.tensor(v).to(torch.bfloat16), FAILED),
    },
    "classify": {
        "no labels": (lambda _: [], FAILED),
        "NaN": (lambda b: [replace(b[0], score=float("nan")), *b[1:]], NAN),
        "infinity": (lambda b: [replace(b[0], score=float("inf")), *b[1:]], NAN),
        "more than all": (lambda b: [replace(one, score=0.9) for one in b], FAILED),
        "negative": (lambda b: [*b[:-1], replace(b[-1], score=-0.1)], FAILED),
        "lowest first": (lambda b: b[::-1], FAILED),
        "a label twice": (lambda b: [b[0], *(replace(one, label=b[0].label) for one in b[1:])], FAILED),
        "a label that is a number": (lambda b: [replace(b[0], label=7), *b[1:]], FAILED),
        "a label in bytes": (lambda b: [replace(b[0], label=b[0].label.encode()), *b[1:]], FAILED),
        "a label that is no text": (lambda b: [replace(b[0], label="\ud800"), *b[1:]], FAILED),
        "a score that is a word": (lambda b: [replace(b[0], score="high"), *b[1:]], FAILED),
        "a mapping": (lambda b: {one.label: one.score for one in b}, FAILED),
        "None": (lambda _: None, FAILED),
    },
    "caption": {
        "nothing said": (lambda s: replace(s, text=""), FAILED),
        "only spaces": (lambda s: replace(s, text=" \n "), FAILED),
        "bytes": (lambda s: replace(s, text=s.text.encode()), FAILED),
        "half a character": (lambda s: replace(s, text=s.text + "\ud83d"), FAILED),
        "tokens that are a word": (lambda s: replace(s, tokens="many"), FAILED),
        "too many tokens": (lambda s: replace(s, tokens=1 << 40), FAILED),
        "a plain text": (lambda s: s.text, FAILED),
        "None": (lambda _: None, FAILED),
    },
}
# What may go wrong with the list of answers, by what becomes of the answer to one clip.
LISTED: Mapping[str, Callable[[tuple[Any, Any]], Told]] = {
    "left out": lambda _: [],
    "doubled": lambda told: [told, told],
    "two answers": lambda told: [told, (told[0], "another")],
    "about another": lambda told: [("another", told[1])],
    "about None": lambda told: [(None, told[1])],
}


@dataclass
class Troubled:
    """Asks `right` and spoils what `plan` says: clip -> kind of trouble, by the id that the rows have (without the attempt).

    Kinds that begin with "among others: " go away when the clip is asked about alone. More than `most_clips` clips do not fit
    the device. Answers come in an order of their own.
    """

    right: Callable[[Sequence[ClipFrames]], Told]
    stage: str
    plan: Mapping[str, str]
    most_clips: int
    random: random.Random
    dim: int = DIM

    def __call__(self, clips: Sequence[ClipFrames]) -> Told:
        if len(clips) > self.most_clips:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        told: Told = []
        answers = dict(self.right(clips))
        troubles = {clip.id: self._trouble(clip, alone=len(clips) == 1) for clip in clips}
        for clip_id, answer in answers.items():
            kind = troubles[clip_id]
            if kind in RAISED:
                raise RAISED[kind][0]()
            if kind in LISTED:
                told += LISTED[kind]((clip_id, answer))
            else:
                is_wrong = kind is not None and kind != SPOILS
                told.append((clip_id, WRONG[self.stage][str(kind)][0](answer) if is_wrong else answer))
        if SPOILS in troubles.values():
            told = [(clip_id, BadClip(ErrorCode.NOT_FINITE, "NaN")) for clip_id, _ in told]
        self.random.shuffle(told)
        return told

    def _trouble(self, clip: ClipFrames, alone: bool) -> str | None:
        kind = self.plan.get(clip.id.partition("#")[0])
        if kind is None or not kind.startswith(AMONG):
            return kind
        return None if alone else kind.removeprefix(AMONG)


def code_of(stage: str, kind: str) -> str | None:
    """What a clip with this trouble must end with; None: its right answer."""
    if kind.startswith(AMONG):
        return None
    if kind in RAISED:
        return RAISED[kind][1]
    return NAN if kind == SPOILS else FAILED if kind in LISTED else WRONG[stage][kind][1]


def kinds(stage: str) -> list[str]:
    """Every kind of trouble of a stage."""
    found = [*RAISED, *WRONG[stage], *LISTED, SPOILS]
    return [*found, *(f"{AMONG}{kind}" for kind in found)]


def seen(clip: ClipFrames) -> float:
    """A number that tells clips of other frames apart, in [0, 1)."""
    return float(clip.frames.astype(np.float64).mean() / 256 + clip.duration_s / 1e6) % 1.0


def honest(stage: str) -> Callable[[Sequence[ClipFrames]], Told]:
    """A model whose answers follow from the frames alone, so that an answer on the wrong clip shows."""

    def embed(clip: ClipFrames) -> Any:
        angles = seen(clip) * np.arange(1, DIM + 1)
        vector = np.cos(angles * 7)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def classify(clip: ClipFrames) -> Any:
        score = 0.5 + seen(clip) / 4
        return [Ranked(f"first {seen(clip):.6f}", score), Ranked("second", (1 - score) / 2), Ranked("third", (1 - score) / 2)]

    def caption(clip: ClipFrames) -> Any:
        return Said(f"a clip of mean {seen(clip):.6f}", 5, "what is it?")

    answer = {"embed": embed, "classify": classify, "caption": caption}[stage]
    return lambda clips: [(clip.id, answer(clip)) for clip in clips]
