"""Runs that are sent to a cluster: a real head with a real job server, and the command as a person calls it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.submit import Job, Jobs, _complete_lines, checked_address, number_of, stem
from cluster.wheel import unpack
from pipeline import settings
from pipeline.entry import EVENT, _python_of_ray, lacking, problem
from pipeline.job import Told, settings_of
from pipeline.jsonlog import JsonLog
from pipeline.parcel import local_manifest, portable, write_manifest
from pipeline.progress import Figures
from pipeline.submit import status_lines
from pipeline.verify import verify
from pipeline.watch import Account, Watch, code_of, how_it_ended
from schemas.errors import BadRequest
from stages.manifest import read_manifest
from stages.storage import Store
from tests.cluster.heads import Head, end, head
from tests.media import textured, write_video
from tests.pipeline.published import table

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # other work may be on the machine
MANY = 96  # videos of a run that somebody interrupts: with fewer a fast machine is done before
CLIPS_ONLY = ["--set", "classify=[]"]  # needs no model


# --- names ---


def test_jobs_of_an_output_are_numbered_and_those_of_another_are_not_taken_for_them() -> None:
    ours = stem("s3://tables/News 2026")
    assert ours.startswith("clipmill-news-2026-")
    assert number_of(f"{ours}-12", ours) == 12
    others = [None, "raysubmit_x", ours, f"{ours}-x", f"{ours}-1-2", f"{stem('s3://other/News 2026')}-1"]
    assert [number_of(job_id, ours) for job_id in others] == [None] * len(others)


@pytest.mark.parametrize("output", ["/", "/Тест", "s3://b", "/tables/" + "x" * 300, "/a b\tc"])
def test_any_output_makes_an_id_that_ray_takes(output: str) -> None:
    assert stem(output).replace("-", "").isalnum()
    assert stem(output).isascii()
    assert len(stem(output)) < 64


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("https://head/", "https://head"),
        ("head:8265", "http://head:8265"),
        ("ray://head:10001", None),
        ("auto", None),
        ("", None),
        ("http://", None),
    ],
)
def test_the_address_is_that_of_a_dashboard(address: str, url: str | None) -> None:
    if url is not None:
        assert checked_address(address) == url
        return
    with pytest.raises(BadRequest, match="should be that of Ray's dashboard"):
        checked_address(address)


def test_lines_that_chunks_cut_in_two_are_put_together() -> None:
    assert list(_complete_lines(iter(["a\nb", "c\n", "\n", "d"]))) == ["a", "bc", ""]


# --- what is sent ---


def test_places_of_this_machine_are_absolute_and_nothing_is_sent_that_was_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = settings.load(input_uri="footage", output="tables", sets=["clips.max_s=8"], preset="embedded", allow=["."])
    sent = portable(config)
    assert sent["input"] == {"uri": str(tmp_path / "footage"), "allow": [str(tmp_path)]}
    assert sent["output"] == str(tmp_path / "tables")
    assert portable(settings.load(input_uri="s3://a/b/", output="s3://t", sets=["classify=[]"]))["input"]["uri"] == "s3://a/b/"
    assert sent["clips"]["max_s"] == 8
    assert "resources" not in sent or "stall_s" not in sent["resources"]
    arrived = settings_of(json.loads(json.dumps(sent)), tmp_path)
    assert arrived.clips == config.clips
    assert (arrived.classify, arrived.embed, arrived.caption) == (config.classify, config.embed, config.caption)


def test_a_setting_that_the_clusters_clipmill_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"clips\.colour: the clipmill of the cluster does not take it"):
        settings_of({"input": {"uri": "/a"}, "output": "/b", "clips": {"colour": 1}}, tmp_path)


def test_a_manifest_of_this_machine_travels_row_for_row_with_absolute_uris(tmp_path: Path) -> None:
    names = [b"a b.mp4", "ünï.mp4".encode(), b"\xff\xfe.mp4", b"s3://bucket/c,d.mp4", b'quo"te.mp4']
    manifest = tmp_path / "list.txt"
    manifest.write_bytes(b"\n".join(names))
    assert local_manifest(str(manifest)) == str(manifest)
    assert local_manifest(str(tmp_path)) is None
    assert local_manifest("s3://bucket/list.csv") is None
    assert local_manifest(str(tmp_path / "on the cluster only.csv")) is None
    write_manifest(str(manifest), tmp_path / "sent.csv")
    assert list(read_manifest(str(tmp_path / "sent.csv"))) == list(read_manifest(str(manifest)))


def test_ids_and_rows_without_a_uri_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,uri\none,a.mp4\ntwo,\n,/c.mp4\n")
    write_manifest(str(tmp_path / "list.csv"), tmp_path / "sent.csv")
    sent = [(entry.row, entry.id, entry.uri) for entry in read_manifest(str(tmp_path / "sent.csv"))]
    assert sent == [(1, "one", str(tmp_path / "a.mp4")), (2, "two", None), (3, None, "/c.mp4")]


@pytest.mark.parametrize(
    ("install", "said"),
    [
        ("nowhere.whl", "no such file or directory"),
        ("git+file:///nowhere@v1", "fatal: "),
        ("notes.whl", "file is not a zip file"),
    ],
)
def test_a_clipmill_that_cannot_be_sent_is_one_line_that_names_it(
    install: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.whl").write_text("no wheel")
    with pytest.raises(BadRequest) as caught:
        unpack(install, tmp_path / "folder")
    assert str(caught.value).startswith(f"--install {install}: {said}")


@pytest.mark.cluster
def test_a_revision_is_built_and_unpacked(tmp_path: Path) -> None:
    """pip fetches what builds it."""
    source = tmp_path / "a repository"
    (source / "pipeline").mkdir(parents=True)
    (source / "pipeline" / "__init__.py").write_text('"""Of the revision."""\n')
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "clipmill"\nversion = "9.9.1"\n[tool.setuptools]\npackages = ["pipeline"]\n'
    )
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"], ["tag", "v9"]):
        subprocess.run([*git, *command], check=True)
    (source / "pipeline" / "__init__.py").write_text('"""Later than that."""\n')
    subprocess.run([*git, "commit", "-q", "-a", "-m", "second"], check=True)
    folder = tmp_path / "folder"
    assert unpack(f"git+{source.as_uri()}@v9", folder) == "9.9.1"
    assert (folder / "pipeline" / "__init__.py").read_text() == '"""Of the revision."""\n'


# --- what a job says ---


def told(kind: str, what: Any) -> str:
    return EVENT + json.dumps({kind: what})


def test_an_account_takes_in_events_and_keeps_the_end_of_everything_else() -> None:
    account = Account("t")
    lines = ["noise", told("begin", "t"), told("figures", {"videos": 2, "clips": 5, "elapsed_s": 3.0}), "more noise"]
    assert [account.hear(line) for line in [*lines, told("result", ["done"]), told("exit", 0)]] == [
        None, None, "figures", None, "result", "exit",
    ]  # fmt: skip
    assert account.figures == Figures(videos=2, clips=5, elapsed_s=3.0)
    assert (account.result, account.code, list(account.other)) == (["done"], 0, ["more noise"])


def test_what_an_earlier_job_of_the_same_id_left_in_the_log_does_not_count() -> None:
    account = Account("new")
    for line in (told("begin", "old"), told("refused", "no such input"), told("exit", 2)):
        assert account.hear(line) is None
    assert (account.code, account.trouble) == (None, None)
    account.hear(told("begin", "new"))
    assert account.hear(told("exit", 0)) == "exit"


def test_lines_that_only_look_like_events_are_noise() -> None:
    account = Account("t")
    account.hear(told("begin", "t"))
    for line in (f"{EVENT}no json", f"{EVENT}[1]", f"{EVENT}3", "@clipmill"):
        assert account.hear(line) is None
    assert len(account.other) == 4


def job(status: str, exit_code: int | None = None, message: str = "") -> Job:
    return Job("clipmill-x-1", status, message, exit_code, datetime(2026, 11, 1, tzinfo=UTC), None, {})


@pytest.mark.parametrize(
    ("ended", "told_code", "trouble", "code"),
    [
        (job("SUCCEEDED", 0), 0, None, 0),
        (job("FAILED", 3), 3, None, 3),
        (job("STOPPED"), 130, None, 130),
        (job("STOPPED"), None, None, 130),  # killed before it could say
        (job("FAILED", 2), None, "no clipmill", 2),
        (job("FAILED", 127), None, None, 2),  # no python
        (job("FAILED", 1), None, None, 1),
        (job("FAILED", -9), None, None, 4),
        (job("FAILED", None, "Job supervisor actor died\nof something"), None, None, 4),
        (job("FAILED"), None, None, 4),
        (job("FAILED", None, "runtime_env setup failed: disk full"), None, None, 2),
    ],
)
def test_every_end_of_a_job_is_an_exit_code(ended: Job, told_code: int | None, trouble: str | None, code: int) -> None:
    assert code_of(ended, Account("t", code=told_code, trouble=trouble)) == code
    assert "\n" not in how_it_ended(ended)


def test_figures_are_told_when_they_change_and_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    at_s = [0.0]
    progress = Told(clock=lambda: at_s[0])
    for seconds, videos in ((1.0, 0), (2.0, 0), (3.0, 2), (4.0, 2), (13.5, 2)):
        at_s[0] = seconds
        progress.update(videos=videos - progress.figures().videos)
        progress._tell(progress.figures())
    lines = [json.loads(line.removeprefix(EVENT))["figures"] for line in capsys.readouterr().out.splitlines()]
    assert [(line["elapsed_s"], line["videos"]) for line in lines] == [(1.0, 0), (3.0, 2), (13.5, 2)]


def test_a_job_that_is_asked_for_json_lines_tells_figures_and_notes_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    at_s, lines = [0.0], io.StringIO()
    log = JsonLog(lines, clock=lambda: at_s[0])
    with Told(log, clock=lambda: at_s[0]) as progress:
        progress.start(3)
        progress.update(videos=2, clips=5)
        progress.note("a worker died")
        progress._tell(progress.figures())
        assert (log.figures().videos, log.figures().total_videos) == (2, 3)
    events = [json.loads(line.removeprefix(EVENT)) for line in capsys.readouterr().out.splitlines()]
    assert [next(iter(event)) for event in events] == ["note", "figures"]
    assert events[1]["figures"]["clips"] == 5
    assert "a worker died" in lines.getvalue()


class Telling:
    """Stands for the cluster's list of jobs: one job, and its log."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def lines(self, _job_id: str) -> list[str]:
        return self._lines

    def job(self, _job_id: str) -> Job:
        return job("SUCCEEDED", 0)


