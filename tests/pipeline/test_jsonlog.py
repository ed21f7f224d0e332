"""A run as JSON lines: what they hold, how many there are, and what must not stand in them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.events import told_to
from pipeline.jsonlog import COLUMNS, JsonLog, _Handler
from schemas.errors import ErrorCode
from schemas.tables import VIDEOS as LEDGER
from stages.storage import Store
from tests.pipeline.faults import memory
from tests.pipeline.rows import Steps, Video, World
from tests.pipeline.test_metering import VIDEOS
from tests.pipeline.test_recovery import ledger

SECRET = "correct-horse-battery"


class Lines:
    """A log and what it has written."""

    def __init__(self, level: int = logging.INFO, **kwargs: Any) -> None:
        self.stream = io.StringIO()
        self.log = JsonLog(self.stream, level=level, **kwargs)

    @property
    def all(self) -> list[dict[str, Any]]:
        return parsed(self.stream.getvalue())

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.all if line["event"] == event]


def parsed(text: str) -> list[dict[str, Any]]:
    assert text.isascii()
    found = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in text.splitlines()]
    assert all(list(line)[:3] == ["time", "level", "event"] for line in found)
    return found


def run(level: int = logging.INFO, videos: tuple[Video, ...] = VIDEOS) -> tuple[World, Lines]:
    lines = Lines(level)
    w = World(Store(memory()), videos, Steps("1"), observe=lines.log)
    w.run()
    return w, lines


def test_every_video_has_one_line_that_says_what_the_ledger_says() -> None:
    w, lines = run()
    rows = {row["video_id"]: row for row in ledger(w.store)}
    told = lines.of("video")
    assert sorted(line["video_id"] for line in told) == sorted(rows)
    for line in told:
        row = rows[line["video_id"]]
        assert {name: line[name] for name in COLUMNS} == {name: row[name] for name in COLUMNS}
        assert line["run_id"] == row["run_id"]
        assert line["level"] == ("WARNING" if row["status"] in ("failed", "quarantined") else "INFO")
    assert set(COLUMNS) <= set(LEDGER.schema.names)


def test_at_info_no_video_has_a_second_line() -> None:
    _, lines = run()
    assert max(Counter(line["video_id"] for line in lines.all if "video_id" in line).values()) == 1
    assert not lines.of("unit")


def test_at_debug_every_unit_that_ends_has_a_line() -> None:
    _, lines = run(logging.DEBUG)
    units = [line["unit"] for line in lines.of("unit")]
    expected = [f"{video.id}-{number:04d}" for video in VIDEOS if not video.missing for number in range(len(video.clips))]
    assert sorted(units) == sorted(expected)
    assert all(line["unit"].startswith(line["video_id"]) and line["level"] == "DEBUG" for line in lines.of("unit"))


def test_at_warning_only_what_went_wrong_is_told() -> None:
    _, lines = run(logging.WARNING)
    assert {(line["event"], line["status"]) for line in lines.all} == {("video", "failed"), ("video", "quarantined")}


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_units_that_run_again_are_counted_and_those_given_up_named_where_units_are(level: int) -> None:
    lines = Lines(level)
    w = World(Store(memory()), VIDEOS[:1], Steps("1"), observe=lines.log)
    session = w.open()
    found = w.expect(session)
    session.expect(found)
    name = f"{VIDEOS[0].id}-0001"
    session.give_up([name], ErrorCode.KILLED, "ended its worker")
    (again,) = lines.of("units_retried")
    assert (again["units"], again["level"]) == (2, "WARNING")
    given_up = [(line["video_id"], line["unit"], line["error_code"]) for line in lines.of("unit_given_up")]
    assert given_up == ([(VIDEOS[0].id, name, "killed")] if level == logging.DEBUG else [])


def test_progress_and_notes_are_lines_too() -> None:
    now_s = [0.0]
    lines = Lines(every_s=1000, clock=lambda: now_s[0])
    with lines.log as log:
        log.start(total_videos=4)
        now_s[0] = 10.0
        log.update(videos=1, clips=3, video_s=7.5)
        log.note("a worker died\nin decode")
    note, progress = lines.all
    assert (note["event"], note["level"], note["message"]) == ("note", "WARNING", "a worker died\nin decode")
    figures = {"videos": 1, "of_videos": 4, "clips": 3, "video_s": 7.5, "failed": 0, "elapsed_s": 10.0, "left_s": 30.0}
    assert figures.items() <= progress.items()


def test_a_line_is_one_line_of_ascii_whatever_stands_in_it() -> None:
    lines = Lines()
    lines.log.line(logging.INFO, "odd", uri="/räume/\n\u2028\x1b[31m\udce9", share=float("nan"), many=(1, [float("inf")]))
    (line,) = lines.all
    assert line["uri"] == "/räume/\n\u2028\x1b[31m\udce9"
    assert (line["share"], line["many"]) == (None, [1, [None]])


def test_secrets_do_not_get_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", SECRET)
    lines = Lines(logging.DEBUG)
    url = "https://user:hunter22hunter@host/a.mp4?X-Amz-Signature=0123456789abcdef"
    lines.log.note(f"opened {url} with {SECRET}")
    lines.log.line(logging.INFO, "video", uri=url, error_message=SECRET, nested={"a": [SECRET, url]})
    lines.log.failed(f"no: {SECRET}", 2)
    logging.getLogger("some.library").setLevel(logging.WARNING)
    lines.log.capture()
    try:
        logging.getLogger("some.library").warning("sent %s", SECRET)
        try:
            raise ValueError(f"cannot open {url}; token={SECRET}")
        except ValueError as error:
            sys.excepthook(ValueError, error, error.__traceback__)
    finally:
        lines.log.release()
    text = lines.stream.getvalue()
    assert [line["event"] for line in lines.all] == ["note", "video", "error", "log", "crash"]
    assert not any(word in text for word in (SECRET, "hunter22", "0123456789abcdef"))


def test_what_libraries_log_and_warn_of_is_a_line_until_it_is_released() -> None:
    lines = Lines()
    lines.log.capture()
    try:
        logging.getLogger("some.library").warning("%d retries", 3)
        logging.getLogger("some.library").info("chatter")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)  # catch_warnings has put Python's own way back
            warnings.warn("an option is going away", stacklevel=1)
    finally:
        lines.log.release()
    logging.getLogger("some.library").warning("released")
    first, second = lines.of("log")
    assert (first["logger"], first["message"]) == ("some.library", "3 retries")
    assert "an option is going away" in second["message"]


def test_a_thread_that_ends_in_an_error_is_a_line_too() -> None:
    def broken() -> None:
        raise RuntimeError("in a thread")

    lines, before = Lines(), (sys.excepthook, threading.excepthook)
    lines.log.capture()
    try:
        thread = threading.Thread(target=broken)
        thread.start()
        thread.join()
    finally:
        lines.log.release()
    (line,) = lines.all
    assert (line["event"], line["message"]) == ("crash", "RuntimeError: in a thread")
    assert (sys.excepthook, threading.excepthook) == before


def test_a_record_whose_words_do_not_fit_is_no_end_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    _Handler(lines.log).handle(logging.LogRecord("some.library", logging.WARNING, "a.py", 1, "%d", ("no number",), None))
    assert lines.all == []
    assert "Logging error" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_breaks_no_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            del text
            raise BrokenPipeError

    log = JsonLog(Gone())
    log.capture()
    try:
        w = World(Store(memory()), VIDEOS, Steps("1"), observe=told_to([log]))
        w.run()
    finally:
        log.release()
    assert len(ledger(w.store)) == len(VIDEOS)


# --- the command ---


def missing(folder: Path) -> Path:
    """A manifest of one video that is not there: a run settles it without decoding, so without Ray."""
    manifest = folder / "manifest.txt"
    manifest.write_text(f"{folder / 'nowhere.mp4'}\n")
    return manifest


def args(folder: Path, *more: str) -> list[str]:
    asked = ["run", "--input", str(missing(folder)), "--output", str(folder / "out"), "--preset", "embedded"]
    return [*asked, "--set", "classify=[]", "--set", "embed=[]", "--set", "caption=[]", "--log-format", "json", *more]


def test_stderr_of_a_run_is_json_and_its_last_line_says_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(args(tmp_path)) == 3
    out, err = capsys.readouterr()
    assert out.startswith("run ")
    lines = parsed(err)
    assert [line["event"] for line in lines] == [
        "run_opened", "run_listed", "video", "epoch_committed", "progress", "run_ended"
    ]  # fmt: skip
    assert len({line["run_id"] for line in lines}) == 1
    ended = lines[-1]
    assert (ended["exit_code"], ended["level"], ended["videos"]) == (3, "ERROR", {"failed": 1})
    assert ended["errors"] == {"missing": 1}


def test_a_refusal_is_a_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(args(tmp_path, "--set", "clips.nonsense=1")) == 2
    out, err = capsys.readouterr()
    (line,) = parsed(err)
    assert (out, line["event"], line["level"], line["exit_code"]) == ("", "error", "ERROR", 2)
    assert "nonsense" in line["message"]


def test_the_next_command_speaks_text_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.call(args(tmp_path))
    capsys.readouterr()
    assert cli.call(["status", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("clipmill: ")
    assert not any(isinstance(handler, _Handler) for handler in logging.getLogger().handlers)


def test_an_error_that_nobody_expected_is_a_line_with_its_traceback(tmp_path: Path) -> None:
    program = f"""
from pipeline import cli, preflight
def broken(*_, **__): raise RuntimeError("a mistake of ours")
preflight.preflight = broken
import sys
sys.argv = ["clipmill", *{args(tmp_path)!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = parsed(done.stderr)
    assert (line["event"], line["message"]) == ("crash", "RuntimeError: a mistake of ours")
    assert "in broken" in line["traceback"]
