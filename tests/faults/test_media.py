"""Bad media at scale: mutants, decoders that kill, crafted files and dangerous names, decoded by processes that may die."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.config import InputConfig
from stages.decode import Decode
from stages.discover import Discovery
from stages.filesystems import local_path, local_uri
from stages.watchdog import EXIT_DEADLINE, EXIT_LOCKED
from tests.faults import crafted, hostile
from tests.faults.bait import Watched
from tests.faults.contract import CLIPS, FINGERPRINT, FRAME_COUNTS, broken, differences, settled, unit
from tests.faults.crafted import Bait
from tests.faults.damage import Damage
from tests.faults.mutants import Mutant, Sources, mutants
from tests.faults.pool import Pool, Told
from tests.faults.record import Record
from tests.media import textured, write_video

DEADLINE_S = 60.0
MEMORY_BYTES = 1 << 30  # that a worker may take beyond what it starts with
SILENCE_S = 240.0  # of a worker, far beyond its deadline and every grace: a hang
BLOCK_FILES = 14  # and one that is whole, in the middle
MUTANTS = 40  # of a case
MIDDLE = {"unit": 1, "units": 3, "unit_start_s": 0.5, "unit_end_s": 1.1, "origin_s": 0.0}  # of a video that is cut into units
STATUSES = {"ok", "partial", "failed", "quarantined"}
Row = dict[str, Any]


class Whole:
    """Files that are as they should be, and what becomes of them undisturbed."""

    def __init__(self, folder: Path) -> None:
        frames = textured(30, 1, (96, 64)) + textured(45, 2, (96, 64))
        self.paths = [
            write_video(folder / "whole.mp4", frames, audio=True),
            write_video(folder / "whole.mkv", frames, codec="mpeg4"),
            write_video(folder / "whole.ts", frames, codec="mpeg2video"),
        ]
        with Pool(Decode, (CLIPS, FRAME_COUNTS, DEADLINE_S, MEMORY_BYTES), SILENCE_S, processes=1) as pool:
            self.told = [pool.run([[unit(path, 0)]]).popitem()[1] for path in self.paths]
        assert [settled(told).status for told in self.told] == ["ok"] * 3
        assert all(len(told.rows) == 3 for told in self.told)

    def among(self, units: Sequence[Row], size: int) -> list[list[Row]]:
        """Blocks of `units` with one whole file in the middle of each; its video_id ends in its number, from f0000 on."""
        blocks = []
        for number, at in enumerate(range(0, len(units), size)):
            block = list(units[at : at + size])
            block.insert(len(block) // 2, unit(self.paths[number % 3], 0xF0000 + number))
            blocks.append(block)
        return blocks

    def harmed(self, told: dict[str, Told]) -> list[str]:
        """What is wrong with whole files of a run."""
        found = []
        for each in told.values():
            number = int(each.unit["video_id"], 16) - 0xF0000
            if number >= 0:
                wrong = differences(self.told[number % 3], each)
                found += [f"{each.unit['uri']}: {', '.join(wrong)}"] if wrong else []
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(Decode, (CLIPS, FRAME_COUNTS, DEADLINE_S, MEMORY_BYTES), SILENCE_S) as pool:
        yield pool


def bad_ones(told: dict[str, Told]) -> list[Told]:
    return [each for each in told.values() if int(each.unit["video_id"], 16) < 0xF0000]


def hung(told: dict[str, Told]) -> list[str]:
    return [each.unit["uri"] for each in told.values() if each.hung]


def damage_of(told: dict[str, Told], harmed: list[str]) -> Damage:
    return Damage(hangs=len(hung(told)), harmed=len(harmed))


def wrong_with(each: Told) -> list[str]:
    """Everything that no file may do."""
    found = [*broken(each), *(f"raised {fault}" for fault in each.faults)]
    if settled(each).status not in STATUSES:
        found.append(f"ended {settled(each).status}")
    if each.peak_bytes > MEMORY_BYTES:
        found.append(f"took {each.peak_bytes >> 20} MB")
    return found


# Mutants


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


_ends: Counter[str] = Counter()
_most: dict[str, float] = {"memory": 0.0, "time": 0.0, "crafted": 0.0}


@pytest.mark.timeout(900)
@pytest.mark.cases(quick=1, long=100)
def test_promises_4_and_5_a_mutant_ends_in_order_and_costs_no_neighbour(
    case: int, tmp_path: Path, sources: Sources, whole: Whole, pool: Pool, record: Record
) -> None:
    made: dict[str, Mutant] = {}
    units = []
    for number, mutant in enumerate(mutants(sources.names, case * MUTANTS, MUTANTS)):
        path = tmp_path / f"{number}{Path(mutant.source).suffix}"
        path.write_bytes(sources.make(mutant))
        units.append(unit(path, number, **(MIDDLE if number % 4 == 3 else {})))
        made[units[-1]["video_id"]] = mutant
    told = pool.run(whole.among(units, BLOCK_FILES))
    harmed = whole.harmed(told)
    found = bad_ones(told)
    _note_ends(found, record)
    record("mutants", damage_of(told, harmed), count=len(found))
    wrong = {str(made[each.unit["video_id"]]): what for each in found if (what := wrong_with(each))}
    replay = "python -m tests.faults.mutants SOURCE KIND SEED FILE makes one again"
    assert not wrong, f"{wrong}\n{replay}"
    damage_of(told, harmed).check(f"{[str(made[each.unit['video_id']]) for each in found if each.hung]} {harmed}\n{replay}")


def _note_ends(found: list[Told], record: Record) -> None:
    _ends.update(settled(each).status for each in found)
    _ends["worker deaths"] += sum(each.lone_deaths for each in found)
    _most["memory"] = max(_most["memory"], *(each.peak_bytes / (1 << 20) for each in found))
    _most["time"] = max(_most["time"], *(each.wall_s / DEADLINE_S for each in found))
    record.figure("mutants by status", ", ".join(f"{count:,} {name}" for name, count in sorted(_ends.items())))
    record.figure("most memory that a mutant took", f"{_most['memory']:.0f} MB (bound {MEMORY_BYTES >> 20} MB)")
    record.figure("most time that a mutant took", f"{_most['time']:.0%} of its deadline")


def test_a_mutant_is_made_again_from_its_name(sources: Sources, tmp_path: Path) -> None:
    again = Sources(tmp_path)
    for mutant in mutants(sources.rendered, 0, 25):
        assert sources.make(mutant) == again.make(mutant), str(mutant)
        assert mutant.kind in ("spoil_packets", "drop_packets") or sources.make(mutant) != sources.data(mutant.source), str(
            mutant
        )


# Decoders that kill

QUICK_KINDS = ("segfault", "hang-locked", "eat-in-c", "eat", "interrupt")
# What the kernel says of the dead: that the doubles do what they are called by.
STATUSES_OF_THE_DEAD = {
    "segfault": -11, "abort": -6, "exit": 9, "killed": -9, "stack": -11, "hang": EXIT_DEADLINE, "hang-locked": EXIT_LOCKED,
    "spin": EXIT_DEADLINE, "eat-in-c": -11, "exit-raised": 1, "interrupt": 1,
}  # fmt: skip
HOSTILE_BYTES = 400 << 20


@pytest.mark.timeout(600)
def test_promise_4_a_decoder_that_kills_is_quarantined_and_costs_no_neighbour(
    tmp_path: Path, whole: Whole, record: Record, is_long: bool
) -> None:
    kinds = hostile.KINDS if is_long else QUICK_KINDS
    for kind in kinds:
        shutil.copy(whole.paths[0], tmp_path / f"{kind}.mp4")
    units = [unit(tmp_path / f"{kind}.mp4", number) for number, kind in enumerate(kinds)]
    blocks = whole.among(units, 2)
    # A killer last in its block, too, and a whole file behind each: nothing that a block lost may stay lost.
    blocks = [[*block, unit(whole.paths[0], 0xF0000 + 3 * (100 + number))] for number, block in enumerate(blocks)]
    with Pool(hostile.HostileDecode, (CLIPS, FRAME_COUNTS, HOSTILE_BYTES), SILENCE_S) as pool:
        told = pool.run(blocks)
    harmed = whole.harmed(told)
    record("decoders that kill, hang or eat memory", damage_of(told, harmed), count=len(kinds))
    damage_of(told, harmed).check(f"{hung(told)} {harmed}")
    ends = {Path(each.unit["uri"]).stem: each for each in bad_ones(told)}
    assert {kind: settled(each).status for kind, each in ends.items()} == dict.fromkeys(kinds, "quarantined")
    for kind, each in ends.items():
        if kind in hostile.BOUNDED:
            assert each.rows[-1]["end"]["error_code"] == "memory", kind
        else:
            assert (each.given_up, each.lone_deaths) == (True, 2), kind
            assert (
                each.deaths[-2:] == [f"exit {STATUSES_OF_THE_DEAD[kind]}"] * 2 if kind in STATUSES_OF_THE_DEAD else each.faults
            )


# Crafted files


def write_crafted(folder: Path, canary: Path, port: int, names: Sequence[str]) -> tuple[dict[str, Row], list[Path]]:
    """Units of the crafted files by name, each file in a folder of its own beside its canary; and all the canaries."""
    units, canaries = {}, []
    for number, name in enumerate(names):
        place = folder / str(number)
        place.mkdir()
        own = Path(shutil.copy(canary, place / "canary.mp4"))
        units[name] = unit(crafted.ALL[name].write(Bait(place, own, port)), number)
        canaries += [path for path in place.iterdir() if path.name in ("canary.mp4", "frame001.mp4")]
    return units, canaries


NAMES = tuple(name for name in crafted.ALL if not name.startswith("sparse-after-video"))
SPARSE = tuple(name for name in crafted.ALL if name.startswith("sparse-after-video"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return write_video(tmp_path / "canary.mp4", textured(10, 1, crafted.SIZE))


def check_crafted(told: dict[str, Told], units: dict[str, Row], whole: Whole, record: Record, watched: Watched) -> None:
    names = {row["video_id"]: name for name, row in units.items()}
    harmed, opened, connections = whole.harmed(told), watched.opened(), watched.connections()
    record("crafted files", damage_of(told, harmed), count=len(units))
    damage_of(told, harmed).check(f"{hung(told)} {harmed}")
    wrong = {}
    for each in bad_ones(told):
        name = names[each.unit["video_id"]]
        code = each.end["error_code"] if each.end else "killed"
        known = [f"ends with {code}: {each.end}"] if code not in crafted.ALL[name].codes else []
        if what := [*known, *broken(each), *each.faults, *each.deaths]:
            wrong[name] = what
        if each.peak_bytes > MEMORY_BYTES:
            wrong.setdefault(name, []).append(f"took {each.peak_bytes >> 20} MB")
    assert not wrong, wrong
    assert not opened, opened
    assert connections == 0
    _most["crafted"] = max(_most["crafted"], *(each.peak_bytes / (1 << 20) for each in bad_ones(told)))
    record.figure("most memory that a crafted file took", f"{_most['crafted']:.0f} MB (bound {MEMORY_BYTES >> 20} MB)")


@pytest.mark.timeout(600)
def test_promise_5_a_crafted_file_opens_nothing_and_stays_within_its_bounds(
    tmp_path: Path, canary: Path, whole: Whole, pool: Pool, record: Record
) -> None:
    with Watched([]) as watched:
        units, canaries = write_crafted(tmp_path, canary, watched.port, NAMES)
        watched.watch(canaries)
        told = pool.run(whole.among(list(units.values()), 8))
        check_crafted(told, units, whole, record, watched)
        messages = {row["video_id"]: "" for row in units.values()}
        for each in bad_ones(told):
            messages[each.unit["video_id"]] = (each.end and each.end["error_message"]) or ""
        assert not [text for text in messages.values() if "Errno" in text or "Error" in text or "none>" in text]


@pytest.mark.timeout(600)
def test_promise_5_ten_gigabytes_of_nothing_end_at_the_deadline(
    tmp_path: Path, canary: Path, whole: Whole, record: Record, is_long: bool
) -> None:
    names = SPARSE if is_long else SPARSE[:2]
    with Watched([]) as watched, Pool(Decode, (CLIPS, FRAME_COUNTS, 3.0, MEMORY_BYTES), SILENCE_S) as hasty:
        units, canaries = write_crafted(tmp_path, canary, watched.port, names)
        watched.watch(canaries)
        told = hasty.run(whole.among(list(units.values()), 3))
        check_crafted(told, units, whole, record, watched)
    for name in names:
        Path(units[name]["uri"]).unlink()


def run_python(code: str, *args: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )


def test_whoever_opens_without_care_takes_the_bait(tmp_path: Path, canary: Path) -> None:
    """The same files and FFmpeg's own defaults: the canary is opened and the port connected to, so the watch does see it."""
    with Watched([canary]) as watched:
        bait = Bait(tmp_path, canary, watched.port)
        for name in ("ffconcat-relative.mp4", "dref-alias.mov"):
            path = crafted.ALL[name].write(bait)
            options = "{'enable_drefs': '1', 'use_absolute_path': '1'}"
            run_python(f"import av, sys; next(av.open(sys.argv[1], container_options={options}).decode(video=0))", str(path))
            assert watched.opened() == [canary], name
        run_python("import av, sys; av.open(sys.argv[1], timeout=1)", bait.url)
        assert watched.connections() > 0


