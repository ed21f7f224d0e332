"""A job's configuration from its four sources: preset < YAML file < --set < --input and --output.

Every mistake is one BadRequest that names the key as it was typed; pydantic's own errors never get out.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from schemas.config import JobConfig, ModelConfig, Part
from schemas.errors import BadRequest
from schemas.tables import CLIPS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PRESETS = ("embedded", "standard")
MODEL_STAGES = ("classify", "embed", "caption")
DEFAULT_NAMES = {"classify": "label", "embed": "embedding", "caption": "caption"}
NO_MODELS = (
    "no models are chosen: say --preset embedded or --preset standard, or configure classify, embed or caption; there is no "
    "default because the embedded models know only rendered shapes and their words on real footage are noise"
)
EMBEDDED_NOTE = "embedded models know only rendered shapes: their labels and captions of real footage are noise"

Keys = tuple[str | int, ...]


def load(
    *,
    preset: str | None = None,
    config_path: Path | None = None,
    sets: Sequence[str] = (),
    input_uri: str | None = None,
    output: str | None = None,
    allow: Sequence[str] = (),
) -> JobConfig:
    """The whole configuration, checked. Raises BadRequest naming the key, file, preset or option that is wrong.

    What was given is never quoted where it is text: it may be a password in the wrong place.
    """
    file = _read_yaml(config_path) if config_path else {}
    chosen = preset or file.pop("preset", None)
    raw = _merged(_preset(chosen) if chosen is not None else {}, file)
    typed: dict[Keys, str] = {}
    for text in sets:
        _assign(raw, text, typed)
    if input_uri is not None:
        _section(raw, "input")["uri"] = input_uri
    if output is not None:
        raw["output"] = output
    if allow:
        _section(raw, "input")["allow"] = list(allow)
    _complete(raw, chosen)
    config = _checked({**raw, "preset": chosen}, typed)
    entry_names(config)
    return config


def entry_names(config: JobConfig) -> dict[tuple[str, int], str]:
    """(stage, index) -> column in `annotations`. Raises BadRequest where a name is taken twice or is a column of clips."""
    taken: dict[str, str] = dict.fromkeys((*CLIPS.schema.names, *CLIPS.partitions), "a column of clips")
    names: dict[tuple[str, int], str] = {}
    stages: list[tuple[str, Sequence[ModelConfig]]] = [(stage, getattr(config, stage)) for stage in MODEL_STAGES]
    places = [(stage, index, entry) for stage, entries in stages for index, entry in enumerate(entries)]
    for stage, index, entry in sorted(places, key=lambda place: place[2].name is None):
        name = entry.name or _free_name(DEFAULT_NAMES[stage], stage, taken)
        key = f"{stage}.{index}.name"
        for column in columns_of(stage, name):
            if column in taken:
                raise BadRequest(f"{key}: {column} is already {taken[column]}; give this entry another name")
            taken[column] = f"the column of {key.removesuffix('.name')}"
        names[stage, index] = name
    return {(stage, index): names[stage, index] for stage, index, _ in places}


def columns_of(stage: str, name: str) -> tuple[str, ...]:
    """The columns of `annotations` that an entry fills."""
    return (name, f"{name}_score") if stage == "classify" else (name,)


def _free_name(base: str, stage: str, taken: Mapping[str, str]) -> str:
    number = 1
    while any(column in taken for column in columns_of(stage, base if number == 1 else f"{base}_{number}")):
        number += 1
    return base if number == 1 else f"{base}_{number}"


# --- the sources ---


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise BadRequest(f"--config {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"--config {path}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        problem = re.sub(r"'[^']{2,}'", "…", str(getattr(error, "problem", None) or error))
        raise BadRequest(f"--config {path}:{where} {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadRequest(f"--config {path}: should be a mapping of keys{_not(content)}")
    if isinstance(content.get("input"), str):
        content["input"] = {"uri": content["input"]}
    return content


def _preset(name: Any) -> dict[str, Any]:
    if name not in PRESETS:
        raise BadRequest(f"--preset {name}: no such preset; there are {' and '.join(PRESETS)}{_did_you_mean(name, PRESETS)}")
    content: dict[str, Any] = yaml.safe_load(files("pipeline").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8"))
    return content


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; anything else replaces, so a file's model stage replaces the preset's, which is a list."""
    out = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if nested else value
    return out


def _complete(raw: dict[str, Any], preset: str | None) -> None:
    if not raw.get("output"):
        raise BadRequest("--output is missing: say where the tables go")
    if not isinstance(raw.get("input"), dict) or not raw["input"].get("uri"):
        raise BadRequest("--input is missing: say where the videos are")
    if "allow" in raw["input"] and not raw["input"]["allow"]:
        raise BadRequest("input.allow: names no root; leave it out where videos may lie anywhere")
    if preset is None and not any(stage in raw for stage in MODEL_STAGES):
        raise BadRequest(NO_MODELS)
    for key in [key for key, value in raw.items() if value is None]:
        del raw[key]


# --- --set a.b=c ---


