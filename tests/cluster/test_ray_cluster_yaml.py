"""The cluster file for `ray up`: by Ray's own schema and commands, and on a simulated AWS that checks rights."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.attach import IDLE_WORKER_MS
from cluster.machines import ClusterSize, Machine
from cluster.sizing import expected, size
from schemas.config import ResourcesConfig
from tests.cluster.asked import Node, does_not_fit, standard_config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "ray_cluster.yaml"
POLICIES = ROOT / "cluster" / "aws"
WORKERS = ("decode", "models")
TAGS = {"ray-node-kind": "worker", "ray-launch-config": "x", "ray-node-status": "uninitialized"}


def read() -> dict[str, Any]:
    found = yaml.safe_load(FILE.read_text())
    assert isinstance(found, dict)
    return found


def prepared() -> dict[str, Any]:
    """As Ray fills it in."""
    from ray.autoscaler._private.util import prepare_config

    found = prepare_config(read())
    assert isinstance(found, dict)
    return found


# --- the file ---


def test_ray_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared())


def test_ray_knows_every_key() -> None:
    """Ray's schema lets unknown keys of a machine type pass."""
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert set(read()) <= set(schema["properties"])
    known = schema["properties"]["available_node_types"]["patternProperties"][".*"]["properties"]
    for group in read()["available_node_types"].values():
        assert set(group) <= set(known)


def test_what_a_user_changes_stands_above_the_line_and_nothing_is_left_unused() -> None:
    above, line, below = FILE.read_text().partition(f"# {'-' * 124}\n")
    assert line
    names = re.findall(r"&(\w+)", above.partition("\ncluster_name")[2])
    assert names
    assert sorted(set(re.findall(r"\*(\w+)", below))) == sorted(names)
    assert not re.findall(r"(?m)^ +(?:InstanceType|ImageId|IamInstanceProfile|resources|m\w+_workers): [^*{]", below)


def test_the_head_runs_no_work() -> None:
    config = prepared()
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_every_step_of_the_standard_preset_fits_the_gpu_machines_alone() -> None:
    """What `cluster.wait --gpus` waits for; machines that decode come when there is something to decode."""
    groups = prepared()["available_node_types"]
    nodes = {name: Node(groups[name]["resources"]["CPU"], groups[name]["resources"].get("GPU", 0), 1e15) for name in WORKERS}
    fewest = [nodes["models"]] * groups["models"]["max_workers"]
    assert does_not_fit(standard_config(), fewest, list(nodes.values())) == []
    assert sum(groups[name]["max_workers"] for name in WORKERS) <= prepared()["max_workers"]


def test_an_idle_cluster_is_its_head() -> None:
    config = prepared()
    assert [config["available_node_types"][name]["min_workers"] for name in WORKERS] == [0, 0]
    assert 0 < config["idle_timeout_minutes"] <= 15