TRACED = """
    import os, sys
    from stages.decode import Decode
    from schemas.rows import UNIT_ROW, rows_table
    from tests.faults.contract import CLIPS, FRAME_COUNTS, unit

    decode = Decode(CLIPS, FRAME_COUNTS, 20.0, 1 << 30)
    for number, path in enumerate([sys.argv[1], sys.argv[1], *sys.argv[1:]]):
        try:
            os.open(f"/begin/{number}", os.O_RDONLY)
        except OSError:
            pass
        for table in decode(rows_table([unit(path, number)], UNIT_ROW)):
            pass
"""


def traced_calls(log: Path, paths: Sequence[str]) -> list[str]:
    """Of a trace of TRACED, every file that was opened but the one that was being decoded, and every other call."""
    found, current = [], ""
    for line in log.read_text(errors="replace").splitlines():
        call = line.partition(" ")[2].strip()
        if call.startswith("open") and '"/begin/' in call:
            number = int(call.partition('"/begin/')[2].partition('"')[0])
            current = paths[number - 2] if number >= 2 else ""
        elif current and "(" in call and f'"{current}"' not in call and not call.startswith(("+++", "---")):
            found.append(f"{current}: {call}")
    return found


@pytest.mark.timeout(600)
def test_promise_5_by_the_kernels_record_nothing_else_is_opened(tmp_path: Path, canary: Path, is_long: bool) -> None:
    """With strace where there is one; without, that a decoder's file descriptors are what they were."""
    heavy = ("bomb", "megabytes", "all-the-pixels", "30000", "size", "4-giga")
    names = [name for name in NAMES if is_long or not any(word in name for word in heavy)]
    with Watched([]) as watched:
        units, _ = write_crafted(tmp_path, canary, watched.port, names)
        paths = [str(canary), *(row["uri"] for row in units.values())]
        strace = shutil.which("strace")
        if strace is None:
            assert watched.connections() == 0
            return
        log = tmp_path / "trace"
        calls = "open,openat,openat2,creat,socket,connect,bind,execve,execveat,fork,vfork"
        done = run_python(TRACED, *paths, before=[strace, "-f", "-qq", "-s", "4096", "-e", f"trace={calls}", "-o", str(log)])
        assert done.returncode == 0, done.stderr
        found = [call for call in traced_calls(log, paths) if sys.prefix not in call and sys.base_prefix not in call]
        assert not found, found
        assert watched.connections() == 0


