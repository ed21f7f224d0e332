"""What starts a run every night: the script with a program that ends as told, once with the real one; the DAG of Airflow."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app

NIGHTLY = Path(__file__).parents[2] / "cluster" / "nightly"


def night(
    tmp_path: Path, runs: str = "0", verifies: int = 0, program: str | None = None, **around: str
) -> tuple[int, list[str]]:
    """(exit code, what was called) of a night whose runs end with these codes, one after the other."""
    fake = tmp_path / "fake clipmill"
    calls = tmp_path / "calls"
    fake.write_text(
        f"""#!/bin/sh
echo "$*" >> {shlex.quote(str(calls))}
[ "$1" = verify ] && exit {verifies}
set -- {runs}
shift $(( $(grep -c ^run {shlex.quote(str(calls))}) - 1 ))
exit "$1"
"""
    )
    fake.chmod(0o755)
    env = os.environ | {
        "INPUT": str(tmp_path / "in put"), "OUTPUT": str(tmp_path / "out"), "CLIPMILL": program or str(fake),
        "LOCK": str(tmp_path / "lock"), "RETRY_AFTER_S": "0",
    } | around  # fmt: skip
    done = subprocess.run([NIGHTLY / "nightly.sh", "--preset", "embedded"], env=env, capture_output=True, text=True)
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(
    ("runs", "verifies", "code", "called"),
    [
        ("0", 0, 0, "run verify"),
        ("3", 0, 3, "run verify"),
        ("0", 1, 1, "run verify"),
        ("2", 0, 2, "run"),
        ("4 0", 0, 0, "run run verify"),
        ("4 4", 0, 4, "run run"),
        ("130", 0, 130, "run"),
    ],
)
def test_a_night_ends_as_its_runs_and_its_check_do(tmp_path: Path, runs: str, verifies: int, code: int, called: str) -> None:
    found, calls = night(tmp_path, runs, verifies)
    assert (found, [call.split()[0] for call in calls]) == (code, called.split())
    assert calls[0] == f"run --input {tmp_path}/in put --output {tmp_path}/out --log-format json --preset embedded"


def test_two_nights_do_not_overlap(tmp_path: Path) -> None:
    with subprocess.Popen(["flock", tmp_path / "lock", "sh", "-c", "echo; read line"], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert night(tmp_path) == (75, [])
        other.communicate(b"\n")
    assert night(tmp_path)[0] == 0


def test_a_night_without_footage_is_done_by_the_real_program(tmp_path: Path) -> None:
    (tmp_path / "in put").mkdir()
    (tmp_path / "program").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m pipeline "$@"\n')
    (tmp_path / "program").chmod(0o755)
    code, _ = night(tmp_path, program=str(tmp_path / "program"), PYTHONPATH=str(NIGHTLY.parents[1]))
    assert code == 0


@pytest.mark.parametrize(
    ("state", "called"),
    [
        ("running", ["--follow --log-format json"]),
        ("waiting", ["--follow --log-format json"]),
        ("ended", ["--input in --output out --log-format json --preset embedded"]),
        ("", ["--input in --output out --log-format json --preset embedded"]),  # none was ever sent
    ],
)
def test_on_a_cluster_a_run_is_sent_or_followed_where_one_is_still_at_work(
    tmp_path: Path, state: str, called: list[str]
) -> None:
    program, calls = tmp_path / "clip mill", tmp_path / "calls"
    said = json.dumps({"job": "clipmill-out-1", "state": state, "exit_code": None}, indent=1)
    program.write_text(
        f"""#!/bin/sh
case "$*" in *--status*) {f"echo {shlex.quote(said)}" if state else "exit 2"}; exit ;; esac
echo "$*" >> {shlex.quote(str(calls))}
exit 3
"""
    )
    program.chmod(0o755)
    env = os.environ | {"CLUSTER": "http://head:8265", "OUTPUT": "out", "PROGRAM": str(program)}
    options = ["--input", "in", "--output", "out", "--log-format", "json", "--preset", "embedded"]
    assert subprocess.run([NIGHTLY / "on_cluster.sh", "run", *options], env=env).returncode == 3
    at = "submit --address http://head:8265 "
    at += "--output out " if state in ("running", "waiting") else ""
    assert calls.read_text().splitlines() == [at + one for one in called]
    assert subprocess.run([NIGHTLY / "on_cluster.sh", "verify", "out"], env=env).returncode == 3
    assert calls.read_text().splitlines()[-1] == "verify out"


def test_what_is_not_said_is_asked_for(tmp_path: Path) -> None:
    done = subprocess.run([NIGHTLY / "nightly.sh"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "say what to annotate" in done.stderr


def test_the_dag_runs_the_script_with_options_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Dag:
        def __init__(self, **options: Any) -> None:
            made["dag"] = options

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    airflow = types.ModuleType("airflow")
    bash = types.ModuleType("airflow.operators.bash")
    airflow.DAG, bash.BashOperator = Dag, lambda **options: made.update(task=options)  # type: ignore[attr-defined]
    for name, module in (("airflow", airflow), ("airflow.operators", airflow), ("airflow.operators.bash", bash)):
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(NIGHTLY / "airflow_dag.py"))
    script, *options = shlex.split(made["task"]["bash_command"])
    assert Path(script).name == "nightly.sh"
    assert {"INPUT", "OUTPUT"} == set(made["task"]["env"])
    assert made["dag"]["max_active_runs"] == 1
    known = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert all(option in known for option in options if option.startswith("--"))
