"""A user's own glob, matched one path segment at a time: `*`, `?`, `[...]`, and `**` for any number of folders."""

from __future__ import annotations

from fnmatch import fnmatchcase

MAGIC = frozenset("*?[")


def split_glob(path: str) -> tuple[str, tuple[str, ...]]:
    """The folder before the first segment with a wildcard, and the segments from there on; no segments: not a glob."""
    segments = path.split("/")
    first = next((i for i, segment in enumerate(segments) if MAGIC & set(segment)), len(segments))
    return "/".join(segments[:first]), tuple(segments[first:])


def matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the glob names the file at `path` (its segments), or a folder that it lies in: such a folder is taken whole."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return matches(path, pattern[1:]) if not path else matches(path, pattern[1:]) or matches(path[1:], pattern)
    return bool(path) and fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])


def may_lead(folder: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether files below `folder` may match: folders that cannot lead anywhere are not listed."""
    if not folder or not pattern or pattern[0] == "**":
        return True
    return fnmatchcase(folder[0], pattern[0]) and may_lead(folder[1:], pattern[1:])


def literal_start(pattern: tuple[str, ...]) -> str:
    """What the first segment begins with, up to its first wildcard."""
    segment = pattern[0] if pattern else ""
    return segment[: next((i for i, c in enumerate(segment) if c in MAGIC), len(segment))]
