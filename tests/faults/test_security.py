from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from duckdb import DuckDBPyConnection

from cluster.sizing import size, this_machine
from pipeline import cli, flow, plan, query
from pipeline.preflight import preflight
from schemas.config import ClipsConfig, InputConfig, JobConfig, LimitsConfig
from schemas.errors import BadRequest, BadVideo, ErrorCode, one_line
from schemas.identity import model_slug
from schemas.rows import UNIT_ROW, rows_table
from schemas.secrets import has_credentials, hidden, redacted
from stages.decode import Decode
from stages.discover import Discovery
from stages.models import weights
from stages.models.loading import load, load_tokenizer
from stages.roots import Roots
from stages.sources import check_unchanged, describe, open_source, read_head
from stages.storage import Store
from stages.units import units_of
from tests.faults import canaries, sql_attacks
from tests.faults.record import Record
from tests.media import textured, write_video
from tests.pipeline import tables as made
from tests.s3 import S3Server
from tests.stages.checkpoints import build

CANARY = b"\x00\x00\x00\x18ftypisom CANARY, which is outside"
CLIPS_ONLY = ["--set", "classify=[]"]


# --- places: what a manifest, a link or a race may lead to ---


@dataclass
class Place:
    """`allowed` holds videos, `outside` a canary; `allowed-evil` has a name that begins alike."""

    top: Path

    def __post_init__(self) -> None:
        for name in ("allowed/deep", "outside/deep", "allowed-evil"):
            (self.top / name).mkdir(parents=True)
        for path in (self.allowed / "a.mp4", self.allowed / "deep/b.mp4"):
            path.write_bytes(b"\x00\x00\x00\x18ftypisom inside")
        for path in (self.outside / "secret.mp4", self.outside / "deep/secret.mp4", self.top / "allowed-evil/secret.mp4"):
            path.write_bytes(CANARY)

    @property
    def allowed(self) -> Path:
        return self.top / "allowed"

    @property
    def outside(self) -> Path:
        return self.top / "outside"

    @property
    def secret(self) -> Path:
        return self.outside / "secret.mp4"

    @property
    def roots(self) -> Roots:
        return Roots.of([str(self.allowed)])

    def manifest(self, *lines: str, name: str = "manifest.txt") -> str:
        path = self.allowed / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def rows(uri: str, *allow: str) -> list[dict[str, Any]]:
    return [row for table in Discovery(InputConfig(uri=uri, allow=allow)) for row in table.to_pylist()]


def codes(found: list[dict[str, Any]]) -> dict[str, str | None]:
    return {row["uri"]: row["error_code"] for row in found}


# Lines of a manifest in `allowed` that try to name something outside; {top} is the folder that holds both.
ESCAPES = (
    "{top}/outside/secret.mp4",
    "{top}/allowed-evil/secret.mp4",
    "{top}/allowed/../outside/secret.mp4",
    "{top}/allowed/./../outside/secret.mp4",
    "{top}/allowed/deep/../../outside/deep/secret.mp4",
    "{top}//outside///secret.mp4",
    "//{top}/outside/secret.mp4",
    "../outside/secret.mp4",
    "deep/../../outside/secret.mp4",
    "./../allowed-evil/secret.mp4",
    "../../../../../../../../../../../../../../../../etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "/proc/self/root{top}/outside/secret.mp4",
    "/dev/zero",
    "/dev/stdin",
    "file://{top}/outside/secret.mp4",
    "FILE://{top}/outside/secret.mp4",
    "file://{top}/allowed/../outside/secret.mp4",
    "file://{top}/allowed/%2e%2e/outside/secret.mp4",
    "file://{top}/allowed%2f..%2foutside/secret.mp4",
    "file://{top}/%6futside/secret.mp4",
    "local://{top}/outside/secret.mp4",
    "file:///{top}/outside/secret.mp4",
    "link-to-file.mp4",
    "link-to-folder/secret.mp4",
    "link-to-folder/deep/../secret.mp4",
    "link-to-link.mp4",
    "relative-link.mp4",
    "link-to-root{top}/outside/secret.mp4",
    "deep/link-up/outside/secret.mp4",
    "http://127.0.0.1:{port}/secret.mp4",
    "https://127.0.0.1:{port}/secret.mp4",
    "ftp://127.0.0.1:{port}/secret.mp4",
    "sftp://127.0.0.1:{port}/secret.mp4",
    "s3://bucket/secret.mp4",
    "s3a://bucket/secret.mp4",
    "gs://bucket/secret.mp4",
    "memory://security/secret.mp4",
    "zip://secret.mp4::file://{top}/outside/x.zip",
    "zip://{top}/outside/x.zip",
    "simplecache://x",
    "reference://x",
    "github://org:repo@main/x.mp4",
    "data://text/plain,x",
    "dir://x",
)
# Lines that are no URL by any reading and name nothing.
NOTHING = (
    "simplecache::file://{top}/outside/secret.mp4",
    "file:{top}/outside/secret.mp4",
    "~/secret.mp4",
    "$HOME/secret.mp4",
    "a*.mp4",
)


