"""From what a cluster has to what steps ask for."""

import pytest

from cluster.attach import ClusterSize
from cluster.sizing import size, this_machine
from schemas.config import ResourcesConfig
from schemas.errors import BadRequest


def test_a_cluster_without_gpus_gets_actors_that_leave_the_cores_to_decode() -> None:
    sizing = size(ResourcesConfig(), ClusterSize(cpus=2, gpus=0, nodes=1))
    assert (sizing.device, sizing.dtype, sizing.actor_gpus) == ("cpu", "float32", 0.0)
    assert sizing.actors_max == 1
    decoders = (2 - sizing.actors_max * sizing.actor_cpus - sizing.staging_cpus) // sizing.decode_cpus
    assert decoders >= 2


def test_a_cluster_with_gpus_gets_one_actor_for_each() -> None:
    sizing = size(ResourcesConfig(), ClusterSize(cpus=64, gpus=4, nodes=4))
    assert (sizing.device, sizing.dtype) == ("cuda", "bfloat16")
    assert (sizing.actors_min, sizing.actors_max) == (4, 4)


def test_halves_of_a_gpu_make_twice_the_actors() -> None:
    sizing = size(ResourcesConfig(gpus_per_actor=0.5), ClusterSize(cpus=64, gpus=4, nodes=4))
    assert sizing.actors_max == 8


@pytest.mark.parametrize(
    ("resources", "cluster", "named"),
    [
        ({"device": "cuda"}, ClusterSize(8, 0, 1), "resources.device"),
        ({"gpus_per_actor": 2.0, "device": "cuda"}, ClusterSize(8, 1, 1), "gpus_per_actor"),
        ({"actors": 3}, ClusterSize(8, 2, 1), "resources.actors"),
        ({"decode_cpus": 4.0}, ClusterSize(2, 0, 1), "resources.decode_cpus"),
    ],
)
def test_what_can_never_be_scheduled_is_refused_by_name(resources: dict[str, object], cluster: ClusterSize, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        size(ResourcesConfig.model_validate(resources), cluster)


def test_the_device_and_dtype_can_be_set_by_hand() -> None:
    sizing = size(ResourcesConfig(device="cpu", dtype="bfloat16"), ClusterSize(cpus=8, gpus=1, nodes=1))
    assert (sizing.device, sizing.dtype, sizing.actors_max) == ("cpu", "bfloat16", 4)


def test_this_machine_is_counted_without_starting_ray() -> None:
    assert this_machine().cpus >= 1
