"""Classifiers and embedders: the stage, the model alone, the same with copies that overlap, preprocessing here and there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.gpu.clips import clips, entry
from benchmarks.gpu.device import Device, best_batch, busy, rate
from benchmarks.rounds import Contestant, Figure
from stages.batches import clip_frames
from stages.classify import Classify
from stages.embed import Embed
from stages.models import weights
from stages.models.loading import dtype_of, load
from stages.models.preprocess import Preprocess, centre_crop, normalise, parse
from stages.models.resample import resize

DEFAULT_BATCH = 16  # resources.batch_clips
_MOST_CLIPS = 256
_UNBOUNDED = 1 << 40
_FRAMES_AT_A_TIME = 256
_STAGES: Mapping[str, Any] = {"classify": Classify, "embed": Embed}


class Vision:
    """One checkpoint on one device, loaded when first needed."""

    def __init__(self, stage: str, folder: Path, frames: int, device: Device, *, tiny: bool, seconds: float) -> None:
        self._stage, self._frames, self._device, self._tiny, self._seconds = stage, frames, device, tiny, seconds
        self._entry = entry(stage, folder, frames)
        self._model = weights.opened(str(folder), self._entry.revision, folder)
        self._most = 4 if tiny else _MOST_CLIPS

    def contestants(self) -> dict[str, Contestant]:
        """By the names that the report knows."""
        return {
            "stage": self.stage, "stage, 16 clips": partial(self.stage, DEFAULT_BATCH), "bare": self.bare,
            "bare, compiled": self.compiled, "overlapped": self.overlapped,
            "preprocessing": self.preprocessing, "preprocessing on the CPU": self.processor,
        }  # fmt: skip

    def stage(self, batch: int | None = None) -> Figure:
        """The stage as a run calls it, on tables of `batch` clips; of the best number where none is given."""
        batch = batch or self._stage_batch
        step = self._stage_step(batch)
        step()
        with busy(self._device) as found:
            clips_per_s = rate(step, self._device, self._seconds)
        share = {} if found.share is None else {"busy": found.share}
        return {"clips_per_s": clips_per_s, "batch": batch, **share}

    def bare(self) -> Figure:
        """Forward passes over pixels that are on the device already."""
        return self._forwards(self._forward, self._bare_batch)

    def compiled(self) -> Figure:
        """The same, compiled."""
        return self._forwards(self._compiled_forward, self._bare_batch)

    def overlapped(self) -> Figure:
        """What a stage could do: frames copied from pinned memory by a stream of their own while the batch before is run."""
        frames = np.stack([clip.frames for clip in self._clips(self._bare_batch)])
        step = Overlapped(frames, self._preprocess, self._forward, self._device, self._dtype)
        return {"clips_per_s": rate(step, self._device, self._seconds), "batch": self._bare_batch}

    def preprocessing(self) -> Figure:
        """Frames in memory to pixels on the device, as the stage does it."""
        frames = [clip.frames for clip in self._clips(self._stage_batch)]

        def step() -> float:
            self._preprocess(frames, self._device.name, self._dtype)
            return len(frames)

        return {"clips_per_s": rate(step, self._device, self._seconds)}

    def processor(self) -> Figure:
        """The same by transformers' own image processor on the CPU, and a copy."""
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(self._model.folder)
        frames = [list(clip.frames) for clip in self._clips(self._stage_batch)]

        def step() -> float:
            for clip in frames:
                processor(clip, return_tensors="pt")["pixel_values"].to(self._device.name, self._dtype)
            return len(frames)

        return {"clips_per_s": rate(step, self._device, self._seconds)}

    # --- what is loaded and found once ---

    @cached_property
    def _loaded_stage(self) -> Any:
        return _STAGES[self._stage](self._entry, self._device.name, self._device.dtype, _UNBOUNDED, _UNBOUNDED)

    def _stage_step(self, batch: int) -> Callable[[], float]:
        """The stage over a table of `batch` clips, which it takes as one batch."""
        stage, table = self._loaded_stage, self._table(batch)
        column = {"classify": "labels", "embed": "embeddings"}[self._stage]

        def step() -> float:
            refuse_errors(stage(table), column)
            return batch

        return step

    @cached_property
    def _stage_batch(self) -> int:
        return best_batch(lambda batch: rate(self._stage_step(batch), self._device, self._seconds / 4), self._most)

    @cached_property
    def _bare_batch(self) -> int:
        def rate_of(batch: int) -> float:
            return self._forwards(self._forward, batch, self._seconds / 4)["clips_per_s"]

        return best_batch(rate_of, self._most)

    @cached_property
    def _preprocess(self) -> Preprocess:
        return parse(self._model, video=self._stage == "classify")

    @cached_property
    def _dtype(self) -> torch.dtype:
        return dtype_of(self._device.dtype)

    @cached_property
    def _net(self) -> Any:
        auto = "AutoModelForVideoClassification" if self._stage == "classify" else "AutoModel"
        return load(auto, self._model, self._device.name, self._device.dtype)

    @cached_property
    def _compiled_forward(self) -> Callable[[torch.Tensor], torch.Tensor]:
        compiled = torch.compile(self._forward, backend="eager" if self._tiny else "inductor")
        assert callable(compiled)
        return compiled

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (clips x frames, 3, height, width) to what the model says of each clip or frame."""
        if self._stage == "classify":
            out = self._net(pixel_values=pixels.unflatten(0, (-1, self._frames))).logits
        else:
            out = self._net.get_image_features(pixel_values=pixels).pooler_output
        assert isinstance(out, torch.Tensor)
        return out

    def _forwards(self, forward: Callable[[torch.Tensor], torch.Tensor], batch: int, seconds: float | None = None) -> Figure:
        height, width = self._preprocess.output_size(224, 398)
        pixels = torch.randn(batch * self._frames, 3, height, width, device=self._device.name, dtype=self._dtype)

        def step() -> float:
            forward(pixels)
            return batch

        with torch.inference_mode():
            return {"clips_per_s": rate(step, self._device, seconds or self._seconds), "batch": batch}

    def _table(self, batch: int) -> pa.Table:
        return clips(batch, self._frames, self._tiny, (self._entry.fingerprint,))

    def _clips(self, batch: int) -> list[Any]:
        table = self._table(batch)
        return [clip_frames(table, row, self._frames) for row in range(batch)]


class Overlapped:
    """Called again and again: takes a batch of frames to the device while the batch before is preprocessed and run there."""

    def __init__(
        self,
        frames: np.ndarray,
        preprocess: Preprocess,
        forward: Callable[[torch.Tensor], torch.Tensor],
        device: Device,
        dtype: torch.dtype,
    ) -> None:
        self._frames, self._preprocess, self._forward, self._device, self._dtype = frames, preprocess, forward, device, dtype
        shape = (frames.shape[0] * frames.shape[1], *frames.shape[2:])
        self._flat = frames.reshape(shape)
        self._pinned = [torch.empty(shape, dtype=torch.uint8, pin_memory=device.is_gpu) for _ in range(2)]
        self._copies = torch.cuda.Stream(device.name) if device.is_gpu else None
        self._turn = 0
        self._next = self._copied()
        self._said: tuple[torch.Tensor, Any] | None = None

    def __call__(self) -> float:
        """One batch; how many clips it has."""
        with torch.inference_mode():
            images, ready = self._next
            self._next = self._copied()
            if ready is not None:
                torch.cuda.current_stream(self._device.name).wait_event(ready)
            said = self._brought(self._forward(self._pixels(images)).float())
            if self._said is not None and self._said[1] is not None:
                self._said[1].synchronize()  # of the batch before: nobody waits for this one yet
            self._said = said
        return len(self._frames)

    def _brought(self, said: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What the model said, or will have said, in memory, and the event of its arrival."""
        if self._copies is None:
            return said, None
        host = torch.empty(said.shape, pin_memory=True)
        host.copy_(said, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived

    def _copied(self) -> tuple[torch.Tensor, Any]:
        """Frames on the device, or on their way there, and the event of their arrival."""
        host = self._pinned[self._turn]
        self._turn = 1 - self._turn
        if self._copies is None:
            host.copy_(torch.from_numpy(self._flat))
            return host.clone(), None
        self._copies.synchronize()  # the copy before the last one has left this buffer
        host.copy_(torch.from_numpy(self._flat))
        with torch.cuda.stream(self._copies):
            images = host.to(self._device.name, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(self._copies)
        images.record_stream(torch.cuda.current_stream(self._device.name))
        return images, ready

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._some(part) for part in images.split(_FRAMES_AT_A_TIME)])

    def _some(self, images: torch.Tensor) -> torch.Tensor:
        steps = self._preprocess
        small = images.permute(0, 3, 1, 2)
        small = resize(small, *steps.resized(*small.shape[-2:]), steps.resample, steps.crop)
        if steps.crop is not None:
            small = centre_crop(small, *steps.crop)
        return normalise(small.to(torch.float32), steps.scale, steps.offset, steps.mean, steps.std).to(self._dtype)


def refuse_errors(table: pa.Table, column: str) -> None:
    """RuntimeError where a clip has an error instead of an answer: its time would say nothing."""
    answers = table[column].combine_chunks()
    codes = pc.struct_field(pc.list_flatten(answers), "error_code")  # by columns: rows of Python would take longer than a model
    if pc.any(pc.equal(pc.fill_null(pc.list_value_length(answers), 0), 0)).as_py() or codes.null_count < len(codes):
        raise RuntimeError(f"clips without an answer, or with an error: {pc.unique(codes).to_pylist()}")
