from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from schemas.errors import BadRequest
from stages.models import catalogue, weights
from tests.stages.checkpoints import build, checkpoint, edit_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("clip"), tmp_path / "clip"))


def revision(model: str | Path) -> str:
    return weights.resolve(str(model)).revision


# folders


def test_a_folder_is_named_by_what_is_in_it(folder: Path, tmp_path: Path) -> None:
    found = weights.resolve(str(folder))
    assert (found.model, found.model_type, found.folder) == (str(folder), "clip", folder)
    assert len(found.revision) == 32
    copy = shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    (copy / "README.md").write_text("changes nothing")
    assert revision(copy) == found.revision
    assert revision(f"file://{copy}") == found.revision


def test_one_other_byte_of_the_weights_is_another_revision(folder: Path) -> None:
    before = revision(folder)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    assert revision(folder) != before


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json"])
def test_how_a_model_is_used_is_part_of_its_revision(folder: Path, name: str) -> None:
    before = revision(folder)
    edit_json(folder / name, said="otherwise")
    assert revision(folder) != before


def test_fetch_gives_the_folder_as_long_as_it_is_what_was_resolved(folder: Path) -> None:
    found = weights.resolve(str(folder))
    assert weights.fetch(str(folder), found.revision) == folder
    edit_json(folder / "config.json", said="otherwise")
    with pytest.raises(BadRequest, match="when the run was planned"):
        weights.fetch(str(folder), found.revision)


def test_pickled_weights_are_taken_only_where_there_are_no_others() -> None:
    assert weights.wanted("m", ["a.safetensors", "pytorch_model.bin", "config.json"]) == ["a.safetensors", "config.json"]
    assert weights.wanted("m", ["pytorch_model.bin", "training_args.bin", "onnx/model.safetensors"]) == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/no/such/folder", "no such folder"),
        ("./no-such-folder", "no such folder"),
        ("file:///no/such/folder", "no such folder"),
        ("embedded:no_such", "no such embedded model"),
        ("embedded:../clip", "no such embedded model"),
        ("one-word", "not a hub id"),
        ("nosuch://bucket/model", "nosuch"),
        ("memory://nowhere/at/all", "no such folder"),
        ("memory://bucket/model@v2", "only hub ids take @revision"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line_with_the_model(model: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        weights.resolve(model)
    assert model in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_takes_no_revision(folder: Path) -> None:
    with pytest.raises(BadRequest, match="only hub ids"):
        weights.resolve(f"{folder}@main")


def test_folders_that_are_no_checkpoints_are_refused(folder: Path) -> None:
    (folder / "config.json").write_text("not json")
    with pytest.raises(BadRequest, match=r"config\.json cannot be read"):
        weights.resolve(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(BadRequest, match="not a JSON object"):
        weights.resolve(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(BadRequest, match=r"no config\.json"):
        weights.resolve(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadRequest, match="no weights"):
        weights.resolve(str(folder))


# URLs


@pytest.fixture
def bucket(folder: Path) -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.put(f"{folder}/", "/bucket/clip/", recursive=True)
    yield "memory://bucket/clip"
    fs.rm("/bucket", recursive=True)


def test_a_folder_behind_a_url_is_fetched_once_and_is_whole(bucket: str, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = weights.resolve(bucket, cache)
    assert found.model_type == "clip"
    assert not (found.folder / "model.safetensors").exists()
    here = weights.fetch(bucket, found.revision, cache)
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"
    }
    fsspec.filesystem("memory").rm("/bucket/clip/model.safetensors")
    assert weights.fetch(bucket, found.revision, cache) == here


def test_a_url_s_revision_follows_its_contents(bucket: str, tmp_path: Path) -> None:
    before = weights.resolve(bucket, tmp_path).revision
    assert weights.resolve(bucket, tmp_path / "other").revision == before
    fsspec.filesystem("memory").pipe_file("/bucket/clip/model.safetensors", b"others")
    assert weights.resolve(bucket, tmp_path).revision != before
    with pytest.raises(BadRequest, match="when the run was planned"):
        weights.fetch(bucket, before, tmp_path)


class Slow(MemoryFileSystem):
    """A store that takes its time, and counts what it gives."""

    protocol = "slow"
    given: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("slow://", "memory://")))

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        time.sleep(0.02)
        self.given.append(rpath)
        super().get_file(rpath, lpath, **kwargs)


def test_many_processes_of_a_node_fetch_one_whole_copy(bucket: str, tmp_path: Path) -> None:
    fsspec.register_implementation("slow", Slow, clobber=True)
    slow = bucket.replace("memory://", "slow://")
    found = weights.resolve(slow, tmp_path)
    Slow.given.clear()
    with ThreadPoolExecutor(8) as pool:
        here = set(pool.map(lambda _: weights.fetch(slow, found.revision, tmp_path), range(8)))
    assert len(here) == 1
    assert len(Slow.given) == len(set(Slow.given)) == len(list(here.pop().iterdir()))
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".partial")] == []


def test_a_fetch_that_breaks_off_leaves_nothing(bucket: str, tmp_path: Path) -> None:
    found = weights.resolve(bucket, tmp_path / "small")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest):  # the cache cannot be made there
        weights.fetch(bucket, found.revision, tmp_path / "file" / "cache")
    kept = tmp_path / "cache"
    kept.mkdir()
    (kept / "clip").mkdir()
    assert weights.fetch(bucket, found.revision, kept).is_dir()


# The hub. huggingface_hub reads its environment when it is imported, so each case is a process of its own.

