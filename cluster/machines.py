"""What a cluster is made of: the machines that are there, and those that its autoscaler may bring."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPUINFO = Path("/proc/cpuinfo")
_ACCELERATOR = "accelerator_type:"  # how Ray's resources begin that name a kind of GPU
# `GPU 0: NVIDIA L4 (UUID: ...)`, `GPU 0: Tesla V100-SXM2-16GB (UUID: ...)`: the part that Ray calls the accelerator_type
_GPU_LINE = re.compile(r"GPU \d+: \w+ ((?:[A-Z]+ )*[A-Z0-9]*\d[A-Z0-9]*)")


@dataclass(frozen=True)
class Machine:
    """One node of a cluster as Ray counts it. `accelerator_type` is its kind of GPU in Ray's words, such as L4, where known."""

    cpus: float
    gpus: float = 0.0
    accelerator_type: str | None = None


@dataclass(frozen=True)
class Group:
    """Machines of one shape that an autoscaler may bring: `most` of them, those that are there already included."""

    machine: Machine
    most: int


@dataclass(frozen=True)
class ClusterSize:
    """What a cluster offers in all: logical CPUs and GPUs, and how many nodes hold them.

    Without `machines` it counts as one machine that has everything. `groups` is what may come beside what is there.
    """

    cpus: float
    gpus: float
    nodes: int
    machines: tuple[Machine, ...] = ()
    groups: tuple[Group, ...] = ()

    @classmethod
    def of(cls, machines: Iterable[Machine], groups: Iterable[Group] = ()) -> ClusterSize:
        """The sum of machines."""
        found = tuple(machines)
        return cls(
            sum(one.cpus for one in found), sum(one.gpus for one in found), max(1, len(found)), found, tuple(groups)
        )  # fmt: skip

    def growing(self, groups: Iterable[Group]) -> ClusterSize:
        """The same with an autoscaler that may bring these groups; with none, whatever was known of one stays."""
        return replace(self, groups=tuple(groups) or self.groups)

    def there(self) -> Counter[Machine]:
        """Machines that are there, by shape."""
        return Counter(self.machines or [Machine(self.cpus, self.gpus)])

    def at_most(self) -> Counter[Machine]:
        """Machines once the cluster has grown as far as it can, by shape."""
        found = self.there()
        for group in self.groups:
            here = sum(count for machine, count in self.there().items() if _is_of(machine, group.machine))
            if group.most > here:
                found[group.machine] += group.most - here
        return found


def _is_of(machine: Machine, shape: Machine) -> bool:
    kinds = {machine.accelerator_type, shape.accelerator_type}
    return (machine.cpus, machine.gpus) == (shape.cpus, shape.gpus) and (None in kinds or len(kinds) == 1)


def total_cpus(machines: Mapping[Machine, int]) -> float:
    """CPUs of machines, by shape, together."""
    return sum(machine.cpus * count for machine, count in machines.items())


def from_ray(nodes: Iterable[Mapping[str, Any]]) -> tuple[Machine, ...]:
    """The machines that are up, of what `ray.nodes()` says."""
    return tuple(machine_of(node["Resources"]) for node in nodes if node["Alive"])


def machine_of(resources: Mapping[str, float]) -> Machine:
    """A node's resources in Ray's words -> the machine."""
    kinds = (name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR))
    gpus = resources.get("GPU", 0.0)
    return Machine(resources.get("CPU", 0.0), gpus, next(kinds, None) if gpus else None)


# --- this machine ---


def this_machine(quota: Path = QUOTA) -> ClusterSize:
    """What Ray would find if it were started here, without starting it. `quota` says what a container may use."""
    lines = _gpu_lines()
    kind = _GPU_LINE.match(lines[0]) if lines else None
    return ClusterSize.of([Machine(_cpus(quota), float(len(lines)), kind.group(1).replace(" ", "-") if kind else None)])


def _cpus(quota: Path) -> float:
    """CPUs that this process may use: of those it is bound to, no more than its container is allowed."""
    bound = len(os.sched_getaffinity(0))
    try:
        used_us, period_us = quota.read_text().split()
    except (OSError, ValueError):
        return float(bound)
    return float(bound if used_us == "max" else max(1, min(bound, int(used_us) // int(period_us))))


def multiplies_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this machine's CPUs have instructions that multiply matrices of bfloat16 (Intel's AMX): models are then several
    times faster in it. False where nothing says so.
    """
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "amx_bf16" in flags.split()


def _gpu_lines() -> list[str]:
    """A line for each GPU that CUDA would show a process started here."""
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1", "NoDevFiles"):
        return []
    done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return lines if visible is None else lines[: len(visible.split(","))]