def with_links(place: Place) -> Place:
    for name, target in {
        "link-to-file.mp4": place.secret,
        "link-to-folder": place.outside,
        "link-to-link.mp4": place.allowed / "link-to-file.mp4",
        "relative-link.mp4": Path("../outside/secret.mp4"),
        "link-to-root": Path("/"),
        "deep/link-up": place.top,
    }.items():
        (place.allowed / name).symlink_to(target)
    return place


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which nobody may knock."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield int(server.getsockname()[1])
        with pytest.raises(BlockingIOError):
            server.accept()


def test_nothing_in_a_manifest_leads_out_of_the_allowed_folder(place: Place, port: int, record: Record) -> None:
    with_links(place)
    Store("memory://security").write("secret.mp4", CANARY)
    lines = [line.format(top=place.top, port=port) for line in ESCAPES]
    found = rows(place.manifest("a.mp4", *lines, "deep/b.mp4"), str(place.allowed))
    good = {str(place.allowed / "a.mp4"), str(place.allowed / "deep/b.mp4")}
    assert {row["uri"] for row in found if row["error_code"] is None} == good
    assert {row["error_code"] for row in found if row["uri"] not in good} == {"forbidden", "missing"}
    missing = [row for row in found if row["error_code"] == "missing"]
    assert all("credentials do not belong in a URL" in row["error_message"] for row in missing), missing
    assert all(row["size_bytes"] is None and row["etag"] is None for row in found if row["uri"] not in good)
    assert len({row["uri"] for row in found}) >= 30
    record("escapes from the allowed folder: lines of a manifest", count=len(lines))
    for line in lines:  # a worker that is handed such a line opens nothing either
        for act in (describe, lambda uri, roots: open_source(uri, None, None, None, roots), lambda u, r: read_head(u, 9, r)):
            with pytest.raises(BadVideo):
                act(line, place.roots)  # type: ignore[operator]


def test_what_looks_like_a_way_out_and_is_none_is_just_not_there(place: Place) -> None:
    lines = [line.format(top=place.top) for line in NOTHING]
    found = rows(place.manifest(*lines), str(place.allowed))
    assert {row["error_code"] for row in found} <= {"missing", "forbidden"}


def test_without_roots_all_of_it_is_as_before(place: Place) -> None:
    with_links(place)
    lines = [str(place.secret), "../outside/secret.mp4", "link-to-file.mp4", f"file://{place.top}/%6futside/secret.mp4"]
    assert set(codes(rows(place.manifest(*lines))).values()) == {None}


def test_the_message_names_the_root_that_would_take_it_in_and_taking_it_makes_the_video_due(place: Place) -> None:
    uri = place.manifest(str(place.secret))
    [row] = rows(uri, str(place.allowed))
    assert row["error_message"] == f"{place.secret} lies outside what --allow names; --allow {place.outside} would take it in"
    [row] = rows(uri, str(place.allowed), str(place.outside))
    assert row["error_code"] is None


def test_nobody_learns_what_there_is_outside(place: Place) -> None:
    there, nowhere = (f"{place.outside}/{name}.mp4" for name in ("secret", "nowhere"))
    one, other = rows(place.manifest(there, nowhere), str(place.allowed))
    assert one["error_message"].replace("secret", "nowhere") == other["error_message"]


@pytest.mark.parametrize("glob", ["", "/", "/**/*.mp4", "/*"])
def test_a_folder_is_listed_but_for_what_its_links_lead_to(place: Place, glob: str) -> None:
    with_links(place)
    found = codes(rows(f"{place.allowed}{glob}", str(place.allowed)))
    inside = {f"{place.allowed}/a.mp4", f"{place.allowed}/deep/b.mp4"}
    assert {uri for uri, code in found.items() if code is None} == inside
    assert set(found.values()) == {None, "forbidden"}
    assert not any("secret" in uri for uri in found)  # not even the names of what is there


def test_links_that_stay_inside_are_followed_and_a_root_may_be_a_link_itself(place: Place) -> None:
    (place.allowed / "c.mp4").symlink_to("deep/b.mp4")
    (place.top / "door").symlink_to(place.allowed)
    for root in (
        place.allowed,
        place.top / "door",
        f"{place.allowed}/",
        f"{place.top}/./door/../allowed",
        f"file://{place.allowed}",
    ):
        for folder in (place.allowed, place.top / "door"):
            assert set(codes(rows(str(folder), str(root))).values()) == {None}


