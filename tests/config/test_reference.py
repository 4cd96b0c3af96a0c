"""The page of all keys is what the schema says."""

from pathlib import Path

import pytest

from dpolish.config.keys import all_keys
from dpolish.config.reference import page
from dpolish.config.schema import ROOTS, RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run `python -m dpolish.config.reference > docs/configuration.md`"
    )


@pytest.mark.parametrize("root", ROOTS.values())
def test_every_key_is_on_the_page_in_its_section(root: type[RunConfig]) -> None:
    sections = {}
    for part in page().split("\n### ")[1:]:
        title, _, rest = part.partition("\n")
        sections[title.partition(" (")[0].strip("`").replace("The root", "")] = rest
    for key in all_keys(root):
        section, _, name = key.rpartition(".")
        assert f"\n| `{name}`" in sections[section], key


def test_what_one_verb_alone_has_is_marked() -> None:
    text = page()
    for line in ("### `trainer.sft` (sft)", "| `pairs` (dpo) |", "| `loss_average` (sft) |", "| `chat_template` |"):
        assert line in text
    assert "| `lr` | a number | dpo: `9e-06`, sft: `3e-05` |" in text
    assert "| `model.data.train_ds.add_sep` (sft) |" in text
