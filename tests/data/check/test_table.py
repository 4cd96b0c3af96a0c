from pathlib import Path

from dpolish.data.check.table import markdown

PAGE = Path(__file__).parents[3] / "docs" / "check.md"


def test_the_page_has_the_table_of_the_registry() -> None:
    assert markdown() in PAGE.read_text(encoding="utf-8"), "python -m dpolish.data.check.table prints it"
