from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from schemas.config import JobConfig, Part
from schemas.manual import configuration_page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def keys_of(part: type[Part], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, description) of every setting that there is."""
    for name, info in part.model_fields.items():
        parts = [kind for kind in kinds_of(info.annotation) if isinstance(kind, type) and issubclass(kind, Part)]
        if parts:
            yield from keys_of(parts[0], f"{path}{name}.")
        else:
            yield f"{path}{name}", info.description


def kinds_of(annotation: Any) -> list[Any]:
    return [annotation, *(kind for inner in get_args(annotation) for kind in kinds_of(inner))]


def test_the_committed_page_is_what_the_configuration_says() -> None:
    assert PAGE.read_text() == configuration_page(), "stale: python -m schemas.manual > docs/configuration.md"


def test_every_setting_has_a_line_with_its_meaning() -> None:
    lines = configuration_page().splitlines()
    keys = [(key, description) for key, description in keys_of(JobConfig) if key != "preset"]
    assert len(keys) > 40
    for key, description in keys:
        (line,) = [line for line in lines if line.startswith(f"| {key} | ")]
        assert description
        assert description.split(";")[0] in line


def test_defaults_and_bounds_are_said() -> None:
    page = configuration_page()
    assert "| clips.max_s | 10 | number, more than 0 |" in page
    assert "| clips.split | shots | shots, fixed or none |" in page
    assert "| classify.model | must be given | text |" in page
    assert "| resources.batch_bytes | 268435456 (256 MiB) | whole number, at least 1048576 |" in page
    assert "| resources.machines | none | list of mappings |" in page
