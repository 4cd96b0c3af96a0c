"""Checks of one row by its tokens: what training would make of it. This needs torch."""

from collections.abc import Callable
from dataclasses import dataclass

from dpolish.data.check.ends import MISSING_END, lacks_end
from dpolish.data.check.findings import Check, Severity, declare
from dpolish.data.check.record import Record
from dpolish.data.check.statistics import TokenLengths
from dpolish.data.tokenize import TokenConversation, Tokenization, TokenPair

Tokens = TokenPair | TokenConversation


@dataclass(frozen=True, slots=True)
class Seen:
    """A record with its tokens, and what it is held against."""

    record: Record
    tokens: Tokens
    about: "Context"

    @property
    def wholes(self) -> list[list[int]]:
        """The ids of the prompt with each answer."""
        tokens = self.tokens
        return list(tokens.answers) if isinstance(tokens, TokenPair) else [tokens.tokens]

    @property
    def of_strings(self) -> bool:
        """Whether its texts are used to the letter."""
        return isinstance(self.record.prompt, str)


@dataclass(frozen=True, slots=True)
class Context:
    """What rows are held against."""

    tokenization: Tokenization
    vocabulary_size: int | None
    """Of the model; None where every token has a place in it."""
    seq_length: int | None
    ends: tuple[str, ...]
    """What may end an answer that is a string; none where nothing is known, or where training appends it."""

    @property
    def bos(self) -> tuple[str, int] | None:
        """The beginning of a sequence, with its id, where the tokenizer puts it in front of strings."""
        tokenizer = self.tokenization.tokenizer
        bos_id = tokenizer.bos_token_id
        if bos_id is None or bos_id not in self.tokenization.prefix_ids:
            return None
        return str(tokenizer.bos_token), bos_id


Find = Callable[[Seen], str | None]
"""What is wrong with a record, as a detail that may be empty; None where nothing is."""


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """A check with the function that makes it."""

    check: Check
    find: Find


TOKEN_CHECKS: list[TokenCheck] = []


def token_check(
    kind: str,
    severity: Severity,
    message: str,
    remedy: str = "",
    *,
    drops: bool = False,
    of_pairs: bool = False,
) -> Callable[[Find], Find]:
    """Register a check of one row by its tokens."""

    def register(find: Find) -> Find:
        check = declare(kind, severity, message, remedy, drops=drops, of_pairs=of_pairs)
        TOKEN_CHECKS.append(TokenCheck(check, find))
        return find

    return register


@token_check(
    "out-of-vocabulary",
    Severity.ERROR,
    "The tokenizer gives ids that the model has no embedding for: they do not belong together.",
    "Use the model's own tokenizer, or resize the embeddings.",
    of_pairs=True,
)
def out_of_vocabulary(seen: Seen) -> str | None:
    """An id at or beyond the model's vocabulary size."""
    size = seen.about.vocabulary_size
    if size is None or (beyond := max(max(ids, default=0) for ids in seen.wholes)) < size:
        return None
    return f"token {seen.about.tokenization.tokenizer.convert_ids_to_tokens(beyond)!r} has the id {beyond} of {size}"


@token_check(
    "over-long",
    Severity.WARNING,
    "The prompt and the longer answer exceed --seq-length; training drops such rows.",
    "Raise model.data.seq_length, shorten the rows, or set model.data.on_overlong=truncate.",
    drops=True,
)
def over_long(seen: Seen) -> str | None:
    """More tokens than the sequence length."""
    limit, length = seen.about.seq_length, seen.tokens.longest
    return f"{length:,} tokens" if limit is not None and length > limit else None


@token_check(
    "equal-tokens",
    Severity.WARNING,
    "The two answers differ as text and are the same tokens, so the pair prefers nothing; training leaves it out.",
    "Remove the rows: --fix does.",
    drops=True,
)
def equal_tokens(seen: Seen) -> str | None:
    """Answers of which nothing but the text differs."""
    return "" if isinstance(seen.tokens, TokenPair) and seen.tokens.equal else None


@token_check(
    "nothing-trained",
    Severity.WARNING,
    "An answer has no token to train on; training leaves the row out.",
    "Remove the rows: --fix does.",
    drops=True,
)
def nothing_trained(seen: Seen) -> str | None:
    """All tokens of an answer belong to the prompt, to a tool, or are masked."""
    tokens = seen.tokens
    if isinstance(tokens, TokenConversation):
        return None if any(tokens.trained[1:]) else ""
    for side, name in enumerate(("chosen", "rejected")):
        scored = len(tokens.answers[side]) - max(tokens.starts[side], 1)
        if (tokens.masked is not None or tokens.others[side]) and scored > 0:
            scored -= len(tokens.unscored(side))
        if scored <= 0:
            return name
    return None


@token_check(
    "double-bos",
    Severity.WARNING,
    "The text begins with the beginning-of-sequence token twice, as the model has never seen it.",
    "Take it out of the text: it is put in front.",
)
def double_bos(seen: Seen) -> str | None:
    """Two of them at the start."""
    bos = seen.about.tokenization.tokenizer.bos_token_id
    return "" if bos is not None and any(ids[:2] == [bos, bos] for ids in seen.wholes) else None


@token_check(
    "written-bos",
    Severity.NOTE,
    "Strings begin with the beginning-of-sequence token that the tokenizer adds; it is kept once.",
    "Take it out of the text: other programs would put a second one in front.",
)
def written_bos(seen: Seen) -> str | None:
    """A string prompt with it at its start."""
    prompt, bos = seen.record.prompt, seen.about.bos
    return "" if isinstance(prompt, str) and bos is not None and prompt.startswith(bos[0]) else None


@token_check(
    "special-text",
    Severity.WARNING,
    "A message has special tokens in its content. They are encoded as text, not as what they look like.",
    "A message holds what is said alone: take the template's marks out of it.",
)
def special_text(seen: Seen) -> str | None:
    """A special token within the text of a turn."""
    if seen.of_strings or not seen.about.tokenization.has_special_text(seen.record.source):
        return None
    pattern = seen.about.tokenization.special_tokens.pattern
    return next((f"{name}: {m.group()}" for name, text in seen.record.texts if (m := pattern.search(text))), "")


def missing_end(seen: Seen) -> str | None:
    """An answer of a string that ends with neither the template's end of turn nor the end of sequence."""
    ends = seen.about.ends
    if not ends:
        return None
    lacking = lacks_end(seen.record, ends)
    return f"{' and '.join(lacking)}: no {' or '.join(ends)}" if lacking else None


TOKEN_CHECKS.append(TokenCheck(MISSING_END, missing_end))


@token_check(
    "boundary-merge",
    Severity.NOTE,
    "The tokenizer joins the end of the prompt with the beginning of an answer; the joint token counts as answer.",
    "Move a blank from the end of the prompt to the beginning of the answers, if that is what is joined.",
)
def boundary_merge(seen: Seen) -> str | None:
    """A token that reaches over the border."""
    return "" if seen.tokens.merges else None


def token_lengths(tokens: Tokens) -> TokenLengths:
    """The sizes of a tokenised record."""
    if isinstance(tokens, TokenConversation):
        first = next((index for index, trained in enumerate(tokens.trained) if trained), len(tokens.tokens))
        prompt = tokens.tokens[:first]
        return TokenLengths((first, sum(tokens.trained)), prompt, (tokens.longest,), (first,))
    shared = min(tokens.starts)
    wholes = (len(tokens.answers[0]), len(tokens.answers[1]))
    prompt = tokens.answers[0][:shared]
    return TokenLengths((shared, wholes[0] - shared, wholes[1] - shared), prompt, wholes, tokens.starts)
