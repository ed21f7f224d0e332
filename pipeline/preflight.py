"""What is checked before anything starts: the input is there, the output takes writes, every model can be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.settings import MODEL_STAGES, entry_names
from schemas.config import CaptionConfig, ClassifyConfig, EmbedConfig, JobConfig
from schemas.entries import Entry
from schemas.errors import BadRequest, BadVideo
from schemas.secrets import redacted

if TYPE_CHECKING:
    from stages.models.weights import Resolved
    from stages.roots import Roots

StageConfig = ClassifyConfig | EmbedConfig | CaptionConfig
_PRESET_ADVICE = {"standard": "; --preset standard takes its models from the hub, --preset embedded needs none"}


@dataclass(frozen=True)
class Preflight:
    """A configuration that can be started: its models as they really are, and the name of its way of making clips."""

    entries: tuple[Entry, ...]
    clips_fingerprint: str


def preflight(config: JobConfig, *, writes: bool = True) -> Preflight:
    """Checks input, output and models; nothing is written (a probe of the output is removed again) and no weights are loaded.

    Raises BadRequest, one line that names the URI or the key. `writes=False` leaves out whether the output takes writes.
    """
    from stages.discover import Discovery
    from stages.storage import Store

    Discovery(config.input)  # looks whether it is there
    store = Store(config.output)
    if writes:
        store.check_writable()
    return Preflight(resolved(config), config.clips.fingerprint())


def resolved(config: JobConfig, resolve: Callable[[str], Resolved] | None = None) -> tuple[Entry, ...]:
    """The configured models as entries, classify, embed, caption, each in the order given. Raises BadRequest naming the key.

    `resolve` stands in for stages.models.weights.resolve.
    """
    from stages.roots import Roots

    names, roots = entry_names(config), Roots.of(config.input.allow)
    found: dict[str, str] = {}
    entries: list[Entry] = []
    for stage in MODEL_STAGES:
        configs: tuple[StageConfig, ...] = getattr(config, stage)
        for index, one in enumerate(configs):
            key = stage if len(configs) == 1 else f"{stage}.{index}"
            _check_place(key, one.model, roots)
            entry = _entry(stage, key, one, names[stage, index], config, resolve)
            if entry.fingerprint in found:
                raise BadRequest(f"{key}: does the same as {found[entry.fingerprint]}; leave one of them out")
            found[entry.fingerprint] = key
            entries.append(entry)
    return tuple(entries)


def _check_place(key: str, model: str, roots: Roots) -> None:
    """BadRequest where a model's folder, or a link in it, lies outside `roots`. A run loads what has the digest found now."""
    from stages.models import weights

    try:
        for place in weights.places_of(model) if roots.uris else ():
            roots.check(place)
    except (BadRequest, BadVideo) as error:
        said = error.message if isinstance(error, BadVideo) else str(error)
        raise BadRequest(f"{key}: model {redacted(model)}: {said}") from error


def _entry(
    stage: str, key: str, config: StageConfig, name: str, job: JobConfig, resolve: Callable[[str], Resolved] | None
) -> Entry:
    from stages.models import catalogue, weights

    try:
        model = (resolve or weights.resolve)(config.model)
        catalogue.check(stage, config, model)
    except BadRequest as error:
        raise BadRequest(f"{key}: {error}{_PRESET_ADVICE.get(job.preset or '', '')}") from error
    fingerprint = config.fingerprint(job.clips.fingerprint(), model.revision)
    return Entry(stage, config, model.revision, fingerprint, name)