SCRIPT = """
import json, sys, time
from pathlib import Path
from schemas.errors import BadRequest
from stages.models import weights
out = []
for action, model, *rest in json.loads(sys.argv[1]):
    try:
        if action == "resolve":
            found = weights.resolve(model)
            out.append([found.revision, found.model_type])
        else:
            out.append(sorted(path.name for path in weights.fetch(model, *rest).iterdir()))
    except BadRequest as error:
        out.append(str(error))
print(json.dumps({"out": out, "torch": "torch" in sys.modules}))
"""


def on_the_hub(home: Path, *calls: list[str], endpoint: str = "http://127.0.0.1:9", offline: bool = False) -> list[Any]:
    """What resolve and fetch make of a hub at `endpoint` with a cache in `home`; they must not need torch."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert not answer["torch"]
    return list(answer["out"])


def into_cache(home: Path, repo: str, folder: Path, commit: str = COMMIT, without: tuple[str, ...] = ()) -> None:
    """Lays `folder` out as huggingface_hub keeps a snapshot of `repo`."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns(*without))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)


class Hub(ThreadingHTTPServer):
    """As much of a hub as resolving and fetching takes: one repository, and two that refuse."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"README.md": b"#", "onnx/m.json": b"{}"}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Asked)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Asked(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        for refused, status, code in (("/absent", 404, "RepoNotFound"), ("/gated", 403, "GatedRepo")):
            if refused in path:
                return self._send(status, b"{}", {"X-Error-Code": code})
        if path.endswith("/revision/nosuch"):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if "/resolve/" in path:
            data = self.server.files.get(path.partition(f"/resolve/{COMMIT}/")[2])
            if data is None:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self._send(200, data, {"ETag": f'"{hash(data)}"', "X-Repo-Commit": COMMIT})
        if "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in self.server.files.items()]
            return self._send(200, json.dumps(tree).encode(), {})
        info = {"id": "org/clip", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.server.files]}
        return self._send(200, json.dumps(info).encode(), {})

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_hub_model_is_resolved_to_its_commit_and_fetched_without_what_is_not_used(hub: Hub, tmp_path: Path) -> None:
    names = sorted(name for name in hub.files if name not in ("README.md", "onnx/m.json"))
    resolved, fetched = on_the_hub(tmp_path, ["resolve", "org/clip"], ["fetch", "org/clip", COMMIT], endpoint=hub.url)
    assert resolved == [COMMIT, "clip"]
    assert fetched == names
    asked_before_weights = hub.asked[: next(i for i, path in enumerate(hub.asked) if path.endswith("model.safetensors"))]
    assert any(path.endswith("config.json") for path in asked_before_weights)
    # and once it is there, no network is needed
    assert on_the_hub(tmp_path, ["resolve", "org/clip"], ["fetch", "org/clip@main", COMMIT]) == [resolved, fetched]
    hub.asked.clear()
    assert on_the_hub(tmp_path, ["resolve", f"org/clip@{COMMIT}"], endpoint=hub.url) == [resolved]
    assert hub.asked == []


def test_resolving_leaves_the_weights_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    on_the_hub(tmp_path, ["resolve", "org/clip"], endpoint=hub.url)
    assert not [path for path in hub.asked if path.endswith((".safetensors", "tokenizer.json"))]
    # so this cache has the small files only, and that is not enough without a network
    (said,) = on_the_hub(tmp_path, ["resolve", "org/clip"])
    assert "not in the cache" in said


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("org/absent", "no such model, or no access"),
        ("org/gated", "hf auth login"),
        ("org/clip@nosuch", "no such revision"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: Hub, tmp_path: Path, model: str, says: str) -> None:
    (said,) = on_the_hub(tmp_path, ["resolve", model], endpoint=hub.url)
    assert said.startswith(f"model {model}: ")
    assert says in said


@pytest.mark.parametrize("offline", [True, False], ids=["offline-mode", "no-network"])
def test_without_a_network_the_cache_is_used_and_what_it_lacks_is_said(folder: Path, tmp_path: Path, offline: bool) -> None:
    home = tmp_path / "home"
    into_cache(home, "org/clip", folder)
    into_cache(home, "org/half", folder, without=("*.safetensors",))
    into_cache(home, "org/wordless", folder, without=("tokenizer.json",))
    good, half, wordless, absent, other, fetched = on_the_hub(
        home,
        ["resolve", "org/clip"],
        ["resolve", "org/half"],
        ["resolve", "org/wordless"],
        ["resolve", "org/absent"],
        ["resolve", f"org/clip@{OTHER_COMMIT}"],
        ["fetch", "org/clip", COMMIT],
        offline=offline,
    )
    assert good == [COMMIT, "clip"]
    assert "model.safetensors" in fetched
    for said, model in ((half, "org/half"), (wordless, "org/wordless"), (absent, "org/absent")):
        assert said.startswith(f"model {model}: ")
        assert f"hf download {model}" in said
        assert "\n" not in said
    assert f"hf download org/clip --revision {OTHER_COMMIT}" in other


# loading


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tests.stages.clips import entry

    folder = build("git", tmp_path / "git")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("query.weight")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadRequest, match="lack 1 tensors"):
        catalogue.captioner(_at(entry("caption", "git"), folder), "cpu", "float32")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    from tests.stages.clips import entry

    folder = build("clip", tmp_path / "clip")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit_json(folder / "config.json", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    catalogue.classifier(_at(entry("classify", "clip"), folder), "cpu", "float32")
    assert not (tmp_path / "ran").exists()


def _at(entry: Any, folder: Path) -> Any:
    from dataclasses import replace

    config = entry.config.model_copy(update={"model": str(folder)})
    return replace(entry, config=config, revision=revision(folder))
