"""The checks with a model's own tokenizer and template: read from its folder, made of every row. This needs torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dpolish.data.check.findings import Ledger, Severity, declare
from dpolish.data.check.look import Looked
from dpolish.data.check.record import Record
from dpolish.data.check.tokens import TOKEN_CHECKS, Context, Seen, Tokens, token_lengths
from dpolish.data.templates import ChatTemplate, TemplateRecord, choose_template, load_template
from dpolish.data.templates.agreement import template_change, template_mismatch
from dpolish.data.tokenize import Tokenization
from dpolish.errors import DataError, ModelError
from dpolish.facts import find_model
from dpolish.records import Conversation, PreferencePair

UNUSABLE_TEMPLATE = declare(
    "unusable-template",
    Severity.ERROR,
    "The rows are messages, and the model has no chat template that can render them.",
    "Name one with --chat-template (model.data.chat_template), or use an instruction-tuned model.",
)
CANNOT_ENCODE = declare(
    "cannot-encode",
    Severity.ERROR,
    "The chat template or the tokenizer refuses the row.",
    "Mend the turns as the message says, or choose another template; --fix leaves the rows out.",
    of_pairs=True,
)
TEMPLATE_MISMATCH = declare(
    "template-mismatch",
    Severity.WARNING,
    "Rows of strings are not written in the template that the model knows; what comes out is often garbage.",
    "Write prompts and answers in that template, or as messages, which are put into it.",
)
TEMPLATE_CHANGED = declare(
    "template-changed",
    Severity.WARNING,
    "The model was fine-tuned with another template than the one that would be used now.",
    "Choose the one of the fine-tuning with --chat-template (model.data.chat_template), unless the change is meant.",
)


class TokenChecks:
    """All checks with one tokenizer."""

    def __init__(self, context: Context, recorded: TemplateRecord | None, append_eod: bool, path: str) -> None:
        self.context = context
        self.recorded = recorded
        self._append_eod = append_eod
        self._path = path
        self._refusal: str | None = None

    @staticmethod
    def of(
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocabulary_size: int | None = None,
        recorded: TemplateRecord | None = None,
        chat_template: str | None = None,
        append_eod: bool = False,
        seq_length: int | None = None,
    ) -> "TokenChecks":
        """Those of a tokenizer. ConfigError or ModelError for what cannot be used."""
        template = choose_template(tokenizer, chat_template)
        highest = max(tokenizer.get_vocab().values(), default=0)
        context = Context(
            Tokenization.of(tokenizer, template=template, append_eod=append_eod),
            vocabulary_size if vocabulary_size is not None and highest >= vocabulary_size else None,
            seq_length,
            known_ends(tokenizer, template, append_eod=append_eod),
        )
        return TokenChecks(context, recorded, append_eod, str(tokenizer.name_or_path))

    @property
    def template(self) -> ChatTemplate | None:
        """What renders messages."""
        return self.context.tokenization.template

    @property
    def knows_end(self) -> bool:
        """Whether the tokenizer or the template says how answers end, or training appends it."""
        return self._append_eod or bool(self.context.ends)

    @property
    def facts(self) -> Mapping[str, object]:
        """What the report says of the model."""
        template = self.template
        return {
            "path": self._path,
            "tokenizer": type(self.context.tokenization.tokenizer).__name__,
            "template": template.name if template else None,
            "template_fingerprint": template.fingerprint if template else None,
            "recorded_fingerprint": self.recorded.fingerprint if self.recorded else None,
            "ends": list(self.context.ends),
            "append_eod": self._append_eod,
            "seq_length": self.context.seq_length,
        }

    def look(self, records: Sequence[Record]) -> list[Looked]:
        """What the tokens of some records show, in order."""
        if self._refusal is None:
            try:
                encoded = self._encoded(records)
            except ModelError as error:
                self._refusal = str(error)
        if self._refusal is not None:
            return [Looked([(UNUSABLE_TEMPLATE, self._refusal)], None) for _ in records]
        return [self._looked(record, tokens) for record, tokens in zip(records, encoded, strict=True)]

    def _encoded(self, records: Sequence[Record]) -> Sequence[Tokens | DataError]:
        pairs = [record.source for record in records if isinstance(record.source, PreferencePair)]
        if pairs:
            return self.context.tokenization.encode(pairs)
        rows = [record.source for record in records if isinstance(record.source, Conversation)]
        return self.context.tokenization.encode_conversations(rows)

    def _looked(self, record: Record, tokens: Tokens | DataError) -> Looked:
        if isinstance(tokens, DataError):
            return Looked([(CANNOT_ENCODE, str(tokens).removeprefix(f"{record.where}: "))], None)
        seen = Seen(record, tokens, self.context)
        found = [(one.check, detail) for one in TOKEN_CHECKS if (detail := one.find(seen)) is not None]
        return Looked(found, token_lengths(tokens))

    def compare(self, path: str, beginning: Sequence[Record], ledger: Ledger) -> None:
        """Compare the first records of a file with the model's template, and with the one of its fine-tuning."""
        sources = [record.source for record in beginning]
        if mismatch := template_mismatch(sources, self.template, self.recorded):
            ledger.add_many(TEMPLATE_MISMATCH, path, mismatch.differing, [mismatch.where], str(mismatch))
            ledger.explain(TEMPLATE_MISMATCH, "Only the first rows of a file are compared.")
        if changed := template_change(sources, self.template, self.recorded):
            ledger.add_many(TEMPLATE_CHANGED, path, 1, [path], changed)


def known_ends(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, *, append_eod: bool
) -> tuple[str, ...]:
    """What may end an answer that is a string; nothing where training appends it, or where nothing is known."""
    ends = (template.stop.rstrip() if template else "", str(tokenizer.eos_token or ""))
    return () if append_eod else tuple(dict.fromkeys(filter(None, ends)))


def load(
    model: str, *, chat_template: str | None = None, append_eod: bool = False, seq_length: int | None = None
) -> TokenChecks:
    """The checks with the tokenizer of a model folder or hub id; its weights are not read. Raises ModelError."""
    folder = find_model(model)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{folder}: cannot read the tokenizer: {reason}") from error
    return TokenChecks.of(
        tokenizer,
        vocabulary_size=_vocabulary_size(folder),
        recorded=load_template(folder),
        chat_template=chat_template,
        append_eod=append_eod,
        seq_length=seq_length,
    )


def _vocabulary_size(folder: Path) -> int | None:
    """What config.json says; None in a folder that has a tokenizer alone."""
    path = folder / "config.json"
    if not path.exists():
        return None
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    text = whole.get("text_config") if isinstance(whole, dict) else None
    size = (text if isinstance(text, dict) else whole).get("vocab_size") if isinstance(whole, dict) else None
    if isinstance(size, bool) or not isinstance(size, int):
        raise ModelError(f"{path}: expected a whole number as vocab_size, got {size!r}")
    return size
