"""From a folder, a glob, a file or a manifest to a stream of sources."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from schemas.config import InputConfig
from schemas.errors import BadRequest, BadVideo, ErrorCode
from schemas.identity import video_id
from schemas.rows import SOURCE_ROW, conform
from schemas.secrets import redacted
from schemas.tables import TIMESTAMP
from stages.filesystems import filesystem, is_url, local_path, local_uri, normalised, reason, scheme, store_errors
from stages.globs import split_glob
from stages.listing import Source, list_sources
from stages.manifest import Entry, is_manifest, read_manifest
from stages.remote import s3_pages
from stages.roots import Roots
from stages.sniff import HEAD_BYTES, looks_like_video
from stages.sources import Found, describe, read_head

BATCH_ROWS = 10_000
_ASKING_THREADS = 32  # a store answers in tens of ms: one at a time, a million keys would take hours
_EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,8})\Z")


class Discovery:
    """The videos of an input, as tables of SOURCE_ROW with at most BATCH_ROWS rows, in the order of the listing or manifest.

    Memory: one batch and about 100 bytes a video. Building it looks whether the input is there and raises BadRequest, one
    line that names the input, where it is not, cannot be read or is no manifest. Reading the batches raises StorageUnavailable
    where a listing breaks off. A source that is known to be bad is a row with its error, and so is one that lies outside
    `config.allow` (`roots`); a manifest itself may lie anywhere.
    """

    def __init__(self, config: InputConfig) -> None:
        self.listed = 0  # videos found so far, doubled ones included
        self.duplicates = 0  # entries so far that name a video once more
        self._extensions = frozenset(extension.lower().lstrip(".") for extension in config.extensions)
        self.roots = Roots.of(config.allow)
        self._uri = normalised(config.uri)
        if not is_manifest(self._uri) and not self.roots.touches(split_glob(self._uri)[0] or "/"):
            raise BadRequest(f"input {redacted(self._uri)} lies outside what --allow names ({', '.join(config.allow)})")
        self._root, self._pattern = _resolve(self._uri, is_folder=config.uri.endswith("/"))

    def __iter__(self) -> Iterator[pa.Table]:
        return self.batches()

    def batches(self) -> Iterator[pa.Table]:
        """Tables of SOURCE_ROW, none of them empty; each video once."""
        seen: set[bytes] = set()
        sources = self._sources()
        with ThreadPoolExecutor(_ASKING_THREADS) as threads:
            while chunk := list(islice(sources, BATCH_ROWS)):
                if rows := self._without_doubles(_ask(chunk, threads, self.roots), seen):
                    yield _table(rows)

    def _sources(self) -> Iterator[Source | Entry]:
        if self._root is None:
            return iter(read_manifest(self._uri) if is_manifest(self._uri) else [Entry(self._uri, None, 1)])
        return list_sources(self._root, self._pattern, self._is_candidate, self.roots)

    def _is_candidate(self, name: str) -> bool:
        extension = _extension(name)
        return extension is None or extension in self._extensions

    def _without_doubles(self, sources: Iterable[Source], seen: set[bytes]) -> list[tuple[str, Source]]:
        rows = []
        for source in sources:
            self.listed += 1
            found = source.found or Found(None, None, None)
            identity = video_id(source.name or source.uri, found.size_bytes, found.version)
            digest = bytes.fromhex(identity)
            if digest in seen:
                self.duplicates += 1
            else:
                seen.add(digest)
                rows.append((identity, source))
        return rows


def _resolve(uri: str, is_folder: bool) -> tuple[str | None, tuple[str, ...]]:
    """(folder to list, glob below it), or (None, ()) for one file or a manifest."""
    try:
        found = _kind(uri, is_folder)
        if found is None:
            root, pattern = split_glob(uri)
            if pattern and _kind(root or "/", True) == "folder":
                return root or "/", pattern
            raise BadRequest(f"input {redacted(uri)}: there is no such file, folder or bucket")
        if found == "folder":
            return uri, ()
        if is_manifest(uri):
            next(read_manifest(uri), None)  # whether it is one
    except store_errors() as error:
        raise BadRequest(f"input {redacted(uri)} cannot be read: {reason(error)}") from error
    return None, ()


def _kind(uri: str, is_folder: bool) -> str | None:
    """`file`, `folder`, or None where nothing is."""
    if not is_url(uri):
        path = local_path(uri)
        if os.path.isdir(path):  # noqa: PTH112 - a name is data, Path would tidy it
            os.scandir(path).close()  # whether it may be listed
            return "folder"
        return "file" if os.path.exists(path) else None  # noqa: PTH110
    store, path = filesystem(uri, patient=False)
    if scheme(uri) == "s3":
        return _kind_on_s3(store, path, is_folder)
    try:
        return "folder" if store.info(path)["type"] == "directory" else "file"
    except FileNotFoundError:
        return None


def _kind_on_s3(store: object, path: str, is_folder: bool) -> str | None:
    """A bucket is a folder even when it is empty; a prefix is one where keys begin with it."""
    bucket, _, key = path.partition("/")
    try:
        page = next(s3_pages(store, path))
        if not key or page.get("Contents"):
            return "folder"
    except FileNotFoundError:
        return None
    except PermissionError:  # one may be allowed to read an object and not to list
        if not key or is_folder:
            raise
    try:
        store.call_s3("head_object", Bucket=bucket, Key=key)  # type: ignore[attr-defined]
    except FileNotFoundError:
        return None
    return "file"


def _extension(name: str) -> str | None:
    match = _EXTENSION.search(name)
    return match.group(1).lower() if match else None


def _ask(chunk: list[Source | Entry], threads: ThreadPoolExecutor, roots: Roots) -> Iterator[Source]:
    """The videos of `chunk`, in its order; only what a listing does not tell is asked of the store."""
    answers = threads.map(lambda item: _answer(item, roots), [item for item in chunk if not _is_known(item)])
    for item in chunk:
        source = item if isinstance(item, Source) and _is_known(item) else next(answers)
        if source is not None:
            yield source


def _is_known(item: Source | Entry) -> bool:
    return isinstance(item, Source) and (item.error is not None or _extension(item.uri.rpartition("/")[2]) is not None)


def _answer(item: Source | Entry, roots: Roots) -> Source | None:
    """A manifest's entry with what the store knows of it; a listed file, or None where opening it shows no video."""
    if isinstance(item, Entry):
        return _described(item, roots)
    try:
        return item if _is_video(item, roots) else None
    except BadVideo as error:
        # What cannot be opened may be a video: said, and tried again in the next run.
        return None if error.code is ErrorCode.VANISHED else Source(item.uri, item.found, error=error)


