"""A device to measure on: timing on it, how busy it is, batches that fit it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

_LOOK_S, _MOST_CALLS = 0.25, 32  # between two looks at the clock: work is queued ahead, as a caller would
_WORTH = 1.05  # a larger batch must be faster by this much to be taken
_EVERY_S = 0.05


@dataclass(frozen=True)
class Device:
    """`name` is torch's: cuda or cpu."""

    name: str

    @property
    def is_gpu(self) -> bool:
        return self.name.startswith("cuda")

    @property
    def dtype(self) -> str:
        """What a run takes there by default."""
        return "bfloat16" if self.is_gpu else "float32"

    def words(self) -> str:
        """What the page calls it."""
        if not self.is_gpu:
            return "the processor"
        gpu = torch.cuda.get_device_properties(self.name)
        return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB, CUDA {torch.version.cuda}"

    def wait(self) -> None:
        """Until all that was queued is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.name)

    def forget(self) -> None:
        """Gives back memory that is no longer used."""
        if self.is_gpu:
            torch.cuda.empty_cache()


def rate(step: Callable[[], float], device: Device, seconds: float) -> float:
    """Work per second of calling `step`, which says how much it did, for at least so many seconds; warm, and queued ahead."""
    step()
    once_s, _ = _timed(step, 1, device)
    calls = max(1, min(_MOST_CALLS, int(_LOOK_S / max(once_s, 1e-6))))
    took_s = done = 0.0
    while took_s < seconds or not done:
        more_s, more = _timed(step, calls, device)
        took_s, done = took_s + more_s, done + more
    return done / took_s


def _timed(step: Callable[[], float], calls: int, device: Device) -> tuple[float, float]:
    """(seconds, work) of so many calls, until all of it is done."""
    device.wait()
    began_s = time.perf_counter()
    work = sum(step() for _ in range(calls))
    device.wait()
    return time.perf_counter() - began_s, work


def best_batch(rate_of: Callable[[int], float], most: int) -> int:
    """The batch of 1, 2, 4... `most` after which a doubling no longer pays or no longer fits."""
    best, fastest = 1, rate_of(1)
    while 2 * best <= most:
        try:
            found = rate_of(2 * best)
        except torch.OutOfMemoryError:
            break
        if found < _WORTH * fastest:
            break
        best, fastest = 2 * best, found
    return best


@dataclass
class Busy:
    """Share of the time in which a kernel ran, sampled by NVML; None where that cannot be asked."""

    samples: list[float] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        return sum(self.samples) / len(self.samples) if self.samples else None


@contextlib.contextmanager
def busy(device: Device) -> Iterator[Busy]:
    """Samples while it is entered. Needs a GPU and nvidia-ml-py (the extra `bench`)."""
    found = Busy()
    handle = _nvml_handle(device)
    if handle is None:
        yield found
        return
    import pynvml

    over = threading.Event()

    def sample() -> None:
        while not over.wait(_EVERY_S):
            found.samples.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _nvml_handle(device: Device) -> Any:
    if not device.is_gpu:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device.name).uuid}")
    except pynvml.NVMLError as error:
        print(f"how busy the GPU is cannot be asked: {error}", file=sys.stderr)
        return None
