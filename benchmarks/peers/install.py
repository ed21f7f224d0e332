"""Makes the environments of the peers, `.bench/venvs/NAME`, from the pinned versions in `requirements/NAME.txt`.

    python -m benchmarks.peers.install [NAME...]

One that was made from the same file is left alone. torch comes first and by its exact version: so it is the build for this
machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rounds import RECORDS

REQUIREMENTS = Path(__file__).parent / "requirements"
VENVS = RECORDS / "venvs"


def python_of(name: str) -> Path:
    """The interpreter of an environment that was made."""
    return VENVS / name / "bin" / "python"


def names() -> list[str]:
    """The environments that there are to be made."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def version_of(name: str, package: str) -> str:
    """The version that is pinned. KeyError where the package is not."""
    pinned = (line.partition("==") for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines())
    return {package: version for package, _, version in pinned}[package]


def install(name: str) -> None:
    """Makes one environment, or makes it anew where its requirements changed."""
    requirements = (REQUIREMENTS / f"{name}.txt").read_text()
    stamp = VENVS / name / "requirements.txt"
    if stamp.exists() and stamp.read_text() == requirements:
        return
    print(f"installing {name}", file=sys.stderr, flush=True)
    shutil.rmtree(VENVS / name, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENVS / name], check=True)
    pip: list[str | Path] = [python_of(name), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*pip, f"torch=={version_of(name, 'torch')}"], check=True)
    subprocess.run([*pip, "-r", REQUIREMENTS / f"{name}.txt"], check=True)
    stamp.write_text(requirements)


def main(arguments: Sequence[str] | None = None) -> None:
    wanted = sys.argv[1:] if arguments is None else arguments
    for name in wanted or names():
        install(name)


if __name__ == "__main__":
    main()
