"""Rows to token ids: a prompt and an answer are tokenised together, as the model sees them when it writes the answer.

prompt alone       the cat  sat  _
prompt + chosen    the cat  sat  _on  the  mat          the tokenizer joins the last blank with the answer
prompt + rejected  the cat  sat  _    !                 here it does not
shared             the cat  sat                         the longest common prefix of all three
scored             _on the mat   and   !                each answer from its own boundary on

A demonstration (SFT) is one text with trained spans (`dpolish.data.templates.turns`), tokenised as a whole. A span's
first trained token is the first that the tokens of the text before the span do not share: the one that reaches over
the span's beginning, if one does. Its last one is the last that the text up to the span's end shares: one that reaches
over the end is not trained. So SFT trains on the very tokens that DPO scores for the same answer. Whether messages
begin and end with a special token is the template's business: `append_eod` and `add_bos` are for demonstrations of
strings, as in NeMo.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from dpolish.data.templates import ChatTemplate, SpecialTokens, choose_template, render_turns, require_chat_template
from dpolish.data.tokenize.borders import Bordered, Borders, Place, common_prefix
from dpolish.data.tokenize.literal import LiteralEncoder
from dpolish.data.tokenize.rows import Ids, TokenConversation, TokenPair
from dpolish.errors import DataError, ModelError
from dpolish.records import NO_ARGUMENTS, Conversation, Message, PreferencePair, TemplateArguments


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How rows become token ids with one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    """What renders messages."""
    prefix_ids: tuple[int, ...]
    """What stands in front of a string (BOS): what the tokenizer puts there. What it puts behind one is left off."""
    eos_id: int | None
    """What to append to an answer that does not end with it; None appends nothing."""
    masked_id: int | None
    """The token that is seen but not scored (`eod_mask_loss`); None scores all."""
    default_rewards: tuple[float, float]
    """Ground-truth rewards of the chosen and the rejected answer where a row has none."""
    special_tokens: SpecialTokens
    _literal: LiteralEncoder
    _borders: Borders

    @staticmethod
    def of(
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: ChatTemplate | None = None,
        append_eod: bool = False,
        add_bos: bool = False,
        eod_mask_loss: bool = False,
        default_chosen_reward: float = 1.0,
        default_rejected_reward: float = 0.0,
    ) -> "Tokenization":
        """The one of a tokenizer, with its own template where none is given.

        A ModelError when the tokenizer lacks what is asked of it; the lack of a template is one when messages need it.
        """
        asked = [key for key, on in (("append_eod", append_eod), ("eod_mask_loss", eod_mask_loss)) if on]
        if asked and tokenizer.eos_token_id is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: model.data.{asked[0]}=true needs an end-of-sequence token, and the "
                f"tokenizer has none: set eos_token in its tokenizer_config.json, or {asked[0]}=false."
            )
        prefix_ids, bos = _prefix_ids(tokenizer), _bos(tokenizer) if add_bos else ()
        special_tokens = SpecialTokens.of(tokenizer)
        return Tokenization(
            tokenizer,
            template or choose_template(tokenizer),
            prefix_ids if set(bos) <= set(prefix_ids) else bos + prefix_ids,
            tokenizer.eos_token_id if append_eod else None,
            tokenizer.eos_token_id if eod_mask_loss else None,
            (default_chosen_reward, default_rejected_reward),
            special_tokens,
            LiteralEncoder(tokenizer, special_tokens),
            Borders(tokenizer, special_tokens, lambda texts: _batch_ids(tokenizer, texts)),
        )

    def encode(self, pairs: Sequence[PreferencePair]) -> list[TokenPair | DataError]:
        """The token ids of each pair, or why it has none."""
        found = self._encoded([self._pair_texts(pair) for pair in pairs])
        tokenized: list[TokenPair | DataError] = []
        for pair, texts in zip(pairs, found, strict=True):
            if isinstance(texts, DataError):
                tokenized.append(DataError(f"{pair.where}: {texts}"))
            else:
                tokenized.append(self._token_pair(pair, *texts))
        return tokenized

    def encode_conversations(self, conversations: Sequence[Conversation]) -> list[TokenConversation | DataError]:
        """The token ids of each demonstration, or why it has none."""
        found = self._encoded([self._conversation_texts(conversation) for conversation in conversations])
        tokenized: list[TokenConversation | DataError] = []
        for row, texts in zip(conversations, found, strict=True):
            if isinstance(texts, DataError):
                tokenized.append(DataError(f"{row.where}: {texts}"))
            else:
                tokenized.append(self._token_conversation(row, *texts))
        return tokenized

    def has_special_text(self, row: PreferencePair | Conversation) -> bool:
        """Whether a message of the row has a special token as text. In strings they are meant as tokens."""
        if isinstance(row, Conversation):
            return self.special_tokens.within(_messages(row.pieces), row.arguments)
        return self.special_tokens.within(_messages(row.prompt, row.chosen, row.rejected), row.arguments)

    # Texts

    def _pair_texts(self, pair: PreferencePair) -> "list[_Text] | DataError":
        if isinstance(pair.prompt, str):
            assert isinstance(pair.chosen, str)
            assert isinstance(pair.rejected, str)
            return [_Text(text) for text in (pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected)]
        template = require_chat_template(self.tokenizer, self.template)
        prompt, *answers = (_messages(part) for part in (pair.prompt, pair.chosen, pair.rejected))
        try:
            shown, arguments, literal = self._shown([*prompt, *answers[0], *answers[1]], pair.arguments)
            first, second = len(prompt), len(prompt) + len(answers[0])
            prompt = shown[:first]
            texts = [_Text(template.render(prompt, arguments, generate=True), literal)]
            for answer in (shown[first:second], shown[second:]):
                texts.append(_answer_text(template, prompt, answer, arguments, literal))
            return [self._told_apart(text) for text in texts]
        except DataError as error:
            return error

    def _conversation_texts(self, row: Conversation) -> "list[_Text] | DataError":
        if isinstance(row.pieces[0], str):
            pieces = [piece for piece in row.pieces if isinstance(piece, str)]
            text, spans = "".join(pieces), _spans(pieces, row.trained)
            if self.eos_id is None:
                return [_Text(text, spans=spans)]
            end = spans[-1][1]  # the end-of-sequence token comes to stand here, so nothing is joined over it
            return [_Text(text[:end], spans=spans), _Text(text[end:])]
        template = require_chat_template(self.tokenizer, self.template)
        try:
            shown, arguments, literal = self._shown(_messages(row.pieces), row.arguments)
            rendered = render_turns(template, shown, row.trained, arguments)
            return [self._told_apart(_Text(rendered.text, literal, rendered.spans, rendered.prompts))]
        except DataError as error:
            return error

    def _shown(
        self, messages: list[Message], arguments: TemplateArguments
    ) -> tuple[list[Message], TemplateArguments, bool]:
        """What the template gets to see: special tokens hidden where there are any, and whether there are."""
        given = None if arguments is NO_ARGUMENTS else arguments
        if not self.special_tokens.within(messages, given):
            return messages, arguments, False
        hidden = [self.special_tokens.hidden(message) for message in messages]
        return hidden, self.special_tokens.hidden_arguments(arguments) if given else arguments, True

    def _told_apart(self, text: "_Text") -> "_Text":
        """A text as it is tokenised."""
        if not text.literal:
            return text
        apart = self.special_tokens.told_apart
        spans = [(len(apart(text.text[:start])), len(apart(text.text[:end]))) for start, end in text.spans]
        prompts = [None if prompt is None else apart(prompt) for prompt in text.prompts]
        return _Text(apart(text.text), True, tuple(spans), tuple(prompts))

    # Token ids

    def _encoded(self, rows: "Sequence[list[_Text] | DataError]") -> "Iterator[list[_Tokens] | DataError]":
        """The ids of all texts of each row, or its error: one call of the tokenizer for all that is not literal."""
        texts = [text for row in rows if not isinstance(row, DataError) for text in row if not text.literal]
        ids = _batch_ids(self.tokenizer, [text.text for text in texts])
        bordered = [Bordered(text.text, found, text.borders) for text, found in zip(texts, ids, strict=True)]
        encoded = iter(zip(bordered, self._borders.places(bordered), strict=True))
        for row in rows:
            if isinstance(row, DataError):
                yield row
                continue
            plain = [None if text.literal else next(encoded) for text in row]
            try:
                yield [
                    self._literal_tokens(text) if found is None else _Tokens.of(found[0].ids, found[1])
                    for text, found in zip(row, plain, strict=True)
                ]
            except DataError as error:
                yield error

    def _literal_tokens(self, text: "_Text") -> "_Tokens":
        """The same for a text whose special tokens stand as aliases."""
        ids = self._literal.encode(text.text)
        places = []
        for border in text.borders:
            before = self._literal.encode(border if isinstance(border, str) else text.text[:border])
            shared = common_prefix(before, ids)
            places.append(Place(shared, shared == len(before)))
        return _Tokens.of(ids, places)

    def _token_pair(self, pair: PreferencePair, prompt: "_Tokens", chosen: "_Tokens", rejected: "_Tokens") -> TokenPair:
        before, *answers = prompt, chosen, rejected
        if isinstance(pair.prompt, str):
            before, *answers = (self._with_prefix(tokens) for tokens in (prompt, chosen, rejected))
        starts = [common_prefix(before.ids, answer.ids) for answer in answers]
        others = [answer.others(start) for answer, start in zip(answers, starts, strict=True)]
        ids = [self._with_end(answer.ids, start) for answer, start in zip(answers, starts, strict=True)]
        given, default = (pair.chosen_reward, pair.rejected_reward), self.default_rewards
        rewards = default[0] if given[0] is None else given[0], default[1] if given[1] is None else given[1]
        return TokenPair(
            before.ids, (ids[0], ids[1]), (starts[0], starts[1]), rewards, self.masked_id, (others[0], others[1])
        )

    def _token_conversation(
        self, row: Conversation, whole: "_Tokens", rest: "_Tokens | None" = None
    ) -> TokenConversation:
        chat = not isinstance(row.pieces[0], str)
        tokens = whole if chat else self._with_prefix(whole)
        ids = tokens.ids if chat else self._with_end(tokens.ids, tokens.spans[-1][0])
        trained = [False] * len(tokens.ids)
        for start, end in tokens.spans:
            trained[start:end] = [True] * (end - start)
        if self.masked_id is not None:
            trained = [wanted and id_ != self.masked_id for wanted, id_ in zip(trained, tokens.ids, strict=True)]
        trained += [self.eos_id != self.masked_id] * (len(ids) - len(tokens.ids))
        behind = rest.ids if rest is not None else []
        prefix = 0 if chat else len(self.prefix_ids)
        return TokenConversation(ids + behind, trained + [False] * len(behind), prefix, chat, not tokens.clean)

    def _with_prefix(self, tokens: "_Tokens") -> "_Tokens":
        prefix = list(self.prefix_ids)
        return tokens if tokens.ids[: len(prefix)] == prefix else tokens.behind(prefix)

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
class _Text:
    """What is to be tokenised."""

    text: str
    literal: bool = False
    """The template's special tokens stand as aliases; whatever looks special is text."""
    spans: tuple[tuple[int, int], ...] = ()
    """What is trained, in characters; nothing where the prompt says where it begins."""
    prompts: tuple[str | None, ...] = ()
    """For each span, what leads to it where that is not the text before it; nothing where it always is."""

    @property
    def borders(self) -> list[int | str]:
        prompts = self.prompts or (None,) * len(self.spans)
        starts = [start if prompt is None else prompt for (start, _), prompt in zip(self.spans, prompts, strict=True)]
        return [border for start, (_, end) in zip(starts, self.spans, strict=True) for border in (start, end)]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The token ids of a text, and which of them are trained."""

    ids: Ids
    spans: tuple[tuple[int, int], ...]
    clean: bool
    """Whether every border lies between two tokens."""

    @staticmethod
    def of(ids: Ids, places: Sequence[Place]) -> "_Tokens":
        """From the places of the borders, a beginning and an end in turn."""
        indices = [place.index for place in places]
        spans = zip(indices[::2], indices[1::2], strict=True)
        return _Tokens(ids, tuple(spans), all(place.clean for place in places))

    def behind(self, prefix: Ids) -> "_Tokens":
        """The same with a prefix."""
        shift = len(prefix)
        return _Tokens([*prefix, *self.ids], tuple((a + shift, b + shift) for a, b in self.spans), self.clean)

    def others(self, start: int) -> tuple[int, ...]:
        """Indices from `start` on that no span has; none where there are no spans."""
        if not self.spans:
            return ()
        trained = {index for first, end in self.spans for index in range(first, end)}
        return tuple(index for index in range(start, len(self.ids)) if index not in trained)


def _answer_text(
    template: ChatTemplate, prompt: list[Message], answer: list[Message], arguments: TemplateArguments, literal: bool
) -> _Text:
    """The text of prompt and answer; of an answer of several turns, what the assistant says in it."""
    messages = [*prompt, *answer]
    if len(answer) == 1:
        return _Text(template.render(messages, arguments, generate=False), literal)
    trained = [index >= len(prompt) and turn.role == "assistant" for index, turn in enumerate(messages)]
    if not any(trained):
        raise DataError("an answer has no turn of the assistant: there is nothing to score")
    rendered = render_turns(template, messages, trained, arguments)
    end = rendered.spans[-1][1]  # nothing behind it is scored, or sees to what is
    return _Text(rendered.text[:end], literal, rendered.spans, rendered.prompts)


def _spans(pieces: Sequence[str], trained: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """Where the trained ones of joined pieces lie; neighbours are one span."""
    spans: list[tuple[int, int]] = []
    start = 0
    for piece, wanted in zip(pieces, trained, strict=True):
        end = start + len(piece)
        if wanted:
            first = spans.pop()[0] if spans and spans[-1][1] == start else start
            spans.append((first, end))
        start = end
    return tuple(spans)


def _messages(*parts: str | Sequence[str] | Sequence[Message]) -> list[Message]:
    return [message for part in parts for message in part if isinstance(message, Message)]


def _batch_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about long texts: what is too long is dropped and counted
    )
    ids: list[Ids] = encoded["input_ids"]
    return ids


def _bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    if tokenizer.bos_token_id is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: add_bos=true needs a beginning-of-sequence token, and the tokenizer has none: "
            "set bos_token in its tokenizer_config.json, or add_bos=false."
        )
    return (tokenizer.bos_token_id,)


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