def _assign(raw: dict[str, Any], text: str, typed: dict[Keys, str]) -> None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise BadRequest("--set: should look like clips.max_s=8")
    part: type[Part] = JobConfig
    place: Any = raw
    keys: Keys = ()
    segments = key.split(".")
    while segments:
        name = segments.pop(0)
        kind = _kind(part, name, key)
        keys += (name,)
        if isinstance(kind, tuple) and segments:
            entries = _entries(place, name, key)
            index = _index(entries, segments, name, key)
            place, part, keys = entries[index], kind[0], (*keys, index)
        elif segments:
            if not isinstance(kind, type):
                raise BadRequest(f"{key}: no such key; {'.'.join(str(k) for k in keys)} has nothing below it")
            place, part = _section(place, name), kind
        else:
            place[name] = _value(part, name, value, key)
    typed[keys] = key


def _kind(part: type[Part], name: str, key: str) -> type[Part] | tuple[type[Part]] | None:
    """What `name` is in `part`: a part, (a part,) for a list of them, or None for a plain value."""
    if part is JobConfig and name == "preset":
        raise BadRequest(f"{key}: say --preset NAME instead of --set")
    if name not in part.model_fields:
        raise BadRequest(_no_such_key(key, name, part))
    annotation = part.model_fields[name].annotation
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, Part)]
    if not kinds:
        return None
    return kinds[0] if kinds[0] is annotation else (kinds[0],)


def _section(place: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(place.get(name), dict):
        place[name] = {}
    section: dict[str, Any] = place[name]
    return section


def _entries(place: dict[str, Any], stage: str, key: str) -> list[Any]:
    value = place.get(stage)
    entries = [] if value is None else [value] if isinstance(value, dict) else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadRequest(f"{key}: {stage} should be an entry or a list of entries{_not(value)}")
    place[stage] = entries
    return entries


def _index(entries: list[Any], segments: list[str], stage: str, key: str) -> int:
    """Takes `0` or an entry's name off `segments` where it is there; the entry it means, made where it is the next one."""
    first = segments[0]
    named = [index for index, entry in enumerate(entries) if entry.get("name") == first]
    if named and len(segments) > 1:
        segments.pop(0)
        return named[0]
    if first.isdecimal() and len(segments) > 1:
        segments.pop(0)
        index = int(first)
        if index > len(entries):
            raise BadRequest(f"{key}: {stage} has {len(entries)} entries, so the next one is {stage}.{len(entries)}")
    elif len(entries) > 1:
        ways = " or ".join(f"{stage}.{index}.{segments[0]}" for index in range(len(entries)))
        raise BadRequest(f"{key}: {stage} has {len(entries)} entries; say {ways}")
    else:
        index = 0
    if index == len(entries):
        entries.append({})
    return index


def _value(part: type[Part], name: str, text: str, key: str) -> Any:
    """YAML, but for a text key the text itself, so that `caption.prompt=What: a day?` is no mapping."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        value = error
    wants_text = part.model_fields[name].annotation in (str, str | None)
    if wants_text and not isinstance(value, str) and (value is not None or not text.strip()):
        return text
    if isinstance(value, yaml.YAMLError):
        raise BadRequest(f"{key}: is not a YAML value") from value
    return value


# --- what pydantic finds, in our words ---


def _checked(raw: dict[str, Any], typed: Mapping[Keys, str]) -> JobConfig:
    from pydantic import ValidationError

    try:
        return JobConfig.model_validate(raw)
    except ValidationError as error:
        found = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        message = _message(found[0], raw, typed)
    raise BadRequest(message + more)


def _message(found: ErrorDetails, raw: Mapping[str, Any], typed: Mapping[Keys, str]) -> str:
    keys = tuple(found["loc"])
    key = typed.get(keys) or _as_in_file(keys, raw)
    if found["type"] == "extra_forbidden":
        return _no_such_key(key, str(keys[-1]), _part_at(keys[:-1]))
    if found["type"] == "missing":
        return f"{key}: is missing"
    words = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if found["type"] in ("model_type", "dict_type", "model_attributes_type"):
        words = "should be a mapping of keys"
    if found["type"] == "tuple_type" and keys[0] in MODEL_STAGES and len(keys) == 1:
        words = "should be an entry or a list of entries"
    if found["type"].endswith("_parsing"):
        words = words.partition(",")[0]
    if found["type"] == "string_type" and isinstance(found["input"], bool | int | float):
        words += " (put it in quotes)"
    return f"{key}: {words}{_not(found['input'])}" if keys else words


def _as_in_file(keys: Keys, raw: Mapping[str, Any]) -> str:
    """Dotted, without the index where the stage is written as a single mapping."""
    if len(keys) > 1 and keys[1] == 0 and isinstance(raw.get(str(keys[0])), dict):
        keys = (keys[0], *keys[2:])
    return ".".join(str(key) for key in keys)


def _part_at(keys: Keys) -> type[Part]:
    part: type[Part] = JobConfig
    for name in (key for key in keys if isinstance(key, str)):
        kind = _kind(part, name, ".".join(str(key) for key in keys))
        part = kind[0] if isinstance(kind, tuple) else kind or part
    return part


def _no_such_key(key: str, name: str, part: type[Part]) -> str:
    known = [field for field in part.model_fields if not (part is JobConfig and field == "preset")]
    return f"{key}: no such key{_did_you_mean(name, known) or '; there are ' + ', '.join(known)}"


def _did_you_mean(name: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _not(value: Any) -> str:
    return f", not {json.dumps(value)}" if value is None or isinstance(value, bool | int | float) else ""
