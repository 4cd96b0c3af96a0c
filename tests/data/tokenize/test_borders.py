"""A border found from the last special token on is where the whole text before it puts it."""

import copy
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpolish.data.templates import SpecialTokens
from dpolish.data.tokenize.borders import Bordered, Borders, common_prefix
from tests.data.small_tokenizers import KINDS, byte_level, letters, metaspace

MAKE = {**KINDS, "metaspace": metaspace, "slow": letters}
PARTS = ["It was", " ", "\n", "é", "🙂", "assistant", "User", "\n<", "1215", "<unk>"]


def ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return found


@pytest.mark.parametrize("kind", MAKE)
@settings(max_examples=20)
@given(data=st.data())
def test_borders_are_those_of_the_whole_text_before_them(kind: str, data: st.DataObject) -> None:
    tokenizer = MAKE[kind]()
    parts = st.sampled_from([*PARTS, *tokenizer.all_special_tokens, "<think>"])
    text = "".join(data.draw(st.lists(parts, min_size=1, max_size=10)))
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    borders = Borders(tokenizer, SpecialTokens.of(tokenizer), lambda texts: ids(tokenizer, texts))
    (whole,) = ids(tokenizer, [text])
    (found,) = borders.places([Bordered(text, whole, places)])
    for place, border in zip(found, places, strict=True):
        (before,) = ids(tokenizer, [text[:border]]) if border else ([],)
        assert place.index == common_prefix(before, whole)
        assert place.clean == (place.index == len(before))


@pytest.mark.parametrize("manner", ["lstrip", "rstrip", "single_word", "normalized"])
@settings(max_examples=20)
@given(data=st.data())
def test_the_manners_of_special_tokens_do_not_matter(manner: str, data: st.DataObject) -> None:
    tokenizer = _with_manner(manner)
    text = "".join(data.draw(st.lists(st.sampled_from(["[T]", " ", "\n", "It", "a", "<|im_end|>"]), max_size=9)))
    borders = Borders(tokenizer, SpecialTokens.of(tokenizer), lambda texts: ids(tokenizer, texts))
    (whole,) = ids(tokenizer, [text])
    places = list(range(len(text) + 1))
    (found,) = borders.places([Bordered(text, whole, places)])
    befores = [ids(tokenizer, [text[:border]])[0] for border in places]
    assert [place.index for place in found] == [common_prefix(before, whole) for before in befores]


@cache
def _with_manner(manner: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(byte_level())
    manners = {"normalized": False, manner: True}
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("[T]", special=True, **manners)]})
    return tokenizer


def test_long_conversations_are_not_tokenised_again_and_again() -> None:
    """Of a chat with special tokens only short pieces are encoded a second time, and each once."""
    tokenizer = byte_level()
    turn = "<|im_start|>user\nWhich year?<|im_end|>\n<|im_start|>assistant\nIt was 1215.<|im_end|>\n"
    text, encoded = turn * 50, list[str]()

    def encode(texts: list[str]) -> list[list[int]]:
        encoded.extend(texts)
        return ids(tokenizer, texts)

    borders = Borders(tokenizer, SpecialTokens.of(tokenizer), encode)
    ends = [len(turn) * (index + 1) for index in range(50)]
    starts = [end - len("It was 1215.<|im_end|>\n") for end in ends]
    (whole,) = ids(tokenizer, [text])
    places = [border for span in zip(starts, ends, strict=True) for border in span]
    borders.places([Bordered(text, whole, places)])
    assert sorted(encoded) == ["<|im_end|>\n", "<|im_start|>assistant\n"]
