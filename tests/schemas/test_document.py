from pathlib import Path

from schemas.document import MEANINGS, tables_page
from schemas.errors import ErrorCode
from schemas.tables import STAGE_RESULT, TABLES, Table

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def section(page: str, table: Table) -> str:
    return page.partition(f"\n## {table.name}\n")[2].partition("\n## ")[0]


def test_the_committed_page_is_what_the_schemas_say() -> None:
    assert PAGE.read_text() == tables_page(), "stale: python -m schemas.document > docs/tables.md"


def test_every_column_stands_in_its_tables_section_with_its_meaning() -> None:
    page = tables_page()
    for table in TABLES.values():
        for field in table.schema:
            start = f"| {field.name} | "
            line = next(line for line in section(page, table).splitlines() if line.startswith(start))
            assert line.count(" | ") == 3
            assert len(line.rpartition(" | ")[2].removesuffix(" |")) > 3


def test_the_ledgers_stages_are_described_too() -> None:
    text = section(tables_page(), TABLES["videos"])
    for index in range(STAGE_RESULT.num_fields):
        assert f"| {STAGE_RESULT.field(index).name} | " in text.partition("Each of `stages`")[2]


def test_every_error_code_has_a_meaning_and_a_line() -> None:
    assert set(MEANINGS) == set(ErrorCode)
    for code in ErrorCode:
        assert f"| {code} | " in tables_page()


def test_nullable_columns_say_so() -> None:
    text = section(tables_page(), TABLES["clips"])
    assert "| clip_id | string | no |" in text
    assert "| motion | float32 | yes |" in text
    assert "| frame_times_s | list<float64> | no |" in text
