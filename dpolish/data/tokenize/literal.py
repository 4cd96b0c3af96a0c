"""Token ids of texts in which special tokens of the template and special tokens as text stand side by side."""

import re
from collections.abc import Sequence
from functools import cached_property

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpolish.data.templates import SpecialTokens
from dpolish.data.tokenize.rows import Ids
from dpolish.errors import DataError


class LiteralEncoder:
    """Encodes texts of which `SpecialTokens.told_apart` marked the tokens. Rare, so what it needs is made on demand.

    A fast tokenizer is copied, and its copy knows the aliases as added tokens and no special ones. So each text is
    encoded as a whole, with the same splits, blanks and normalisation as ever. A slow one splits at its added
    tokens and encodes the pieces one by one; the same is done here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._special_ids = dict(zip(special_tokens.strings, self._ids_of(special_tokens.strings), strict=True))
        self._aliases = dict(zip(special_tokens.strings, special_tokens.aliases, strict=True))

    def encode(self, text: str) -> Ids:
        """The token ids; a DataError when the tokenizer has no other way to write the text of a special token."""
        fast = isinstance(self._tokenizer, PreTrainedTokenizerFast)
        ids = self._encode_whole(text) if fast else self._encode_pieces(text)
        unwanted = set(self._special_ids.values()) - {self._tokenizer.unk_token_id}
        for found in ids:
            if found in unwanted:
                token = self._tokenizer.convert_ids_to_tokens(found)
                raise DataError(f"a message contains {token!r}, which the tokenizer cannot write as text: remove it")
        return [_swapped(found) if found < 0 else found for found in ids]

    def _encode_whole(self, text: str) -> Ids:
        """With the template's own special tokens as negative numbers."""
        backend, meant = self._backend
        return [meant.get(found, found) for found in backend.encode(text, add_special_tokens=False).ids]

    @cached_property
    def _backend(self) -> tuple[Tokenizer, dict[int, int]]:
        assert isinstance(self._tokenizer, PreTrainedTokenizerFast)
        backend = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        backend.add_tokens([self._alias_token(text) for text in self._aliases])
        vocabulary = backend.get_added_tokens_decoder()
        found = {token.content: id_ for id_, token in vocabulary.items()}
        return backend, {found[alias]: _swapped(self._special_ids[text]) for text, alias in self._aliases.items()}

    def _alias_token(self, text: str) -> AddedToken:
        """An added token with the manners of a special one towards the blanks around it."""
        token = self._added.get(text, AddedToken(text))
        return AddedToken(
            self._aliases[text],
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
            normalized=False,
        )

    def _encode_pieces(self, text: str) -> Ids:
        """With the template's own special tokens as negative numbers."""
        pattern, meant = self._splitter
        ids, at = [], 0
        for match in pattern.finditer(text):
            assert match.lastindex is not None
            ids += [*self._plain_ids(text[at : match.start()]), meant[match.lastindex - 1]]
            at = match.end()
        return ids + self._plain_ids(text[at:])

    @cached_property
    def _splitter(self) -> tuple[re.Pattern[str], list[int]]:
        found = [(self._aliases[text], text, _swapped(id_)) for text, id_ in self._special_ids.items()]
        others = sorted(self._added.keys() - self._special_ids.keys(), key=len, reverse=True)
        found += zip(others, others, self._ids_of(others), strict=True)
        blanks = r"\s*"
        parts = []
        for written, text, _ in found:
            token = self._added.get(text, AddedToken(text))
            parts.append(f"({blanks * token.lstrip}{re.escape(written)}{blanks * token.rstrip})")
        return re.compile("|".join(parts)), [id_ for _, _, id_ in found]

    def _plain_ids(self, text: str) -> Ids:
        return self._ids_of(self._tokenizer.tokenize(text, split_special_tokens=True)) if text else []

    def _ids_of(self, tokens: Sequence[str]) -> Ids:
        ids = self._tokenizer.convert_tokens_to_ids(list(tokens))
        assert isinstance(ids, list)
        return ids


def _swapped(id_: int) -> int:
    """A number below 0 for each id, and back: its own inverse."""
    return -1 - id_
