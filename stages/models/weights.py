"""Where weights come from: a hub id, a local folder, any fsspec URL of a folder, or `embedded:NAME` in this package.

`resolve` answers on the driver what a model is (its commit or the digest of its files, its config.json) from small files
only and without torch; `fetch` brings all of it to this node. Nothing of a checkpoint is ever executed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import BadRequest
from schemas.identity import split_revision
from stages.filesystems import local_path

EMBEDDED = "embedded:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What tells what a model is, without its weights.
SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
_SUFFIXES = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Resolved:
    """A model that is there: `folder` holds its small files at least, `revision` is a commit or a digest of the files."""

    model: str
    revision: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)  # config.json

    @property
    def model_type(self) -> str:
        """The kind of model, as config.json calls it."""
        return str(self.config.get("model_type", ""))

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name` of the folder; None where there is no such file. BadRequest where it is no JSON."""
        return read_json(self.model, self.folder / name)


def resolve(model: str, cache: Path | None = None) -> Resolved:
    """What `model` is. BadRequest, one line with the model and what to do, when it cannot be had."""
    base, revision = split_revision(model)
    if folder := _local_folder(model):
        return opened(model, digest(model, folder), folder)
    if "://" in base:
        from stages.models import remote_folder

        _refuse_revision(model, revision)
        revision, small = remote_folder.resolve(model, cache or default_cache())
        return opened(model, revision, small)
    if HUB_ID.fullmatch(base):
        from stages.models import hub

        commit, small = hub.resolve(model, base, revision)
        return opened(model, commit, small)
    raise BadRequest(f"model {model}: no such folder, and not a hub id (owner/name), a URL or {EMBEDDED}NAME")


def places_of(model: str) -> list[str]:
    """The folder or URL that `model` names, and the files in a folder on disk; none for a hub id or an embedded model.

    BadRequest as for `resolve`.
    """
    if model.startswith(EMBEDDED):
        return []
    if folder := _local_folder(model):
        return [str(folder), *(str(path) for path in folder.iterdir())]
    base, _ = split_revision(model)
    return [base] if "://" in base else []


def fetch(model: str, revision: str, cache: Path | None = None) -> Path:
    """Local folder with the whole of `model` at `revision` (what `resolve` said). Files are fetched once per node.

    BadRequest when it cannot be had, or when what is there has another revision by now.
    """
    base, _ = split_revision(model)
    if folder := _local_folder(model):
        found = digest(model, folder)
        if found != revision:
            raise BadRequest(f"model {model}: its files are {found} here, and were {revision} when the run was planned")
        return folder
    if "://" in base:
        from stages.models import remote_folder

        return remote_folder.fetch(model, revision, cache or default_cache())
    from stages.models import hub

    return hub.fetch(model, base, revision)


def opened(model: str, revision: str, folder: Path) -> Resolved:
    """`folder` as a model; BadRequest where it has no usable config.json."""
    config = read_json(model, folder / "config.json")
    if config is None:
        raise BadRequest(f"model {model}: has no config.json, so it is not a checkpoint of transformers")
    return Resolved(model, revision, folder, config)


def default_cache() -> Path:
    """Where folders from URLs are kept on this node."""
    return Path.home() / ".cache" / "clipmill" / "models"


def wanted(model: str, names: Iterable[str]) -> list[str]:
    """The files of a checkpoint that are used, sorted; BadRequest where there are no weights. Pickles only as a last resort."""
    top = sorted(name for name in names if "/" not in name)
    weights = [name for name in top if name.endswith(".safetensors")]
    weights = weights or [name for name in top if re.fullmatch(r"pytorch_model.*\.bin", name)]
    if not weights:
        raise BadRequest(f"model {model}: holds no weights (*.safetensors); give a folder that save_pretrained() wrote")
    return sorted({*weights, *(name for name in top if name.endswith(_SUFFIXES))})


def digest(model: str, folder: Path) -> str:
    """128-bit hex digest of the files of a checkpoint: their names, sizes and contents."""
    files = [folder / name for name in wanted(model, (path.name for path in folder.iterdir() if path.is_file()))]
    return _digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def combine(parts: Iterable[tuple[str, int, str]]) -> str:
    """128-bit hex digest of (name, size in bytes, digest or etag) of each file."""
    text = json.dumps(sorted(parts), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"clipmill-model").hexdigest()


def read_json(model: str, path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of a checkpoint; None where there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadRequest(f"model {model}: {path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"model {model}: {path.name} is not a JSON object")
    return value


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Reads every file; size and mtime are there so that a file is read once, not to go into the digest."""
    return combine((path.name, size, _contents(path)) for path, size, _ in files)


def _contents(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _local_folder(model: str) -> Path | None:
    """The folder that `model` names, None where it names something else; BadRequest where it can only be a folder."""
    if model.startswith(EMBEDDED):
        name = model.removeprefix(EMBEDDED)
        folder = Path(__file__).parent / "embedded" / name
        if not re.fullmatch(r"\w+", name) or not (folder / "config.json").is_file():
            raise BadRequest(f"model {model}: no such embedded model (there are {', '.join(_embedded())})")
        return folder
    path = Path(local_path(model)) if model.startswith("file://") else Path(model).expanduser()
    if path.is_dir():
        return path
    if model.startswith(("/", "./", "../", "~", "file://")):
        base, revision = split_revision(model)
        if revision is not None and Path(base).expanduser().is_dir():
            _refuse_revision(model, revision)
        raise BadRequest(f"model {model}: no such folder")
    return None


def _embedded() -> list[str]:
    return sorted(path.parent.name for path in (Path(__file__).parent / "embedded").glob("*/config.json"))


def _refuse_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise BadRequest(f"model {model}: only hub ids take @revision")
