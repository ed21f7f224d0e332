from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import KEPT, Row, at_least, at_most, conditions, not_measured, publish, table
from benchmarks.rounds import Results, Section, Setup, Stat

SETUP = Setup("a machine, 2 cores, 8 GB", "3.11.7", {"av": "18.1.0"}, "c0de", {"files": 12}, ["a"])
RESULTS = Results(SETUP, "2026-11-26", {"a": {0: {"wall_s": 1.0}}}, Stat(0.01, 0.0, 0.02, 1))
PAGE = "# Benchmarks\n\nBy hand.\n\n<!-- targets -->\n<!-- end of targets -->\n\n## Also by hand\n\nWords.\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "benchmarks.md"
    path.write_text(PAGE)
    return path


def targets(page: Path) -> list[str]:
    return [line for line in page.read_text().splitlines() if line.startswith("| [")]


def test_a_row_is_met_at_its_target_and_missed_past_it() -> None:
    assert at_least("speed", 0.9, Stat(0.9, 0.8, 1.0, 5)) == Row("speed", "at least 0.9", "0.90 (0.80 to 1.00)", "met")
    assert at_least("speed", 0.9, Stat(0.89, 0.8, 1.0, 5)).verdict == "**missed**"
    assert at_most("time", 2, Stat(2.0, 1.0, 3.0, 5), digits=1) == Row("time", "at most 2", "2.0 (1.0 to 3.0)", "met")
    assert at_most("time", 2, Stat(2.1, 1.0, 3.0, 5)).verdict == "**missed**"


def test_a_section_stands_between_its_marks_and_replaces_itself_alone(page: Path) -> None:
    publish("decode", "Decoding, bare", "first words", [at_least("ratio", 0.9, Stat(0.95, 0.9, 1.0, 5))], RESULTS, page)
    publish("peers", "Peers", "their words", [not_measured("gain", "at least 1", "no GPU at hand")], RESULTS, page)
    once = page.read_text()
    assert "## Also by hand\n\nWords.\n" in once
    assert once.startswith("# Benchmarks\n\nBy hand.\n")
    assert "<!-- decode -->\n## Decoding, bare\n\nMeasured on 2026-11-26" in once
    assert targets(page) == [
        "| [decode](#decoding-bare) | ratio | at least 0.9 | 0.95 (0.90 to 1.00) | met |",
        "| [peers](#peers) | gain | at least 1 | no GPU at hand | not measured |",
    ]
    publish("decode", "Decoding, bare", "other words", [at_least("ratio", 0.9, Stat(0.5, 0.4, 0.6, 5))], RESULTS, page)
    again = page.read_text()
    assert again == once.replace("first words", "other words").replace(
        "0.95 (0.90 to 1.00) | met", "0.50 (0.40 to 0.60) | **missed**"
    )


def test_a_page_that_is_not_there_is_begun(tmp_path: Path) -> None:
    publish("peers", "Peers", "words", [], RESULTS, tmp_path / "new.md")
    assert (tmp_path / "new.md").read_text().startswith("# Benchmarks\n\n<!-- peers -->\n## Peers\n")


def test_the_record_of_a_section_is_kept_beside_the_page(page: Path, tmp_path: Path) -> None:
    section = Section("decode", folder=tmp_path / "work")
    results = section.run({"bare": lambda: {"cpu_s": 1.0}}, rounds=2)
    publish("decode", "Decoding", "words", [], results, page)
    kept = Section("decode", folder=page.parent / KEPT).results()
    assert (kept.setup, kept.figures) == (results.setup, results.figures)
    assert kept.rounds() == 2


def test_the_conditions_name_machine_versions_and_other_work() -> None:
    said = conditions(RESULTS)
    assert said == "Measured on 2026-11-26: a machine, 2 cores, 8 GB; Python 3.11.7, av 18.1.0; files 12; rounds: 1."
    busy = conditions(Results(SETUP, "2026-11-26", RESULTS.figures, Stat(0.25, 0.1, 0.5, 5)))
    assert busy == said + " Other work took 25% of the processors meanwhile (at most 50%)."


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
