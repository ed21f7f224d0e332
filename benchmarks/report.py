"""Writes what was measured into docs/benchmarks.md: a marked part per section, and one table of targets.

    publish("decode", "Decoding", body, [at_least("decode pass over bare decoding", 0.8, results.ratio(...))], results)

Only what stands between the marks `<!-- NAME -->` and `<!-- end of NAME -->` is ever replaced; a section that the page does
not have yet comes last. In the table of targets a section's rows are those that name it: what was measured elsewhere stays.
The record that a section was written from is kept beside the page, in the folder KEPT.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rounds import ROOT, Results, Stat

PAGE = ROOT / "docs" / "benchmarks.md"
KEPT = "measured"  # a folder beside the page, with the record of each section
_TARGETS = "targets"
_HEAD = "| section | what | target | measured | verdict |\n| --- | --- | --- | --- | --- |"
_QUIET = 0.03  # share of the machine that other work may take before the page speaks of it


@dataclass(frozen=True)
class Row:
    """A line of the table of targets."""

    what: str
    target: str
    measured: str
    verdict: str


def at_least(what: str, target: float, measured: Stat, digits: int = 2) -> Row:
    """A row that is met where the median reaches `target`."""
    return Row(what, f"at least {target:g}", measured.text(digits), _verdict(measured.median >= target))


def at_most(what: str, target: float, measured: Stat, digits: int = 2) -> Row:
    """A row that is met where the median does not exceed `target`."""
    return Row(what, f"at most {target:g}", measured.text(digits), _verdict(measured.median <= target))


def not_measured(what: str, target: str, why: str) -> Row:
    """A row of something that could not be measured here."""
    return Row(what, target, why, "not measured")


def publish(section: str, title: str, body: str, rows: Sequence[Row], results: Results | None, page: Path = PAGE) -> None:
    """Writes a section, headed by `title`, and its rows of the table of targets; no `results` where nothing was measured."""
    if results is not None:
        keep(results, page)
    text = page.read_text() if page.exists() else "# Benchmarks\n"
    said = f"{conditions(results)}\n\n" if results is not None else ""
    text = _replaced(text, section, f"## {title}\n\n{said}{body.strip()}")
    lines = [f"| [{section}](#{_anchor(title)}) | {row.what} | {row.target} | {row.measured} | {row.verdict} |" for row in rows]
    others = [line for line in _part(text, _TARGETS).splitlines() if line.startswith("| [") and _section_of(line) != section]
    in_order = sorted([*others, *lines], key=lambda line: text.find(_marks(_section_of(line))[0]))
    page.write_text(_replaced(text, _TARGETS, "\n".join(["## Targets", "", _HEAD, *in_order])))


def keep(results: Results, page: Path = PAGE) -> None:
    """Puts the record that the results were read from beside the page."""
    if results.record is not None:
        folder = page.parent / KEPT
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.record, folder / results.record.name)


def conditions(results: Results) -> str:
    """Machine, versions, date and rounds, and how much other work was running."""
    setup = results.setup
    versions = ", ".join([f"Python {setup.python}", *(f"{name} {version}" for name, version in setup.versions.items())])
    settings = "".join(f"; {name.replace('_', ' ')} {value}" for name, value in setup.settings.items())
    said = f"Measured on {results.date}: {setup.machine}; {versions}{settings}; rounds: {results.rounds()}."
    if results.others is not None and results.others.high > _QUIET:
        said += f" Other work took {results.others.median:.0%} of the processors meanwhile (at most {results.others.high:.0%})."
    return said


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _section_of(line: str) -> str:
    """The section that a row of the table of targets belongs to."""
    return line.removeprefix("| [").partition("]")[0]


def _marks(section: str) -> tuple[str, str]:
    return f"<!-- {section} -->", f"<!-- end of {section} -->"


def _part(text: str, section: str) -> str:
    """What stands between a section's marks; nothing where the page does not have them."""
    first, last = _marks(section)
    return text.partition(first)[2].partition(last)[0]


def _replaced(text: str, section: str, content: str) -> str:
    first, last = _marks(section)
    block = f"{first}\n{content.strip()}\n{last}"
    if first in text and last in text:
        before, after = text.partition(first)[0], text.partition(last)[2]
        return before + block + after
    return text.rstrip("\n") + f"\n\n{block}\n"


def main() -> None:
    """Prints the table of targets."""
    print(_part(PAGE.read_text(), _TARGETS).strip())


if __name__ == "__main__":
    main()
