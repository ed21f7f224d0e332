"""Options that programs of the measurements share: where records and the page are."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path

from benchmarks.report import PAGE
from benchmarks.rounds import RECORDS


def parser_of(words: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with `--rounds`, `--records`, `--page` and `--report`. To try a program, send records and page elsewhere."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of records and of what is made on the way")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that gets the section")
    parser.add_argument("--report", action="store_true", help="measures nothing, writes the page from the record")
    return parser


def digest_of(files: Iterable[Path]) -> str:
    """Names and sizes of files in a word, so that records of different ones are told apart."""
    told = sorted(f"{path.name} {path.stat().st_size}" for path in files)
    return hashlib.blake2b("\n".join(told).encode(), digest_size=4).hexdigest()
