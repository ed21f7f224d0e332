"""What lies in a folder or matches a glob: streamed, in the order of names, one page or folder in memory at a time."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from schemas.errors import BadVideo, ErrorCode
from stages.filesystems import filesystem, is_url, joined, local_uri, reason, scheme, translated
from stages.globs import literal_start, matches, may_lead
from stages.remote import s3_pages
from stages.roots import ANYWHERE, Roots
from stages.sources import Found, describe, found_info, found_s3

Keep = Callable[[str], bool]
# A folder of Clipmill's own tables: it may lie in the folder that is listed, or be that folder.
_LOG_ENTRY = re.compile(r"(|.*/)_log/[0-9]{8}\.json", re.DOTALL)
_OWN_FOLDERS = ("_log", "_runs")


@dataclass(slots=True)
class Source:
    """A video that was found, or one that is known to be bad already. `name` is a manifest's id, None where it has none."""

    uri: str
    found: Found | None
    name: str | None = None
    error: BadVideo | None = None


def list_sources(root: str, pattern: tuple[str, ...], keep: Keep, roots: Roots = ANYWHERE) -> Iterator[Source]:
    """Files below the folder `root` that match `pattern` (() is everything) and whose name `keep` accepts.

    Hidden files and folders and Clipmill's own tables are left out. A folder on disk that may not be listed, and what lies
    outside `roots`, is a Source with its error. Links are followed, except to a folder that they lie in. Raises
    StorageUnavailable.
    """
    if not is_url(root):
        yield from _list_disk(root, pattern, keep, roots)
        return
    store, folder = filesystem(root)
    with translated(root):
        for source in (list_s3 if scheme(root) == "s3" else _list_remote)(store, folder, root, pattern, keep):
            try:
                roots.check(source.uri)
                yield source
            except BadVideo as error:
                yield Source(source.uri, None, error=error)


def _wanted(segments: tuple[str, ...], pattern: tuple[str, ...], keep: Keep) -> bool:
    return not any(s.startswith(".") for s in segments) and keep(segments[-1]) and matches(segments, pattern)


def list_s3(s3: Any, folder: str, root: str, pattern: tuple[str, ...], keep: Keep) -> Iterator[Source]:
    """As `list_sources`, through the s3fs filesystem `s3`; `folder` is `bucket/prefix`. Holds one page of 1000 keys."""
    below = folder.partition("/")[2]
    skip = len(below) + 1 if below else 0
    own: set[str] = set()
    for page in s3_pages(s3, folder, starts_with=literal_start(pattern)):
        for item in page.get("Contents", ()):
            relative = item["Key"][skip:]
            if log := _LOG_ENTRY.fullmatch(relative):  # comes before the rest of its tables
                own |= {log.group(1)} if log.group(1) else {f"{name}/" for name in _OWN_FOLDERS}
            # An empty key with a slash at its end marks a folder.
            if relative.endswith("/") or relative.startswith(tuple(own)):
                continue
            if _wanted(tuple(relative.split("/")), pattern, keep):
                yield Source(joined(root, relative), found_s3(item))


def _list_remote(store: Any, folder: str, root: str, pattern: tuple[str, ...], keep: Keep) -> Iterator[Source]:
    top = folder.rstrip("/")
    pending = [top]
    while pending:
        folders = []
        for info in _foreign_entries(store, pending.pop(), top):
            relative = info["name"].rstrip("/")[len(top) :].lstrip("/")
            segments = tuple(relative.split("/"))
            if info["type"] == "directory":
                if not segments[-1].startswith(".") and may_lead(segments, pattern):
                    folders.append(info["name"])
            elif _wanted(segments, pattern, keep):
                yield Source(joined(root, relative), found_info(info))
        pending.extend(reversed(folders))


def _foreign_entries(store: Any, folder: str, top: str) -> list[dict[str, Any]]:
    """Entries of a folder by name, without what Clipmill itself wrote."""
    entries = {str(info["name"]).rstrip("/").rpartition("/")[2]: info for info in store.ls(folder, detail=True)}
    if "_log" in entries and any(
        _LOG_ENTRY.fullmatch(f"_log/{name.rpartition('/')[2]}") for name in _names(store, entries["_log"])
    ):
        entries = {name: info for name, info in entries.items() if name not in _OWN_FOLDERS} if folder == top else {}
    return [entries[name] for name in sorted(entries)]


def _names(store: Any, info: dict[str, Any]) -> list[str]:
    paths = store.ls(info["name"], detail=False) if info["type"] == "directory" else []
    return [str(path).rpartition("/")[2] for path in paths]


def _has_log_entry(names: list[str]) -> bool:
    return any(_LOG_ENTRY.fullmatch(f"_log/{name}") for name in names)


def _list_disk(root: str, pattern: tuple[str, ...], keep: Keep, roots: Roots) -> Iterator[Source]:
    pending: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
    while pending:
        folder, above = pending.pop()
        path = "/".join((root.rstrip("/"), *folder)) or "/"
        try:
            status = os.stat(path)  # noqa: PTH116 - a name is data, Path would tidy it
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            names, folders = _scan(path, roots)
            if "_log" in folders and _has_log_entry(_scan(f"{path}/_log", roots)[0]):
                if folder:
                    continue
                folders = [name for name in folders if name not in _OWN_FOLDERS]
        except FileNotFoundError:  # deleted since its parent was listed
            continue
        except BadVideo as error:
            yield Source(local_uri(path), None, error=error)
            continue
        except OSError as error:
            code = ErrorCode.FORBIDDEN if isinstance(error, PermissionError) else ErrorCode.STORAGE
            yield Source(local_uri(path), None, error=BadVideo(code, f"the folder cannot be listed: {reason(error)}"))
            continue
        for name in names:
            if _wanted((*folder, name), pattern, keep):
                yield from _source_on_disk(f"{path.rstrip('/')}/{name}", roots)
        inner = [(*folder, name) for name in reversed(folders) if not name.startswith(".")]
        pending.extend((each, above | {here}) for each in inner if may_lead(each, pattern))


def _scan(path: str, roots: Roots) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders directly in a folder, each sorted. Raises BadVideo outside `roots`."""
    names, folders = [], []
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        roots.check_folder(descriptor, path)
        with os.scandir(descriptor) as entries:
            for entry in entries:
                is_folder, is_file = _kind(entry)
                if is_folder:
                    folders.append(entry.name)
                elif is_file:
                    names.append(entry.name)
    finally:
        os.close(descriptor)
    return sorted(names), sorted(folders)


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether it is a folder, a file. Trouble with one link is that link's own, never the folder's."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError as error:  # a link that leads in a circle is nothing; one to where we may not look may be a file
        return False, error.errno != errno.ELOOP


def _source_on_disk(path: str, roots: Roots) -> Iterator[Source]:
    uri = local_uri(path)
    try:
        yield Source(uri, describe(uri, roots))
    except BadVideo as error:
        if error.code is not ErrorCode.VANISHED:  # deleted while we listed: not there
            yield Source(uri, None, error=error)