@pytest.mark.parametrize("as_json", [True, False])
def test_whoever_follows_sees_json_lines_or_figures_and_notes_and_never_both(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps({"event": "progress", "videos": 2})
    lines = [
        told("begin", ""), told("figures", {"total_videos": 2, "videos": 2, "clips": 5, "elapsed_s": 3.0}), told("log", line),
        told("note", "a worker died"), told("result", ["2 ok"]), told("exit", 0),
    ]  # fmt: skip
    results: list[str] = []
    watch = Watch(Telling(lines), job("SUCCEEDED", 0), results.append, results.append, as_json=as_json)  # type: ignore[arg-type]
    assert watch.until_over() == 0
    assert results == ["2 ok"]
    said = capsys.readouterr().err
    assert (line in said) is as_json
    assert ("a worker died" in said) is not as_json
    assert ("2 of 2 videos" in said) is not as_json


def test_the_state_of_a_run_is_told_to_people() -> None:
    found = {
        "job": "clipmill-x-1", "cluster": "http://head:8265", "output": "/tables", "state": "running", "exit_code": None,
        "began_at": "2026-11-01 10:00:00+00:00", "ended_at": None, "trouble": None, "result": [],
        "so_far": {"total_videos": 40, "videos": 10, "clips": 30, "video_s": 100.0, "failures": 1, "elapsed_s": 10.0},
    }  # fmt: skip
    assert status_lines(found) == [
        "job      clipmill-x-1 on http://head:8265",
        "state    running",
        "began    2026-11-01 10:00:00 UTC",
        "so far   10 of 40 videos, 30 clips, 10 hours of video per hour, 1 failed, 30.0 s left",
        "tables   /tables",
    ]
    assert "left" not in "\n".join(status_lines(found | {"state": "ended", "exit_code": 4}))


# --- what is found on the cluster ---


def test_a_clipmill_of_another_version_and_none_at_all_are_told_apart() -> None:
    from importlib.metadata import version

    assert problem(version("clipmill"), False) is None
    assert "the cluster has clipmill" in (problem("99.0", False) or "")
    assert lacking() == []
    bare = "import sys; sys.path.append(sys.argv[1]); import entry; print(entry.problem('1.0', False))"
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", bare, str(ROOT / "pipeline")], capture_output=True, text=True, check=True
    ).stdout
    assert "has no clipmill; install 1.0 on its machines, or send it with --install" in said


