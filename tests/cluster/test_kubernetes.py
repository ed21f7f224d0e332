"""The manifests for KubeRay: by its own definitions, against each other, and against what a run asks for."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import crds
from tests.cluster.asked import Node, does_not_fit, standard_config
from tests.cluster.dockerfile import Dockerfile

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kubernetes"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

Manifest = dict[str, Any]
needs_crds = pytest.mark.skipif(
    not crds.FOLDER.is_dir(), reason=f"no KubeRay definitions in {crds.FOLDER}; $CLIPMILL_KUBERAY_CRDS says where they are"
)


def manifest(name: str) -> Manifest:
    found = yaml.safe_load((FOLDER / name).read_text())
    assert isinstance(found, dict)
    return found


def cluster_of(name: str) -> Manifest:
    """The description of the cluster in one of the three files that have one."""
    spec = manifest(name)["spec"]
    found = {"raycluster.yaml": lambda: spec, "rayjob.yaml": lambda: spec["rayClusterSpec"]}
    return found.get(name, lambda: spec["jobTemplate"]["rayClusterSpec"])()


CLUSTER = cluster_of("raycluster.yaml")
GROUPS = {"head": CLUSTER["headGroupSpec"]} | {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}


def container(group: str) -> Manifest:
    (found,) = GROUPS[group]["template"]["spec"]["containers"]
    return found


def amount(text: str) -> float:
    """A quantity of Kubernetes as a number: CPUs, bytes."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    assert found, text
    return float(found[1]) * (UNITS[found[2]] if found[2] else 1.0)


def node(group: str) -> Node:
    """What one pod of a group has, as Ray counts it: KubeRay hands the limits on, unless the start parameters say otherwise."""
    limits = container(group)["resources"]["limits"]
    cpus = GROUPS[group]["rayStartParams"].get("num-cpus", limits["cpu"])
    return Node(amount(cpus), amount(limits.get("nvidia.com/gpu", "0")), amount(limits["memory"]))


# --- by the definitions ---


@needs_crds
@pytest.mark.parametrize("name", FILES)
def test_kuberay_would_take_it_as_it_is_written(name: str) -> None:
    assert crds.problems(manifest(name)) == []


def renamed(*keys: str | int) -> Callable[[Manifest], None]:
    """Misspells the last of the keys."""

    def change(job: Manifest) -> None:
        place: Any = job
        for key in keys[:-1]:
            place = place[key]
        place[f"{keys[-1]}x"] = place.pop(keys[-1])

    return change


def put(value: Any, *keys: str | int) -> Callable[[Manifest], None]:
    """Puts something in the place of what is there."""

    def change(job: Manifest) -> None:
        place: Any = job
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


HEAD = ("spec", "rayClusterSpec", "headGroupSpec")
POD = (*HEAD, "template", "spec")
RAY_HEAD = (*POD, "containers", 0)


@needs_crds
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed("spec", "entrypoint"), "'entrypointx' was unexpected"),
        (renamed("spec", "rayClusterSpec", "workerGroupSpecs"), "'workerGroupSpecsx' was unexpected"),
        (renamed("spec", "rayClusterSpec", "workerGroupSpecs", 0, "groupName"), "'groupName' is a required property"),
        (renamed(*HEAD, "template"), "'template' is a required property"),
        (renamed(*POD, "serviceAccountName"), "'serviceAccountNamex' was unexpected"),
        (renamed(*POD, "securityContext", "runAsNonRoot"), "'runAsNonRootx' was unexpected"),
        (renamed(*RAY_HEAD, "name"), "'name' is a required property"),
        (renamed(*RAY_HEAD, "resources", "limits"), "'limitsx' was unexpected"),
        (renamed(*RAY_HEAD, "volumeMounts", 0, "mountPath"), "'mountPath' is a required property"),
        (renamed("metadata", "annotations"), "'annotationsx' was unexpected"),
        (put("much", *RAY_HEAD, "resources", "limits", "memory"), "does not match"),
        (put(0, *HEAD, "rayStartParams", "num-cpus"), "0 is not of type 'string'"),
        (put("1", "spec", "backoffLimit"), "'1' is not of type 'integer'"),
        (put(2**31, "spec", "ttlSecondsAfterFinished"), "is greater than the maximum"),
        (put("often", "spec", "rayClusterSpec", "autoscalerOptions", "version"), "'often' is not one of"),
        (put("kueue", "spec", "managedBy"), "should not be valid"),
        (put("Clip_mill", "metadata", "name"), "does not match"),
        (put({}, "status"), "'status' was unexpected"),
    ],
)
def test_what_the_api_server_refuses_or_drops_is_found(change: Callable[[Manifest], None], said: str) -> None:
    job = copy.deepcopy(manifest("rayjob.yaml"))
    change(job)
    assert any(said in problem for problem in crds.problems(job)), crds.problems(job)