def test_an_input_that_no_root_has_to_do_with_is_refused_before_it_is_looked_at(place: Place) -> None:
    for uri in (place.outside, place.outside / "*.mp4", place.secret, "s3://bucket/x", "memory://security"):
        with pytest.raises(BadRequest, match="lies outside what --allow names"):
            Discovery(InputConfig(uri=str(uri), allow=(str(place.allowed),)))
    found = codes(rows(str(place.top), str(place.allowed)))
    assert {uri for uri, code in found.items() if code is None} == {f"{place.allowed}/a.mp4", f"{place.allowed}/deep/b.mp4"}


@pytest.mark.parametrize(
    "root", ["", " ", "http://host/videos", "https://host", "sftp://host/x", "zip://x", "s3://b/../c", "s3://k:s@b"]
)
def test_what_cannot_be_a_root_is_refused(root: str) -> None:
    with pytest.raises(BadRequest):
        Roots.of([root])


REMOTE_ESCAPES = (
    "s3://bucket-evil/x.mp4",
    "s3://bucket/videos-evil/x.mp4",
    "s3://bucket/video",
    "s3://bucket/videosx",
    "s3://bucket",
    "s3://bucket/VIDEOS/x.mp4",
    "s3://Bucket/videos/x.mp4",
    "s3://bucket//videos/x.mp4",
    "s3://bucket/./videos/x.mp4",
    "s3://bucket/videos/../secret/x.mp4",
    "s3://bucket/videos/a/../../secret/x.mp4",
    "s3://bucket/videos/..",
    "s3://bucket/videos/./x.mp4",
    "s3://bucket.evil/videos/x.mp4",
    "gs://bucket/videos/x.mp4",
    "memory://bucket/videos/x.mp4",
    "file:///bucket/videos/x.mp4",
    "/bucket/videos/x.mp4",
    "bucket/videos/x.mp4",
    "s3:/bucket/videos/x.mp4",
    "simplecache::s3://bucket/videos/x.mp4",
    "https://bucket.s3.amazonaws.com/videos/x.mp4",
)


def test_a_place_in_a_store_is_compared_by_whole_names(record: Record) -> None:
    roots = Roots.of(["s3://bucket/videos/"])
    for uri in (
        "s3://bucket/videos/x.mp4",
        "s3://bucket/videos/a/b..mp4",
        "s3://bucket/videos//x.mp4",
        "s3://bucket/videos/%2e%2e/x",
    ):
        roots.check(uri)  # `%2e` is nothing but three characters of a key
    for uri in REMOTE_ESCAPES:
        with pytest.raises(BadVideo) as caught:
            roots.check(uri)
        assert caught.value.code is ErrorCode.FORBIDDEN
    record("escapes from the allowed folder: places in stores", count=len(REMOTE_ESCAPES))


@pytest.mark.s3
def test_a_store_that_follows_dots_does_not_lead_out(s3: S3Server) -> None:
    bucket = s3.bucket()
    s3.upload(
        bucket,
        {"videos/a.mp4": CANARY, "secret/s.mp4": CANARY, "videos/m.txt": f"a.mp4\n{bucket}/videos/../secret/s.mp4\n".encode()},
    )
    manifest, root = f"{bucket}/videos/m.txt", f"{bucket}/videos"
    assert codes(rows(manifest, root)) == {f"{root}/a.mp4": None, f"{root}/../secret/s.mp4": "forbidden"}
    assert set(codes(rows(bucket, root)).values()) == {None, "forbidden"}
    with pytest.raises(BadVideo, match="forbidden"):
        open_source(f"{bucket}/videos/../secret/s.mp4", None, None, None, Roots.of([root]))


@pytest.mark.cases(quick=2, long=12)
def test_a_link_that_is_swapped_under_our_hands_never_lets_us_read_outside(
    place: Place, case: int, is_long: bool, record: Record
) -> None:
    rng = random.Random(f"swap-{case}")
    inside, over = place.allowed / "inside.mp4", threading.Event()
    inside.write_bytes(b"i" * len(CANARY))
    path = place.allowed / ("x.mp4" if case % 2 else "folder/inside.mp4")
    swapped = path if case % 2 else path.parent
    choices = [place.secret if case % 2 else place.outside, inside if case % 2 else place.allowed, None]
    if not case % 2:
        (place.outside / "inside.mp4").write_bytes(CANARY)

    def swap() -> None:
        while not over.is_set():
            target, new = rng.choice(choices), place.allowed / ".new"
            if target is not None:
                new.symlink_to(target)
                new.replace(swapped)
            else:
                swapped.unlink(missing_ok=True)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes: set[str] = set()
    tries = 2500 if is_long else 400
    try:
        for number in range(tries):
            try:
                if number % 2:
                    with open_source(str(path), None, None, None, place.roots) as file:
                        data = file.read()
                else:
                    data = read_head(str(path), 100, place.roots)
                assert data == inside.read_bytes()
                outcomes.add("read")
            except BadVideo as error:
                outcomes.add(error.code.value)
    finally:
        over.set()
        thread.join()
    record("opens of a source while its link is swapped", count=tries)
    assert outcomes >= {"read", "forbidden"}, f"swap-{case}: the race was not run: {outcomes}"


