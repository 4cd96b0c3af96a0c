"""Where the assistant's turns lie in a rendered conversation.

    text     <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Yes<|im_end|>⏎<|im_start|>user⏎…
    prompt   ───────────────────────────────────────────────────┤           the turns before, with the generation prompt
    upto     ───────────────────────────────────────────────────────────────┤      the turns before and this one
    span                                                         Yes<|im_end|>⏎

The two are rendered, and their lengths are the span. Where the generation prompt has more than the text has before an
answer (`<think>`), what both have is the prompt. All this fails where a template writes a turn otherwise once further
ones follow: thinking is dropped, the system's message moves into the last user's turn. Then the turn is found through
its content, which is rendered once more with a mark at its end (or its beginning): all else must come out the same, so
the place is certain. It ends with what the template writes behind a last turn, and begins behind the generation prompt.
Where that does not hold either, nothing is guessed: the row is an error.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpolish.data.templates.chat import ChatTemplate
from dpolish.errors import DataError
from dpolish.records import NO_ARGUMENTS, Message, TemplateArguments

_MARK = "Mark9Of8The7Turn"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, and the spans of it that are trained."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """(first character, character behind the last) of each, in order."""
    prompts: tuple[str | None, ...]
    """For each span, the text with the generation prompt, where the text itself does not begin with it."""


def render_turns(
    template: ChatTemplate,
    messages: Sequence[Message],
    trained: Sequence[bool],
    arguments: TemplateArguments = NO_ARGUMENTS,
) -> Rendered:
    """The text of a conversation, and where its trained turns lie. Raises DataError, without a place."""
    finder = _Finder(template, tuple(messages), arguments, template.render(messages, arguments, generate=False))
    spans: list[tuple[int, int]] = []
    prompts = []
    for index, wanted in enumerate(trained):
        if wanted:
            start, end, prompt = finder.span(index)
            if not (spans[-1][1] if spans else 0) <= start <= end:
                raise finder.lost(index)
            spans.append((start, end))
            prompts.append(prompt)
    return Rendered(finder.text, tuple(spans), tuple(prompts))


@dataclass(frozen=True, slots=True)
class _Finder:
    """One conversation and its text."""

    template: ChatTemplate
    messages: tuple[Message, ...]
    arguments: TemplateArguments
    text: str

    def span(self, index: int) -> tuple[int, int, str | None]:
        """Where a turn lies, and the other text that leads to it, if it is another."""
        turn = self.messages[index]
        self._require_place_for_label(turn)
        prompt = self._rendered(self.messages[:index], generate=True, next_turn=turn)
        upto = self.text if self._is_last(index) else self._rendered(self.messages[: index + 1])
        start, end = self._end_of(prompt), self._end_of(upto)
        if end is None or (start is not None and start > end):
            end = self._end(index)
        if start is not None:
            return start, end, None
        if (shared := self._shared_start(index, prompt)) is not None:
            return shared, end, prompt
        return self._start(index, prompt), end, None

    def lost(self, index: int) -> DataError:
        """The error for a turn that cannot be found."""
        return DataError(
            f"the chat template writes turn {index + 1} ({self.messages[index].role}) otherwise within the whole "
            "conversation than alone, and where it lies cannot be told: train on the last answer alone "
            "(model.data.trained_turns=last), or choose another template with model.data.chat_template"
        )

    def _start(self, index: int, prompt: str | None) -> int:
        """Where a turn begins: behind the generation prompt."""
        if prompt is None:
            raise DataError(
                f"the chat template refuses what stands before turn {index + 1} ({self.messages[index].role}), so "
                "where this turn begins cannot be told: let the conversation begin with the user"
            )
        written = self._content_starts(index)
        opening = self._opening(index, prompt)
        if written is None or not opening:
            raise self.lost(index)
        for between in dict.fromkeys((self._between(index, prompt), "")):
            if self.text[:written].endswith(opening + between):
                return written - len(between)
        raise self.lost(index)

    def _shared_start(self, index: int, prompt: str | None) -> int | None:
        """Where a turn begins whose generation prompt has more than the template writes in front of an answer.

        None where the turns before are written otherwise too.
        """
        history = self._rendered(self.messages[:index])
        header, _ = self._split(self.messages[: index + 1], index, _MARK)
        if prompt is None or history is None or header is None:
            return None
        shared = _shared(prompt, header)
        return shared if shared >= len(history) and self.text.startswith(prompt[:shared]) else None

    def _end(self, index: int) -> int:
        """Where a turn ends that others follow: its content, and what the template writes behind a last one."""
        content = self.messages[index].content
        for part in dict.fromkeys((content, content.rstrip())):
            before, behind = self._split(self.messages, index, part + _MARK)
            if before is None or before + behind != self.text:
                continue
            _, as_last = self._split(self.messages[: index + 1], index, part + _MARK)
            closing = behind[: _shared(behind, as_last)]
            if closing == as_last or (self.template.stop and closing.startswith(self.template.stop)):
                return len(before) + len(closing)
        raise self.lost(index)

    def _content_starts(self, index: int) -> int | None:
        """Where the content of a turn begins."""
        content = self.messages[index].content
        for part in dict.fromkeys((content, content.lstrip())):
            before, behind = self._split(self.messages, index, _MARK + part)
            if before is not None and before + behind == self.text:
                return len(before)
        before, behind = self._split(self.messages, index, _MARK)  # a template that takes the content apart
        if before is None or not (self.text.startswith(before) and self.text.endswith(behind)):
            return None
        end = len(self.text) - len(behind)
        return len(before) if len(before) <= end and self.text[len(before) : end] in content else None

    def _opening(self, index: int, prompt: str) -> str:
        """The generation prompt, or what stands between the turn before and an answer where there is none."""
        history = self._rendered(self.messages[:index])
        if history is not None and prompt.startswith(history) and prompt != history:
            return prompt[len(history) :]
        content = self.messages[index - 1].content.strip() if index else ""
        _, found, opening = prompt.rpartition(content) if content else ("", "", "")
        return opening if found else ""

    def _between(self, index: int, prompt: str) -> str:
        """What a template writes between generation prompt and content of a last turn, such as an empty thought."""
        before, _ = self._split(self.messages[: index + 1], index, _MARK)
        return before[len(prompt) :] if before is not None and before.startswith(prompt) else ""

    def _split(self, messages: tuple[Message, ...], index: int, content: str) -> tuple[str | None, str]:
        """The text before and behind the mark, with another content of one turn; None unless it stands there once."""
        changed = (*messages[:index], replace(messages[index], content=content), *messages[index + 1 :])
        parts = (self._rendered(changed) or "").split(_MARK)
        return (parts[0], parts[1]) if len(parts) == 2 else (None, "")

    def _rendered(
        self, messages: tuple[Message, ...], *, generate: bool = False, next_turn: Message | None = None
    ) -> str | None:
        """The text of other messages; None where the template refuses them."""
        labelled = next_turn if next_turn is not None and next_turn.more else None
        try:
            return self.template.render(messages, self.arguments, generate=generate, next_turn=labelled)
        except DataError:
            return None

    def _end_of(self, beginning: str | None) -> int | None:
        return len(beginning) if beginning is not None and self.text.startswith(beginning) else None

    def _is_last(self, index: int) -> bool:
        return index == len(self.messages) - 1

    def _require_place_for_label(self, turn: Message) -> None:
        """A label decides what is trained: a template that leaves it out would train something else."""
        if turn.more and "label" not in self.template.source:
            fields = json.loads(turn.more)
            if fields.get("type") is not None and fields.get("label") is not None:
                raise DataError(
                    f"a turn has a label ({fields['type']}), which this chat template does not write: "
                    "set model.data.chat_template=extra_id or nemo"
                )


def _shared(first: str, second: str) -> int:
    """Length of the longest common beginning."""
    length = min(len(first), len(second))
    return next((index for index in range(length) if first[index] != second[index]), length)
