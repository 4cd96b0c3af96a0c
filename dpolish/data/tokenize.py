"""Pairs to token ids: a prompt and an answer are tokenised together, as the model sees them when it writes the answer.

prompt alone       the cat  sat  _
prompt + chosen    the cat  sat  _on  the  mat          the tokenizer joins the last blank with the answer
prompt + rejected  the cat  sat  _    !                 here it does not
shared             the cat  sat                         the longest common prefix of all three
scored             _on the mat   and   !                each answer from its own boundary on
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpolish.data.templates import SpecialTokens, render
from dpolish.errors import DataError, ModelError, join_faults
from dpolish.records import Message, PreferencePair
from dpolish.tensors import Completion, Example

Ids = list[int]


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The token ids of a pair, before the prompt is shared."""

    prompt: Ids
    """Of the prompt alone."""
    answers: tuple[Ids, Ids]
    """Of the prompt with the chosen and with the rejected answer."""
    starts: tuple[int, int]
    """Where each answer begins: how much of `prompt` its tokens begin with."""
    rewards: tuple[float, float]
    masked: int | None
    """A token that is not scored where it stands in an answer."""

    @property
    def merges(self) -> bool:
        """Whether the end of the prompt became one token with the beginning of an answer."""
        return min(self.starts) < len(self.prompt)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return max(map(len, self.answers))

    @property
    def equal(self) -> bool:
        """Whether the two answers came out the same, and so prefer nothing."""
        return self.answers[0] == self.answers[1]

    def cut(self, length: int) -> "TokenPair":
        """The same pair with no more than `length` tokens in each answer with its prompt."""
        chosen, rejected = self.answers
        return replace(self, answers=(chosen[:length], rejected[:length]))

    def example(self) -> Example | None:
        """The prompt once, with both answers; None when an answer has no token to score."""
        shared = min(self.starts)
        completions = []
        for tokens, start in zip(self.answers, self.starts, strict=True):
            first = max(start, 1)  # nothing stands before token 0, so nothing predicts it
            unscored = tuple(i - shared for i in range(first, len(tokens)) if tokens[i] == self.masked)
            if first + len(unscored) >= len(tokens):
                return None
            completions.append(Completion(np.array(tokens[shared:], dtype=np.int32), first - shared, unscored))
        return Example(np.array(self.prompt[:shared], dtype=np.int32), tuple(completions), self.rewards)


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How pairs become token ids with one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    prefix_ids: tuple[int, ...]
    """What the tokenizer itself puts in front of a string (BOS). What it puts behind one is left off."""
    eos_id: int | None
    """What to append to an answer that does not end with it; None appends nothing."""
    masked_id: int | None
    """The token that is seen but not scored (`eod_mask_loss`); None scores all."""
    default_rewards: tuple[float, float]
    """Ground-truth rewards of the chosen and the rejected answer where a row has none."""
    special_tokens: SpecialTokens
    _literal: "_LiteralEncoder"

    @staticmethod
    def of(
        tokenizer: PreTrainedTokenizerBase,
        *,
        append_eod: bool = False,
        eod_mask_loss: bool = False,
        default_chosen_reward: float = 1.0,
        default_rejected_reward: float = 0.0,
    ) -> "Tokenization":
        """The one of a tokenizer; a ModelError when it lacks what is asked of it."""
        asked = [key for key, on in (("append_eod", append_eod), ("eod_mask_loss", eod_mask_loss)) if on]
        if asked and tokenizer.eos_token_id is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: model.data.{asked[0]}=true needs an end-of-sequence token, and the "
                f"tokenizer has none: set eos_token in its tokenizer_config.json, or {asked[0]}=false."
            )
        special_tokens = SpecialTokens.of(tokenizer)
        return Tokenization(
            tokenizer,
            _prefix_ids(tokenizer),
            tokenizer.eos_token_id if append_eod else None,
            tokenizer.eos_token_id if eod_mask_loss else None,
            (default_chosen_reward, default_rejected_reward),
            special_tokens,
            _LiteralEncoder(tokenizer, special_tokens),
        )

    def encode(self, pairs: Sequence[PreferencePair]) -> "list[TokenPair | DataError]":
        """The token ids of each pair, or why it has none."""
        texts = [self._texts(pair) for pair in pairs]
        plain = [text for found in texts if isinstance(found, _Texts) and not found.literal for text in found.texts]
        encoded = iter(self._ids(plain))
        tokenized: list[TokenPair | DataError] = []
        for pair, found in zip(pairs, texts, strict=True):
            try:
                if isinstance(found, DataError):
                    raise found
                ids = [self._literal.encode(text) if found.literal else next(encoded) for text in found.texts]
                tokenized.append(self._token_pair(pair, *ids))
            except DataError as error:
                tokenized.append(DataError(f"{pair.where}: {error}"))
        return tokenized

    def has_special_text(self, pair: PreferencePair) -> bool:
        """Whether a message of the pair has a special token in its content. In strings they are meant as tokens."""
        return not isinstance(pair.prompt, str) and self.special_tokens.within(_messages(pair))

    def _texts(self, pair: PreferencePair) -> "_Texts | DataError":
        if isinstance(pair.prompt, str):
            assert isinstance(pair.chosen, str)
            assert isinstance(pair.rejected, str)
            return _Texts((pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected), literal=False)
        messages = _messages(pair)
        literal = self.special_tokens.within(messages)
        try:
            if literal:
                messages = [self.special_tokens.hidden(message) for message in messages]
            texts = render(self.tokenizer, messages[:-2], messages[-2:])
        except DataError as error:
            return error
        return _Texts(tuple(map(self.special_tokens.told_apart, texts)) if literal else texts, literal)

    def _ids(self, texts: list[str]) -> list[Ids]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long texts: what is too long is dropped and counted
        )
        ids: list[Ids] = encoded["input_ids"]
        return ids

    def _token_pair(self, pair: PreferencePair, prompt: Ids, chosen: Ids, rejected: Ids) -> TokenPair:
        if isinstance(pair.prompt, str):
            prompt, chosen, rejected = (self._with_prefix(ids) for ids in (prompt, chosen, rejected))
        starts = _common(prompt, chosen), _common(prompt, rejected)
        answers = self._with_end(chosen, starts[0]), self._with_end(rejected, starts[1])
        given = (pair.chosen_reward, pair.rejected_reward)
        default = self.default_rewards
        rewards = default[0] if given[0] is None else given[0], default[1] if given[1] is None else given[1]
        return TokenPair(prompt, answers, starts, rewards, self.masked_id)

    def _with_prefix(self, ids: Ids) -> Ids:
        prefix = list(self.prefix_ids)
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def _with_end(self, ids: Ids, start: int) -> Ids:
        """With the end-of-sequence token, unless the answer ends with it already, blanks behind it left aside."""
        if self.eos_id is None:
            return ids
        answer = ids[start:]
        if self.eos_id in answer:
            last = len(answer) - answer[::-1].index(self.eos_id)
            rest = self.tokenizer.decode(answer[last:])
            if isinstance(rest, str) and not rest.strip():
                return ids
        return [*ids, self.eos_id]


