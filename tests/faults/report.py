"""Makes docs/reliability.md of what the parts of `make test-faults` wrote down: `python -m tests.faults.report FOLDER PAGE`.

The page's text stands in the page itself; everything between the two marks is replaced.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- tried and survived: begin -->", "<!-- tried and survived: end -->"
_COLUMNS = ("lost_rows", "doubled_rows", "partial_views", "hangs", "harmed")
_PACKAGES = ("ray", "av", "pyarrow", "s3fs", "hypothesis", "torch")


def main(arguments: Sequence[str]) -> int:
    """Replaces the page's table; 1 where any part failed or damaged something."""
    folder, page = map(Path, arguments)
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(parts)}\n{END}{after}")
    return int(any(part["failures"] or any(row[name] for row in part["rows"] for name in _COLUMNS) for part in parts))


def table(parts: Sequence[dict[str, Any]]) -> str:
    """The whole replaced text: machine, what was tried, figures, failures."""
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    lines = [
        f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
        "",
        "| part | what | tried | lost rows | doubled rows | partial views | hangs | neighbours harmed |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for part in parts:
        for row in part["rows"]:
            counts = " | ".join(f"{row[name]:,}" for name in _COLUMNS)
            lines.append(f"| {part['part']} | {row['what']} | {row['tried']:,} | {counts} |")
    lines += ["", "| part | minutes | tests that failed |", "| --- | --: | --- |"]
    lines += [f"| {part['part']} | {part['wall_s'] / 60:.1f} | {', '.join(part['failures']) or 'none'} |" for part in parts]
    figures = [(part["part"], what, value) for part in parts for what, value in part["figures"].items()]
    if figures:
        lines += ["", "| part | measured | figure |", "| --- | --- | --- |"]
        lines += [f"| {part} | {what} | {value} |" for part, what, value in figures]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
