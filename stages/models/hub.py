"""Checkpoints of the Hugging Face hub. huggingface_hub keeps them in its own cache and knows about offline mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import BadRequest
from stages.models.weights import SMALL_FILES, wanted

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_S = 5.0  # how long the hub may take to say what it has


class _Unreachable(Exception):
    """The hub did not answer, or we are offline."""


def resolve(model: str, repo: str, revision: str | None) -> tuple[str, Path]:
    """Commit of `revision` (default: the main branch) and a folder with the small files.

    A pinned commit that is whole in the cache needs no network; a branch is looked up, and where the hub cannot be reached
    the cached snapshot is taken.
    """
    if revision and _COMMIT.fullmatch(revision) and (folder := _cached(model, repo, revision)):
        return revision, folder
    try:
        with _hub_errors(model):
            _, names = _look_up(repo, revision)
            wanted(model, names)
            # by the branch's name, so that the cache knows the branch when there is no network
            folder = _download(repo, revision, list(SMALL_FILES))
            return folder.name, folder
    except _Unreachable as error:
        if folder := _cached(model, repo, revision):
            return folder.name, folder
        raise _cannot_be_had(model, repo, revision) from error


def fetch(model: str, repo: str, commit: str) -> Path:
    """Folder with all files of `repo` at `commit`."""
    if folder := _cached(model, repo, commit):
        return folder
    try:
        with _hub_errors(model):
            _, names = _look_up(repo, commit)
            return _download(repo, commit, wanted(model, names))
    except _Unreachable as error:
        raise _cannot_be_had(model, repo, commit) from error


def _look_up(repo: str, revision: str | None) -> tuple[str, list[str]]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, timeout=_ANSWER_S)
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def _download(repo: str, revision: str | None, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    return Path(snapshot_download(repo, revision=revision, allow_patterns=names))


def _cached(model: str, repo: str, revision: str | None) -> Path | None:
    """The cached snapshot, if its weights and its tokenizer (where it has one) are all there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
        names = wanted(model, (path.name for path in folder.iterdir()))
    except (LocalEntryNotFoundError, BadRequest):
        return None
    return folder if _is_whole(folder, names) else None


def _is_whole(folder: Path, names: list[str]) -> bool:
    import json

    for index in (name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))):
        parts = set(json.loads((folder / index).read_bytes())["weight_map"].values())
        if any((folder / part).is_file() for part in parts) and not all((folder / part).is_file() for part in parts):
            return False
    has_words = not (folder / "tokenizer_config.json").is_file()
    return has_words or any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"))


def _cannot_be_had(model: str, repo: str, revision: str | None) -> BadRequest:
    pin = f" --revision {revision}" if revision else ""
    return BadRequest(
        f"model {model}: the hub cannot be reached and the model is not in the cache: run `hf download {repo}{pin}` where "
        "there is a network and copy the cache, or set model to a local folder"
    )


@contextmanager
def _hub_errors(model: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise BadRequest(f"model {model}: the hub asks you to accept its terms and to log in (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise BadRequest(f"model {model}: the hub has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise BadRequest(f"model {model}: the hub has no such model, or no access to it is given") from error
    except errors.HFValidationError as error:
        raise BadRequest(f"model {model}: {error}") from error
    except (errors.HTTPError, OSError) as error:  # no route, no answer, offline mode, a server's error
        raise _Unreachable from error
