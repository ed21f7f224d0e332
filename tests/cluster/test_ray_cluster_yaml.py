"""The cluster file for `ray up`, by Ray's own schema."""

from pathlib import Path

import yaml

CLUSTER_FILE = Path(__file__).parents[2] / "ray_cluster.yaml"


def test_ray_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(CLUSTER_FILE.read_text())))


def test_the_head_runs_no_work_and_a_gpu_group_can_hold_an_actor_of_the_models() -> None:
    from cluster.attach import ClusterSize
    from cluster.sizing import size
    from schemas.config import ResourcesConfig

    groups = yaml.safe_load(CLUSTER_FILE.read_text())["available_node_types"]
    assert groups["head"]["resources"]["CPU"] == 0
    gpu_node = groups["models"]["resources"]
    sizing = size(ResourcesConfig(), ClusterSize(cpus=gpu_node["CPU"], gpus=gpu_node["GPU"], nodes=1))
    assert sizing.device == "cuda"
    assert sizing.actor_gpus <= gpu_node["GPU"]
    assert sizing.actor_cpus <= gpu_node["CPU"]