def test_the_page_tells_a_run_which_machines_may_come() -> None:
    """The configuration on docs/cluster.md, with the head alone."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), flags=re.DOTALL)
    resources = ResourcesConfig.model_validate(yaml.safe_load(block)["resources"])
    groups = prepared()["available_node_types"]
    told = [({"CPU": one.cpus} | ({"GPU": one.gpus} if one.gpus else {}), one.most) for one in resources.machines]
    assert told == [(groups[name]["resources"], groups[name]["max_workers"]) for name in WORKERS]
    sizing = size(resources, expected(ClusterSize.of([Machine(0)]), resources))
    assert (sizing.device, sizing.actors_max) == ("cuda", groups["models"]["max_workers"])


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_takes_the_options(commands: str) -> None:
    from ray.scripts.scripts import start

    (line,) = [command for command in read()[commands] if "ray start" in command]
    assert "RAY_AUTH_MODE=token" in line  # and the token in ~/.ray: no port is open to strangers
    is_worker = commands == "worker_start_ray_commands"
    assert (f"RAY_idle_worker_killing_time_threshold_ms={IDLE_WORKER_MS}" in line) == is_worker
    words = shlex.split(line.partition("ray start")[2].replace("$RAY_HEAD_IP", "10.0.0.1"))
    given = start.make_context("start", words).params
    assert given["disable_usage_stats"]
    assert given["head"] == (commands == "head_start_ray_commands")
    if given["head"]:
        assert (given["num_cpus"], given["dashboard_host"]) == (0, "127.0.0.1")
        assert given["autoscaling_config"].endswith("ray_bootstrap_config.yaml")
    else:
        assert given["address"].endswith(":6379")


def test_machines_get_the_python_and_the_extra_that_this_project_has() -> None:
    install = " ".join(read()["setup_commands"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "[cluster]" in install
    assert "boto3" in install.split()  # Ray's way to AWS, which no extra brings
    assert "cluster" in project["optional-dependencies"]
    (python,) = re.findall(r"--python (\d\.\d+)", install)
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    assert re.search(r"-c ~/clipmill/dist/constraints.txt", install)
    assert read()["file_mounts"] == {"~/clipmill/dist": "dist", "~/.ray/auth_token": "~/.ray/auth_token"}
    assert f"ray=={version('ray')}" in (ROOT / "constraints.txt").read_text().splitlines()


# --- on AWS, simulated ---


@dataclass
class Aws:
    """A simulated AWS with the roles of docs/cluster.md: the file as Ray completes it there, and keys of the roles."""

    config: dict[str, Any]
    keys: dict[str, dict[str, str]]

    def provider(self, role: str | None = None) -> Any:
        """What Ray starts machines with, with the rights of a role or with all."""
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        credentials = {"aws_credentials": self.keys[role]} if role else {}
        return AWSNodeProvider({**self.config["provider"], **credentials}, self.config["cluster_name"])

    def launch(self, group: str, role: str | None = None) -> list[str]:
        """Starts a machine of a group; its id."""
        provider, node = self.provider(role), self.config["available_node_types"][group]["node_config"]
        return list(provider.create_node(node, {**TAGS, "ray-user-node-type": group}, 1))

    def machine(self, name: str) -> Any:
        """How a machine came out."""
        return self.provider().ec2.Instance(name)


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    from moto import mock_aws

    with mock_aws(), pytest.MonkeyPatch.context() as environment:  # in this order the variables come back as they were
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            environment.delenv(name, raising=False)
        for name, value in {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }.items():
            environment.setenv(name, value)
        environment.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray puts its SSH key there
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        keys = {name: _role(name, policies) for name, policies in {"head": ("head", "worker"), "worker": ("worker",)}.items()}
        yield Aws(AWSNodeProvider.bootstrap_config(prepared()), keys)


def _role(name: str, policies: tuple[str, ...]) -> dict[str, str]:
    """Makes a role and its profile as docs/cluster.md does; keys that have its rights."""
    import boto3

    iam, role = boto3.client("iam"), f"clipmill-{name}"
    made = iam.create_role(RoleName=role, AssumeRolePolicyDocument=(POLICIES / "trust.json").read_text())["Role"]
    for policy in policies:
        text = (POLICIES / f"{policy}.json").read_text()
        text = text.replace("ARCHIVE", "my-archive").replace("TABLES", "my-tables")
        iam.put_role_policy(RoleName=role, PolicyName=policy, PolicyDocument=text)
    iam.create_instance_profile(InstanceProfileName=role)
    iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    found = boto3.client("sts").assume_role(RoleArn=made["Arn"], RoleSessionName="test")["Credentials"]
    names = {
        "AccessKeyId": "aws_access_key_id",
        "SecretAccessKey": "aws_secret_access_key",
        "SessionToken": "aws_session_token",
    }
    return {to: found[name] for name, to in names.items()}


def test_machines_have_the_cpus_gpus_and_memory_that_ray_is_told(aws: Aws) -> None:
    groups = aws.config["available_node_types"]
    names = {group: groups[group]["node_config"]["InstanceType"] for group in WORKERS}
    found = aws.provider().ec2.meta.client.describe_instance_types(InstanceTypes=list(names.values()))["InstanceTypes"]
    types = {entry["InstanceType"]: entry for entry in found}
    nodes = []
    for group, name in names.items():
        gpus = sum(gpu["Count"] for gpu in types[name].get("GpuInfo", {}).get("Gpus", ()))
        nodes.append(Node(types[name]["VCpuInfo"]["DefaultVCpus"], gpus, types[name]["MemoryInfo"]["SizeInMiB"] * 2**20))
        assert groups[group]["resources"] == {"CPU": nodes[-1].cpus} | ({"GPU": gpus} if gpus else {})
    assert does_not_fit(standard_config(), nodes, nodes) == []


def test_ray_starts_a_machine_of_every_group_with_its_profile_and_only_decode_on_spot(aws: Aws) -> None:
    for group, profile, lifecycle in (("head", "head", None), ("decode", "worker", "spot"), ("models", "worker", None)):
        (name,) = aws.launch(group)
        machine = aws.machine(name)
        assert machine.iam_instance_profile["Arn"].endswith(f":instance-profile/clipmill-{profile}")
        assert machine.instance_lifecycle == lifecycle
        assert machine.instance_type == aws.config["available_node_types"][group]["node_config"]["InstanceType"]
        aws.provider().terminate_node(name)
        assert aws.machine(name).state["Name"] in ("shutting-down", "terminated")  # not stopped: disks cost, too


def test_the_head_may_do_what_the_autoscaler_does_and_a_worker_may_not(aws: Aws) -> None:
    from moto.core import set_initial_no_auth_action_count
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    @set_initial_no_auth_action_count(0)
    def checked() -> None:
        for group in WORKERS:
            (name,) = aws.launch(group, "head")
            provider = aws.provider("head")
            assert name in provider.non_terminated_nodes({})
            provider.set_node_tags(name, {"ray-node-status": "up-to-date"})
            provider.terminate_node(name)
        with pytest.raises(NodeLaunchException, match="AccessDenied"):
            aws.launch("decode", "worker")

    checked()


def test_a_worker_reads_the_archive_writes_the_tables_and_nothing_else(aws: Aws) -> None:
    import boto3
    from botocore.exceptions import ClientError
    from moto.core import set_initial_no_auth_action_count

    for bucket in ("my-archive", "my-tables", "else"):
        boto3.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        boto3.client("s3").put_object(Bucket=bucket, Key="a", Body=b"x")

    @set_initial_no_auth_action_count(0)
    def checked() -> None:
        s3 = boto3.client("s3", **aws.keys["worker"])
        for bucket in ("my-archive", "my-tables"):
            assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
            assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"x"
        s3.put_object(Bucket="my-tables", Key="b", Body=b"y", IfNoneMatch="*")
        upload = s3.create_multipart_upload(Bucket="my-tables", Key="c")["UploadId"]
        s3.abort_multipart_upload(Bucket="my-tables", Key="c", UploadId=upload)
        s3.delete_object(Bucket="my-tables", Key="b")
        for refused in (
            lambda: s3.put_object(Bucket="my-archive", Key="b", Body=b"y"),
            lambda: s3.delete_object(Bucket="my-archive", Key="a"),
            lambda: s3.get_object(Bucket="else", Key="a"),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                refused()

    checked()
