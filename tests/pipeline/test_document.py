import re
from pathlib import Path

import pytest

from pipeline.document import sql_page
from stages.storage import Store
from tests.pipeline import tables as made

PAGE = Path(__file__).parents[2] / "docs" / "sql.md"


def test_the_committed_page_is_what_the_views_say() -> None:
    assert PAGE.read_text() == sql_page(), "stale: python -m pipeline.document > docs/sql.md"


def test_the_python_on_the_page_runs(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    made.write_small(store)
    [code] = re.findall(r"```python\n(.*?)```", sql_page(), re.DOTALL)
    names: dict[str, object] = {"OUTPUT": store.root}
    exec(code, names)
    assert {len(names[name]) for name in ("captions", "clips", "bright")} == {4}  # type: ignore[arg-type]
    assert len(names["labels"]) == 16  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["Spark", "Athena"])
def test_the_page_has_the_sql_of_every_engine(engine: str) -> None:
    section = sql_page().partition(f"\n## {engine}\n")[2].partition("\n## ")[0]
    assert "annotations AS" in section
    assert section.count("s3://bucket/tables/") == 5
