"""Which metrics and labels a PromQL expression names. Knows what our queries use, and refuses what it does not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

FUNCTIONS = {
    "sum", "count", "max", "min", "avg", "rate", "increase", "histogram_quantile", "time", "last_over_time",
    "absent_over_time", "label_values",
}  # fmt: skip
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "bool", "offset"}
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<word>[a-zA-Z_][a-zA-Z0-9_]*)|(?P<number>[0-9][0-9.e]*)
    |(?P<sign>=~|!~|!=|>=|<=|==|[-+*/%^<>=(){},])|(?P<space>\s+)""",
    re.X,
)


@dataclass
class Named:
    """Series by name, with the labels that stand in their braces; and labels that stand in groupings."""

    series: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)


def _tokens(query: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(query):
        match = _TOKEN.match(query, place)
        if match is None:
            raise ValueError(f"{query!r}: what is {query[place : place + 10]!r}?")
        place = match.end()
        if match.lastgroup != "space":
            yield str(match.lastgroup), match.group()


def named(query: str) -> Named:
    """ValueError for what is neither a metric of Ray's nor known."""
    found, tokens = Named(), list(_tokens(query))
    place = 0
    while place < len(tokens):
        kind, text = tokens[place]
        following = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        if kind == "word" and text in GROUPING:
            end = next(i for i in range(place, len(tokens)) if tokens[i][1] == ")")
            found.grouped |= {word for sort, word in tokens[place + 1 : end] if sort == "word"}
            place = end
        elif kind == "word" and text.startswith("ray_"):
            labels = found.series.setdefault(text, set())
            if following == "{":
                end = next(i for i in range(place, len(tokens)) if tokens[i][1] == "}")
                labels |= {word for sort, word in tokens[place + 2 : end] if sort == "word"}
                place = end
        elif kind == "word" and text not in FUNCTIONS | OPERATORS:
            raise ValueError(f"{query!r}: what is {text!r}?")
        place += 1
    return found
