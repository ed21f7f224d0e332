"""What the command line asks for, read and checked: a job, an output that is there, a share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import console
from schemas.errors import BadRequest

if TYPE_CHECKING:
    from schemas.config import InputConfig, JobConfig
    from stages.storage import Store


def job(
    input: str | None,
    output: str | None,
    preset: str | None,
    config: Path | None,
    sets: list[str] | None,
    allow: list[str] | None,
) -> JobConfig:
    """The configuration, as file, preset and options make it; BadRequest, in one line, where they make none."""
    from pipeline import settings

    found = settings.load(preset=preset, config_path=config, sets=sets or (), input_uri=input, output=output, allow=allow or ())
    if any(entry.model.startswith("embedded:") for entry in (*found.classify, *found.embed, *found.caption)):
        console.note(f"note: {settings.EMBEDDED_NOTE}")
    return found


def input_config(uri: str, allow: list[str] | None) -> InputConfig:
    """Where videos are; BadRequest where `uri` lies outside `allow`."""
    from pydantic import ValidationError

    from schemas.config import InputConfig

    try:
        return InputConfig(uri=uri, allow=tuple(allow or ()))
    except ValidationError as error:
        raise BadRequest(f"--input: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def existing(output: str) -> Store:
    """The store behind OUTPUT; BadRequest where nothing was ever published."""
    from stages.filesystems import StorageUnavailable
    from stages.storage import Store

    store = Store(output)
    try:
        is_there = any(True for _ in store.list("_log", recursive=False))
    except StorageUnavailable as error:
        raise BadRequest(str(error)) from error
    if not is_there:
        raise BadRequest(f"{store.root}: holds no tables of clipmill; `clipmill run --output` makes them")
    return store


def share(text: str) -> float:
    """--max-failed, "5%" or "0.05", as a number from 0 to 1."""
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise BadRequest(f"--max-failed {text}: should be a share such as 5% or 0.05")
    return found


def check_apart(source: Store, target: Store) -> None:
    """BadRequest where one of two folders holds the other."""
    one, other = (f"{store.root.rstrip('/')}/" for store in (source, target))
    if one.startswith(other) or other.startswith(one):
        raise BadRequest(f"--to {target.root}: lies within {source.root}, or reverse; give another place")
