import re

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from dpolish.nemo.tokenizers.patterns import literal, longest_of, one_of

TEXTS = st.text(st.sampled_from("ab^]-\\ é\U0001f600\u0301"), max_size=6)


def replaced(pattern: str, text: str) -> str:
    return normalizers.Replace(Regex(pattern), "\u0001").normalize_str(text)


@given(st.sets(TEXTS.filter(bool), min_size=1), TEXTS)
def test_the_longest_text_is_found(texts: set[str], text: str) -> None:
    longest_first = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    assert replaced(longest_of(texts), text) == re.sub(longest_first, "\u0001", text)


@given(st.sets(st.characters(codec="utf-8"), min_size=1), st.characters(codec="utf-8"))
def test_one_letter_of_a_set_is_found(letters: set[str], other: str) -> None:
    for letter in [*letters, other]:
        assert (replaced(one_of(letters), letter) == "\u0001") is (letter in letters or letter == "\u0001")


@given(TEXTS.filter(bool))
def test_a_text_is_found_as_it_is(text: str) -> None:
    assert replaced(literal(text), f"x{text}y") == "x\u0001y"


def test_shared_endings_are_written_once() -> None:
    letters = [chr(point) for point in range(0x100, 0x200)]
    assert len(longest_of(first + second for first in letters for second in letters)) < 50
