"""What a row may be: a pair (preference training) or a demonstration (SFT). They are read differently here alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from dpolish.data import summary as about
from dpolish.data.formats import ConversationFile, Format, PairFile, Skipped
from dpolish.data.read import Fault
from dpolish.data.summary import Tally, TokenCounts
from dpolish.data.tokenize import TokenConversation, Tokenization, TokenPair
from dpolish.errors import DataError
from dpolish.records import Conversation, Message, PreferencePair
from dpolish.tensors import Example

R = TypeVar("R", PreferencePair, Conversation)
R_co = TypeVar("R_co", PreferencePair, Conversation, covariant=True)
T = TypeVar("T", TokenPair, TokenConversation)


Record = PreferencePair | Conversation


class RowFile(Protocol[R_co]):
    """A file of rows of one kind. What the reading showed is there once its records have been taken."""

    num_rows: int

    @property
    def format(self) -> Format | None:
        """The shape of its rows."""

    @property
    def extra_columns(self) -> Mapping[str, None]:
        """Columns that were not used."""

    @property
    def remarks(self) -> Mapping[str, Tally]:
        """What is worth knowing of its records."""

    def records(self) -> Iterator[R_co | Skipped | Fault | DataError]:
        """Each row's record, or why there is none."""


class Kind(Protocol[R, T]):
    """How rows of one kind are read, judged and counted."""

    def open(self, path: str) -> RowFile[R]:
        """The rows of a file, a folder or a data set."""

    def encode(self, tokenization: Tokenization, records: Sequence[R]) -> Sequence[T | DataError]:
        """The tokens of each record, or why it has none."""

    def texts(self, record: R) -> list[str]:
        """All texts of a record."""

    def content(self, record: R) -> int:
        """Equal for records that say the same."""

    def reason_to_drop(self, record: R) -> str | None:
        """What makes a record useless whatever the tokenizer."""

    def reason_to_drop_tokens(self, tokens: T) -> str | None:
        """What makes a record useless once it is tokenised."""

    def cut(self, tokens: T, length: int) -> T:
        """The same within `length` tokens."""

    def too_long(self, tokens: T, length: int) -> str:
        """The message under `on_overlong=error`."""

    def counts(self, examples: Sequence[Example]) -> TokenCounts:
        """Sums over the examples that were kept."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Tokens of preference pairs."""

    prompt: int
    """Tokens of the prompts, each counted once."""
    chosen: int
    rejected: int
    longest: int
    """Tokens of the longest prompt with an answer."""
    shared: int
    """Tokens that are computed when both answers share their prompt."""
    padded: int
    """Tokens of two rows per pair, each as long as the longer one."""

    @staticmethod
    def of(examples: Sequence[Example]) -> "PairCounts":
        """Those of some pairs."""
        return PairCounts(
            prompt=sum(len(example.prompt) for example in examples),
            chosen=sum(len(example.completions[0].tokens) for example in examples),
            rejected=sum(len(example.completions[1].tokens) for example in examples),
            longest=max((example.longest for example in examples), default=0),
            shared=sum(example.num_tokens for example in examples),
            padded=sum(example.num_padded_tokens for example in examples),
        )

    def lines(self) -> list[str]:
        """The counts for a terminal."""
        ratio = f" ({self.padded / self.shared:.2f} times as many)" if self.shared else ""
        return [
            f"tokens: prompts {self.prompt:,}, chosen {self.chosen:,}, rejected {self.rejected:,}; "
            f"longest row {self.longest:,}",
            f"  {self.shared:,} to compute with shared prompts, {self.padded:,} padded{ratio}",
        ]