def test_a_file_that_may_not_be_read_says_so(tmp_path_factory: pytest.TempPathFactory, whole: Whole) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(whole.paths[0], folder / "a.mp4")
        (folder / "a.mp4").chmod(0)
        code = """
            import os, sys
            from stages.decode import Decode
            from schemas.rows import UNIT_ROW, rows_table
            from tests.faults.contract import CLIPS, FRAME_COUNTS, unit

            decode = Decode(CLIPS, FRAME_COUNTS, 20.0)
            if os.geteuid() == 0:
                os.seteuid(65534)
            *_, last = decode(rows_table([unit(sys.argv[1], 0)], UNIT_ROW))
            print(last["end"][0].as_py()["error_code"])
        """
        done = run_python(code, str(folder / "a.mp4"))
    assert done.stdout.strip() == "forbidden", done.stderr


# Names


def found_by(uri: str) -> dict[str, int]:
    """What discovery makes of an input: size by uri."""
    rows = [row for table in Discovery(InputConfig(uri=uri)).batches() for row in table.to_pylist()]
    assert not [row for row in rows if row["error_code"]], rows
    return {row["uri"]: row["size_bytes"] for row in rows}


@pytest.fixture
def named(tmp_path: Path) -> dict[bytes, int]:
    """Videos with dangerous names, and their sizes, all different."""
    data = write_video(tmp_path / "_.mp4", textured(10, 1, crafted.SIZE)).read_bytes()
    (tmp_path / "names").mkdir()
    return {path: os.stat(path).st_size for path in crafted.names(tmp_path / "names", data)}  # noqa: PTH116 - bytes


