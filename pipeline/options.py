"""What commands can be told on the command line, as far as several share it. Loads nothing but Typer."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How `query` shows rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class LogFormat(StrEnum):
    """What goes to stderr."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that JSON lines tell."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


class Dialect(StrEnum):
    """Engines that can have the views."""

    DUCKDB = "duckdb"
    SPARK = "spark"
    ATHENA = "athena"


InputOption = Annotated[
    str | None, typer.Option("--input", metavar="URI", help="Folder, glob, file or manifest; local, s3://...")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="ROOT", help="Videos and models must lie below it, whatever a manifest says; repeatable"),
]
OutputOption = Annotated[str | None, typer.Option("--output", metavar="URI", help="Folder for the tables; local, s3://...")]
PresetOption = Annotated[
    str | None, typer.Option(help="standard: models of the hub; embedded: tiny ones that know only the demo's shapes")
]
ConfigOption = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML; goes over the preset")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting; goes over the file; may be given again")
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many videos in this run")]
HoursOption = Annotated[float | None, typer.Option(min=0.0, metavar="H", help="Stop after so many hours; the next run goes on")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Failed and quarantined videos are due again")]
AddressOption = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to attach to; unset: this machine")]
MaxFailedOption = Annotated[str, typer.Option(metavar="SHARE", help="Exit 3 when more than this failed, such as 5% or 0.05")]
LogFormatOption = Annotated[LogFormat, typer.Option(help="stderr: lines and a bar for people, or JSON, one object a line")]
LogLevelOption = Annotated[LogLevel, typer.Option(help="With --log-format json: debug tells of units too")]
JsonOption = Annotated[bool, typer.Option("--json", help="Plain JSON instead of text")]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL that holds the tables")]
