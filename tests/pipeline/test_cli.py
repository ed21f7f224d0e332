import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from stages.storage import Store
from tests.pipeline import tables as made

HEAVY = ("ray", "torch", "pyarrow", "duckdb", "pydantic", "transformers", "numpy", "pandas", "av", "fsspec")
CLIPS_ONLY = ["--set", "classify=[]"]  # needs no model


@pytest.fixture
def output(tmp_path: Path) -> str:
    store = Store(str(tmp_path / "out"))
    made.write_small(store)
    made.write_log(store, ("open", "r1"), ("close", "r1"))
    return store.root


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


def missing(folder: Path) -> Path:
    """A manifest of one video that is not there: a run settles it without decoding, so without Ray."""
    manifest = folder / "manifest.txt"
    manifest.write_text(f"{folder / 'nowhere.mp4'}\n")
    return manifest


def refusal(args: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line on stderr of a command that ends with `code` and prints nothing else."""
    assert cli.call(args) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("clipmill: ")
    return lines[0].removeprefix("clipmill: ")


# --- what does not wait ---


@pytest.mark.parametrize(
    ("args", "but"),
    [
        (["--help"], ()),
        ([], ("pydantic",)),
        # typer itself takes pydantic along when there are options to read
        (["run", "--help"], ("pydantic",)),
        (["--version"], ("pydantic",)),
        (["run", "--nope"], ("pydantic",)),
    ],
)
def test_help_and_wrong_options_load_nothing_heavy(args: list[str], but: tuple[str, ...]) -> None:
    heavy = tuple(module for module in HEAVY if module not in but)
    program = f"""
import sys
from pipeline import cli
cli.call({args!r})
print([module for module in {heavy!r} if module in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_wrong_setting_is_refused_without_ray_or_torch(tmp_path: Path) -> None:
    args = ["run", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--preset", "embedded", "--set", "clips.x=1"]
    code = f"import sys\nfrom pipeline import cli\nassert cli.call({args!r}) == 2\nprint({{'ray', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("demo", "run", "plan", "status", "verify", "query", "unlock"):
        assert f"{command} " in text
        assert cli.call([command, "--help"]) == 0


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert cli.call(["--version"]) == 0
    assert capsys.readouterr().out == f"clipmill {version('clipmill')}\n"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call([]) == 2
    assert "Usage: clipmill" in capsys.readouterr().out


# --- requests that are wrong ---


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "--nope"], "No such option: --nope"),
        (["fly"], "No such command 'fly'"),
        (["query", "x", "y", "--format", "xml"], "'xml' is not one of 'table', 'csv', 'json'"),
        (["run", "--limit", "0"], "Invalid value for '--limit'"),
        (["run", "--max-failed", "many"], "--max-failed many: should be a share such as 5% or 0.05"),
        (["run", "--max-failed", "5"], "--max-failed 5: should be a share such as 5% or 0.05"),
        (["run"], "--output is missing"),
        (["run", "--output", "o", "--preset", "none"], "--preset none: no such preset"),
        (["run", "--output", "o", "--input", "i"], "no models are chosen: say --preset embedded or"),
        (
            ["plan", "--output", "o", "--input", "i", "--preset", "embedded", "--set", "clips.shortside=3"],
            "clips.shortside: no such key",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_code_2(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(args, capsys)


def test_an_input_that_is_not_there_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["run", "--input", str(tmp_path / "none"), "--output", str(tmp_path / "out"), *CLIPS_ONLY]
    assert str(tmp_path / "none") in refusal(args, capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_takes_no_writes_is_named(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    args = ["run", "--input", str(archive), "--output", str(tmp_path / "file" / "out"), *CLIPS_ONLY]
    assert str(tmp_path / "file" / "out") in refusal(args, capsys)


def test_a_model_that_is_not_there_names_its_key(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["run", "--input", str(archive), "--output", str(tmp_path / "out"), "--set", f"embed.model={tmp_path / 'nowhere'}"]
    assert refusal(args, capsys).startswith(f"embed: model {tmp_path / 'nowhere'}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["status"], ["verify"], ["query"], ["unlock"]])
def test_commands_on_an_output_that_is_none_say_so(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal([command[0], str(tmp_path / "none"), *command[1:]], capsys)
    assert said == f"{tmp_path / 'none'}: holds no tables of clipmill; `clipmill run --output` makes them"


def test_embedded_models_are_noted_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--input", str(tmp_path / "none"), "--output", str(tmp_path / "out"), "--preset", "embedded"]
    assert cli.call(["run", *args]) == 2
    assert "note: embedded models know only rendered shapes" in capsys.readouterr().err


# --- run, as far as it goes without Ray ---


def test_an_empty_folder_is_done_with_a_warning(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["run", "--input", str(archive), "--output", str(tmp_path / "out"), *CLIPS_ONLY]) == 0
    out, err = capsys.readouterr()
    assert f"warning: no videos in {archive}" in err
    assert "nothing was due" in out


def test_a_run_where_every_video_failed_is_code_3_and_the_next_one_has_nothing_to_do(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["run", "--input", str(missing(archive)), "--output", str(tmp_path / "out"), *CLIPS_ONLY]
    assert cli.call(args) == 3
    out = capsys.readouterr().out
    assert "  videos   1 failed\n" in out
    assert "  errors   1 missing\n" in out
    assert cli.call(args) == 0
    assert "  not due  1 were complete already\n" in capsys.readouterr().out
    assert cli.call([*args, "--max-failed", "100%", "--retry-failed"]) == 3
    assert cli.call(["status", str(tmp_path / "out")]) == 0
    assert "1  missing  discover  such as" in capsys.readouterr().out


def test_a_plan_starts_and_writes_nothing(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (archive / "a.mp4").write_bytes(b"not decoded by a plan")
    args = ["plan", "--input", str(archive), "--output", str(tmp_path / "out"), *CLIPS_ONLY]
    assert cli.call(args) == 0
    assert "1 listed, 1 due" in capsys.readouterr().out
    assert cli.call([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["due"] == 1
    assert not (tmp_path / "out").exists()


# --- the other commands ---


def test_status_speaks_to_people_and_to_programs(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["status", output]) == 0
    assert "  videos   2 ok, 1 failed\n" in capsys.readouterr().out
    assert cli.call(["status", output, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 4


def test_query_writes_csv_where_there_is_no_terminal(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["query", output, "SELECT uri, status FROM videos ORDER BY uri"]) == 0
    assert capsys.readouterr().out == "uri,status\n/videos/a.mp4,ok\n/videos/b.mp4,ok\n/videos/c.mp3,failed\n"
    assert cli.call(["query", output, "SELECT uri FROM videos ORDER BY uri", "--format", "json", "--limit", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"uri": "/videos/a.mp4"}]
    assert cli.call(["query", output, "SELECT uri FROM videos", "--format", "table"]) == 0
    assert "(3 rows)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sql", "said"), [(["SELEC 1"], "syntax error"), (["SELECT x FROM clips"], '"x" not found'), ([], "SQL is missing")]
)
def test_a_wrong_query_is_one_line_and_code_2(
    sql: list[str], said: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(["query", output, *sql], capsys)


@pytest.mark.parametrize("dialect", ["duckdb", "spark", "athena"])
def test_query_prints_the_views_for_other_engines(dialect: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["query", output, "--views", dialect]) == 0
    text = capsys.readouterr().out
    assert f"{output}/clips" in text
    assert "action_score" in text


def test_a_reader_that_leaves_early_is_no_error(output: str) -> None:
    code = (
        f"import sys\nfrom pipeline import cli\nsys.exit(cli.call(['query', {output!r}, 'SELECT range FROM range(1000000)']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "range\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_verify_of_a_sound_output_is_code_0_and_of_a_damaged_one_1(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cli.call(["run", "--input", str(missing(archive)), "--output", str(out), *CLIPS_ONLY])
    assert cli.call(["verify", str(out)]) == 0
    assert "every object is as written" in capsys.readouterr().out
    ledger = next((out / "videos").rglob("*.parquet"))
    ledger.unlink()
    assert cli.call(["verify", str(out)]) == 1
    assert ledger.name in capsys.readouterr().out
    assert cli.call(["verify", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"]


def test_a_damaged_log_is_code_1_and_one_line(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(output) / "_log" / "00000000.json").unlink()
    assert "00000000.json is missing" in refusal(["status", output], capsys, code=1)


def test_unlock_asks_and_without_anybody_to_answer_wants_yes(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["unlock", output]) == 0
    assert "no run is open" in capsys.readouterr().out
    made.write_log(Store(output), ("open", "r2"), body={"recipe": {"clips": made.CLIPS_FP, "entries": []}})
    assert cli.call(["unlock", output]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("run r2, opened 2026-11-01 14:00 UTC")
    assert "say --yes" in err
    assert cli.call(["unlock", output, "--yes"]) == 0
    assert "closed: r2" in capsys.readouterr().out
    assert cli.call(["unlock", output]) == 0
    assert "no run is open" in capsys.readouterr().out