def test_promise_5_a_name_is_a_name_in_a_folder_alone_and_in_a_manifest(
    tmp_path: Path, named: dict[bytes, int], record: Record
) -> None:
    folder = str(tmp_path / "names")
    visible = {path: size for path, size in named.items() if not path.rpartition(b"/")[2].startswith(b".")}
    for uri in (folder, f"{folder}/", f"{tmp_path}/n[a]mes/**"):
        found = {os.fsencode(local_path(each)): size for each, size in found_by(uri).items()}
        assert found == visible, uri
    for path, size in named.items():
        (found_size,) = found_by(local_uri(os.fsdecode(path))).values()
        assert found_size == size, path
    record("dangerous names", Damage(), count=len(named))


def test_promise_5_a_manifest_names_files_and_nothing_else(tmp_path: Path, named: dict[bytes, int]) -> None:
    paths = [os.fsdecode(path) for path in named]
    text = [path for path in paths if "\n" not in path and "\r" not in path]
    (tmp_path / "list.txt").write_bytes(b"\n".join(os.fsencode(path) for path in text))
    assert sorted(found_by(str(tmp_path / "list.txt")).values()) == sorted(named[os.fsencode(path)] for path in text)
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["uri"], *([path] for path in paths)])
    (tmp_path / "list.csv").write_bytes(out.getvalue().encode("utf-8", "surrogateescape"))
    assert sorted(found_by(str(tmp_path / "list.csv")).values()) == sorted(named.values())
    utf8 = [path for path in paths if path.isprintable() or path.encode("utf-8", "ignore").decode() == path]
    pq.write_table(pa.table({"uri": utf8}), tmp_path / "list.parquet")
    assert sorted(found_by(str(tmp_path / "list.parquet")).values()) == sorted(named[os.fsencode(path)] for path in utf8)


