"""The command line. It only says what is asked and answered; Ray, torch and Arrow load in the commands that need them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import asked, console, summary
from pipeline.options import (
    AddressOption,
    AllowOption,
    ConfigOption,
    Dialect,
    Format,
    HoursOption,
    InputOption,
    JsonOption,
    LimitOption,
    LogFormat,
    LogFormatOption,
    LogLevel,
    LogLevelOption,
    MaxFailedOption,
    OutputArgument,
    OutputOption,
    PresetOption,
    RetryOption,
    SetOption,
)
from schemas.errors import BadRequest, ClipmillError

if TYPE_CHECKING:
    from pipeline.events import Observer
    from pipeline.run import Request
    from schemas.config import JobConfig
    from schemas.entries import Entry

app = typer.Typer(
    name="clipmill",
    help="Turns an archive of videos into tables of clips, labels, captions and embeddings.",
    epilog="Exit codes: 0 done, 1 a check is broken, 2 a wrong request, 3 too many videos failed, 4 stopped early, 130 Ctrl-C.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
_UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """The program."""
    sys.exit(call(sys.argv[1:]))


def call(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code; every expected failure is one line on stderr."""
    console.log_as_text()
    code = _called(args)
    console.log_as_text()
    return code


def _called(args: Sequence[str]) -> int:
    try:
        return int(app(list(args), prog_name="clipmill", standalone_mode=False) or 0)
    except _UsageError as error:
        said = error.format_message().replace("Value error, ", "").removesuffix(".")
        return console.failed(f"{said}; clipmill --help says what there is", summary.BAD_REQUEST)
    except BadRequest as error:
        return console.failed(str(error), summary.BAD_REQUEST)
    except (KeyboardInterrupt, typer.Abort):
        return console.failed("interrupted", summary.INTERRUPTED)
    except SystemExit as end:  # typer's way out when whoever read us has left
        return summary.DONE if isinstance(end.__context__, BrokenPipeError) else int(end.code or 0)
    except ClipmillError as error:
        return console.failed(str(error), _code_of(error))


def _code_of(error: ClipmillError) -> int:
    from stages.filesystems import StorageUnavailable

    return summary.STOPPED if isinstance(error, StorageUnavailable) else summary.BROKEN


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say the version and stop")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"clipmill {installed('clipmill')}")
        raise typer.Exit(summary.DONE)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(summary.BAD_REQUEST)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for archive, truth, tables and score")] = Path(
        "clipmill-demo"
    ),
    videos: Annotated[int, typer.Option(min=1, metavar="N", help="Videos to render")] = 14,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Another seed is another archive")] = 0,
    nodes: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="On a Ray cluster of N nodes on this machine; one is killed half way")
    ] = None,
) -> int:
    """Render an archive with known truth, annotate it, score it."""
    from pipeline.demo_run import Demo, too_low

    made = Demo(output, videos, seed)
    made.render(console.note)
    result = made.annotate(
        lambda config, entries: _run(config, entries, None) if nodes is None else _lose(config, entries, nodes)
    )
    code = summary.exit_code(result)
    if code != summary.DONE:
        print("\n".join(summary.lines(result)))
        return code
    scores = made.score()
    print("\n".join(made.lines(result, scores)))
    low = too_low(scores)
    return console.failed(f"scores too low: {', '.join(low)}", summary.BROKEN) if low else summary.DONE


@app.command()
def run(
    input: InputOption = None,
    output: OutputOption = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    allow: AllowOption = None,
    limit: LimitOption = None,
    max_hours: HoursOption = None,
    max_failed: MaxFailedOption = "5%",
    retry_failed: RetryOption = False,
    address: AddressOption = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
) -> int:
    """Annotate what is due and publish it."""
    console.log_as(log_format, log_level)
    share = asked.share(max_failed)
    job = asked.job(input, output, preset, config, sets, allow)
    from pipeline.preflight import preflight
    from pipeline.run import Request

    result = _run(job, preflight(job).entries, Request(limit, max_hours, retry_failed, address))
    if not (result.videos or result.not_due or result.stopped_reason):
        console.note(f"warning: no videos in {job.input.uri}")
    print("\n".join(summary.lines(result)))
    code = summary.exit_code(result, share)
    if console.log is not None:
        console.log.ended(result, code)
    return code


