"""Names that never change: ids of videos and clips, fingerprints of configurations, slugs of models."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ALPHABET = _LETTERS + "234567"
FINGERPRINT = re.compile(r"[a-z][a-z2-7]{7}")
SLUG = re.compile(r"[a-z][a-z0-9._-]*")
VIDEO_ID = re.compile(r"[0-9a-f]{32}")


def video_id(name: str, size_bytes: int | None, version: str | None) -> str:
    """128-bit hex digest of what a source is called and which version of it this is.

    `name` is the uri, or a manifest's own id; `version` is the store's etag, or the mtime in ns as text. Every part goes
    in with its length, so that no two triples share one input.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"clipmill-video")
    for part in (name, "" if size_bytes is None else str(size_bytes), version or ""):
        raw = part.encode("utf-8", "surrogateescape")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def clip_id(video: str, clips_fingerprint: str, start_s: float) -> str:
    """`<video_id>-<clips fingerprint>-<start in ms, 9 digits>`; a clip is at least a millisecond long, so ids differ."""
    return f"{video}-{clips_fingerprint}-{max(0, round(start_s * 1000)):09d}"


def unit_id(video: str, unit: int) -> str:
    """Name of unit number `unit` (from 0) of a video; parts of it are called after it."""
    return f"{video}-{unit:04d}"


def fingerprint(payload: Mapping[str, Any]) -> str:
    """Eight characters, a letter first, of the canonical JSON of `payload` (40 bits: collisions need a million versions)."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"clipmill-config").digest(), "big")
    number, first = divmod(number, len(_LETTERS))
    rest = []
    for _ in range(7):
        number, digit = divmod(number, len(_ALPHABET))
        rest.append(_ALPHABET[digit])
    return _LETTERS[first] + "".join(rest)


def split_revision(model: str) -> tuple[str, str | None]:
    """`model@revision` in its two halves; an `@` inside a URL's host part (`s3://user@host/...`) is not a revision."""
    base, at, revision = model.rpartition("@")
    if not at or "/" in revision or not base:
        return model, None
    return base, revision


def model_slug(model: str) -> str:
    """A model's name in a path, `[a-z][a-z0-9._-]*`: a hub id keeps its owner, a folder or URL only its last part."""
    base, _ = split_revision(model)
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not base.startswith(".")
    name = base.replace("/", "--") if is_hub_id else base.rstrip("/").rpartition("/")[2]
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-")
    return slug if SLUG.fullmatch(slug) else f"m-{slug or 'model'}"
