from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.rounds import Contestant, Figure, Section, Stat


def counting(calls: list[str], name: str, values: list[float]) -> Contestant:
    """Says in `calls` that it was called, and reports the next of `values` each time."""
    left = iter(values)

    def contestant() -> Figure:
        calls.append(name)
        return {"wall_s": next(left)}

    return contestant


def section(folder: Path, **settings: object) -> Section:
    return Section("one", settings=settings, packages=("numpy",), folder=folder)


def breaking_at(turn: int, contestant: Contestant) -> Contestant:
    """Works until its call number `turn`, counted from 0, which raises."""
    turns = iter(range(turn))

    def called() -> Figure:
        if next(turns, None) is None:
            raise RuntimeError("the machine went away")
        return contestant()

    return called


def test_a_stat_is_the_median_with_the_extremes() -> None:
    assert Stat.of([5.0, 1.0, 2.0]) == Stat(2.0, 1.0, 5.0, 3)
    assert Stat.of([4.0, 1.0]).median == 2.5
    assert (Stat.of([5.0, 1.0, 2.0]).text(1), Stat.of([0.5]).text()) == ("2.0 (1.0 to 5.0)", "0.50")
    with pytest.raises(ValueError, match="nothing was measured"):
        Stat.of([])


def test_contestants_alternate_and_turn_round_every_other_round(tmp_path: Path) -> None:
    calls: list[str] = []
    contestants = {name: counting(calls, name, [1.0] * 3) for name in "abc"}
    results = section(tmp_path).run(contestants, rounds=3)
    assert "".join(calls) == "abc" + "cba" + "abc"
    assert results.rounds() == 3


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    """The machine was ten times as slow in the second round: no ratio shows it, a ratio of medians would."""
    contestants = {"a": counting([], "a", [2.0, 20.0, 4.0]), "b": counting([], "b", [1.0, 10.0, 1.0])}
    results = section(tmp_path).run(contestants, rounds=3)
    assert results.ratio("a", to="b", of="wall_s") == Stat(2.0, 2.0, 4.0, 3)
    assert results.of("b", "wall_s") == Stat(1.0, 1.0, 10.0, 3)


def test_an_interrupted_section_goes_on_where_it_was(tmp_path: Path) -> None:
    calls: list[str] = []
    first = {"a": counting(calls, "a", [1.0, 2.0]), "b": breaking_at(1, counting(calls, "b", [3.0]))}
    with pytest.raises(RuntimeError, match="went away"):
        section(tmp_path).run(first, rounds=2)
    assert calls == ["a", "b"]  # the second round begins with b, which breaks
    again = {"a": counting(calls, "a", [5.0]), "b": counting(calls, "b", [6.0])}
    results = section(tmp_path).run(again, rounds=2)
    assert calls == ["a", "b", "b", "a"]
    assert {name: [figure["wall_s"] for figure in rounds.values()] for name, rounds in results.figures.items()} == {
        "a": [1.0, 5.0],
        "b": [3.0, 6.0],
    }
    assert section(tmp_path).run({"a": counting(calls, "a", []), "b": counting(calls, "b", [])}, rounds=2) == results


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    calls: list[str] = []
    section(tmp_path).run({"a": counting(calls, "a", [1.0, 2.0])}, rounds=2)
    path = tmp_path / "one.jsonl"
    path.write_text(path.read_text()[:-10])
    assert section(tmp_path).run({"a": counting(calls, "a", [7.0])}, rounds=2).of("a", "wall_s") == Stat(4.0, 1.0, 7.0, 2)
    assert [len(json.loads(line)) for line in path.read_text().splitlines()] == [2, 5, 5]


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: section(folder, files=4).run({"a": counting([], "a", [9.0])}, rounds=1),
        lambda folder: section(folder, files=3).run({"a": counting([], "a", [9.0]), "b": counting([], "b", [9.0])}, rounds=1),
        lambda folder: Section("one", settings={"files": 3}, folder=folder).run({"a": counting([], "a", [9.0])}, rounds=1),
    ],
    ids=["settings", "contestants", "versions"],
)
def test_what_was_measured_with_something_else_is_put_aside(tmp_path: Path, other: Callable[[Path], object]) -> None:
    section(tmp_path, files=3).run({"a": counting([], "a", [1.0])}, rounds=1)
    before = (tmp_path / "one.jsonl").read_text()
    other(tmp_path)
    assert "9.0" in (tmp_path / "one.jsonl").read_text()
    (aside,) = (path for path in tmp_path.iterdir() if path.name != "one.jsonl")
    assert aside.read_text() == before


def test_a_section_stops_at_its_limit_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    results = section(tmp_path).run({"a": counting(calls, "a", [1.0])}, rounds=1, limit_s=0.0)
    assert (calls, results.rounds(), results.others) == ([], 0, None)
    assert "the same command goes on" in capsys.readouterr().err
