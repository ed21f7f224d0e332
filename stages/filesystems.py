"""Where a URI leads: local paths are paths, everything else is an fsspec filesystem built once per process.

Local paths are data: nothing in here globs, strips or unquotes them. A `file://` URL is read by its standard, that is
percent-decoded, and is how a local name that is not valid UTF-8 is written (`local_uri`).
"""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from schemas.errors import BadRequest, ClipmillError, one_line
from schemas.secrets import has_credentials, hidden, redacted
from stages.patience import BrokenAnswer, Patience
from stages.telemetry import Figure, measured

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Checksums only where S3 asks for them: many S3-like stores refuse the headers, or answer a range with the whole object's.
_S3_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "max_pool_connections": 64,
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
_HASTY_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 10}
_PREFLIGHT_TRIES = 2
_ANSWER_TRIES, _ANSWER_WAIT_S = 3, 0.2
_DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up, for us the disk is full",
    errno.EFBIG: "the disk takes no file so large, for us it is full",
    errno.EROFS: "the disk is read-only",
    errno.EIO: "the disk is failing",
}
T = TypeVar("T")


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

    Raises BadRequest for a URL that carries credentials: URIs go into tables and logs.
    """
    if not is_url(uri):
        return local_path(uri)
    if has_credentials(uri):
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
        kept = _kept(os.getpid(), scheme(uri), options)
        return (kept.hasty if kept.patience.is_over else kept.patient), kind._strip_protocol(uri)
    return _build(scheme(uri), options, Patience(_PREFLIGHT_TRIES), hasty=True), kind._strip_protocol(uri)


class _Kept:
    """A store's filesystem, and another one for the time in which patience with it is over."""

    def __init__(self, protocol: str, options: tuple[tuple[str, Any], ...]) -> None:
        self._protocol, self._options = protocol, options
        self.patience = Patience(_most_tries())

    @functools.cached_property
    def patient(self) -> Any:
        return _build(self._protocol, self._options, self.patience)

    @functools.cached_property
    def hasty(self) -> Any:
        return _build(self._protocol, self._options, self.patience, hasty=True)


@functools.lru_cache(maxsize=64)
def _kept(_pid: int, protocol: str, options: tuple[tuple[str, Any], ...]) -> _Kept:
    return _Kept(protocol, options)


def _build(protocol: str, options: tuple[tuple[str, Any], ...], patience: Patience, *, hasty: bool = False) -> Any:
    import fsspec

    kwargs: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False, **dict(options)}
    if protocol != "s3":
        return fsspec.filesystem(protocol, **kwargs)
    from aiobotocore.session import AioSession

    kwargs.pop("version_aware", None)  # a `?versionId=` in a key is part of its name
    # Patience decides about retries. Adaptive, because a store that says SlowDown means the calls that follow, too.
    config = _S3_CONFIG | _configured() | (_HASTY_S3_CONFIG if hasty else {})
    config["retries"] = {"total_max_attempts": 1, "mode": "standard" if hasty else "adaptive"}
    session = AioSession()
    session.register("needs-retry.s3", patience.on_answer, unique_id="clipmill-patience")
    filesystem = fsspec.filesystem("s3", session=session, config_kwargs=config, **kwargs)
    filesystem.retries = 1  # no loop of its own around that
    return filesystem


def _configured() -> dict[str, Any]:
    """Settings of botocore from fsspec's own configuration, as in FSSPEC_S3='{"config_kwargs": {"read_timeout": 5}}'."""
    import fsspec

    return dict(fsspec.config.conf.get("s3", {}).get("config_kwargs", {}))


def _most_tries() -> int | None:
    """Of a call, where somebody has set that in the same way (`"retries": {"total_max_attempts": 3}`)."""
    tries: int | None = _configured().get("retries", {}).get("total_max_attempts")
    return tries


def store_errors() -> tuple[type[BaseException], ...]:
    """Everything a store's client raises when the store is the trouble; OSError alone is not enough for botocore."""
    found: list[type[BaseException]] = [OSError]
    for module, name in (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("botocore.parsers", "ResponseParserError"),
        ("aiohttp", "ClientError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def answered(call: Callable[[], T]) -> T:
    """What `call` returns; it is asked again where the answer broke off or made no sense, which no retry of botocore sees."""
    for tries in range(1, _ANSWER_TRIES):
        try:
            return call()
        except _broken_answers():
            measured(Figure.STORAGE_RETRY, 1, reason="broken_answer")
            time.sleep(_ANSWER_WAIT_S * tries)
    return call()


def _broken_answers() -> tuple[type[BaseException], ...]:
    found: list[type[BaseException]] = [BrokenAnswer]
    for module, name in (("botocore.parsers", "ResponseParserError"), ("aiohttp", "ClientPayloadError")):
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
    disk = _DISK_TROUBLE.get(getattr(error, "errno", None) or 0)
    return f"{disk} ({_detail(error)})" if disk else f"{name}: {_detail(error)}"


def _detail(error: BaseException) -> str:
    return hidden(str(getattr(error, "strerror", None) or str(error) or type(error).__name__))


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