def job(place: Place, **limits: Any) -> JobConfig:
    clips = ClipsConfig(split="fixed", max_s=2.0, limits=LimitsConfig(**limits))
    return JobConfig(
        input=InputConfig(uri=str(place.allowed), allow=(str(place.allowed),)), output=str(place.top / "out"), clips=clips
    )


def decoding(config: JobConfig) -> Decode:
    """The decode stage as a run builds it in a worker, after its arguments have travelled."""
    step = plan.steps(config, (), size(config.resources, this_machine()), config.output, "run")[0]
    stage, args = pickle.loads(pickle.dumps((step.stage, step.args)))
    *first, _memory, roots = args
    decode: Decode = stage(*first, None, roots)  # without the cap on memory, which would stay with this process
    return decode


def test_a_source_that_became_a_link_after_it_was_listed_is_not_opened_by_a_worker(place: Place) -> None:
    video, other = place.allowed / "v.mp4", place.outside / "v.mp4"
    write_video(other, textured(30))
    shutil.copy2(other, video)
    config = job(place)
    [unit] = [
        row
        for table in Discovery(config.input)
        for row in units_of(due(table, config), config.clips, Roots.of(config.input.allow)).to_pylist()
        if row["uri"] == str(video)
    ]
    ends = [row["end"] for table in decoding(config)(rows_table([unit], UNIT_ROW)) for row in table.to_pylist() if row["end"]]
    assert (ends[0]["error_code"], ends[0]["clips"] > 0) == (None, True)
    video.unlink()
    video.symlink_to(other)  # the same bytes, size and time: only the place is another
    ends = [row["end"] for table in decoding(config)(rows_table([unit], UNIT_ROW)) for row in table.to_pylist() if row["end"]]
    assert (ends[0]["error_code"], ends[0]["clips"]) == ("forbidden", 0)
    with pytest.raises(BadVideo, match="forbidden"):
        check_unchanged(str(video), None, None, None, Roots.of(config.input.allow))


def due(sources: pa.Table, config: JobConfig) -> pa.Table:
    names = pa.array([[config.clips.fingerprint()]] * sources.num_rows, pa.list_(pa.string()))
    return sources.append_column("supersedes", pa.nulls(sources.num_rows, pa.string())).append_column("due", names)


def test_a_header_outside_is_not_looked_at_to_cut_a_long_video(place: Place) -> None:
    other, link = place.outside / "v.mp4", place.allowed / "v.mp4"
    write_video(other, textured(150))
    link.symlink_to(other)
    config = job(place, unit_min_bytes=1, unit_s=2.0)
    source = {"video_id": "0" * 32, "uri": str(link), "size_bytes": other.stat().st_size, "due": []}
    sources = rows_table(
        [source],
        pa.schema(
            [UNIT_ROW.field(name) for name in ("video_id", "uri", "size_bytes", "etag", "modified_at", "supersedes", "due")]
        ),
    )
    assert units_of(sources, config.clips).num_rows > 1
    assert units_of(sources, config.clips, Roots.of(config.input.allow)).num_rows == 1


def test_a_run_whose_sources_are_all_outside_says_so_in_the_ledger_and_tries_again(place: Place, capsys: Any) -> None:
    out = str(place.top / "out")
    args = ["--input", place.manifest(str(place.secret)), "--output", out, "--allow", str(place.allowed), *CLIPS_ONLY]
    for _ in range(2):
        cli.call(["run", *args])
        assert "1 forbidden" in capsys.readouterr().out
    assert cli.call(["verify", out]) == 0
    capsys.readouterr()
    cli.call(["query", out, "SELECT status, error_code, error_stage FROM videos"])
    assert capsys.readouterr().out.splitlines()[1:] == ["deferred,forbidden,discover"] * 2
    assert cli.call(["plan", *args]) == 0
    assert "1 listed, 0 due" in capsys.readouterr().out
    assert cli.call(["status", out, "--input", args[1], "--allow", str(place.allowed)]) == 0


