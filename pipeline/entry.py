"""What a submitted job starts with, on a machine that may have no Clipmill: nothing in here needs more than Python itself.

It is copied beside `request.json` (and, with `--install`, beside the packages of a wheel), finds out whether what is here can
do the job, and hands over. What it says has the form of what pipeline/job.py says: lines that begin with EVENT.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

EVENT = "@clipmill "
_MARK = "CLIPMILL_ENTERED"  # in the environment of whoever came by way of `with_python_of_ray`
BAD_REQUEST = 2
FOLDER = Path(__file__).resolve().parent


def refuse(message: str) -> int:
    """Says why the job does not begin."""
    print(EVENT + json.dumps({"refused": message}), flush=True)
    return BAD_REQUEST


def with_python_of_ray() -> None:
    """Starts over as the Python of Ray's workers, where it is another: a shell's `python` need not be it.

    The Ray process above us (the raylet) has the command of its workers among its arguments.
    """
    found = _python_of_ray(os.getppid())
    if found and found != sys.executable and Path(found).exists() and not os.environ.get(_MARK):
        os.environ[_MARK] = "1"
        os.execv(found, [found, *sys.argv])


def _python_of_ray(pid: int) -> str | None:
    sign = "--python_worker_command="
    while pid > 1:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        for argument in arguments:
            if argument.startswith(sign):
                return argument[len(sign) :].split(" ")[0]
        pid = int(status.rpartition(")")[2].split()[1])
    return None


def problem(wanted: str, is_sent: bool) -> str | None:
    """Why Clipmill `wanted` (a version; `is_sent`: it came along) cannot run here; None where it can."""
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})"
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever runs there
        return f"the cluster's {python} is older than 3.11"
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("clipmill")
    except PackageNotFoundError:
        return f"the cluster's {python} has no clipmill; install {wanted} on its machines, or send it with --install"
    if found != wanted:
        return f"the cluster has clipmill {found}, not {wanted}; install that on its machines, or send it with --install"
    missing = lacking() if is_sent else []
    return f"the cluster's {python} lacks what clipmill {wanted} needs: {', '.join(missing)}" if missing else None


def lacking() -> list[str]:
    """Requirements of the Clipmill that is found first that are not met here, such as `av>=15 (14.0 is there)`."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    found = []
    for text in requires("clipmill") or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            found.append(f"{wanted.name}{wanted.specifier}")
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            found.append(f"{wanted.name}{wanted.specifier} ({there} is there)")
    return found


def main() -> int:
    """Hands the request over to Clipmill; the exit code of the run."""
    with_python_of_ray()
    request = json.loads((FOLDER / "request.json").read_text(encoding="utf-8"))
    print(EVENT + json.dumps({"begin": request["token"]}), flush=True)
    trouble = problem(request["version"], request["is_sent"])
    if trouble:
        return refuse(trouble)
    try:
        from pipeline import job
    except ImportError as error:
        return refuse(f"clipmill {request['version']} cannot take jobs there: {error}")
    return job.perform(FOLDER, request)


if __name__ == "__main__":
    sys.exit(main())
