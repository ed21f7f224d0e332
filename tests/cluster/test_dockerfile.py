"""The images: what can be known of them without Docker, and their install steps in a plain folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.cluster.dockerfile import Dockerfile, Instruction

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "Dockerfile"
TARGETS = ("cpu", "cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Steps that change the system, not a folder.
NEEDS_A_CONTAINER = ("apt-get", "groupadd")
CPU_INDEX = "--no-deps --index-url https://download.pytorch.org/whl/cpu"


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile.read(FILE)


def pins() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def copied(dockerfile: Dockerfile, stage: str) -> list[str]:
    """What a stage copies from the tree."""
    found = [step.words for step in dockerfile.stages[stage].instructions if step.name == "COPY"]
    return [source for words in found if not words[0].startswith("--from") for source in words[:-1]]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path of the tree through; the last pattern that fits decides."""
    is_ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        folders = [path, *map(str, Path(path).parents)]
        names = [Path(folder).name for folder in folders] if pattern.startswith("**/") else folders
        if pattern and not pattern.startswith("#") and any(fnmatch(name, pattern.removeprefix("**/")) for name in names):
            is_ignored = not line.startswith("!")
    return not is_ignored


def test_whatever_is_copied_is_there_and_sent_to_docker(dockerfile: Dockerfile) -> None:
    sources = [source for stage in dockerfile.stages for source in copied(dockerfile, stage)]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists() or not is_sent(source)] == []


def test_all_packages_are_in_the_image_and_nothing_else_is_sent(dockerfile: Dockerfile) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {name.partition(".")[0] for name in listed}
    assert packages <= set(copied(dockerfile, "wheel"))
    sent = {path.name for path in ROOT.iterdir() if is_sent(path.name)}
    assert sent == packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert not is_sent("stages/__pycache__")


@pytest.mark.parametrize("target", TARGETS)
def test_the_base_is_pinned_and_its_python_is_one_that_we_support(dockerfile: Dockerfile, target: str) -> None:
    found = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", dockerfile.image(target))
    assert found, dockerfile.image(target)
    assert Version(found[1]) in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {found[1].rpartition('.')[0]}" in PROJECT["classifiers"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_install_goes_by_the_constraints(dockerfile: Dockerfile, target: str) -> None:
    installs = [
        shlex.split(command)
        for step in dockerfile.lineage(target)
        if step.name == "RUN"
        for command in step.text.split("&&")
        if "pip install" in command
    ]
    assert len(installs) >= 3
    for words in installs:
        assert "--constraint" in words or "--no-deps" in words, words
        assert not [word for word in words if re.match(r"[a-z0-9_-]+==\d", word)], f"{words}: versions stand in constraints.txt"
    assert {"torch", "ray", "transformers", "av"} <= set(pins())


def test_torch_for_cpus_is_the_cpu_build_and_the_other_is_not(dockerfile: Dockerfile) -> None:
    runs = {target: [step.text for step in dockerfile.stages[target].instructions if step.name == "RUN"] for target in TARGETS}
    assert any(f'{CPU_INDEX} "$(grep ^torch== constraints.txt)"' in text for text in runs["cpu"])
    assert not any("index-url" in text for text in runs["cuda"])
    assert any("assert torch.version.cuda is None" in text for text in runs["cpu"])
    assert any("assert torch.version.cuda," in text for text in runs["cuda"])


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root_and_the_program_is_clipmill(dockerfile: Dockerfile, target: str) -> None:
    user, entrypoint = dockerfile.last(target, "USER"), dockerfile.last(target, "ENTRYPOINT")
    assert user is not None
    assert user.text == "1000:1000"
    made = next(step.text for step in dockerfile.lineage(target) if "useradd" in step.text)
    assert "--uid 1000" in made
    assert "--create-home" in made
    assert entrypoint is not None
    tini, dashes, program = entrypoint.words
    assert (tini, dashes) == ("tini", "--")
    assert program in PROJECT["scripts"]
    assert any("apt-get" in step.text and " tini " in step.text for step in dockerfile.lineage(target) if step.name == "RUN")


def test_both_images_are_made_alike(dockerfile: Dockerfile) -> None:
    assert dockerfile.stages["cpu"].base == dockerfile.stages["cuda"].base
    for name in ("COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"):
        assert dockerfile.last("cpu", name) == dockerfile.last("cuda", name), name


# --- the steps themselves ---


class PlainFolder:
    """Runs the steps of a Dockerfile below a folder, with an empty virtual environment as the image's Python.

    Steps that change the system are left out, and torch comes from where pip is configured to look for it.
    """

    def __init__(self, dockerfile: Dockerfile, folder: Path) -> None:
        self._dockerfile, self._folder = dockerfile, folder
        self.left_out: list[str] = []
        subprocess.run([sys.executable, "-m", "venv", str(folder / "python")], check=True)
        self.bin = folder / "python" / "bin"

    def build(self, target: str) -> None:
        """Everything that leads to a target, in its own build folder."""
        place = self._folder / target
        place.mkdir()
        for step in self._dockerfile.lineage(target):
            if step.name == "COPY":
                self._copy(step, place)
            elif step.name == "RUN":
                self._run(step.text, place)

    def _copy(self, step: Instruction, place: Path) -> None:
        *sources, target = step.words
        whence = ROOT
        if sources[0].startswith("--from="):
            whence = self._folder / sources.pop(0).removeprefix("--from=")
            sources = [source.removeprefix("/build/") for source in sources]
        for source in sources:
            to = place / target / source if target == "./" else place / target
            subprocess.run(["cp", "-r", str(whence / source), str(to)], check=True)

    def _run(self, text: str, place: Path) -> None:
        if text.startswith(NEEDS_A_CONTAINER):
            self.left_out.append(text.split()[0])
            return
        text = text.replace(CPU_INDEX, "--no-deps").replace("/build/", f"{place}/")
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS")}
        environment = {**kept, "PATH": f"{self.bin}:{kept['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        done = subprocess.run(["sh", "-ec", text], cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_the_steps_of_the_cpu_image_install_the_program_in_the_versions_of_the_constraints(
    dockerfile: Dockerfile, tmp_path: Path
) -> None:
    image = PlainFolder(dockerfile, tmp_path)
    image.build("wheel")
    image.build("cpu")
    assert image.left_out == ["apt-get", "groupadd"] * 2
    site = next((tmp_path / "python" / "lib").glob("python*")) / "site-packages"
    installed = {canonicalize_name(found.name): found for found in distributions(path=[str(site)])}
    assert not {name: found.version for name, found in installed.items() if _is_off(name, found)}
    for command in (["clipmill", "--version"], ["clipmill", "--help"], ["ray", "--version"]):
        done = subprocess.run([image.bin / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    job_server = "import ray.dashboard.modules.job.job_head, ray.job_submission"
    subprocess.run([image.bin / "python", "-c", job_server], cwd=tmp_path, check=True, capture_output=True)


def _is_off(name: str, found: Distribution) -> bool:
    if name in ("clipmill", "pip", "setuptools"):
        return False
    return pins().get(name) != Version(found.version).public
