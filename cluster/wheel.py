"""A Clipmill that travels with a job: the packages of a wheel, or of what pip makes of a revision.

It is pure Python, so that unpacked on the workers' import path it is installed. The alternative, Ray's own `pip` environment,
copies the whole environment that Ray runs in on every node, torch and all, before it installs anything.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from schemas.errors import BadRequest

BUILD_S = 600.0


def unpack(install: str, folder: Path) -> str:
    """Puts the packages of `install` into `folder`, beside its metadata; its version.

    `install` is a wheel's path, or what pip knows how to build, such as git+https://HOST/REPOSITORY@REVISION. Raises
    BadRequest, one line that names it.
    """
    with tempfile.TemporaryDirectory(prefix="clipmill-wheel-") as built:
        path = Path(install)
        wheel = path if path.suffix == ".whl" else _built(install, Path(built))
        try:
            with zipfile.ZipFile(wheel) as archive:
                version = _version(install, archive)
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise BadRequest(f"--install {install}: {said.lower()}") from error
    return version


def _version(install: str, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1]
    about = Parser().parsestr(archive.read(names[0]).decode() if names else "")
    if about["Name"] != "clipmill":
        raise BadRequest(f"--install {install}: is a wheel of {about['Name'] or 'nothing'}, not of clipmill")
    return str(about["Version"])


def _built(install: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "-w", str(folder), install]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BadRequest(f"--install {install}: was not built within {BUILD_S:g} s") from error
    if done.returncode or not (wheels := list(folder.glob("*.whl"))):
        raise BadRequest(f"--install {install}: {_why(done.stdout + done.stderr)}")
    return wheels[0]


def _why(said: str) -> str:
    """The line of pip's that says what went wrong: its first error, or what git said."""
    lines = [line.strip().removeprefix("ERROR: ") for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal: ", "error: ", "Could not", "No matching", "Invalid"))]
    errors = [line.strip().removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    return (told or errors or lines or ["pip does not work here"])[0]