def test_roots_are_in_no_fingerprint(place: Place) -> None:
    base = {"output": "/out", "classify": {"model": "embedded:motion"}, "embed": {"model": "embedded:clip"}}
    one = JobConfig.model_validate({**base, "input": {"uri": "/in"}})
    other = JobConfig.model_validate({**base, "input": {"uri": "/in", "allow": ["/in", "s3://bucket"]}})
    assert one.clips.fingerprint() == other.clips.fingerprint()
    for stage in ("classify", "embed"):
        first, second = getattr(one, stage)[0], getattr(other, stage)[0]
        assert first.fingerprint("aaaaaaaa", "r") == second.fingerprint("aaaaaaaa", "r")


def test_an_empty_list_of_roots_is_refused_rather_than_taken_for_none(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "job.yaml"
    for text in ("input: {uri: /in, allow: []}", "input: {uri: /in, allow: }", "input: {uri: /in, allow: ''}"):
        config.write_text(f"preset: embedded\n{text}\noutput: /out\n")
        assert cli.call(["plan", "--config", str(config)]) == 2
        assert "input.allow: names no root" in capsys.readouterr().err


# --- models ---


def model_job(place: Place, model: str, *allow: str) -> JobConfig:
    (place.allowed / "videos").mkdir(exist_ok=True)
    return JobConfig.model_validate(
        {
            "input": {"uri": str(place.allowed / "videos"), "allow": allow or (str(place.allowed),)},
            "output": str(place.top / "out"),
            "embed": {"model": model, "frames": 4},
        }
    )


def test_a_model_lies_below_a_root_too_and_so_do_the_files_that_its_folder_links_to(place: Place) -> None:
    embedded = weights.resolve("embedded:clip").folder
    for folder in (place.outside / "model", place.allowed / "model"):
        shutil.copytree(embedded, folder)
    assert preflight(model_job(place, str(place.allowed / "model"))).entries
    assert preflight(model_job(place, "embedded:clip")).entries
    for model in (
        str(place.outside / "model"),
        f"{place.allowed}/../outside/model",
        f"file://{place.outside}/model",
        "s3://bucket/model",
        "memory://model",
    ):
        with pytest.raises(BadRequest, match=r"embed: model .* lies outside what --allow names"):
            preflight(model_job(place, model))
    (place.allowed / "model/config.json").unlink()
    (place.allowed / "model/config.json").symlink_to(place.outside / "model/config.json")
    with pytest.raises(BadRequest, match="a link leads to"):
        preflight(model_job(place, str(place.allowed / "model")))


class _Touch:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def test_a_checkpoint_that_is_a_pickle_is_never_executed(tmp_path: Path) -> None:
    folder, canary = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(weights.resolve("embedded:clip").folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"a": _Touch(canary)}, folder / "pytorch_model.bin")
    torch.save({"a": _Touch(tmp_path / "works")}, tmp_path / "other.bin")
    torch.load(tmp_path / "other.bin", weights_only=False)
    assert (tmp_path / "works").exists()  # the pickle does what it should, where somebody loads it
    with pytest.raises(BadRequest, match="cannot load it"):
        load("AutoModel", weights.resolve(str(folder)), "cpu", "float32")
    assert not canary.exists()


@pytest.mark.parametrize("auto", ["config", "model", "tokenizer"])
def test_code_that_comes_with_a_checkpoint_is_never_executed(auto: str, tmp_path: Path) -> None:
    folder, canary = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(build("clip", tmp_path / "built"), folder)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    name = "tokenizer_config.json" if auto == "tokenizer" else "config.json"
    settings = json.loads((folder / name).read_text())
    settings["auto_map"] = {
        f"Auto{kind}": "evil.Evil" for kind in ("Config", "Model", "Tokenizer", "Processor", "ImageProcessor")
    }
    if auto == "config":
        settings["model_type"] = "evil"
    (folder / name).write_text(json.dumps(settings))
    config = model_job(Place(tmp_path / "place"), str(folder), "/")
    with contextlib.suppress(BadRequest):  # refused is as good as loaded without it
        entry = preflight(config).entries[0]
        model = weights.opened(entry.model, entry.revision, weights.fetch(entry.model, entry.revision))
        load("AutoModel", model, "cpu", "float32")
        load_tokenizer(model)
    assert not canary.exists()


