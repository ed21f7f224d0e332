"""docs/cluster.md: what it tells people to type, and where it sends them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
LINES = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in re.sub(r"\\\n", " ", block).splitlines()
]
WORDS = [word for line in LINES for word in shlex.split(line, comments=True)]


def clipmill_commands() -> list[list[str]]:
    """Every `clipmill ...` to be typed: alone, after --, or as what a container runs."""
    found = []
    for line in LINES:
        (quoted,) = re.findall(r"'(.*)'$", line) if "--tmux" in line else (line,)
        for command in quoted.split(" -- "):
            words = shlex.split(command, comments=True)
            if words[:2] == ["docker", "run"]:
                found.append(words[next(i for i, word in enumerate(words) if re.match(r"clipmill:", word)) + 1 :])
            elif words[:1] == ["clipmill"]:
                found.append(words[1:])
    return found


def test_the_program_takes_every_command_of_the_page() -> None:
    from typer.main import get_command

    from pipeline import settings
    from pipeline.cli import app

    commands = clipmill_commands()
    assert [words[0] for words in commands] == ["run", "run", "run", "run", "submit"]
    for name, *words in commands:
        asked = get_command(app).commands[name].make_context(name, words).params  # type: ignore[attr-defined]
        settings.load(preset=asked["preset"], sets=asked["sets"] or (), input_uri=asked["input"], output=asked["output"])


def test_cluster_wait_takes_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.wait import main

    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    known = capsys.readouterr().out
    for options in re.findall(r"cluster\.wait ((?:--\w+ \d+ ?)+)", PAGE):
        assert all(option in known for option in re.findall(r"--\w+", options))


def test_ray_has_the_commands_of_the_page() -> None:
    from ray.scripts.scripts import cli

    asked = {line.split()[1] for line in LINES if line.startswith("ray ")}
    assert asked == {"get-auth-token", "up", "exec", "attach", "down"}
    assert asked <= set(cli.commands)
    options = {option for parameter in cli.commands["exec"].params for option in parameter.opts}
    assert {"--tmux", "--stop"} <= options


def test_every_file_of_the_page_is_there() -> None:
    named = {word.removeprefix("file://") for word in WORDS if re.match(r"(file://)?(cluster/|ray_cluster)[\w/.-]+", word)}
    linked = {f"docs/{target}" for target in re.findall(r"\]\(([a-z_]+\.md)\)", PAGE)}
    mentioned = set(re.findall(r"`((?:cluster|tests|\.\./)/?[\w/.-]+\.(?:yaml|json|py))`", PAGE))
    assert len(named) >= 8
    paths = {path.replace("$name", "head") for path in named | linked | mentioned if not path.startswith("cluster/aws/$")}
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_anchors_lead_somewhere() -> None:
    titles = [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", PAGE)]
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) <= set(titles)


def test_the_targets_that_are_built_are_those_of_the_dockerfile() -> None:
    from tests.cluster.dockerfile import Dockerfile

    stages = Dockerfile.read(ROOT / "cluster" / "Dockerfile").stages
    built = [(words[5], words[7]) for words in map(str.split, LINES) if words[:2] == ["docker", "build"]]
    assert len(built) == 2
    for target, tag in built:
        assert target in stages
        assert tag.endswith(f"-{target}")


@pytest.mark.parametrize("name", ["head", "worker", "trust"])
def test_policies_are_json_and_the_page_says_where_they_go(name: str) -> None:
    assert json.loads((ROOT / "cluster" / "aws" / f"{name}.json").read_text())["Version"] == "2012-10-17"
    assert f"file://cluster/aws/{name}.json" in WORDS