def test_outside_of_ray_there_is_no_python_of_its_workers() -> None:
    assert _python_of_ray(1) is None


# --- the command ---


def submit(head: Head, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return head.run([sys.executable, "-m", "pipeline", "submit", "--address", head.url, *args], cwd=cwd)


def state(head: Head, output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(submit(head, "--output", str(output), "--status", "--json").stdout)
    return found


def jobs_of(head: Head) -> list[str]:
    """Ids of the jobs on the cluster's list."""
    program = (
        "import sys\nfrom cluster.submit import Jobs\nprint(*(j.submission_id for j in Jobs(sys.argv[1])._client.list_jobs()))"
    )
    return head.run([sys.executable, "-c", program, head.url], cwd=ROOT).stdout.split()


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that ended with 2."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("note: ", "job "))]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("clipmill: ")


def make_archive(folder: Path, videos: int, frames: int = 40) -> Path:
    folder.mkdir()
    for number in range(videos):
        write_video(folder / f"{number}.mp4", textured(frames, seed=number))
    return folder


@pytest.mark.ray
def test_a_run_of_a_manifest_of_this_machine_is_sent_followed_and_told_of_afterwards(ray_head: Head, tmp_path: Path) -> None:
    make_archive(tmp_path / "archive", videos=2)
    (tmp_path / "list.txt").write_text("archive/0.mp4\narchive/1.mp4\narchive/nowhere.mp4\n")
    output = tmp_path / "out"
    sent = submit(ray_head, "--input", "list.txt", "--output", "out", *CLIPS_ONLY, "--max-failed", "50%", cwd=tmp_path)
    assert sent.returncode == 0, sent
    assert "videos   2 ok, 1 failed" in sent.stdout
    assert "3 of 3 videos" in sent.stderr
    assert f"job {stem(str(output))}-1 on {ray_head.url}; Ctrl-C leaves it running" in sent.stderr
    assert verify(Store(str(output))) == []
    found = state(ray_head, output)
    assert (found["state"], found["exit_code"], found["so_far"]["videos"]) == ("ended", 0, 3)
    again = submit(ray_head, "--output", str(output), "--follow")
    assert (again.returncode, again.stdout) == (0, sent.stdout)


@pytest.mark.cluster
def test_a_run_that_is_sent_for_json_lines_says_nothing_else_on_stderr_and_can_be_followed_either_way(
    ray_head: Head, tmp_path: Path
) -> None:
    archive, output = make_archive(tmp_path / "archive", videos=2), str(tmp_path / "out")
    as_json = ["--log-format", "json"]
    sent = submit(ray_head, "--input", str(archive), "--output", output, *CLIPS_ONLY, *as_json)
    assert sent.returncode == 0, sent
    events = [json.loads(line)["event"] for line in sent.stderr.splitlines()]
    assert (events.count("video"), events[-1]) == (2, "run_ended")
    assert state(ray_head, Path(output))["so_far"]["videos"] == 2
    again = submit(ray_head, "--output", output, "--follow", *as_json)
    assert (again.returncode, again.stdout) == (0, sent.stdout)
    assert [json.loads(line)["event"] for line in again.stderr.splitlines()].count("video") == 2
    by_eye = submit(ray_head, "--output", output, "--follow")
    assert "2 of 2 videos" in by_eye.stderr
    assert "{" not in by_eye.stderr


@pytest.mark.cluster
def test_what_the_cluster_refuses_is_one_line_and_leaves_nothing_there(ray_head: Head, tmp_path: Path) -> None:
    before = jobs_of(ray_head)
    args = ["--input", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out"), *CLIPS_ONLY]
    assert refusal(submit(ray_head, *args)) == f"input {tmp_path / 'nowhere'}: there is no such file, folder or bucket"
    assert jobs_of(ray_head) == before
    assert not (tmp_path / "out").exists()
    for question in ("--status", "--follow", "--stop"):
        assert "no run was sent to" in refusal(submit(ray_head, "--output", str(tmp_path / "out"), question))


@pytest.mark.ray
def test_a_job_server_that_is_none_or_wants_a_token_is_named(ray_head: Head, tmp_path: Path) -> None:
    for address in ("http://127.0.0.1:9", f"http://{ray_head.address}"):
        with pytest.raises(BadRequest) as caught:
            Jobs(address)
        assert str(caught.value).startswith(f"--address {address}: no job server of Ray answers there")
    stranger = Head(0, ray_head.gcs_port, ray_head.dashboard_port, {**ray_head.env, "RAY_AUTH_MODE": "disabled"})
    refused = submit(stranger, "--output", str(tmp_path / "out"), "--status")
    assert "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN" in refusal(refused)


@dataclass(frozen=True)
class Sent:
    """A caller that follows the run it has sent."""

    process: subprocess.Popen[str]
    output: Path

    def wait_for_a_part(self) -> None:
        while not any(self.output.glob("_runs/*/parts/*.parquet")):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def interrupt(self) -> str:
        """Ctrl-C; what it said then."""
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=60)[1]
        assert self.process.returncode == 130, said
        return said


@pytest.fixture
def send(tmp_path: Path) -> Iterator[Callable[[Head], Sent]]:
    """Sends runs of many videos."""
    started: list[subprocess.Popen[str]] = []

    def start(head: Head) -> Sent:
        archive, output = make_archive(tmp_path / "archive", videos=16, frames=300), tmp_path / "out"
        for original in list(archive.iterdir()):
            for copy in range(1, MANY // 16):
                os.link(original, archive / f"{copy}-{original.name}")
        args = ["submit", "--address", head.url, "--input", str(archive), "--output", str(output), *CLIPS_ONLY]
        command = [sys.executable, "-m", "pipeline", *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=dict(head.env), text=True, cwd=ROOT, **pipes))
        return Sent(started[-1], output)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.cluster
def test_ctrl_c_leaves_the_run_alone_a_second_one_is_refused_and_whoever_follows_sees_its_end(
    ray_head: Head, send: Callable[[Head], Sent], tmp_path: Path
) -> None:
    sent = send(ray_head)
    sent.wait_for_a_part()
    said = sent.interrupt()
    command = f"clipmill submit --output {sent.output} --address {ray_head.url}"
    assert f"{command} --follow" in said
    assert f"{command} --stop" in said
    assert state(ray_head, sent.output)["state"] == "running"
    second = submit(ray_head, "--input", str(tmp_path / "archive"), "--output", str(sent.output), *CLIPS_ONLY)
    assert f"job {stem(str(sent.output))}-1 works on it since" in refusal(second)
    followed = submit(ray_head, "--output", str(sent.output), "--follow")
    assert followed.returncode == 0, followed
    assert f"videos   {MANY} ok" in followed.stdout
    assert len(table(str(sent.output), "videos")) == MANY
    assert verify(Store(str(sent.output))) == []


@pytest.mark.cluster
def test_a_stopped_run_publishes_what_is_complete_ends_with_130_and_the_next_one_goes_on(
    ray_head: Head, send: Callable[[Head], Sent], tmp_path: Path
) -> None:
    sent = send(ray_head)
    sent.wait_for_a_part()
    stopped = submit(ray_head, "--output", str(sent.output), "--stop")
    assert stopped.returncode == 130, stopped
    assert "interrupted; the next run goes on from here" in stopped.stderr
    assert sent.process.wait(60) == 130
    assert "no run works on it; job" in refusal(submit(ray_head, "--output", str(sent.output), "--stop"))
    assert 0 < len(table(str(sent.output), "videos")) < MANY
    assert verify(Store(str(sent.output))) == []
    again = submit(ray_head, "--input", str(tmp_path / "archive"), "--output", str(sent.output), *CLIPS_ONLY)
    assert again.returncode == 0, again
    assert len(table(str(sent.output), "videos")) == MANY
    assert verify(Store(str(sent.output))) == []


@pytest.mark.cluster
def test_a_driver_that_is_killed_is_code_4_and_the_next_run_goes_on(
    ray_head: Head, send: Callable[[Head], Sent], tmp_path: Path
) -> None:
    sent = send(ray_head)
    sent.wait_for_a_part()
    lease = json.loads(next(sent.output.glob("_runs/*/lease.json")).read_text())
    os.kill(lease["owner"]["pid"], signal.SIGKILL)
    _, said = sent.process.communicate(timeout=60)
    assert sent.process.returncode == 4, said
    assert "was killed (signal 9); the next run goes on from there" in said
    again = submit(ray_head, "--input", str(tmp_path / "archive"), "--output", str(sent.output), *CLIPS_ONLY)
    assert again.returncode == 0, again
    assert verify(Store(str(sent.output))) == []


FOLLOW = """
import sys
from cluster.submit import ClusterLost, Jobs
jobs = Jobs(sys.argv[1])
print("connected", flush=True)
try:
    for line in jobs.lines(sys.argv[2], patience_s=2):
        print(line, flush=True)
except ClusterLost as error:
    print("LOST", error)
"""


@pytest.mark.cluster
def test_a_cluster_that_is_lost_is_told_and_not_waited_for_without_end(send: Callable[[Head], Sent]) -> None:
    with head() as lost:
        sent = send(lost)
        sent.wait_for_a_part()
        command = [sys.executable, "-c", FOLLOW, lost.url, f"{stem(str(sent.output))}-1"]
        follower = subprocess.Popen(command, env=dict(lost.env), cwd=ROOT, text=True, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        while "figures" not in follower.stdout.readline():
            assert follower.poll() is None
        end(lost)
        said, _ = follower.communicate(timeout=120)
        assert f"LOST --address {lost.url}: no job server answers there" in said


@pytest.mark.cluster
def test_more_than_the_job_server_takes_is_told_before_anything_is_started(ray_head: Head, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "manifest.csv").write_bytes(os.urandom(110 << 20))
    program = """
import sys
from pathlib import Path
from cluster.submit import Jobs
from schemas.errors import BadRequest
try:
    Jobs(sys.argv[1]).send("/out", Path(sys.argv[2]), {})
except BadRequest as error:
    print(error)
"""
    said = ray_head.run([sys.executable, "-c", program, ray_head.url, tmp_path / "job"], cwd=ROOT).stdout
    assert said.startswith(f"--address {ray_head.url}: takes no more than 100 MB")
    assert f"{stem('/out')}-1" not in jobs_of(ray_head)


# --- a Clipmill that is sent along ---


def wheel_of(folder: Path, version: str, marks: Path, *, requires: str = "") -> Path:
    """A wheel of this tree, whose processes each leave a file in `marks` when they load the decoder."""
    source = folder / "source"
    for package in ("pipeline", "stages", "schemas", "cluster"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", source)
    shutil.copy(ROOT / "LICENSE", source)
    project = (ROOT / "pyproject.toml").read_text()
    project = project.replace('version = "', f'version = "{version}"  # "', 1).replace('"av>=15",', f'"av>=15",{requires}')
    (source / "pyproject.toml").write_text(project)
    with (source / "stages" / "decode.py").open("a") as file:
        file.write(f"\n\nimport os\n\nopen(f'{marks}/{{os.getpid()}}', 'w').close()\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps", "-w", str(folder)]
    subprocess.run([*pip, str(source)], check=True, env={**os.environ, "PYTHONPATH": ""})
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.cluster
def test_a_wheel_is_what_driver_and_workers_run_and_needs_no_installation(ray_head: Head, tmp_path: Path) -> None:
    archive, marks = make_archive(tmp_path / "archive", videos=2), tmp_path / "marks"
    marks.mkdir()
    wheel = wheel_of(tmp_path / "built", "7.1.2", marks)
    args = ["--input", str(archive), "--output", str(tmp_path / "out"), *CLIPS_ONLY]
    done = submit(ray_head, *args, "--install", str(wheel))
    assert done.returncode == 0, done
    record = json.loads(next((tmp_path / "out").glob("_runs/*/run.json")).read_text())
    assert record["versions"]["clipmill"] == "7.1.2"
    assert len(list(marks.iterdir())) >= 2, "only the driver ran what was sent"


@pytest.mark.cluster
def test_a_wheel_that_needs_what_the_cluster_lacks_is_refused_with_its_name(ray_head: Head, tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path / "built", "7.1.2", tmp_path, requires=' "unheard-of>=3", "numpy>=99",')
    args = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), *CLIPS_ONLY]
    said = refusal(submit(ray_head, *args, "--install", str(wheel)))
    assert "lacks what clipmill 7.1.2 needs: unheard-of>=3, numpy>=99 (2." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.cluster
def test_a_cluster_with_another_clipmill_says_which(ray_head: Head, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    shutil.copy(ROOT / "pipeline" / "entry.py", tmp_path / "job" / "clipmill_job.py")
    (tmp_path / "job" / "request.json").write_text(json.dumps({"token": "t", "version": "9.9", "is_sent": False}))
    program = f"""
import sys
from pathlib import Path
from cluster.submit import Jobs
jobs = Jobs({ray_head.url!r})
job = jobs.send({str(tmp_path / "out")!r}, Path({str(tmp_path / "job")!r}), {{"clipmill_token": "t"}})
print(*jobs.lines(job.id), sep=chr(10))
"""
    said = ray_head.run([sys.executable, "-c", program], cwd=ROOT).stdout
    assert "the cluster has clipmill 0.1.0, not 9.9; install that on its machines, or send it with --install" in said
    assert state(ray_head, tmp_path / "out")["exit_code"] == 2