def test_promise_5_a_dangerous_name_decodes_like_any_other(
    tmp_path: Path, named: dict[bytes, int], whole: Whole, pool: Pool, record: Record
) -> None:
    units = [unit(path, number) for number, path in enumerate(named)]
    with Watched([]) as watched:
        told = pool.run(whole.among(units, 16))
        assert watched.connections() == 0
    harmed = whole.harmed(told)
    record("dangerous names decoded", Damage(harmed=len(harmed)), count=len(units))
    assert {each.unit["uri"]: settled(each).status for each in bad_ones(told)} == {row["uri"]: "ok" for row in units}
    Damage(harmed=len(harmed)).check(str(harmed))


def test_promise_5_what_is_no_file_is_not_found_in_a_folder_and_refused_where_it_is_named(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "odd").mkdir()
    kinds = ("folder.mp4", "pipe.mp4", "socket.mp4", "nowhere.mp4", "circle.mp4", "zeros.mp4", "terminal.mp4")
    paths = [crafted.ALL[name].write(Bait(tmp_path / "odd", canary, 1)) for name in kinds]
    shutil.copy(canary, tmp_path / "odd" / "good.mp4")
    assert list(found_by(str(tmp_path / "odd"))) == [str(tmp_path / "odd" / "good.mp4")]
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
    rows = [row for table in Discovery(InputConfig(uri=str(tmp_path / "list.txt"))).batches() for row in table.to_pylist()]
    codes = {Path(row["uri"]).name: row["error_code"] for row in rows}
    refused = dict.fromkeys(kinds, "unreadable") | {"nowhere.mp4": "missing"}
    assert codes == refused


def test_promise_5_a_way_up_and_out_is_the_file_it_leads_to_and_named_so(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "list.txt").write_text("../../canary.mp4\n../er/../../canary.mp4\n")
    assert list(found_by(str(tmp_path / "deep" / "er" / "list.txt"))) == [str(canary)]


def test_the_fingerprint_of_these_tests_is_that_of_the_default_configuration() -> None:
    assert CLIPS.fingerprint() == FINGERPRINT
