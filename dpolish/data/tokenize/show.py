"""The tokens of a row for the eye: each with its text and what becomes of it."""

import re
from typing import Literal

from transformers import PreTrainedTokenizerBase

from dpolish.data.tokenize.encode import Tokenization
from dpolish.data.tokenize.rows import Ids, TokenConversation, TokenPair
from dpolish.errors import DataError
from dpolish.records import Conversation, PreferencePair

Kind = Literal["prompt", "trained", "ignored"]
"""Before the first trained token, trained, or neither."""

_WINDOW = 16  # tokens before one that may change how it is written
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_BROKEN = "�"


def marked_tokens(tokenization: Tokenization, record: PreferencePair | Conversation) -> list[list[tuple[str, Kind]]]:
    """(text, kind) of each token: of prompt and chosen, prompt and rejected for a pair; one list for a conversation.

    Bytes that are but a part of a character are written `<0xF0>`. Raises the row's DataError.
    """
    if isinstance(record, Conversation):
        (row,) = tokenization.encode_conversations([record])
        if isinstance(row, DataError):
            raise row
        return [_marked(tokenization.tokenizer, row.tokens, conversation_trained(row))]
    (pair,) = tokenization.encode([record])
    if isinstance(pair, DataError):
        raise pair
    return [_marked(tokenization.tokenizer, pair.answers[side], pair_trained(pair, side)) for side in (0, 1)]


def conversation_trained(row: TokenConversation) -> list[bool]:
    """For each token, whether it is in the loss: nothing predicts the first."""
    return [index > 0 and trained for index, trained in enumerate(row.trained)]


def pair_trained(pair: TokenPair, side: int) -> list[bool]:
    """For each token of the prompt with one answer, whether it is scored."""
    unscored, start = set(pair.unscored(side)), max(pair.starts[side], 1)
    return [index >= start and index not in unscored for index in range(len(pair.answers[side]))]


def _marked(tokenizer: PreTrainedTokenizerBase, ids: Ids, trained: list[bool]) -> list[tuple[str, Kind]]:
    first = trained.index(True) if True in trained else len(trained)
    kinds: list[Kind] = [
        "prompt" if index < first else "trained" if wanted else "ignored" for index, wanted in enumerate(trained)
    ]
    return list(zip(token_texts(tokenizer, ids), kinds, strict=True))


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> list[str]:
    """The text of each token where it stands. Joined they are the decoded text, but for bytes written as such."""
    texts: list[str] = []
    whole = 0  # tokens that end with a whole character
    while whole < len(ids):
        start = max(0, whole - _WINDOW)
        before = _decoded(tokenizer, ids[start:whole])
        if before.endswith(_BROKEN):  # bytes that are no text: what follows does not complete them
            start, before = whole, ""
        for end in range(whole + 1, min(len(ids), whole + 8) + 1):
            text = _decoded(tokenizer, ids[start:end])
            if text.startswith(before) and _BROKEN not in text[len(before) :]:
                break
        else:  # bytes that are no text, or a character that stands for itself
            end, text = whole + 1, before + _decoded(tokenizer, ids[whole : whole + 1])
        if end == whole + 1:
            texts.append(text[len(before) :] if _BROKEN not in text[len(before) :] else _bytes(tokenizer, ids[whole]))
        else:
            texts += [_bytes(tokenizer, id_) for id_ in ids[whole:end]]
        whole = end
    return texts


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _bytes(tokenizer: PreTrainedTokenizerBase, id_: int) -> str:
    """The bytes of a token that is not whole text: of byte fallback, or of a byte-level vocabulary."""
    name = tokenizer.convert_ids_to_tokens(id_)
    assert isinstance(name, str)
    if _BYTE.fullmatch(name) or not all(letter in _BYTE_OF for letter in name):
        return name
    return "".join(chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in map(_BYTE_OF.__getitem__, name))


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: the byte itself where it is printable in Latin-1, else the next from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
