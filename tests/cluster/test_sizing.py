"""From what a cluster has to what steps ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.machines import ClusterSize, Group, Machine, from_ray, multiplies_bfloat16
from cluster.sizing import Sizing, decoders, expected, kind_of, size, this_machine
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


@pytest.mark.parametrize(
    ("cpus", "gpus", "grain"), [(2, 0, 1), (128, 0, 1), (129, 0, 2), (64, 8, 1), (256, 9, 2), (2000, 32, 4), (9000, 500, 16)]
)
def test_the_larger_the_cluster_the_coarser_its_blocks_and_batches(cpus: float, gpus: float, grain: int) -> None:
    assert size(ResourcesConfig(), ClusterSize(cpus, gpus, nodes=1)).grain == grain


@pytest.mark.parametrize(("cpus", "nodes", "tasks"), [(8, 1, 8), (64 * 96, 64, 768)])
def test_tasks_that_stage_are_counted_by_the_cores_that_decode(cpus: float, nodes: int, tasks: int) -> None:
    assert size(ResourcesConfig(), ClusterSize(cpus, nodes, nodes)).staging_tasks == tasks


def test_halves_of_a_gpu_make_twice_the_actors() -> None:
    sizing = size(ResourcesConfig(gpus_per_actor=0.5), ClusterSize(cpus=64, gpus=4, nodes=4))
    assert sizing.actors_max == 8


@pytest.mark.parametrize(
    ("resources", "cluster", "named"),
    [
        ({"device": "cuda"}, ClusterSize(8, 0, 1), r"resources\.device: cuda wants 1 GPU for an actor .* and there is none"),
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


# --- machines of several kinds ---

L4, A100, CPUS = Machine(8, 1, "L4"), Machine(96, 8, "A100"), Machine(32)


def sized(*machines: Machine, groups: tuple[Group, ...] = (), **resources: Any) -> Sizing:
    return size(ResourcesConfig.model_validate(resources), ClusterSize.of(machines, groups))


def test_what_ray_says_of_its_nodes_becomes_machines() -> None:
    nodes: list[Mapping[str, Any]] = [
        {"Alive": True, "Resources": {"node:__internal_head__": 1.0, "memory": 1e9}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    assert from_ray(nodes) == (Machine(0), Machine(8, 1, "L4"), Machine(4, 2))
    found = ClusterSize.of(from_ray(nodes))
    assert (found.cpus, found.gpus, found.nodes) == (12, 3, 3)


def test_a_part_of_a_gpu_is_lent_by_one_gpu_and_a_whole_actor_by_one_machine() -> None:
    assert sized(A100, L4).actors_max == 9
    assert sized(A100, L4, gpus_per_actor=0.4).actors_max == 2 * 9  # two on each, and a fifth of each to spare
    assert sized(A100, L4, gpus_per_actor=3).actors_max == 2  # not three, with one GPU of the other machine
    assert sized(A100, Machine(2, 8, "A100"), cpus_per_actor=1).actors_max == 10  # the second has CPUs for two


def test_actors_can_insist_on_a_kind_of_gpu() -> None:
    sizing = sized(A100, L4, CPUS, accelerator_type="L4")
    assert (sizing.actors_max, sizing.accelerator_type, sizing.device) == (1, "L4", "cuda")
    assert sized(A100, L4).accelerator_type is None


@pytest.mark.parametrize(
    ("machines", "resources", "said"),
    [
        ((L4, A100), {"accelerator_type": "H100"}, r"resources\.accelerator_type: no machine has H100; GPUs are A100, L4"),
        ((CPUS,), {"accelerator_type": "L4"}, r"resources\.accelerator_type: L4 wants 1 GPU"),
        (
            (L4,),
            {"accelerator_type": "L4", "device": "cpu"},
            r"resources\.accelerator_type: L4 is a kind of GPU, and resources\.",
        ),
        ((L4, L4), {"gpus_per_actor": 2}, r"resources\.gpus_per_actor: 2 GPUs for one actor, and no machine has more than 1"),
        ((A100,), {"gpus_per_actor": 1.5}, r"resources\.gpus_per_actor: 1\.5: Ray lends a part of one GPU, or whole ones"),
        ((L4, CPUS), {"cpus_per_actor": 16}, r"resources\.cpus_per_actor: 16 CPUs for one actor, .* more than 8"),
        ((L4,), {"cpus_per_actor": 8}, r"resources\.cpus_per_actor: 1 actors with 8 CPUs each leave no machine the 0\.45 CPUs"),
        ((CPUS, CPUS), {"decode_cpus": 33}, r"resources\.decode_cpus: 33 CPUs for one decode task, and no machine .* than 32"),
        ((L4, L4), {"actors": 3}, r"resources\.actors: 3 actors want 3 GPUs, and there is room for 2"),
        ((L4, L4), {"actors": 1, "min_actors": 2}, r"resources\.min_actors: 2 actors at least, and 1 at most"),
        ((Machine(1),), {"min_actors": 12}, r"resources\.min_actors: 12 actors leave decoding nothing of 1 CPUs"),
        (
            (Machine(0),),
            {},
            r"resources\.decode_cpus: .* where an autoscaler brings machines, say which in resources\.machines",
        ),
    ],
)
def test_what_no_machine_can_take_is_refused_by_the_name_of_its_setting(
    machines: tuple[Machine, ...], resources: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        sized(*machines, **resources)


def test_a_machine_whose_cpus_actors_would_take_leaves_decoding_half_of_them() -> None:
    assert sized(Machine(8, 8)).actor_cpus == 0.5
    assert sized(Machine(1, 1)).actor_cpus == 0.5
    assert sized(A100, L4).actor_cpus == 1.0


# --- machines that may come ---


def test_a_head_alone_is_sized_for_what_may_come_and_begins_with_one_actor() -> None:
    groups = (Group(CPUS, 12), Group(L4, 2))
    sizing = sized(Machine(0), groups=groups)
    assert (sizing.device, sizing.actors_min, sizing.actors_max) == ("cuda", 1, 2)
    assert sized(Machine(0), L4, groups=groups).actors_min == 1
    assert sized(Machine(0), L4, L4, groups=groups).actors_min == 2
    assert sized(Machine(0), groups=groups[:1]).actors_max == 12 * 32 // 2
    assert sized(Machine(0), groups=groups, min_actors=2).actors_min == 2


def test_machines_that_are_there_count_as_those_of_their_group() -> None:
    cluster = ClusterSize.of([Machine(0), L4, CPUS], [Group(Machine(8, 1), 3), Group(CPUS, 1)])
    assert cluster.at_most() == {Machine(0): 1, L4: 1, Machine(8, 1): 2, CPUS: 1}


def test_what_may_come_is_refused_by_name_too() -> None:
    with pytest.raises(BadRequest, match=r"resources\.gpus_per_actor: 2 GPUs for one actor, and no machine has more than 1$"):
        sized(Machine(0), groups=(Group(L4, 2),), gpus_per_actor=2)


def test_the_configuration_says_what_may_come() -> None:
    machines = [{"cpus": 32, "most": 2}, {"cpus": 8, "gpus": 1, "accelerator_type": "L4", "most": 3}]
    resources = ResourcesConfig.model_validate({"machines": machines})
    cluster = expected(ClusterSize.of([Machine(0), CPUS]), resources)
    assert cluster.at_most() == {Machine(0): 1, CPUS: 2, L4: 3}
    assert size(resources, cluster).actors_max == 3
    told = ClusterSize.of([Machine(0)], [Group(CPUS, 1)])
    assert expected(told, ResourcesConfig()) == told


MACHINES = st.builds(Machine, st.integers(1, 64).map(float), st.integers(0, 8).map(float))


@given(st.lists(MACHINES, min_size=1, max_size=5), st.sampled_from([0.25, 0.3, 0.5, 1.0, 2.0]))
@settings(deadline=None, max_examples=200)
def test_whatever_is_not_refused_has_room_for_all_its_actors_and_a_decoder_beside_them(
    machines: list[Machine], share: float
) -> None:
    try:
        sizing = sized(*machines, gpus_per_actor=share)
    except BadRequest:
        assert share > max(machine.gpus for machine in machines)
        return
    assert 1 <= sizing.actors_min <= sizing.actors_max
    assert decoders(sizing, ClusterSize.of(machines).at_most()) >= 1
    if sizing.device == "cuda":
        held = [min(math.floor(one.cpus / sizing.actor_cpus), packed(one.gpus, share)) for one in machines]
        assert sizing.actors_max == sum(held)


def packed(gpus: float, share: float) -> int:
    """Actors one after the other, each on the first GPU that has room, as Ray does it."""
    free, actors = [1.0] * int(gpus), 0
    while len([one for one in free if one == 1.0]) >= share > 1:
        for _ in range(int(share)):
            free.remove(1.0)
        actors += 1
    while share <= 1 and (index := next((i for i, left in enumerate(free) if left >= share - 1e-9), None)) is not None:
        free[index] -= share
        actors += 1
    return actors


def test_this_machine_counts_the_gpus_that_cuda_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA L4 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA L4 (UUID: GPU-2)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for visible, gpus in ((None, 2), ("1", 1), ("", 0)):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        (machine,) = this_machine().machines
        assert (machine.gpus, machine.accelerator_type) == (gpus, "L4" if gpus else None)


def test_a_container_counts_the_cpus_that_it_may_use(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    bound = this_machine().cpus
    for text, cpus in (("max 100000", bound), ("50000 100000", 1), (f"{100 * 10**5} 100000", bound)):
        quota.write_text(text + "\n")
        assert this_machine(quota).cpus == cpus


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512_bf16\n", False),
        ("", False),
    ],
)
def test_a_cpu_that_multiplies_bfloat16_is_known_by_its_flags(tmp_path: Path, text: str, does: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert multiplies_bfloat16(cpuinfo) is does
    assert not multiplies_bfloat16(tmp_path / "of another system")


def test_what_was_measured_holds_for_the_kinds_of_gpu_that_it_was_measured_on() -> None:
    l4, a100, bare = Machine(8, 1, "L4"), Machine(32, 8, "A100"), Machine(64)

    def kind(*machines: Machine, **resources: Any) -> str:
        cluster = ClusterSize.of(machines)
        return kind_of(size(ResourcesConfig(**resources), cluster), cluster)

    assert kind(bare) == "cpu" == kind(l4, device="cpu")
    assert kind(l4, bare, l4) == "cuda L4"
    assert kind(l4, a100) == "cuda A100 L4"
    assert kind(l4, a100, accelerator_type="A100") == "cuda A100"
    assert kind(Machine(8, 1)) == "cuda unknown"
