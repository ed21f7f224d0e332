"""The folders and stores that sources may lie in (`--allow`): a name alone proves nothing, so what was opened is looked at.

On disk the kernel says where an open file lies, after every link; between that look and reading nothing can be swapped. In
object stores a path is a plain name, so it is compared as one. Other stores cannot be roots: a web server may redirect
anywhere, and a remote disk has links of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from schemas.errors import BadRequest, BadVideo, ErrorCode
from schemas.secrets import redacted
from stages.filesystems import is_url, local_path, normalised, scheme

# Where `a/b` can be nothing but the object called so.
PLAIN_STORES = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss", "memory"})


@dataclass(frozen=True)
class Roots:
    """Folders and URLs, normalised; without any, everything is allowed. All checks raise BadVideo (forbidden)."""

    uris: tuple[str, ...] = ()

    @classmethod
    def of(cls, uris: Iterable[str]) -> Self:
        """From what an operator wrote. BadRequest for what cannot be a root."""
        found = []
        for uri in uris:
            if not uri.strip():
                raise BadRequest("--allow: names no folder")
            is_remote = is_url(uri)
            if is_remote and (scheme(uri) not in PLAIN_STORES or not _is_plain(uri)):
                raise BadRequest(f"--allow {redacted(uri)}: should be a folder on disk or a place in an object store")
            found.append(normalised(uri))
        return cls(tuple(found))

    def check(self, uri: str) -> None:
        """Before `uri` is asked for anything, so that nobody learns what is there outside the roots."""
        if not self.uris:
            return
        if is_url(uri):
            if not any(_is_below(uri, root) for root in self.uris if is_url(root)):
                raise _outside(uri, uri.rpartition("/")[0])
        else:
            self._check_real(os.path.realpath(local_path(uri)), local_path(uri))

    def check_open(self, descriptor: int, path: str) -> None:
        """Where an open local file really lies, wherever `path` seemed to lead."""
        if self.uris:
            self._check_real(os.readlink(f"/proc/self/fd/{descriptor}"), path)  # noqa: PTH115 - a name is data

    def check_folder(self, descriptor: int, path: str) -> None:
        """Of an open local folder: whether it lies below a root or a root below it."""
        if self.uris and not self._leads_down(os.readlink(f"/proc/self/fd/{descriptor}")):  # noqa: PTH115
            self.check_open(descriptor, path)

    def touches(self, uri: str) -> bool:
        """Whether something at or below `uri` may be allowed."""
        if not self.uris:
            return True
        if is_url(uri):
            return any(_is_below(uri, root) or _is_below(root, uri) for root in self.uris if is_url(root))
        real = os.path.realpath(local_path(uri))
        return any(_is_below(real, root) for root in self._on_disk()) or self._leads_down(real)

    def _check_real(self, real: str, path: str) -> None:
        roots = self._on_disk()
        if not any(_is_below(real, root) for root in roots):
            is_link = any(_is_below(path, root) for root in (*roots, *self.uris))
            raise _outside(f"{path} (a link leads to {real})" if is_link else path, real.rpartition("/")[0])

    def _leads_down(self, real: str) -> bool:
        return any(_is_below(root, real) for root in self._on_disk())

    def _on_disk(self) -> list[str]:
        return [os.path.realpath(root) for root in self.uris if not is_url(root)]


ANYWHERE = Roots()


def _is_below(path: str, root: str) -> bool:
    """Whether `path` is `root` or lies in it, by whole names; one with `..` in it lies nowhere."""
    return _is_plain(path) and (path == root or path.startswith(root if root.endswith("/") else f"{root}/"))


def _is_plain(path: str) -> bool:
    return not {".", ".."} & set(path.split("/"))


def _outside(what: str, folder: str) -> BadVideo:
    text = f"{redacted(what)} lies outside what --allow names; --allow {redacted(folder) or '/'} would take it in"
    return BadVideo(ErrorCode.FORBIDDEN, text.encode("utf-8", "backslashreplace").decode())
