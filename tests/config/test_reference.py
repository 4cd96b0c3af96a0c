"""The page of all keys is what the schema says."""

from pathlib import Path

from dpolish.config.keys import all_keys
from dpolish.config.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run `python -m dpolish.config.reference > docs/configuration.md`"
    )


def test_every_key_is_on_the_page() -> None:
    text = page()
    assert [key for key in all_keys() if f"| `{key.rpartition('.')[2]}` |" not in text] == []
