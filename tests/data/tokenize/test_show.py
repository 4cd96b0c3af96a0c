"""Tokens for the eye."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpolish.data.tokenize import Tokenization, marked_tokens
from dpolish.data.tokenize.show import token_texts
from dpolish.errors import DataError
from dpolish.records import Conversation, Message, PreferencePair
from tests.data.small_tokenizers import KINDS, byte_level, letters, merging, metaspace


def shown(row: PreferencePair | Conversation, **options: bool) -> list[list[tuple[str, str]]]:
    """By `merging`, which has no decoder: the library's own puts blanks between tokens."""
    lists = marked_tokens(Tokenization.of(merging(), **options), row)
    return [[(text.strip(), kind) for text, kind in tokens] for tokens in lists]


def test_pairs_show_two_lists() -> None:
    row = PreferencePair("da", "b", "d", None, None, "rows.jsonl:1")
    chosen, rejected = shown(row)
    assert chosen == [("d", "prompt"), ("ab", "trained")]
    assert rejected == [("d", "prompt"), ("a", "prompt"), ("d", "trained")]


def test_what_nothing_predicts_is_not_shown_as_trained() -> None:
    (tokens,) = shown(Conversation(("ac",), (True,), "rows.jsonl:1"))
    assert tokens == [("a", "prompt"), ("c", "trained")]


def test_conversations_show_what_is_ignored_between() -> None:
    turns = [Message(("user", "assistant")[index % 2], content) for index, content in enumerate("dadb")]
    row = Conversation(tuple(turns), (False, True, False, True), "rows.jsonl:1")
    (tokens,) = shown(row)
    kinds = ["prompt"] * 2 + ["trained"] * 2 + ["ignored"] * 2 + ["trained"] * 2
    assert tokens == list(zip(["d", "</s>", "a", "</s>", "d", "</s>", "b", "</s>"], kinds, strict=True))
    (masked,) = shown(row, eod_mask_loss=True)
    assert [kind for _, kind in masked] == ["prompt"] * 2 + ["trained"] + ["ignored"] * 3 + ["trained", "ignored"]


def test_answers_of_several_turns_show_the_others_as_ignored() -> None:
    chosen = (Message("assistant", "a"), Message("tool", "d"), Message("assistant", "b"))
    row = PreferencePair((Message("user", "d"),), chosen, (Message("assistant", "c"),), None, None, "rows.jsonl:1")
    tokens, _ = shown(row)
    assert [kind for _, kind in tokens] == ["prompt"] * 2 + ["trained"] * 2 + ["ignored"] * 2 + ["trained"] * 2


def test_a_row_without_tokens_is_its_error() -> None:
    row = Conversation((Message("system", "x"), Message("assistant", "y")), (False, True), "rows.jsonl:7")
    with pytest.raises(DataError, match=r"rows.jsonl:7: the chat template refuses"):
        marked_tokens(Tokenization.of(metaspace()), row)


def test_bytes_of_a_character_are_shown() -> None:
    tokenizer = byte_level()
    assert token_texts(tokenizer, tokenizer("é 🙂a")["input_ids"]) == [
        "<0xC3>",
        "<0xA9>",
        " <0xF0><0x9F>",
        "<0x99>",
        "<0x82>",
        "a",
    ]
    unigram = KINDS["unigram"]()
    assert token_texts(unigram, unigram("éa", add_special_tokens=False)["input_ids"]) == ["<0xC3>", "<0xA9>", "a"]
    half = tokenizer("🙂")["input_ids"][:-1]
    assert token_texts(tokenizer, half) == ["<0xF0><0x9F>", "<0x99>"]


@pytest.mark.parametrize("kind", [*KINDS, "metaspace", "slow"])
@settings(max_examples=20)
@given(data=st.data())
def test_texts_joined_are_the_decoded_text(kind: str, data: st.DataObject) -> None:
    tokenizer = {**KINDS, "metaspace": metaspace, "slow": letters}[kind]()
    text = data.draw(st.text(st.sampled_from("ab \nIt.<|>"), max_size=30))
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
