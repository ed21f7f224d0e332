"""What the program says: results on stdout; notes and failures on stderr, as lines for people or as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pipeline.options import LogFormat, LogLevel
from schemas.secrets import hidden

if TYPE_CHECKING:
    from pipeline.jsonlog import JsonLog

log: JsonLog | None = None  # takes what would go to stderr, where --log-format json asks for that


def log_as(log_format: LogFormat, level: LogLevel) -> None:
    """From now on stderr is as `log_format` says."""
    global log
    if log_format is LogFormat.JSON:
        import logging

        from pipeline.jsonlog import JsonLog

        log = JsonLog(level=getattr(logging, level.name))
        log.capture()


def log_as_text() -> None:
    """From now on stderr is for people."""
    global log
    if log is not None:
        log.release()
        log = None


def failed(message: str, code: int) -> int:
    """Says why the program fails; `code`."""
    if log is not None:
        log.failed(message, code)
        return code
    print(f"clipmill: {hidden(message)}", file=sys.stderr)
    return code


def note(message: str) -> None:
    """Says something beside the results."""
    if log is not None:
        log.note(message)
        return
    print(hidden(message), file=sys.stderr)


def result(what: Any) -> None:
    """Prints lines, or anything else as JSON."""
    if isinstance(what, list):
        print("\n".join(what))
        return
    import json

    print(json.dumps(what, indent=1, ensure_ascii=False))