@app.command()
def plan(
    input: InputOption = None,
    output: OutputOption = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    allow: AllowOption = None,
    limit: LimitOption = None,
    max_hours: HoursOption = None,
    retry_failed: RetryOption = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say what a run would do; start nothing."""
    job = asked.job(input, output, preset, config, sets, allow)
    from pipeline import forecast
    from pipeline.preflight import preflight
    from pipeline.run import Request

    found = forecast.describe(job, preflight(job, writes=False).entries, Request(limit, max_hours, retry_failed, address))
    console.result(found.to_json() if as_json else found.lines())
    return summary.DONE


@app.command()
def submit(
    input: InputOption = None,
    output: OutputOption = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    allow: AllowOption = None,
    limit: LimitOption = None,
    max_hours: HoursOption = None,
    max_failed: MaxFailedOption = "5%",
    retry_failed: RetryOption = False,
    address: Annotated[str | None, typer.Option(metavar="URL", help="Ray's dashboard, such as http://HEAD:8265")] = None,
    install: Annotated[
        str | None, typer.Option(metavar="WHAT", help="Send a Clipmill along: a wheel, or git+https://...@REVISION")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Send nothing; follow the run that works on OUTPUT")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Send nothing; end the run that works on OUTPUT")] = False,
    state: Annotated[bool, typer.Option("--status", help="Send nothing; say how the run of OUTPUT stands")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --status: plain JSON instead of text")] = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
) -> int:
    """Send a run to a Ray cluster and follow it; Ctrl-C leaves it running."""
    console.log_as(log_format, log_level)
    share = asked.share(max_failed)
    if sum((follow, stop, state)) > 1:
        raise BadRequest("--follow, --stop and --status exclude each other")
    if address is None:
        raise BadRequest("--address is missing: say where Ray's dashboard is, such as http://HEAD:8265")
    asks = follow or stop or state
    job = None if asks and output else asked.job(input, output, preset, config, sets, allow)
    from cluster.submit import ClusterLost, Jobs
    from pipeline import submit as desks
    from stages.filesystems import normalised

    try:
        desk = desks.Desk(
            Jobs(address), normalised(job.output if job else output or ""), print, console.note, bool(console.log)
        )
        if state:
            found = desk.status()
            console.result(found if as_json else desks.status_lines(found))
            return summary.DONE
        if asks or job is None:
            return desk.follow() if follow else desk.stop()
        from pipeline.parcel import Parcel
        from pipeline.run import Request

        request = Request(limit, max_hours, retry_failed)
        return desk.send(Parcel(job, request, share, install, log_level.name if console.log else None))
    except ClusterLost as error:
        return console.failed(str(error), summary.STOPPED)


@app.command()
def status(
    output: OutputArgument,
    input: Annotated[str | None, typer.Option(metavar="URI", help="Also say which sources have gone or come")] = None,
    allow: AllowOption = None,
    as_json: JsonOption = False,
) -> int:
    """Counts by status, errors, hours, models, last runs."""
    from pipeline import status as report

    found = report.read(asked.existing(output), None if input is None else asked.input_config(input, allow))
    console.result(found.to_json() if as_json else report.lines(found))
    return summary.DONE


@app.command()
def verify(output: OutputArgument, as_json: JsonOption = False) -> int:
    """Check the promises on what is published: log, ledger and tables against each other, both ways."""
    from pipeline import verify as checks

    store = asked.existing(output)
    found = checks.verify(store)
    if as_json:
        console.result({"output": store.root, "is_good": not found, "findings": [vars(finding) for finding in found]})
    else:
        console.result(
            [str(finding) for finding in found]
            or [f"{store.root}: log, ledger and tables agree, and every object is as written"]
        )
    return summary.BROKEN if found else summary.DONE


@app.command()
def query(
    output: OutputArgument,
    sql: Annotated[str | None, typer.Argument(metavar="SQL", help="One SELECT over the tables and `annotations`")] = None,
    how: Annotated[Format | None, typer.Option("--format", help="Unset: a table on a terminal, CSV elsewhere")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Show at most so many rows (a table: 50)")] = None,
    dialect: Annotated[Dialect | None, typer.Option("--views", help="Print the SQL that makes the views elsewhere")] = None,
) -> int:
    """Ask the tables in SQL (DuckDB)."""
    from pipeline import query as asking
    from pipeline import views

    engine: views.Dialect | None = dialect.value if dialect else None
    store = asked.existing(output)
    if engine is not None:
        print(views.script(store.root, views.read_current(store), engine), end="")
        return summary.DONE
    if sql is None:
        raise BadRequest('SQL is missing, such as "SELECT * FROM annotations LIMIT 10"')
    shown: asking.Format = how.value if how else "table" if sys.stdout.isatty() else "csv"
    with asking.bounded(), asking.opened(store) as connection:
        asking.show(asking.select(connection, sql), shown, sys.stdout, limit)
        sys.stdout.flush()
    return summary.DONE


@app.command()
def compact(
    output: OutputArgument,
    to: Annotated[str, typer.Option("--to", metavar="NEW", help="Empty folder or URL that the copy goes to")],
) -> int:
    """Copy the tables into fewer, larger objects under a new root, and check the copy."""
    from pipeline import compact as compacting
    from stages.storage import Store

    source, target = asked.existing(output), Store(to)
    asked.check_apart(source, target)
    target.check_writable()
    found = compacting.compact(source, target)
    console.result(found.lines(target.root))
    return summary.BROKEN if found.findings else summary.DONE


@app.command()
def unlock(output: OutputArgument, yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False) -> int:
    """Close a run whose lease has not lapsed, so that another can start."""
    from pipeline import unlock as locks

    store = asked.existing(output)
    runs = locks.open_runs(store)
    if not runs:
        print("no run is open; nothing to unlock")
        return summary.DONE
    print("\n".join(run.line() for run in runs))
    if not yes:
        if not sys.stdin.isatty():
            raise BadRequest("unlock asks before it closes a run; say --yes where nobody can answer")
        if not typer.confirm("A run that still works is stopped by this and has to start again. Close?"):
            return console.failed("left as it is", summary.BAD_REQUEST)
    print(locks.close(store, runs))
    return summary.DONE


def _lose(job: JobConfig, entries: tuple[Entry, ...], nodes: int) -> summary.RunResult:
    from pipeline.demo_cluster import losing
    from pipeline.run import Request

    with losing(nodes, console.note) as (address, observer):
        return _run(job, entries, Request(address=address), [observer])


def _run(
    job: JobConfig, entries: tuple[Entry, ...], request: Request | None, observers: Sequence[Observer] = ()
) -> summary.RunResult:
    from pipeline import run as runner
    from pipeline.progress import Progress

    watching: list[Observer] = [*([console.log] if console.log else []), *observers]
    try:
        with console.log or Progress() as progress:
            return runner.run(job, entries, request or runner.Request(), progress, observers=watching)
    except KeyboardInterrupt:
        console.note("clipmill: interrupted; the same command goes on from here")
        raise typer.Exit(summary.INTERRUPTED) from None
