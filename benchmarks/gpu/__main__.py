"""How much of a GPU's speed the model stages keep.

    python -m benchmarks.gpu                        # on a GPU; without one it says so on the page
    python -m benchmarks.gpu --device cpu --tiny    # tries the program, writes nothing

Random weights of the real architectures and sizes; frames of noise. Stages are called as a run calls them, the models alone
on inputs that are on the device already. Batches are found by doubling. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.calls import preprocessing_calls
from benchmarks.gpu.captions import Captioner
from benchmarks.gpu.checkpoints import KINDS, checkpoint
from benchmarks.gpu.device import Device
from benchmarks.gpu.vision import Vision
from benchmarks.report import PAGE, Row, at_least, keep, not_measured, publish, table
from benchmarks.rounds import LIMIT_S, RECORDS, Contestant, Results, Section

TITLE = "Models on a GPU"
FUSED = "timesformer-base and clip-vit-b-32"
NO_GPU = "No GPU was at hand: none of this is measured."
_TARGET = 0.9


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models of the same architectures; nothing is kept or published"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=[*KINDS, FUSED], default=[*KINDS, FUSED], metavar="MODEL")
    args = parser.parse_args(arguments)
    device = Device(args.device)
    if args.tiny:
        torch.set_num_threads(1)  # too small to share out
    if device.is_gpu and not torch.cuda.is_available():
        say_that_there_is_none()
        return
    with tempfile.TemporaryDirectory(prefix="clipmill-gpu-") as temporary:
        scratch = Path(temporary) if args.tiny else RECORDS
        rounds, seconds = (args.rounds or 1, args.seconds or 0.05) if args.tiny else (args.rounds or 5, args.seconds or 4.0)
        results = measure(device, args.only, scratch, tiny=args.tiny, rounds=rounds, seconds=seconds)
        body, rows = body_of(results), rows_of(results)
    if args.tiny:
        print(body, *(f"{row.what}: {row.measured}" for row in rows), sep="\n")
    elif results:
        publish("gpu", TITLE, body, rows, next(iter(results.values())))
        for found in results.values():
            keep(found)


def measure(
    device: Device, names: Sequence[str], scratch: Path, *, tiny: bool, rounds: int, seconds: float
) -> dict[str, Results]:
    """Results by model, those that have been through a round; each model has a record of its own in `scratch`."""
    ends_s = time.monotonic() + LIMIT_S
    found: dict[str, Results] = {}
    for name in names:
        section = Section(
            f"gpu-{name.replace(' ', '-')}",
            settings={"device": device.words(), "dtype": device.dtype, "tiny": tiny, "seconds": seconds},
            packages=("torch", "transformers"),
            folder=scratch,
        )
        try:
            _run(section, name, device, scratch, tiny, rounds, seconds, ends_s - time.monotonic())
        except RuntimeError as error:  # no memory for it, nothing to compile with: the other models are measured all the same
            print(f"{name}: {error}", file=sys.stderr)
        if section.path.exists() and section.results().rounds():
            found[name] = section.results()
        gc.collect()
        device.forget()
    return found


def _run(
    section: Section, name: str, device: Device, scratch: Path, tiny: bool, rounds: int, seconds: float, limit_s: float
) -> None:
    root = scratch / "checkpoints"
    if name != FUSED:
        kind, folder = KINDS[name], checkpoint(name, root, device.name, tiny)
        one: Captioner | Vision
        if kind.stage == "caption":
            one = Captioner(folder, kind.frames, device, tiny=tiny, seconds=seconds)
        else:
            one = Vision(kind.stage, folder, kind.frames, device, tiny=tiny, seconds=seconds)
        section.run(one.contestants(), rounds, limit_s)
        return
    from benchmarks.gpu.fused import Fused
    from cluster.attach import attached

    first, second = (checkpoint(model, root, device.name, tiny) for model in FUSED.split(" and "))
    with attached(object_store_bytes=(100 << 20) if tiny else (2 << 30)):
        contestants: Mapping[str, Contestant] = Fused(
            first, second, KINDS["clip-vit-b-32"].frames, device, tiny=tiny, seconds=seconds
        ).contestants()
        section.run(contestants, rounds, limit_s)


def body_of(results: Mapping[str, Results]) -> str:
    """The tables of the section."""
    vision = {name: found for name, found in results.items() if name != FUSED and KINDS[name].stage != "caption"}
    captions = {name: found for name, found in results.items() if name != FUSED and KINDS[name].stage == "caption"}
    parts = [_WORDS]
    if vision:
        head = ["clips per second", *_VISION, "batch of the stage", "GPU busy"]
        parts.append(table(head, [[name, *_figures(found, _VISION, "clips_per_s")] for name, found in vision.items()]))
    if captions:
        head = ["tokens per second", *_CAPTION, "batch of the stage", "GPU busy"]
        parts.append(table(head, [[name, *_figures(found, _CAPTION, "tokens_per_s")] for name, found in captions.items()]))
    if FUSED in results:
        fused, apart = (results[FUSED].of(name, "clips_per_s").text(1) for name in ("fused", "apart"))
        parts.append(f"{FUSED}, clips per second: {fused} in one actor, {apart} in an actor each.")
    if vision or captions:
        parts.append(calls_of([*vision, *captions]))
    return "\n\n".join(parts)


def calls_of(names: Sequence[str]) -> str:
    """How often preprocessing calls the device, which needs none to be known."""
    calls = {name: preprocessing_calls(name) for name in names}
    rows = [[name, f"{found.kernels:.0f}", f"{found.copies:.0f}"] for name, found in calls.items()]
    return f"{_CALLS}\n\n{table(['calls of the device per clip', 'kernels', 'copies to it'], rows)}"


def _figures(found: Results, contestants: Sequence[str], figure: str) -> list[str]:
    shares = [one["busy"] for one in found.figures["stage"].values() if "busy" in one]
    busy = f"{sum(shares) / len(shares):.0%}" if shares else "not asked"
    values = [found.of(contestant, figure).text(1) for contestant in contestants]
    return [*values, f"{found.of('stage', 'batch').median:.0f}", busy]


def rows_of(results: Mapping[str, Results]) -> list[Row]:
    """The rows of the table of targets."""
    rows = []
    for name, found in results.items():
        if name == FUSED:
            ratio = found.ratio("fused", to="apart", of="clips_per_s")
            rows.append(at_least(f"{name}: one actor over an actor each", 1.0, ratio))
            continue
        figure = "tokens_per_s" if KINDS[name].stage == "caption" else "clips_per_s"
        bare = max(
            (one for one in ("bare", "bare, compiled") if one in found.figures), key=lambda o: found.of(o, figure).median
        )
        rows.append(at_least(_what(name), _TARGET, found.ratio("stage", to=bare, of=figure)))
        if figure == "clips_per_s":
            ratio = found.ratio("preprocessing", to="preprocessing on the CPU", of=figure)
            rows.append(at_least(f"{name}: preprocessing on the device over transformers' on the CPU", 1.0, ratio))
    missing = [name for name in KINDS if name not in results]
    return [*rows, *(not_measured(_what(name), f"at least {_TARGET:g}", "not reached") for name in missing)]


def say_that_there_is_none(page: Path = PAGE) -> None:
    """On the page, unless it holds what was measured on a GPU elsewhere."""
    print(f"{NO_GPU} Try the program by --device cpu --tiny.", file=sys.stderr)
    if page.exists() and f"## {TITLE}" in page.read_text() and NO_GPU not in page.read_text():
        return
    rows = [not_measured(_what(name), f"at least {_TARGET:g}", "no GPU at hand") for name in KINDS]
    publish("gpu", TITLE, f"{NO_GPU}\n\n{_WORDS}\n\n{calls_of(list(KINDS))}", rows, None, page)


def _what(name: str) -> str:
    unit = "tokens" if KINDS[name].stage == "caption" else "clips"
    return f"{name}: {unit} per second of the stage over the bare model's best"


_VISION = ("stage", "stage, 16 clips", "bare", "bare, compiled", "overlapped", "preprocessing", "preprocessing on the CPU")
_CAPTION = ("stage", "bare")
_CALLS = """
Known without a GPU: what preprocessing a clip of 8 frames of 398x224 pixels asks of the device, in a batch of 16. Each call
takes the CPU some microseconds, and a copy waits for what is queued.
""".strip()
_WORDS = """
`python -m benchmarks.gpu` measures, with random weights of the real architectures and sizes, in bfloat16 with SDPA attention:
the stage as a run calls it (frames in an Arrow table to structs in one) at its best batch and at the default of 16 clips; the
model alone on inputs that are on the device already, compiled too; the model with preprocessing on the device and copies from
pinned memory that overlap, which is what a stage could reach; preprocessing on the device against transformers' processor on
the CPU; captions against the same model's bare `generate`; and two stages in one actor against an actor each.
""".strip()

if __name__ == "__main__":
    main()