def test_every_call_that_loads_something_says_that_code_is_not_to_be_trusted() -> None:
    folder = Path(weights.__file__).parent
    calls = [
        node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    loading = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"]
    assert len(loading) >= 2
    for call in loading:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert (said["trust_remote_code"], said["local_files_only"]) == ("False", "True")


# --- secrets ---


def outside_environment(**more: str) -> dict[str, str]:
    """The environment with canaries in place of everything that leads to a store."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_", "HUGGING"))}
    return {**plain, **canaries.ENVIRONMENT, **more}


def check_clean(done: list[tuple[int, str]], *folders: Path, expected: set[int] | None = None) -> None:
    for number, (code, said) in enumerate(done):
        assert not canaries.leaks(said), said
        assert "Traceback" not in said, said
        assert expected is None or code in expected, (number, said)
    for folder in folders:
        assert not canaries.leaks_below(folder)


def test_every_url_with_a_secret_is_known_for_one_and_shown_without_it() -> None:
    for url in canaries.URLS:
        assert has_credentials(url), url
        assert not canaries.leaks(redacted(url)), redacted(url)
        assert not canaries.leaks(hidden(f"it failed: '{url}' ({url}), {url}; {url}.")), url
        assert not canaries.leaks(one_line(f"at {url}: no"))
    for url in (
        "s3://bucket/a b@c?d.mp4",
        "s3://arn:aws:s3:us-east-1:1:accesspoint/x/a.mp4",
        "https://host:8080/a.mp4",
        "abfs://container@account.dfs.core.windows.net/a",
        "sftp://me@host/a",
        "/a:b@c?d.mp4",
        "s3://bucket/sig=1.mp4",
    ):
        assert not has_credentials(url), url


def test_secrets_in_a_manifest_get_as_far_as_the_driver_and_no_further(tmp_path: Path, record: Record) -> None:
    out, manifest = tmp_path / "out", tmp_path / "list.csv"
    manifest.write_text(
        "uri,id\n" + "".join(f'"{url}",{"" if n % 2 else n}\n' for n, url in enumerate(canaries.URLS)) + "nowhere.mp4,\n"
    )
    args = ["--input", str(manifest), "--output", str(out), *CLIPS_ONLY]
    everything = [f"SELECT * FROM {name}" for name in ("videos", "clips", "annotations", "duckdb_settings()")]
    proxies = {
        "http_proxy": f"http://user:{canaries.PROXY}@127.0.0.1:9",
        "HTTP_PROXY": f"http://user:{canaries.PROXY}@127.0.0.1:9",
    }
    done = canaries.call(
        [
            ["plan", *args], ["plan", *args, "--json"], ["run", *args], ["run", *args], ["run", *args, "--retry-failed"],
            ["status", str(out)], ["status", str(out), "--json"], ["status", str(out), "--input", str(manifest)],
            ["verify", str(out)], ["verify", str(out), "--json"], ["unlock", str(out)],
            *(["query", str(out), sql, "--format", how] for sql in everything for how in ("csv", "json", "table")),
            *(["query", str(out), "--views", dialect] for dialect in ("duckdb", "spark", "athena")),
        ],
        outside_environment(**proxies), tmp_path,
    )  # fmt: skip
    manifest.unlink()
    check_clean(done, tmp_path, expected={0, 3})
    assert pq.read_table(out / "videos").num_rows >= 10  # they are all there, by their names without secrets
    record("secrets in manifests", count=len(canaries.URLS))


def test_secrets_in_requests_that_are_refused_are_not_repeated(tmp_path: Path, record: Record) -> None:
    config, archive = tmp_path / "config", tmp_path / "archive"
    archive.mkdir()
    config.mkdir()
    base = ["--input", str(archive), "--output", str(tmp_path / "out")]
    commands = []
    for url in canaries.URLS:
        commands += [
            ["run", "--input", url, *base[2:], *CLIPS_ONLY], ["plan", *base[:2], "--output", url, *CLIPS_ONLY],
            ["plan", *base, "--allow", url, *CLIPS_ONLY], ["plan", *base, "--set", f"embed.model={url}"],
            ["status", url], ["query", url, "SELECT 1"], ["verify", url], ["run", url],
            ["status", str(archive), "--input", url],
        ]  # fmt: skip
    for number, text in enumerate(canaries.FILES):
        (config / f"{number}.yaml").write_text(text)
        commands.append(["plan", "--preset", "embedded", "--config", str(config / f"{number}.yaml")])
    shutil.copytree(config, tmp_path / "config-2")
    commands += [
        ["plan", *base, "--preset", "embedded", "--config", str(path)] for path in sorted((tmp_path / "config-2").iterdir())
    ]
    commands += [["plan", *base, "--preset", "embedded", "--set", setting] for setting in canaries.SETTINGS]
    done = canaries.call(commands, outside_environment(), tmp_path)
    shutil.rmtree(config)
    shutil.rmtree(tmp_path / "config-2")
    check_clean(done, tmp_path, expected={0, 2})  # 0 where --input or --output went over the secret
    assert [code for code, _ in done].count(0) < 10
    record("secrets in requests", count=len(commands))


def test_secrets_of_a_store_that_refuses_us_are_not_repeated(
    s3: S3Server, tmp_path: Path, is_long: bool, record: Record
) -> None:
    archive, bucket = tmp_path / "archive", s3.bucket()
    archive.mkdir()
    s3.upload(bucket, {"a.mp4": CANARY})
    headed = tmp_path / "headless.csv"
    headed.write_text(f"{canaries.URLS[0]},{canaries.URLS[4]}\n")
    (tmp_path / "broken.parquet").write_bytes(f"PAR1 {canaries.SECRET}".encode())
    (tmp_path / "sources.txt").write_text(f"{bucket}/a.mp4\n{bucket}/none/b.mp4\ns3://no-such-bucket-here/c.mp4\n")
    out = ["--output", str(tmp_path / "out"), *CLIPS_ONLY]
    commands = [
        ["run", "--input", bucket, *out], ["run", "--input", "s3://no-such-bucket-here", *out],
        ["run", "--input", f"{bucket}/x.csv", *out],
        ["run", "--input", str(archive), "--output", f"{bucket}/out", *CLIPS_ONLY], ["status", f"{bucket}/out"],
        ["run", "--input", str(headed), *out], ["run", "--input", str(tmp_path / "broken.parquet"), *out],
        ["plan", "--input", str(archive), "--output", str(tmp_path / "out"), "--set", f"embed.model={bucket}/model"],
        ["plan", "--input", str(archive), "--output", str(tmp_path / "out"), "--set", "embed.model=owner/name"],
        ["run", "--input", str(tmp_path / "sources.txt"), *out], ["query", str(tmp_path / "out"), "SELECT * FROM videos"],
    ]  # fmt: skip
    with canaries.echoing_store() as echo:
        endpoints = {
            "echoes": {"AWS_ENDPOINT_URL": echo},
            "refuses": {"AWS_ENDPOINT_URL": s3.endpoint},
            "gone": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "behind a proxy": {
                "AWS_ENDPOINT_URL": "http://storage.invalid",
                "http_proxy": f"http://user:{canaries.PROXY}@127.0.0.1:9",
            },
        }
        for name, endpoint in list(endpoints.items())[: None if is_long else 1]:
            done = canaries.call(commands, outside_environment(**endpoint), tmp_path)
            assert not any(code == 0 for code, _ in done[:5]), (name, done)
            check_clean(done, tmp_path / "out")
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    record("secrets at stores that refuse", count=(len(endpoints) if is_long else 1) * len(commands))


def test_what_a_worker_writes_down_of_an_error_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in canaries.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for text in (*canaries.URLS, *(f"the token is {value}" for value in canaries.ENVIRONMENT.values())):
        with pytest.raises(RuntimeError), flow._WrittenDown(str(tmp_path), "run", "at videos x"):
            raise RuntimeError(f"'{text}'") from ValueError(text)
    assert len(list(tmp_path.rglob("*.txt"))) > 20
    assert not canaries.leaks_below(tmp_path)


def test_a_configuration_with_a_secret_in_a_url_cannot_even_be_made() -> None:
    for url in canaries.URLS:
        for change in (
            {"input": {"uri": url}},
            {"output": url},
            {"input": {"uri": "/in", "allow": [url]}},
            {"caption": {"model": url}},
        ):
            with pytest.raises(ValueError, match="credentials do not belong") as caught:
                JobConfig.model_validate({"input": {"uri": "/in"}, "output": "/out", **change})
            assert not canaries.leaks(str(caught.value))
        assert not canaries.leaks(model_slug(redacted(url)))


# --- query ---


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DuckDBPyConnection, Store]]:
    """An open query over small tables, a canary beside them, others inside, and in the environment."""
    store = Store(str(tmp_path / "out"))
    made.write_small(store)
    made.write_log(store, ("open", "r1"), ("close", "r1"))
    (tmp_path / "secret.csv").write_text(f"a,b\n{canaries.SECRET},1\n")
    (tmp_path / "elsewhere").mkdir()
    for name in ("notes.txt", "_runs/r1/faults/f.txt", "clips/notes.txt"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(canaries.SECRET)
    monkeypatch.chdir(tmp_path)
    for name, value in {**canaries.ENVIRONMENT, "HTTP_PROXY": f"http://user:{canaries.PROXY}@127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with query.opened(store) as connection:
        yield connection, store


def answer(connection: DuckDBPyConnection, sql: str) -> list[Any]:
    canary_variable = pa.table({"secret": [canaries.SECRET]})
    assert canary_variable.num_rows
    return [list(row) for row in query.select(connection, sql).rows]


def test_no_statement_reads_writes_or_reveals_what_is_not_its_business(
    asked: tuple[DuckDBPyConnection, Store], tmp_path: Path, port: int, record: Record
) -> None:
    connection, store = asked
    names = {
        "secret": tmp_path / "secret.csv",
        "out": store.root,
        "root": query.ROOT,
        "elsewhere": tmp_path / "elsewhere",
        "port": port,
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    through, said = [], []
    for statement in (*sql_attacks.REFUSED, *sql_attacks.NO_SELECT):
        try:
            through.append((statement, answer(connection, statement.format(**names))))
        except BadRequest as error:
            said.append(str(error))
    assert not through
    for statement in sql_attacks.HARMLESS:
        said.append(str(answer(connection, statement.format(**names))))
    assert not [text for text in said if canaries.leaks(text)]
    assert not [text for text in said[: len(sql_attacks.REFUSED)] if "\n" in text]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert answer(connection, "SELECT current_setting('temp_directory'), current_setting('lock_configuration')") == [["", True]]
    assert answer(connection, "SELECT count(*) FROM clips") == [[4]]  # and it still works
    record("statements against query", count=len(sql_attacks.REFUSED) + len(sql_attacks.NO_SELECT) + len(sql_attacks.HARMLESS))


@pytest.mark.parametrize("kind", ["file", "folder", "log"])
def test_links_in_the_output_do_not_lead_a_query_out(kind: str, tmp_path: Path) -> None:
    store, outside = Store(str(tmp_path / "out")), tmp_path / "outside"
    made.write_small(store)
    shutil.copytree(tmp_path / "out/clips", outside / "clips")
    if kind == "folder":
        (tmp_path / "out/clips/fingerprint=aaaaaaaa").symlink_to(next((outside / "clips").glob("*")))
    elif kind == "file":
        real = next((tmp_path / "out/clips").rglob("*.parquet"))
        (real.parent / "part-evil-0.parquet").symlink_to(next((outside / "clips").rglob("*.parquet")))
    else:
        (tmp_path / "out/clips/run_date=x").mkdir()
        (tmp_path / "out/clips/run_date=x/part-evil-0.parquet").symlink_to("/etc/passwd")
    with pytest.raises(BadRequest, match="a link that leads out of the output"), query.opened(store) as connection:
        answer(connection, "SELECT * FROM clips")


def run_query(code: str, folder: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


GREED = """
import sys
from pathlib import Path
from pipeline import query
from schemas.errors import BadRequest
from stages.storage import Store

def peak_mb():
    # not ru_maxrss, which begins with what the process that started this one had
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) >> 10

