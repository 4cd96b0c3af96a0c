"""What a row loses when it is cut."""

import pytest

from dpolish.data.tokenize import TokenConversation, Tokenization
from dpolish.records import Conversation, Message
from tests.data.small_tokenizers import merging


def row(*, bos: bool = True) -> TokenConversation:
    """`<s>` d d d c | b a b: ids 0, 5, 5, 5, 4 and 3, 2, 3 behind the border; `ab` would join."""
    made = Tokenization.of(merging("<s> $A" if bos else "$A"))
    (tokens,) = made.encode_conversations([Conversation(("dddc", "bdb"), (False, True), "rows.jsonl:1")])
    assert isinstance(tokens, TokenConversation)
    return tokens


def shown(tokens: TokenConversation) -> tuple[list[int], int]:
    assert len(tokens.tokens) == len(tokens.trained)
    return tokens.tokens, sum(tokens.trained)


def test_the_row() -> None:
    assert shown(row()) == ([0, 5, 5, 5, 4, 3, 5, 3], 3)
    assert row().longest == 8
    assert row().cut(8) == row()


@pytest.mark.parametrize(
    ("length", "method", "expected"),
    [
        (6, "right", ([0, 5, 5, 3, 5, 3], 3)),
        (6, "left", ([0, 5, 4, 3, 5, 3], 3)),
        (4, "right", ([0, 3, 5, 3], 3)),
        (4, "left", ([0, 3, 5, 3], 3)),
        (3, "right", ([0, 3, 5], 2)),
        (1, "left", ([0], 0)),
    ],
)
def test_the_input_is_cut_before_the_answer(length: int, method: str, expected: tuple[list[int], int]) -> None:
    assert method in ("left", "right")
    assert shown(row().cut(length, "input", method)) == expected  # type: ignore[arg-type]


def test_without_bos_the_input_can_vanish() -> None:
    assert shown(row(bos=False).cut(3, "input", "right")) == ([3, 5, 3], 3)
    assert row(bos=False).cut(3, "input", "left").example() is not None  # two are predicted still


def test_the_end_is_cut_otherwise() -> None:
    assert shown(row().cut(6)) == ([0, 5, 5, 5, 4, 3], 1)
    assert shown(row().cut(6, "output", "left")) == ([0, 5, 5, 5, 4, 3], 1)
    assert row().cut(5).example() is None


def test_chats_lose_their_end() -> None:
    turns = (Message("user", "ddd"), Message("assistant", "b"), Message("user", "d"), Message("assistant", "b"))
    made = Tokenization.of(merging())
    (tokens,) = made.encode_conversations([Conversation(turns, (False, True, False, True), "rows.jsonl:1")])
    assert isinstance(tokens, TokenConversation)
    assert shown(tokens) == ([5, 5, 5, 1, 3, 1, 5, 1, 3, 1], 4)
    for field in ("input", "output"):
        cut = tokens.cut(8, field, "left")  # type: ignore[arg-type]
        assert shown(cut) == ([5, 5, 5, 1, 3, 1, 5, 1], 2)
        assert cut.longest == 6


def test_a_tail_that_is_not_trained_makes_no_row_too_long() -> None:
    made = Tokenization.of(merging())
    (tokens,) = made.encode_conversations([Conversation(("d", "b", "dddd"), (False, True, False), "rows.jsonl:1")])
    assert isinstance(tokens, TokenConversation)
    assert tokens.longest == 2
    assert tokens.cut(2) == tokens
