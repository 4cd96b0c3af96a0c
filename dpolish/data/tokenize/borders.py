"""Where a border between characters lies between tokens.

A border lies behind the tokens that the text up to it shares with the whole text. A token that reaches over it lies
behind it: so it counts as trained at the beginning of an answer, as the model that wrote the prompt's tokens would see
it, and not at the end. At a special token a tokenizer forgets what it read. So only what stands from the last special
token before a border on is tokenised again, which in a chat is the same few pieces in every turn of every row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpolish.data.templates import SpecialTokens
from dpolish.data.tokenize.rows import Ids


@dataclass(frozen=True, slots=True)
class Bordered:
    """A text, its token ids, and its borders."""

    text: str
    ids: Ids
    borders: Sequence[int | str]
    """Each in characters; or another text, of which the tokens that both begin with stand before the border."""


@dataclass(frozen=True, slots=True)
class Place:
    """A border among tokens."""

    index: int
    """Tokens before it."""
    clean: bool
    """Whether no token reaches over it."""


class Borders:
    """Finds borders with one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        special_tokens: SpecialTokens,
        encode: Callable[[list[str]], list[Ids]],
    ) -> None:
        self._encode = encode
        self._pattern = special_tokens.pattern
        self._ids: frozenset[int] = frozenset()
        self._firm: frozenset[str] = frozenset()
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            added = {token.content: (id_, token) for id_, token in tokenizer.added_tokens_decoder.items()}
            special = {text: added[text] for text in special_tokens.strings if text in added}
            special.pop(str(tokenizer.unk_token), None)  # its id stands for other texts too
            self._ids = frozenset(id_ for id_, _ in special.values())
            self._firm = frozenset(
                text for text, (_, token) in special.items() if not token.normalized and not token.single_word
            )

    def places(self, rows: Sequence[Bordered]) -> list[list[Place]]:
        """The place of every border of every row, in order."""
        pieces = [self._pieces(row) for row in rows]
        distinct = list(dict.fromkeys(piece for found in pieces for piece, _ in found if piece))
        ids: dict[str, Ids] = {"": [], **dict(zip(distinct, self._encode(distinct), strict=True))}
        places = []
        for row, found in zip(rows, pieces, strict=True):
            made = []
            for piece, first in found:
                before = row.ids[first:] if piece is None else ids[piece]
                shared = common_prefix(before, row.ids[first : first + len(before)])
                made.append(Place(first + shared, shared == len(before)))
            places.append(made)
        return places

    def _pieces(self, row: Bordered) -> list[tuple[str | None, int]]:
        """For each border the text from the last special token before it on, and the number of that token.

        None where the border is the end of the text, so that its tokens are known.
        """
        anchors = [(0, 0, 0)]  # first character, character behind, token
        if self._firm and row.borders:
            tokens = [index for index, id_ in enumerate(row.ids) if id_ in self._ids]
            matches = list(self._pattern.finditer(row.text))
            if len(tokens) == len(matches):
                for match, token in zip(matches, tokens, strict=True):
                    if match.group() in self._firm:
                        anchors.append((match.start(), match.end(), token))
        found: list[tuple[str | None, int]] = []
        at = 0
        for border in row.borders:
            if border == len(row.text):
                found.append((None, len(row.ids)))
                continue
            if isinstance(border, str):
                found.append((border, 0))
                continue
            while at + 1 < len(anchors) and anchors[at + 1][1] <= border:
                at += 1
            found.append((row.text[anchors[at][0] : border], anchors[at][2]))
        return found


def common_prefix(first: Ids, second: Ids) -> int:
    """Length of the longest common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(index for index in range(length) if first[index] != second[index])