def _is_video(source: Source, roots: Roots) -> bool:
    is_empty = source.found is not None and source.found.size_bytes == 0
    return not is_empty and looks_like_video(read_head(source.uri, HEAD_BYTES, roots))


def _described(entry: Entry, roots: Roots) -> Source:
    if entry.uri is None:
        return Source(
            f"row {entry.row}", None, entry.id, BadVideo(ErrorCode.MISSING, f"row {entry.row} of the manifest has no uri")
        )
    uri = redacted(entry.uri).encode("utf-8", "backslashreplace").decode()
    try:
        plain = normalised(entry.uri)
        if not is_url(plain):
            plain = local_uri(plain)
        plain.encode()
        uri = plain
        return Source(uri, describe(uri, roots), entry.id)
    except BadVideo as error:
        code = ErrorCode.MISSING if error.code is ErrorCode.VANISHED else error.code
        return Source(uri, None, entry.id, BadVideo(code, error.message))
    except (BadRequest, ValueError) as error:  # credentials in the URL; bytes that no store or disk has in a name
        return Source(uri, None, entry.id, BadVideo(ErrorCode.MISSING, str(error)))


def _table(rows: list[tuple[str, Source]]) -> pa.Table:
    found = [source.found or Found(None, None, None) for _, source in rows]
    errors = [source.error for _, source in rows]
    modified_us = [None if each.mtime_ns is None else each.mtime_ns // 1000 for each in found]
    columns = {
        "video_id": pa.array([identity for identity, _ in rows], pa.string()),
        "uri": pa.array([source.uri for _, source in rows], pa.string()),
        "size_bytes": pa.array([each.size_bytes for each in found], pa.int64()),
        "etag": pa.array([each.etag for each in found], pa.string()),
        "modified_at": pa.array(modified_us, pa.int64()).cast(TIMESTAMP),
        "error_code": pa.array([None if error is None else error.code.value for error in errors], pa.string()),
        "error_message": pa.array([None if error is None else error.message for error in errors], pa.string()),
    }
    return conform(pa.table(columns), SOURCE_ROW)
