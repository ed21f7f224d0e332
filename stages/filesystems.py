"""Where a URI leads: local paths are paths, everything else is an fsspec filesystem built once per process.

Local paths are data: nothing in here globs, strips or unquotes them. A `file://` URL is read by its standard, that is
percent-decoded, and is how a local name that is not valid UTF-8 is written (`local_uri`).
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from schemas.errors import BadRequest, ClipmillError, one_line

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+://)([^/@]*)@")
_QUERY = re.compile(r"^(https?://[^?#]*)[?#].*", re.DOTALL)
_PATIENT = {"max_attempts": 10, "mode": "adaptive"}  # the default gives up after about 2 s of SlowDown
_HASTY = {"max_attempts": 2, "mode": "standard"}  # a preflight should answer at once
# Checksums only where S3 asks for them: many S3-like stores refuse the headers, or answer a range with the whole object's.
_S3_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "max_pool_connections": 64,
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


class StorageUnavailable(ClipmillError):
    """The store refuses us, does not answer, or cannot take more; the run stops here and the next one goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def is_url(uri: str) -> bool:
    """Whether `uri` names a store by its scheme; a `file://` URL counts as local."""
    return scheme(uri) != "file"


def scheme(uri: str) -> str:
    """`s3`, `memory`, ...; `file` for plain paths."""
    match = _URL.match(uri)
    found = match.group(1).lower() if match else "file"
    return {"local": "file", "s3a": "s3"}.get(found, found)


def local_path(uri: str) -> str:
    """The path of a local `uri`, absolute and without `.`, `..` and doubled slashes; links are left alone."""
    match = _URL.match(uri)
    path = os.fsdecode(unquote_to_bytes(uri[match.end() :])) if match else uri
    return os.path.abspath(path)  # noqa: PTH100 - Path.resolve() would follow links


def local_uri(path: str) -> str:
    """`path` as it stands in tables: itself, or a percent-encoded `file://` URL where it is not valid UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def normalised(uri: str) -> str:
    """One spelling for a root: an absolute local path, or a URL without a slash at its end.

    Raises BadRequest for a URL that carries a password: URIs go into tables and logs.
    """
    if not is_url(uri):
        return local_path(uri)
    user = _USER.match(uri)
    if user and (":" in user.group(2) or scheme(uri) == "s3"):
        raise BadRequest(
            f"{redacted(uri)}: credentials do not belong in a URL; put them in the environment or its config files"
        )
    match = _URL.match(uri)
    assert match is not None
    rest = uri[match.end() :].rstrip("/")
    if not rest and scheme(uri) == "s3":
        raise BadRequest(f"{uri}: names no bucket")
    return f"{scheme(uri)}://{rest}"


def joined(root: str, relative: str) -> str:
    """What lies at `relative` below a normalised root."""
    return f"{root}{relative}" if root.endswith("/") else f"{root}/{relative}"


def redacted(uri: str) -> str:
    """`uri` for people: without user, password and the query of a signed link."""
    return _QUERY.sub(r"\1?***", _USER.sub(r"\1***@", uri))


def filesystem(uri: str, patient: bool = True) -> tuple[Any, str]:
    """The fsspec filesystem behind a URL and the path in it; the filesystem is built once per process (not fork-safe).

    `patient=False` is for a preflight: few retries, and a new filesystem that sees the environment as it is now.
    Raises BadRequest where fsspec knows no such scheme or lacks its package.
    """
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(scheme(uri))
        options = tuple(sorted(kind._get_kwargs_from_urls(uri).items()))
    except (ImportError, ValueError) as error:
        raise BadRequest(f"{redacted(uri)}: {error}") from error
    if patient:
        return _kept(os.getpid(), scheme(uri), options), kind._strip_protocol(uri)
    return _build(scheme(uri), options, patient=False), kind._strip_protocol(uri)


@functools.lru_cache(maxsize=64)
def _kept(_pid: int, protocol: str, options: tuple[tuple[str, Any], ...]) -> Any:
    return _build(protocol, options, patient=True)


def _build(protocol: str, options: tuple[tuple[str, Any], ...], patient: bool) -> Any:
    import fsspec

    kwargs: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False, **dict(options)}
    if protocol != "s3":
        return fsspec.filesystem(protocol, **kwargs)
    kwargs.pop("version_aware", None)  # a `?versionId=` in a key is part of its name
    config = _S3_CONFIG | {"retries": _PATIENT if patient else _HASTY}
    filesystem = fsspec.filesystem("s3", config_kwargs=config, **kwargs)
    filesystem.retries = 3  # its own loop around botocore's: needed for answers that break off half-way
    return filesystem


def store_errors() -> tuple[type[BaseException], ...]:
    """Everything a store's client raises when the store is the trouble; OSError alone is not enough for botocore."""
    found: list[type[BaseException]] = [OSError]
    for module, name in (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def reason(error: BaseException) -> str:
    """Why a store failed, in a few words and without the secrets that a message may quote."""
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such folder, bucket or file"
    if isinstance(error, PermissionError):
        return f"access refused ({_detail(error)})"
    if name in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"):
        return f"no usable credentials found ({_detail(error)})"
    return f"{name}: {_detail(error)}"


def _detail(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"([A-Za-z][A-Za-z0-9+.-]+://)[^/@\s]*@", r"\1***@", str(text))


@contextmanager
def translated(uri: str, *, missing_is_trouble: bool = False) -> Iterator[None]:
    """Turns a client's error into StorageUnavailable; that something is missing or there already passes as it is."""
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if not missing_is_trouble:
            raise
        raise StorageUnavailable(f"{redacted(uri)}: {reason(error)}") from error
    except store_errors() as error:
        raise StorageUnavailable(f"{redacted(uri)}: {reason(error)}") from error
