"""Checkpoints in a folder behind an fsspec URL (s3://, gs://, memory://...): fetched once per node into a cache."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import BadRequest
from schemas.identity import model_slug
from schemas.secrets import redacted
from stages.filesystems import filesystem, reason, store_errors
from stages.models.weights import SMALL_FILES, combine, wanted

_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "checksum")


def resolve(model: str, cache: Path) -> tuple[str, Path]:
    """Digest of the folder's files (names, sizes, and etags where the store has them, else contents), and its small files."""
    with _storage_errors(model):
        fs, files = _list(model, patient=False)
        revision = combine((name, int(info["size"]), _version(fs, info)) for name, info in files.items())
        small = [name for name in files if name in SMALL_FILES]
        return revision, _copy(fs, {name: files[name] for name in small}, cache / f"{model_slug(model)}-{revision}-small")


def fetch(model: str, revision: str, cache: Path) -> Path:
    """Local copy of the whole folder; BadRequest when its files have changed since `revision` was found."""
    target = cache / f"{model_slug(model)}-{revision}"
    if target.is_dir():
        return target
    with _storage_errors(model):
        fs, files = _list(model, patient=True)
        found = combine((name, int(info["size"]), _version(fs, info)) for name, info in files.items())
        if found != revision:
            raise BadRequest(f"model {model}: its files are {found} now, and were {revision} when the run was planned")
        return _copy(fs, files, target)


def _list(model: str, patient: bool) -> tuple[Any, dict[str, dict[str, Any]]]:
    fs, path = filesystem(model, patient)
    found = {info["name"].rstrip("/").rpartition("/")[2]: info for info in fs.ls(path, detail=True) if info["type"] == "file"}
    return fs, {name: found[name] for name in wanted(model, found)}


def _version(fs: Any, info: dict[str, Any]) -> str:
    for key in _ETAGS:
        if info.get(key):
            return str(info[key]).strip('"')
    with fs.open(info["name"], "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _copy(fs: Any, files: dict[str, dict[str, Any]], target: Path) -> Path:
    """Copies under a lock into a temporary folder that takes its name when it is whole: another process sees all or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            for name, info in files.items():
                fs.get_file(info["name"], str(partial / name))
                if (partial / name).stat().st_size != info["size"]:
                    raise OSError(f"{name} came in with another size than listed")
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


@contextmanager
def _storage_errors(model: str) -> Iterator[None]:
    try:
        yield
    except store_errors() as error:
        raise BadRequest(f"model {redacted(model)}: {reason(error)}") from error