@dataclass(frozen=True, slots=True)
class DemonstrationCounts:
    """Tokens of demonstrations (SFT)."""

    trained: int
    ignored: int
    """Tokens that are seen and not trained on: prompts, turns of the user, headers."""
    longest: int

    @staticmethod
    def of(examples: Sequence[Example]) -> "DemonstrationCounts":
        """Those of some demonstrations."""
        trained = sum(len(example.completions[0].scored_at) for example in examples)
        return DemonstrationCounts(
            trained=trained,
            ignored=sum(example.num_tokens for example in examples) - trained,
            longest=max((example.longest for example in examples), default=0),
        )

    def lines(self) -> list[str]:
        """The counts for a terminal."""
        total = self.trained + self.ignored
        share = f" ({self.trained / total:.0%})" if total else ""
        return [
            f"tokens: {self.trained:,} trained of {total:,}{share}",
            f"  longest row {self.longest:,}",
        ]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Preference rows."""

    format: str | None = None
    """Shape of all files; None recognises it in each."""
    pairs: str = "best_vs_worst"
    """How several answers to one prompt become pairs."""

    def open(self, path: str) -> PairFile:
        """The rows of a file, a folder or a data set."""
        return PairFile(path, self.format, self.pairs)

    def encode(self, tokenization: Tokenization, records: Sequence[PreferencePair]) -> Sequence[TokenPair | DataError]:
        """The tokens of each pair, or why it has none."""
        return tokenization.encode(records)

    def texts(self, record: PreferencePair) -> list[str]:
        """The prompt's texts and the answers'."""
        return [text for part in (record.prompt, record.chosen, record.rejected) for text in _texts(part)]

    def content(self, record: PreferencePair) -> int:
        """Equal for pairs of the same prompt and answers."""
        return hash((record.prompt, record.chosen, record.rejected, record.arguments))

    def reason_to_drop(self, record: PreferencePair) -> str | None:
        """An empty prompt or answer, or two equal answers."""
        if not any(text.strip() for text in _texts(record.prompt)):
            return about.EMPTY_PROMPT
        if any(_is_empty(answer) for answer in (record.chosen, record.rejected)):
            return about.EMPTY_ANSWER
        return about.EQUAL_ANSWERS if record.chosen == record.rejected else None

    def reason_to_drop_tokens(self, tokens: TokenPair) -> str | None:
        """Two answers that came out the same."""
        return about.EQUAL_ANSWERS if tokens.equal else None

    def cut(self, tokens: TokenPair, length: int) -> TokenPair:
        """Both answers cut at their end."""
        return tokens.cut(length)

    def too_long(self, tokens: TokenPair, length: int) -> str:
        """Names the key that limits a pair."""
        what = f"{tokens.longest:,} tokens of prompt and longer answer, over model.data.seq_length={length}"
        return f"{what}: raise it, shorten the row, or set model.data.on_overlong"

    def counts(self, examples: Sequence[Example]) -> PairCounts:
        """Sums over the pairs that were kept."""
        return PairCounts.of(examples)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """SFT rows."""

    format: str | None = None
    """Shape of all files; None recognises it in each."""
    prompt_template: str = "{input} {output}"
    """How the fields of a prompt-response row become a text."""
    label_key: str = "output"
    """The field of such a row that is trained on."""
    trained_turns: Literal["all", "last"] = "all"
    """Which turns of the assistant are trained on."""
    chat: bool = False
    """Rows must be conversations."""
    min_length: int = 1
    """Rows of fewer tokens are dropped."""
    truncate_answer: bool = False
    """Cut the end of the answer of an over-long row, not its prompt."""
    truncation_method: Literal["left", "right"] = "right"

    def open(self, path: str) -> ConversationFile:
        """The rows of a file, a folder or a data set."""
        return ConversationFile(
            path,
            self.format,
            prompt_template=self.prompt_template,
            label_key=self.label_key,
            trained_turns=self.trained_turns,
        )

    def encode(
        self, tokenization: Tokenization, records: Sequence[Conversation]
    ) -> Sequence[TokenConversation | DataError]:
        """The tokens of each demonstration, or why it has none."""
        encoded = tokenization.encode_conversations(records)
        if not self.chat:
            return encoded
        return [
            DataError(f"{record.where}: model.data.chat=true, and this row is no conversation: set it to false")
            if isinstance(record.pieces[0], str)
            else tokens
            for record, tokens in zip(records, encoded, strict=True)
        ]

    def texts(self, record: Conversation) -> list[str]:
        """The text of each piece."""
        return [piece if isinstance(piece, str) else piece.content for piece in record.pieces]

    def content(self, record: Conversation) -> int:
        """Equal for conversations of the same pieces of which the same are trained."""
        return hash((record.pieces, record.trained, record.arguments))

    def reason_to_drop(self, record: Conversation) -> str | None:
        """Nothing to learn: every trained piece is empty."""
        pieces: Sequence[str | Message] = record.pieces
        trained = [piece for piece, trained in zip(pieces, record.trained, strict=True) if trained]
        return about.EMPTY_ANSWER if all(_is_blank(piece) for piece in trained) else None

    def reason_to_drop_tokens(self, tokens: TokenConversation) -> str | None:
        """Fewer tokens than asked for."""
        return about.SHORT if tokens.longest < self.min_length else None

    def cut(self, tokens: TokenConversation, length: int) -> TokenConversation:
        """Prompt or answer cut, as configured; a conversation loses its end."""
        return tokens.cut(length, "output" if self.truncate_answer else "input", self.truncation_method)

    def too_long(self, tokens: TokenConversation, length: int) -> str:
        """Names the key that limits a demonstration."""
        what = f"{tokens.longest:,} tokens, over max_seq_length={length}"
        return f"{what}: raise it, shorten the row, or set model.data.on_overlong"

    def counts(self, examples: Sequence[Example]) -> DemonstrationCounts:
        """Sums over the demonstrations that were kept."""
        return DemonstrationCounts.of(examples)


def _texts(part: str | tuple[Message, ...]) -> list[str]:
    return [part] if isinstance(part, str) else [message.content for message in part]


def _is_empty(answer: str | tuple[Message, ...]) -> bool:
    return _is_blank(answer) if isinstance(answer, str) else all(_is_blank(message) for message in answer)


def _is_blank(piece: str | Message) -> bool:
    """Nothing is said in it; a message may say it in other fields, such as tool calls."""
    if isinstance(piece, str):
        return not piece.strip()
    return not piece.content.strip() and not piece.more