with query.bounded(300 << 20), query.opened(Store(sys.argv[1]), 300 << 20) as connection:
    for sql in sys.argv[2:]:
        try:
            rows = list(query.select(connection, sql).rows)
            print("answered", flush=True)
        except BadRequest as error:
            print(str(error).count("\\n"), error, flush=True)
    print(list(query.select(connection, "SELECT 1").rows), peak_mb())
"""


def test_a_query_that_wants_too_much_memory_ends_with_one_line_and_leaves_nothing_on_disk(
    tmp_path: Path, is_long: bool, record: Record
) -> None:
    store = Store(str(tmp_path / "out"))
    made.write_small(store)
    statements = sql_attacks.GREEDY if is_long else sql_attacks.GREEDY[:4]
    before = sorted(tmp_path.rglob("*"))
    process = run_query(GREED, tmp_path, store.root, *statements)
    said, trouble = process.communicate(timeout=280)
    *lines, last = said.splitlines()
    assert process.returncode == 0, trouble
    assert len(lines) == len(statements)
    assert all(line.startswith("0 the query failed: Out of Memory") for line in lines), said
    assert last.startswith("[(1,)]")
    peak_mb = int(last.rpartition(" ")[2])
    assert peak_mb < 1000
    assert sorted(tmp_path.rglob("*")) == before
    record("queries that want too much", count=len(statements))
    record.figure("memory of a process whose queries may take 300 MB", f"{peak_mb} MB at most")


CTRL_C = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs behind it
from pipeline import cli

def press() -> None:
    while time.process_time() < 3:  # by then it is at the query, which is the only thing here that takes long
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press, daemon=True).start()
sys.exit(cli.call(sys.argv[1:]))
"""


def test_a_ctrl_c_ends_a_query_that_would_never_end(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    made.write_small(store)
    made.write_log(store, ("open", "r1"))
    endless = "SELECT count(*) FROM range(100000000000) a, range(1000) b WHERE hash(a.range) % 7 = hash(b.range) % 5"
    process = run_query(CTRL_C, tmp_path, "query", store.root, endless)
    try:
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.count("\n") <= 1
