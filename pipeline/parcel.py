"""What a submitted run takes along: its configuration, a manifest of this machine, and, if asked, a Clipmill."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.submit import ENTRY_NAME
from cluster.wheel import unpack
from pipeline import entry
from pipeline.job import MANIFEST_NAME
from pipeline.summary import DEFAULT_MAX_FAILED

if TYPE_CHECKING:
    from pipeline.run import Request
    from schemas.config import JobConfig


@dataclass(frozen=True)
class Parcel:
    """What is sent: a configuration, what is asked of the one run, and a Clipmill to install (a wheel or a revision).

    `log_level`: of JSON lines, where they are wanted instead of progress for people.
    """

    config: JobConfig
    request: Request
    max_failed: float = DEFAULT_MAX_FAILED
    install: str | None = None
    log_level: str | None = None

    def pack(self, folder: Path, token: str) -> None:
        """Puts everything that the job needs into `folder`; its log will begin with `token`.

        Raises BadRequest for what cannot be sent.
        """
        wanted = unpack(self.install, folder) if self.install else version("clipmill")
        shutil.copy(Path(entry.__file__), folder / ENTRY_NAME)
        if (manifest := local_manifest(self.config.input.uri)) is not None:
            write_manifest(manifest, folder / MANIFEST_NAME)
        asked = {
            "token": token,
            "version": wanted,
            "is_sent": self.install is not None,
            "config": portable(self.config),
            "limit": self.request.limit,
            "max_hours": self.request.max_hours,
            "retry_failed": self.request.retry_failed,
            "max_failed": self.max_failed,
            "log_level": self.log_level,
        }
        (folder / "request.json").write_text(json.dumps(asked, indent=1), encoding="utf-8")


def portable(config: JobConfig) -> dict[str, Any]:
    """A configuration whose local places are absolute, without what was not set, so that another version may take it."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["output"] = _placed(config.output)
    raw["input"]["uri"] = _placed(config.input.uri)
    if config.input.allow:
        raw["input"]["allow"] = [_placed(root) for root in config.input.allow]
    return raw


def _placed(uri: str) -> str:
    from stages.filesystems import is_url, normalised

    return uri if is_url(uri) else normalised(uri)


def local_manifest(uri: str) -> str | None:
    """The path of a manifest that lies on this machine; None for anything else."""
    from stages.filesystems import is_url, local_path
    from stages.manifest import is_manifest

    if is_url(uri) or not is_manifest(uri) or not Path(local_path(uri)).is_file():
        return None
    return local_path(uri)


def write_manifest(manifest: str, path: Path) -> None:
    """A copy with absolute URIs, row for row. Raises BadRequest where it is none."""
    from stages.manifest import read_manifest

    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["uri", "id"])
        rows.writerows([found.uri or "", found.id or ""] for found in read_manifest(manifest))