@needs_crds
def test_two_containers_of_one_name_are_found() -> None:
    job = copy.deepcopy(manifest("rayjob.yaml"))
    containers = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    containers.append(copy.deepcopy(containers[0]))
    assert any("('ray-head',) is there twice" in problem for problem in crds.problems(job))


@needs_crds
@pytest.mark.parametrize(("kind", "version"), [("RayJob", "ray.io/v2"), ("RayJobs", "ray.io/v1"), ("Pod", "v1")])
def test_a_kind_that_nobody_defines_is_found(kind: str, version: str) -> None:
    with pytest.raises(LookupError):
        crds.problems({**manifest("rayjob.yaml"), "kind": kind, "apiVersion": version})


# --- against each other ---


def test_the_three_files_describe_one_cluster() -> None:
    assert cluster_of("rayjob.yaml") == CLUSTER
    assert cluster_of("raycronjob.yaml") == CLUSTER


def test_a_run_of_a_night_is_that_of_the_job_with_other_hours() -> None:
    job, night = manifest("rayjob.yaml")["spec"], manifest("raycronjob.yaml")["spec"]["jobTemplate"]
    assert {key for key in job | night if job.get(key) != night.get(key)} == {"entrypoint", "activeDeadlineSeconds"}
    assert night["entrypoint"].startswith(job["entrypoint"])


@pytest.mark.parametrize("group", GROUPS)
def test_what_a_pod_refers_to_is_there(group: str) -> None:
    pod = GROUPS[group]["template"]["spec"]
    named = {(found["kind"], found["metadata"]["name"]) for found in map(manifest, FILES)}
    assert ("ServiceAccount", pod["serviceAccountName"]) in named
    assert {mount["name"] for mount in container(group)["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for volume in pod["volumes"]:
        assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in named


@pytest.mark.parametrize("group", GROUPS)
def test_no_pod_is_root_or_takes_more_than_it_asks_for(group: str) -> None:
    pod, found = GROUPS[group]["template"]["spec"], container(group)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert found["resources"]["requests"] == found["resources"]["limits"]


# --- against the images ---


@pytest.mark.parametrize("group", GROUPS)
def test_pods_are_the_user_of_the_image_and_find_the_weights_where_it_looks_for_them(group: str) -> None:
    image = container(group)["image"]
    dockerfile = Dockerfile.read(ROOT / "cluster" / "Dockerfile")
    target = image.rpartition("-")[2]
    user, home = dockerfile.last(target, "USER"), dockerfile.last(target, "WORKDIR")
    assert user is not None
    assert home is not None
    security = GROUPS[group]["template"]["spec"]["securityContext"]
    assert user.text == f"{security['runAsUser']}:{security['fsGroup']}"
    # both caches are below ~/.cache: the hub's, and the one for weights from folders behind URLs
    assert [mount["mountPath"] for mount in container(group)["volumeMounts"]] == [f"{home.text}/.cache"]
    assert target == ("cuda" if group == "models" else "cpu")


def test_versions_are_those_of_this_tree() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert CLUSTER["rayVersion"] == pins["ray"]
    for group in GROUPS:
        assert re.search(rf":{re.escape(version)}-(cpu|cuda)$", container(group)["image"])


def test_the_files_are_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cluster"]
    paths = [path for folder in ("kubernetes", "aws") for path in (ROOT / "cluster" / folder).iterdir()]
    assert paths
    assert [path for path in paths if not any(fnmatch(str(path.relative_to(ROOT / "cluster")), p) for p in patterns)] == []


# --- against a run ---


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycronjob.yaml"])
def test_the_command_is_one_that_the_program_takes(name: str) -> None:
    from typer.main import get_command

    from pipeline import settings
    from pipeline.cli import app

    spec = manifest(name)["spec"]
    words = shlex.split(spec.get("entrypoint") or spec["jobTemplate"]["entrypoint"])
    assert words[:2] == ["clipmill", "run"]
    run = get_command(app).commands["run"]  # type: ignore[attr-defined]
    asked = run.make_context("run", words[2:]).params
    assert asked["address"] == "auto"
    config = settings.load(preset=asked["preset"], sets=asked["sets"], input_uri=asked["input"], output=asked["output"])
    assert config.resources.device == "cuda"


def test_the_head_does_no_work() -> None:
    assert node("head").cpus == 0
    assert node("head").gpus == 0


def test_every_step_of_the_standard_preset_fits_the_fewest_pods() -> None:
    workers = [group for group in GROUPS if group != "head"]
    for group in workers:
        assert GROUPS[group]["minReplicas"] == GROUPS[group]["replicas"] <= GROUPS[group]["maxReplicas"]
    nodes = [node(group) for group in workers for _ in range(GROUPS[group]["minReplicas"])]
    assert does_not_fit(standard_config(), nodes, [node(group) for group in workers]) == []


def test_the_group_with_gpus_has_one_size() -> None:
    """A run counts GPUs once, when it starts."""
    sizes = {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in CLUSTER["workerGroupSpecs"]}
    assert len(set(sizes["models"])) == 1
    assert sizes["decode"][0] >= 1
