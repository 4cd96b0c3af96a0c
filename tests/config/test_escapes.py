"""Characters that a shell cannot write."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dpolish.config.escapes import read_escapes, write_escapes


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"Q: {input}\n\nA: {output}", "Q: {input}\n\nA: {output}"),
        (r"\x00|\x11|\t|\r", "\x00|\x11|\t|\r"),
        (r"\u2581<extra_id_1>", "▁<extra_id_1>"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        ("\n", "\n"),
        (r"\d\(\x1", r"\d\(\x1"),  # no escapes: they stand for themselves
        (r"\ud800", r"\ud800"),  # half a character
        ("é\\", "é\\"),
    ],
)
def test_an_escape_stands_for_its_character(written: str, text: str) -> None:
    assert read_escapes(written) == text


@given(text=st.text(alphabet=st.sampled_from("\\nxu0Da1\n{é")) | st.text())
def test_write_and_read(text: str) -> None:
    assert read_escapes(write_escapes(text)) == text
