"""Finding videos: folders, globs, files and manifests; on disk, in memory and on S3."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import shutil
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.config import InputConfig
from schemas.errors import BadRequest
from schemas.identity import video_id
from schemas.rows import SOURCE_ROW
from stages import discover, filesystems, listing
from stages.discover import Discovery
from stages.filesystems import joined
from stages.globs import matches, may_lead, split_glob
from stages.listing import Source, list_s3
from stages.roots import Roots
from stages.sniff import looks_like_video
from stages.sources import Found
from stages.storage import StorageUnavailable, Store
from tests.s3 import S3Server, environment

MP4_HEAD = b"\x00\x00\x00\x18ftypisom" + bytes(500)


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "archive"))
    if request.param == "memory":
        return Store(f"memory://{secrets.token_hex(8)}/archive")
    return Store(f"{request.getfixturevalue('s3').bucket()}/archive")


def fill(store: Store, *keys: str) -> None:
    for key in keys:
        store.write(key, f"content of {key}".encode())


def rows(uri: str, **config: Any) -> list[dict[str, Any]]:
    found = []
    for table in Discovery(InputConfig(uri=uri, **config)):
        assert table.schema == SOURCE_ROW
        assert table.num_rows
        found.extend(table.to_pylist())
    return found


def found_keys(store: Store, uri: str | None = None, **config: Any) -> list[str]:
    root = joined(store.root, "")
    return [row["uri"].removeprefix(root) for row in rows(uri or store.root, **config)]


def test_a_folder_is_searched_to_its_depths_by_extension(store: Store) -> None:
    fill(store, "b.mp4", "a/x.MKV", "a/deep/er/y.webm", "a/notes.txt", "a/x.mkv.part", "z.parquet", "mp4", "c.jpeg")
    assert sorted(found_keys(store)) == ["a/deep/er/y.webm", "a/x.MKV", "b.mp4"]
    assert sorted(found_keys(store, extensions=(".jpeg", "PART"))) == ["a/x.mkv.part", "c.jpeg"]


def test_a_listing_says_what_the_store_knows(store: Store) -> None:
    store.write("a.mp4", b"hello")
    (row,) = rows(store.root)
    assert row["size_bytes"] == 5
    assert row["error_code"] is None
    assert abs(row["modified_at"] - datetime.now(UTC)).total_seconds() < 3600
    if store.root.startswith("s3://"):
        assert row["etag"] == "5d41402abc4b2a76b9719d911017c592"
        assert row["video_id"] == video_id(row["uri"], 5, row["etag"])
    else:
        assert row["etag"] is None


def test_on_disk_the_identity_holds_the_mtime_to_the_nanosecond(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"hello")
    os.utime(tmp_path / "a.mp4", ns=(0, 1_700_000_000_123_456_789))
    (row,) = rows(str(tmp_path))
    assert row["video_id"] == video_id(f"{tmp_path}/a.mp4", 5, "1700000000123456789")
    assert row["modified_at"] == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


def test_every_way_to_name_a_video_gives_it_the_same_identity(store: Store, tmp_path: Path) -> None:
    fill(store, "sub/a.mp4")
    uri = store.uri("sub/a.mp4")
    manifest = tmp_path / "manifest.txt"
    manifest.write_text(f"{uri}\n")
    ways = [store.root, f"{store.root}/", store.uri("sub"), uri, store.uri("*/*.mp4"), store.uri("**"), str(manifest)]
    assert len({(row["video_id"], row["uri"], row["etag"]) for way in ways for row in rows(way)}) == 1


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert rows(str(tmp_path)) == []


@pytest.mark.s3
def test_an_empty_bucket_holds_nothing(s3: S3Server) -> None:
    assert rows(s3.bucket()) == []


def test_a_glob_picks(store: Store) -> None:
    fill(store, "2023/a.mp4", "2024/b.mp4", "2024/c.mov", "2024/deep/d.mp4", "e.mp4", "2024/.hidden.mp4")
    assert found_keys(store, store.uri("*.mp4")) == ["e.mp4"]
    assert found_keys(store, store.uri("2024/*.mp4")) == ["2024/b.mp4"]
    assert found_keys(store, store.uri("20?3/*")) == ["2023/a.mp4"]
    assert found_keys(store, store.uri("*/[bd].mp4")) == ["2024/b.mp4"]
    assert sorted(found_keys(store, store.uri("**/*.mp4"))) == ["2023/a.mp4", "2024/b.mp4", "2024/deep/d.mp4", "e.mp4"]
    assert sorted(found_keys(store, store.uri("2024*"))) == ["2024/b.mp4", "2024/c.mov", "2024/deep/d.mp4"]
    assert found_keys(store, store.uri("2024/*.avi")) == []


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    for name in ("a[1].mp4", "a1.mp4", "what?.mp4", "star*.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    assert [row["uri"] for row in rows(f"{tmp_path}/a[1].mp4")] == [f"{tmp_path}/a[1].mp4"]
    assert len(rows(f"{tmp_path}/a[12].mp4")) == 1
    assert len(rows(str(tmp_path))) == 4


def test_a_single_file_needs_no_extension(store: Store) -> None:
    fill(store, "recording.dat")
    assert found_keys(store, store.uri("recording.dat")) == ["recording.dat"]


def test_files_without_an_extension_are_opened(store: Store) -> None:
    store.write("camera/0001", MP4_HEAD)
    store.write("camera/VID 2024.01.02 at noon", MP4_HEAD)
    store.write("camera/README", b"a text about videos")
    store.write("camera/empty", b"")
    store.write("camera/wrong.jpg", MP4_HEAD)
    assert sorted(found_keys(store)) == ["camera/0001", "camera/VID 2024.01.02 at noon"]


def ts_packets(packet_bytes: int, offset: int) -> bytes:
    packet = bytes(offset) + b"\x47" + bytes(packet_bytes - offset - 1)
    return packet * 6


@pytest.mark.parametrize(
    ("head", "is_video"),
    [
        (MP4_HEAD, True),
        (b"\x00\x00\x00\x08wide\x00\x00\x10\x00mdat", True),
        (b"\x1a\x45\xdf\xa3\x01", True),
        (b"RIFF\x10\x00\x00\x00AVI LIST", True),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", False),
        (b"FLV\x01\x05", True),
        (b"OggS\x00\x02", True),
        (b"\x00\x00\x01\xba\x44", True),
        (bytes.fromhex("3026b2758e66cf11a6d9"), True),
        (ts_packets(188, 0), True),
        (ts_packets(192, 4), True),
        (b"G" + bytes(600), False),
        (b"GG", False),
        (b"\x00\x00\x00\x18ftypheic", False),
        (b"\x00\x00\x00\x18ftypM4A ", False),
        (b"ffconcat version 1.0", False),
        (b"#EXTM3U", False),
        (b"", False),
    ],
)
def test_containers_are_known_by_their_first_bytes(head: bytes, is_video: bool) -> None:
    assert looks_like_video(head) is is_video


def test_hidden_files_are_left_alone(store: Store) -> None:
    fill(store, ".hidden.mp4", ".trash/a.mp4", "b/.c/d.mp4", "b/e.mp4", "._e.mp4")
    assert found_keys(store) == ["b/e.mp4"]


def test_a_folder_inside_a_hidden_one_may_be_named(tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/.cache/videos")
    fill(store, "a.mp4")
    assert found_keys(store) == ["a.mp4"]


def test_clipmills_own_tables_are_not_input(store: Store) -> None:
    fill(store, "a.mp4", "tables/_log/00000001.json", "tables/_runs/r/x.mp4", "tables/exports/y.mp4", "videos/b.mp4")
    assert sorted(found_keys(store)) == ["a.mp4", "videos/b.mp4"]


def test_videos_beside_clipmills_tables_are_input(store: Store) -> None:
    fill(store, "_log/00000001.json", "_log/z.mp4", "_runs/r/x.mp4", "videos/b.mp4", "a.mp4")
    assert sorted(found_keys(store)) == ["a.mp4", "videos/b.mp4"]


def test_a_users_own_log_folder_hides_nothing(store: Store) -> None:
    fill(store, "trip/_log/day1.mp4", "trip/_runs/fast.mp4", "trip/_log/notes.json")
    assert sorted(found_keys(store)) == ["trip/_log/day1.mp4", "trip/_runs/fast.mp4"]


def test_names_on_disk_are_data(tmp_path: Path) -> None:
    names = [
        "a b.mp4",
        "ü.mp4",
        "new\nline.mp4",
        "quo'te\".mp4",
        "100%41.mp4",
        "ha#sh.mp4",
        "st*r?[1].mp4",
        " .mp4",
        "c::d.mp4",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert sorted(row["uri"] for row in rows(str(tmp_path))) == sorted(f"{tmp_path}/{name}" for name in names)
    assert all(row["error_code"] is None for row in rows(str(tmp_path)))


def test_a_name_that_is_not_utf8_is_found_and_its_uri_leads_back(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    (tmp_path / "manifest.txt").write_bytes(b"caf\xe9.mp4\n")
    (listed,) = rows(str(tmp_path))
    assert listed["uri"] == f"file://{tmp_path}/caf%E9.mp4"
    assert listed["size_bytes"] == 1
    assert rows(f"{tmp_path}/manifest.txt") == [listed] == rows(listed["uri"])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(Store(str(tmp_path / "elsewhere")), "a.mp4")
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "inner").mkdir()
    (archive / "to-folder").symlink_to(tmp_path / "elsewhere")
    (archive / "to-file.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    (archive / "inner" / "circle").symlink_to(archive)
    (archive / "broken.mp4").symlink_to(tmp_path / "nowhere")
    assert [row["uri"] for row in rows(str(archive))] == [f"{archive}/to-file.mp4", f"{archive}/to-folder/a.mp4"]


def test_promise_4_a_link_to_itself_costs_no_neighbour(tmp_path: Path) -> None:
    fill(Store(str(tmp_path)), "a.mp4", "b.mp4")
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    assert [row["uri"] for row in rows(str(tmp_path))] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4"]


def test_a_folder_that_may_not_be_listed_is_a_row_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Store(str(tmp_path)), "closed/a.mp4", "open/b.mp4", "sick/c.mp4")
    scan = listing._scan

    def guarded(path: str, roots: Roots) -> Any:  # root may list everything, so that a mode of 000 shows nothing
        if path.endswith("/closed"):
            raise PermissionError(13, "Permission denied")
        if path.endswith("/sick"):
            raise OSError(5, "Input/output error")
        return scan(path, roots)

    monkeypatch.setattr(listing, "_scan", guarded)
    found = {row["uri"].removeprefix(f"{tmp_path}/"): row["error_code"] for row in rows(str(tmp_path))}
    assert found == {"closed": "forbidden", "open/b.mp4": None, "sick": "storage"}


def test_relative_inputs_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Store(str(tmp_path)), "videos/a.mp4")
    monkeypatch.chdir(tmp_path)
    absolute = [f"{tmp_path}/videos/a.mp4"]
    for uri in (
        "videos",
        "./videos/",
        "videos/../videos",
        "videos/*.mp4",
        "*/a.mp4",
        "file://" + str(tmp_path),
        "videos/a.mp4",
    ):
        assert [row["uri"] for row in rows(uri)] == absolute


@pytest.mark.parametrize("name", ["manifest.txt", "manifest.csv", "manifest.parquet"])
def test_a_manifest_lists_videos_relative_to_its_folder(store: Store, tmp_path: Path, name: str) -> None:
    fill(store, "in/a b,c.mp4", "top.bin", "other/x.mp4")
    uris = ["in/a b,c.mp4", "in/../top.bin", "./other/x.mp4", store.uri("other/x.mp4")]
    if name.endswith(".txt"):
        store.write(name, ("\ufeff" + "\r\n".join(uris) + "\r\n\r\n").encode())
    elif name.endswith(".csv"):
        store.write(name, ("note,uri\r\n" + "".join(f'x,"{uri}"\r\n' for uri in uris)).encode())
    else:
        with store.open_write(name) as file:
            pq.write_table(pa.table({"uri": uris, "note": list(range(4))}), file)
    discovery = Discovery(InputConfig(uri=store.uri(name)))
    found = [row for table in discovery.batches() for row in table.to_pylist()]
    assert [row["uri"] for row in found] == [store.uri(key) for key in ("in/a b,c.mp4", "top.bin", "other/x.mp4")]
    assert [row["error_code"] for row in found] == [None] * 3
    assert all(row["size_bytes"] for row in found)
    assert discovery.duplicates == 1
    assert discovery.listed == 4


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_a_manifests_id_takes_the_uris_place_in_the_identity(tmp_path: Path, name: str) -> None:
    for video in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / video).write_bytes(b"x")
        os.utime(tmp_path / video, ns=(0, 5_000))
    if name.endswith(".csv"):
        (tmp_path / name).write_text("id,uri\n17,a.mp4\n17,b.mp4\n,c.mp4\n")
    else:
        pq.write_table(pa.table({"uri": ["a.mp4", "b.mp4", "c.mp4"], "id": pa.array([17, 17, None])}), tmp_path / name)
    discovery = Discovery(InputConfig(uri=str(tmp_path / name)))
    found = [row["video_id"] for table in discovery for row in table.to_pylist()]
    assert found == [video_id("17", 1, "5000"), video_id(f"{tmp_path}/c.mp4", 1, "5000")]
    assert discovery.duplicates == 1  # the same id, size and time: the same video under another name


def test_what_a_manifest_names_and_is_not_there_is_a_row(store: Store) -> None:
    fill(store, "a.mp4", "folder/b.mp4")
    store.write(
        "manifest.txt", b"a.mp4\ngone.mp4\nfolder\ngone.mp4\nnosuchthing://x/y.mp4\ns3://KEY:SECRET@bucket/x.mp4\nn\0l.mp4\n"
    )
    found = rows(store.uri("manifest.txt"))
    codes = [row["error_code"] for row in found]
    assert codes[:2] == [None, "missing"]
    assert codes[2] in ("unreadable", "missing")
    assert found[1]["uri"] == store.uri("gone.mp4")
    assert found[1]["size_bytes"] is None
    assert found[1]["video_id"] == video_id(store.uri("gone.mp4"), None, None)
    assert all(row["error_message"] for row in found[1:])
    assert len(found) == 6
    assert "SECRET" not in str(found)


def test_bytes_that_no_store_has_in_a_name_are_a_row(store: Store) -> None:
    store.write("manifest.txt", b"caf\xe9.mp4\n")
    (row,) = rows(store.uri("manifest.txt"))
    assert row["error_code"] == "missing"
    assert row["uri"].startswith(("s3://", "memory://", "file://"))
    assert "e9" in row["uri"].lower()


def test_a_row_of_a_manifest_without_a_uri_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,id\n,7\n,8\n\n")
    found = rows(f"{tmp_path}/m.csv")
    assert [(row["uri"], row["error_code"]) for row in found] == [("row 1", "missing"), ("row 2", "missing")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.csv", b"url,id\na.mp4,1\n", "has no column named uri, only 'url', 'id'"),
        ("m.csv", b"", "has no column named uri"),
        ("m.parquet", b"this is no Parquet", "Parquet"),
        ("m.parquet", b"", "Parquet"),
    ],
)
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRequest, match=says) as caught:
        Discovery(InputConfig(uri=f"{tmp_path}/{name}"))
    assert f"{tmp_path}/{name}" in str(caught.value)


def test_an_empty_text_manifest_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_bytes(b"\n\n")
    assert rows(f"{tmp_path}/m.txt") == []


@pytest.mark.parametrize("missing", ["nothing", "nothing/*.mp4", "nothing.mp4", "nothing.csv", "[x]/nothing/a.mp4"])
def test_an_input_that_is_not_there_is_refused_by_name(store: Store, missing: str) -> None:
    fill(store, "elsewhere/a.mp4")
    uri = f"{store.root}-not/{missing}"
    with pytest.raises(BadRequest, match="there is no such file, folder or bucket") as caught:
        Discovery(InputConfig(uri=uri))
    assert uri in str(caught.value)


@pytest.mark.s3
@pytest.mark.parametrize("uri", ["s3://no-such-bucket", "s3://no-such-bucket/*.mp4", "s3://no-such-bucket/a.mp4"])
def test_a_bucket_that_is_not_there_is_refused_by_name(s3: S3Server, uri: str) -> None:
    with pytest.raises(BadRequest, match=r"input s3://no-such-bucket.*there is no such"):
        Discovery(InputConfig(uri=uri))


@pytest.mark.s3
def test_refused_credentials_are_named_before_the_run_and_stop_it_later(s3: S3Server) -> None:
    bucket = s3.bucket()
    s3.upload(bucket, {"a.mp4": b"x"})
    discovery = Discovery(InputConfig(uri=bucket))
    filesystems._kept.cache_clear()
    with environment(s3.env() | {"AWS_SECRET_ACCESS_KEY": "WRONGSECRET"}):
        for uri in (bucket, f"{bucket}/a.mp4", f"{bucket}/*.mp4", f"{bucket}/m.csv"):
            with pytest.raises(BadRequest, match=f"input {bucket}.* cannot be read: access refused") as caught:
                Discovery(InputConfig(uri=uri))
            assert "WRONGSECRET" not in str(caught.value)
        with pytest.raises(StorageUnavailable, match=f"{bucket}.*access refused"):
            list(discovery)
    filesystems._kept.cache_clear()


@pytest.mark.s3
def test_more_than_a_page_of_keys_is_found_once_each(s3: S3Server) -> None:
    bucket = s3.bucket()
    s3.upload(bucket, dict.fromkeys([f"in/{i:04d}.mp4" for i in range(1010)], b"x"))
    assert [row["uri"] for row in rows(f"{bucket}/in")] == [f"{bucket}/in/{i:04d}.mp4" for i in range(1010)]


def test_an_object_may_be_read_where_listing_is_refused() -> None:
    class MayNotList:
        def call_s3(self, method: str, **request: Any) -> dict[str, Any]:
            assert request["Bucket"] == "bucket"
            if method == "list_objects_v2":
                raise PermissionError("may not list")
            return {"ContentLength": 1}

    assert discover._kind_on_s3(MayNotList(), "bucket/x.mp4", is_folder=False) == "file"
    with pytest.raises(PermissionError):
        discover._kind_on_s3(MayNotList(), "bucket/x", is_folder=True)


def test_identities_do_not_depend_on_order(tmp_path: Path) -> None:
    names = [f"{i}.mp4" for i in range(50)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    seen = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(names, len(names))
        (tmp_path / "m.txt").write_text("\n".join(shuffled + shuffled[:5]))
        found = rows(f"{tmp_path}/m.txt")
        assert [row["uri"] for row in found] == [f"{tmp_path}/{name}" for name in shuffled]
        seen.append({row["uri"]: row["video_id"] for row in found})
    assert seen[0] == seen[1] == seen[2] == {row["uri"]: row["video_id"] for row in rows(str(tmp_path))}
    assert len(set(seen[0].values())) == 50


def test_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "BATCH_ROWS", 7)
    fill(Store(str(tmp_path)), *(f"{i:02d}.mp4" for i in range(20)))
    tables = list(Discovery(InputConfig(uri=str(tmp_path))))
    assert [table.num_rows for table in tables] == [7, 7, 6]
    assert [row["uri"] for table in tables for row in table.to_pylist()] == [f"{tmp_path}/{i:02d}.mp4" for i in range(20)]


class _EndlessBucket:
    """Lists `count` keys, made up page by page."""

    def __init__(self, count: int) -> None:
        self._count = count

    def call_s3(self, _method: str, **request: Any) -> dict[str, Any]:
        start = int(request.get("ContinuationToken", 0))
        moment = datetime(2024, 1, 1, tzinfo=UTC)
        keys = range(start, min(start + 1000, self._count))
        items = [{"Key": f"in/{i:09d}.mp4", "Size": i, "ETag": f'"{i:032x}"', "LastModified": moment} for i in keys]
        more = start + 1000 < self._count
        return {"Contents": items, "IsTruncated": more, "NextContinuationToken": str(start + 1000)}


class _Synthetic(Discovery):
    def __init__(self, count: int) -> None:
        super().__init__(InputConfig(uri=str(Path.cwd())))
        self._count = count

    def _sources(self) -> Iterator[Any]:
        return list_s3(_EndlessBucket(self._count), "bucket/in", "s3://bucket/in", (), self._is_candidate)


def test_a_file_that_is_deleted_while_its_folder_is_listed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(Store(str(tmp_path)), "a.mp4", "b.mp4", "c/d.mp4")
    scanned = listing._scan

    def and_then_some_go(path: str, roots: Roots) -> Any:
        names, folders = scanned(path, roots)
        (tmp_path / "b.mp4").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        return names, folders

    monkeypatch.setattr(listing, "_scan", and_then_some_go)
    assert found_keys(Store(str(tmp_path))) == ["a.mp4"]


class _Opened(Discovery):
    """A listing of given names, whatever is there when they are opened."""

    def __init__(self, root: Path, *names: str) -> None:
        super().__init__(InputConfig(uri=str(root)))
        self._paths = [f"{root}/{name}" for name in names]

    def _sources(self) -> Iterator[Any]:
        return (Source(path, Found(5, None, 1)) for path in self._paths)


def test_a_file_without_an_extension_that_cannot_be_opened_is_a_row_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (row,) = [row for table in _Opened(tmp_path, "gone", "folder") for row in table.to_pylist()]
    assert row["uri"] == f"{tmp_path}/folder"
    assert row["error_code"] == "unreadable"


def test_promise_7_a_key_costs_far_less_than_a_kilobyte(tmp_path: Path) -> None:
    count = 60_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        listed = sum(table.num_rows for table in _Synthetic(count))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert listed == count
    one_batch = discover.BATCH_ROWS * 1500
    assert peak - before < one_batch + count * 200


def test_globs_are_matched_by_segments() -> None:
    def fits(path: str, pattern: str) -> bool:
        return matches(tuple(path.split("/")), tuple(pattern.split("/")))

    assert split_glob("/a/b*/c") == ("/a", ("b*", "c"))
    assert split_glob("/a/b") == ("/a/b", ())
    assert fits("a/b.mp4", "*/*.mp4")
    assert not fits("a/b.mp4", "*.mp4")
    assert fits("a/b/c", "**/c")
    assert fits("c", "**/c")
    assert fits("a/b/c", "a/**")
    assert not fits("b/c", "a/**")
    assert fits("a/b/c.mp4", "a*")
    assert not fits("A/b", "a/b")


def test_folders_that_cannot_match_are_not_entered() -> None:
    for path, pattern in itertools.product(
        (("a",), ("a", "b"), ("b",), ("a", "b", "c")), (("a", "*"), ("**", "c"), ("*", "b"), ("b*",))
    ):
        below = (*path, "x")
        reachable = any(matches((*below, *rest), pattern) for rest in ((), ("c",), ("b",), ("x", "c")))
        assert may_lead(path, pattern) or not reachable
    assert not may_lead(("b",), ("a", "*"))
