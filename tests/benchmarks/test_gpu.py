from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import transformers

from benchmarks.gpu.__main__ import NO_GPU, TITLE, main, rows_of, say_that_there_is_none
from benchmarks.gpu.calls import _Counting, preprocessing_calls
from benchmarks.gpu.captions import generated
from benchmarks.gpu.clips import clips
from benchmarks.gpu.device import Device, best_batch, rate
from benchmarks.gpu.vision import refuse_errors
from benchmarks.rounds import Figure, Results, Setup

CPU = Device("cpu")


def speeds(values: dict[int, float]) -> Callable[[int], float]:
    """Runs out of memory where a batch has no value."""

    def rate_of(batch: int) -> float:
        if batch not in values:
            raise torch.OutOfMemoryError("too large")
        return values[batch]

    return rate_of


@pytest.mark.parametrize(
    ("values", "most", "best"),
    [
        ({1: 1.0, 2: 2.0, 4: 3.0, 8: 3.1}, 8, 4),  # the last doubling does not pay
        ({1: 1.0, 2: 2.0, 4: 4.0}, 8, 4),  # the next does not fit
        ({1: 1.0, 2: 2.0, 4: 4.0}, 2, 2),  # the next is not asked for
        ({1: 1.0, 2: 0.5}, 8, 1),
    ],
)
def test_a_batch_grows_while_it_pays_and_fits(values: dict[int, float], most: int, best: int) -> None:
    assert best_batch(speeds(values), most) == best


def test_a_rate_counts_all_calls_but_the_first_two() -> None:
    calls: list[float] = []

    def step() -> float:
        calls.append(2.0)
        return calls[-1]

    assert rate(step, CPU, 0.0) > 0
    assert len(calls) == 1 + 1 + 32

    def slow() -> float:
        time.sleep(0.3)
        return step()

    calls.clear()
    assert 0 < rate(slow, CPU, 0.0) < 2.0 / 0.3  # a work of 2 in each call
    assert len(calls) == 1 + 1 + 1


def test_calls_of_generate_are_overheard_and_go_through() -> None:
    net = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
        )
    )
    original = transformers.GenerationMixin.generate
    with generated() as calls:
        said = net.generate(input_ids=torch.tensor([[1, 2]]), max_new_tokens=1, logits_processor=[])
    assert said.shape == (1, 3)
    ((heard, inputs),) = calls
    assert heard is net
    assert set(inputs) == {"input_ids", "max_new_tokens"}
    assert transformers.GenerationMixin.generate is original


def test_calls_of_the_device_are_counted_and_views_are_not() -> None:
    with _Counting() as counting:
        there = torch.tensor([1.0, 2.0]).to("meta")
        (there.view(2, 1) @ there.view(1, 2)).add_(1)
        torch.tensor([1.0]) + 1  # on the CPU
    assert (counting.kernels, counting.copies) == (3, 1)


def test_preprocessing_that_does_not_resize_calls_the_device_less() -> None:
    cropped, squeezed = preprocessing_calls("clip-vit-b-32"), preprocessing_calls("siglip-base")
    assert 0 < cropped.kernels < squeezed.kernels
    assert 0 < cropped.copies < squeezed.copies


def test_a_clip_without_an_answer_ends_the_measurement() -> None:
    table = clips(2, 2, tiny=True, due=())
    with pytest.raises(RuntimeError, match="without an answer"):
        refuse_errors(table, "labels")
    at, label = table.schema.get_field_index("labels"), {"fingerprint": "a", "label": "b", "score": 0.5, "rank": 1}
    good, bad = ([[label], [label | {"error_code": code}]] for code in (None, "memory"))
    refuse_errors(table.set_column(at, table.schema.field(at), pa.array(good, table.schema.field(at).type)), "labels")
    with pytest.raises(RuntimeError, match="memory"):
        refuse_errors(table.set_column(at, table.schema.field(at), pa.array(bad, table.schema.field(at).type)), "labels")


def test_one_architecture_through_all_of_its_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    main(["--device", "cpu", "--tiny", "--seconds", "0.01", "--only", "clip-vit-b-32"])
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    line, _calls = (line for line in said.splitlines() if line.startswith("| clip-vit-b-32 |"))
    *rates, batch, busy = line.strip("| ").split(" | ")[1:]
    assert len(rates) == 7
    assert all(float(one) > 0 for one in rates)
    assert (int(batch) in (1, 2, 4), busy) == (True, "not asked")
    assert "of the stage over the bare model's best" in said


def results(**figures: Figure) -> Results:
    setup = Setup("a machine", "3.11", {}, "c0de", {}, [*figures])
    return Results(setup, "2026-11-26", {name.replace("_", ", "): {0: figure} for name, figure in figures.items()}, None)


def test_a_stage_is_held_against_the_faster_of_the_bare_models() -> None:
    found = results(
        stage={"clips_per_s": 9.0}, bare={"clips_per_s": 9.5}, bare_compiled={"clips_per_s": 20.0},
        preprocessing={"clips_per_s": 4.0}, **{"preprocessing on the CPU": {"clips_per_s": 2.0}},
    )  # fmt: skip
    speed, preprocessing, *others = rows_of({"clip-vit-b-32": found})
    assert (speed.measured, speed.verdict) == ("0.45", "**missed**")
    assert (preprocessing.measured, preprocessing.verdict) == ("2.00", "met")
    assert [one.verdict for one in others] == ["not measured"] * 5
    captions, *_ = rows_of({"smolvlm2-500m": results(stage={"tokens_per_s": 95.0}, bare={"tokens_per_s": 100.0})})
    assert (captions.measured, captions.verdict) == ("0.95", "met")


def test_a_machine_without_a_gpu_says_so_but_leaves_what_another_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    say_that_there_is_none(page)
    assert NO_GPU in page.read_text()
    assert page.read_text().count("not measured |") == 6
    measured = f"<!-- gpu -->\n## {TITLE}\n\nOn a GPU.\n<!-- end of gpu -->\n"
    page.write_text(measured)
    say_that_there_is_none(page)
    assert page.read_text() == measured
