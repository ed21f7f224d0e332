"""Reads a Dockerfile far enough to check it, and to run its install steps, where there is no Docker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction, lines joined: its name in capitals, and all that follows."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments of COPY, with its options, or of a JSON form."""
        return json.loads(self.text) if self.text.startswith("[") else self.text.split()


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class Dockerfile:
    """Stages by name, in order, and the build arguments before the first FROM."""

    stages: Mapping[str, Stage]
    arguments: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        """Parses; ValueError for a stage without a name."""
        stages: dict[str, Stage] = {}
        arguments: dict[str, str] = {}
        for name, text in _instructions(path.read_text()):
            if name == "FROM":
                found = re.fullmatch(r"(\S+) AS (\S+)", text)
                if not found:
                    raise ValueError(f"FROM {text}: has no name")
                stages[found[2]] = Stage(found[1], found[2])
            elif not stages:
                key, _, value = text.partition("=")
                arguments[key] = value
            else:
                [*stages.values()][-1].instructions.append(Instruction(name, text))
        return cls(stages, arguments)

    def image(self, target: str) -> str:
        """The image from outside that `target` grows from, build arguments filled in."""
        base = self.stages[target].base
        while base in self.stages:
            base = self.stages[base].base
        return re.sub(r"\$\{(\w+)\}", lambda found: self.arguments[found[1]], base)

    def lineage(self, target: str) -> list[Instruction]:
        """All instructions that make `target`, those of the stages it grows from first."""
        stage = self.stages[target]
        before = self.lineage(stage.base) if stage.base in self.stages else []
        return [*before, *stage.instructions]

    def last(self, target: str, name: str) -> Instruction | None:
        """What holds in the end, of an instruction that replaces the one before it."""
        return next((found for found in reversed(self.lineage(target)) if found.name == name), None)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for logical in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if logical.strip():
            name, _, rest = logical.strip().partition(" ")
            yield name.upper(), rest.strip()
