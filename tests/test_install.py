"""The package as a user gets it: a wheel in a fresh environment, used from a folder with names like ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "schemas", "cluster")


def as_a_user() -> dict[str, str]:
    """The environment without what tests put there: on PYTHONPATH, pip would find this tree and install nothing."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}


@pytest.fixture(scope="module")
def clipmill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed program. The environment has our wheel; what we depend on it borrows from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = folder / "source"  # a build leaves its traces where it builds
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(source)], check=True, env=as_a_user())
    venv.create(folder / "venv", with_pip=False)
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    (wheel,) = folder.glob("clipmill-*.whl")
    target = ["--python", str(folder / "venv" / "bin" / "python")]
    subprocess.run([*pip, *target, "install", "--no-deps", str(wheel)], check=True, env=as_a_user())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin" / "clipmill"


def test_the_demo_runs_from_a_folder_that_holds_its_own_pipeline_and_stages(clipmill: Path, tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('imported the caller\\'s {name}')\n")
    done = subprocess.run(
        [clipmill, "demo", "--videos", "3", "--seed", "5", "--output", "my demo"],
        cwd=tmp_path,
        env=as_a_user(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "my demo" / "score.json").read_text())
    assert scores["videos"] == 3
    assert "clipmill query" in done.stdout
    assert (tmp_path / "my demo" / "tables" / "_current.json").exists()