@dataclass(frozen=True, slots=True)
class _Texts:
    """What is to be tokenised for a pair: the prompt, the prompt with the chosen and with the rejected answer."""

    texts: tuple[str, ...]
    literal: bool
    """The template's special tokens stand as aliases; whatever looks special is text."""


class _LiteralEncoder:
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


def check_vocabulary(
    examples: Sequence[Example], where: Sequence[str], vocab_size: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise a ModelError that names the rows with token ids which a model of `vocab_size` tokens does not have."""
    faults = []
    for example, place in zip(examples, where, strict=True):
        for tokens in (example.prompt, *(completion.tokens for completion in example.completions)):
            if len(tokens) and tokens.max() >= vocab_size:
                beyond = int(tokens.max())
                faults.append(f"{place}: token {tokenizer.convert_ids_to_tokens(beyond)!r} has the id {beyond}")
                break
    if faults:
        raise ModelError(
            f"the model's vocabulary has {vocab_size:,} tokens, and the tokenizer gives ids beyond it: "
            "they do not belong together, or the model's embeddings were not resized.\n" + join_faults(faults, shown=5)
        )


def _messages(pair: PreferencePair) -> list[Message]:
    return [message for message in (*pair.prompt, pair.chosen, pair.rejected) if isinstance(message, Message)]


def _common(first: Ids, second: Ids) -> int:
    """Length of the longest common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(index for index in range(length) if first[index] != second[index])


def _swapped(id_: int) -> int:
    """A number below 0 for each id, and back: its own inverse."""
    return -1 - id_


def _prefix_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts in front of any text, found by comparing one text with and without it."""
    for text in ("a", *islice(tokenizer.get_vocab(), 100)):
        plain: Ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        whole: Ids = tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"]
        for start in range(len(whole) - len(plain) + 1) if plain else ():
            if whole[start : start + len(plain)] == plain:
                return tuple(whole[:start])
    raise ModelError(
        f"{tokenizer.name_or_path}: what the tokenizer puts around a text cannot be told from the text: "
        "use a tokenizer that adds its special tokens in front or behind."
    )
