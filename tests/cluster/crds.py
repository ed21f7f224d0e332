"""Kubernetes' schemas, made strict: the API server drops a field that it does not know without a word, here it is an error.

KubeRay's custom resource definitions are not part of this tree. They are looked for in $CLIPMILL_KUBERAY_CRDS and in
`../shared/kuberay`; `ray-operator/config/crd/bases` of a checkout of KubeRay (Apache-2.0) has them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Schema = dict[str, Any]

FOLDER = Path(os.environ.get("CLIPMILL_KUBERAY_CRDS") or Path(__file__).parents[3] / "shared" / "kuberay")
NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {"name": {"pattern": NAME}, "namespace": {"pattern": NAME}, "labels": TEXTS, "annotations": TEXTS},
}
SERVICE_ACCOUNT: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"automountServiceAccountToken": {"type": "boolean"}},
}
INTEGERS = {"int32": 2**31, "int64": 2**63}


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """What the API server of a cluster with KubeRay would refuse in a manifest, or drop from it; one line each."""
    schema = schema_of(str(manifest.get("kind")), str(manifest.get("apiVersion")))
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(manifest)]
    return found + [f"{path}: {key} is there twice" for path, key in _doubled(manifest, schema, "$")]


@cache
def schema_of(kind: str, version: str) -> Schema:
    """The strict schema of a kind; LookupError where there is none."""
    if (kind, version) == ("ServiceAccount", "v1"):
        return _whole(SERVICE_ACCOUNT)
    if (kind, version) == ("PersistentVolumeClaim", "v1"):
        pod = schema_of("RayCluster", "ray.io/v1")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"][
            "template"
        ]
        volume = pod["properties"]["spec"]["properties"]["volumes"]["items"]
        claim = volume["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
        return _whole({"type": "object", "additionalProperties": False, "required": ["spec"], "properties": {"spec": claim}})
    group, _, version = version.partition("/")
    path = FOLDER / f"{group}_{kind.lower()}s.yaml"
    if not path.is_file():
        raise LookupError(f"{kind}: no {path.name} in {path.parent}")
    definition = _read(path)["spec"]
    if definition["names"]["kind"] != kind:
        raise LookupError(f"{path.name} defines {definition['names']['kind']}")
    served = {found["name"]: found for found in definition["versions"] if found["served"]}
    if version not in served:
        raise LookupError(f"{kind}: {group} serves {', '.join(served)}, not {version}")
    strict = strictly(served[version]["schema"]["openAPIV3Schema"])
    return _whole({**strict, "required": [*strict.get("required", ()), "spec"]})


@cache
def _read(path: Path) -> Schema:
    """A megabyte of YAML takes its time."""
    found = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert isinstance(found, dict)
    return found


def _whole(schema: Schema) -> Schema:
    """With what every object has around its own fields."""
    properties = {**schema["properties"], "metadata": METADATA, "apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    required = [*schema.get("required", ()), "apiVersion", "kind", "metadata"]
    properties.pop("status", None)  # the controller's, not ours
    return {**schema, "properties": properties, "required": required}


def strictly(schema: Schema) -> Schema:
    """A structural schema of OpenAPI 3 as JSON Schema that knows no field but its own.

    Rules in CEL cannot be evaluated here: a field that has some is refused, so that nobody takes it for checked.
    """
    schema = copy.copy(schema)
    if rules := schema.get("x-kubernetes-validations"):
        return {"not": {}, "description": f"has rules that are not checked here: {rules}"}
    if bound := INTEGERS.get(schema.get("format", "")):
        schema = {"minimum": -bound, "maximum": bound - 1, **schema}
    if "properties" in schema:
        schema["properties"] = {name: strictly(part) for name, part in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        schema["items"] = strictly(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = strictly(schema["additionalProperties"])
    elif schema.get("type") == "object" and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    if schema.pop("nullable", False):
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


def _doubled(value: Any, schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    """Entries of a list that is a map by keys (containers by name, ports by number and protocol) and has one twice."""
    if isinstance(value, dict):
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            yield from _doubled(part, inner if isinstance(inner, dict) else {}, f"{path}.{name}")
    elif isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", ())
        taken: set[tuple[Any, ...]] = set()
        for index, entry in enumerate(value):
            inner = schema.get("items", {})
            if keys and isinstance(entry, dict):
                key = tuple(entry.get(name, inner["properties"][name].get("default")) for name in keys)
                if key in taken:
                    yield path, str(key)
                taken.add(key)
            yield from _doubled(entry, inner, f"{path}[{index}]")
