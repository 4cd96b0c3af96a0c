"""Texts that hold `${` are found, and marked so that OmegaConf leaves them alone."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from omegaconf import OmegaConf

from dpolish.config.interpolation import escaped, has_interpolation


@pytest.mark.parametrize("value", ["${a}", "x${", ["a", "${b}"], {"a": {"b": ["${c}"]}}])
def test_an_interpolation_is_found_at_any_depth(value: object) -> None:
    assert has_interpolation(value)


@pytest.mark.parametrize("value", ["$a", "{input}", ["a"], {"${a}": 1}, 3, None])
def test_what_is_none(value: object) -> None:
    assert not has_interpolation(value)


@given(text=st.text(alphabet=st.sampled_from("\\${}ab.:")) | st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_marked_is_read_to_the_letter(text: str) -> None:
    assert OmegaConf.create({"x": escaped(text)}).x == text


def test_lists_and_mappings_are_marked_inside() -> None:
    value = {"train": ["${a}", 0.5], "n": None}
    assert OmegaConf.to_container(OmegaConf.create({"x": escaped(value)}), resolve=True) == {"x": value}
