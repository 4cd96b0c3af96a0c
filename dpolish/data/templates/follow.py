"""Whether rows of strings are written in a model's template: the tutorial's "always follow the template of the SFT"."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from dpolish.data.templates.chat import ChatTemplate
from dpolish.errors import DataError, ModelError
from dpolish.records import Conversation, Message, PreferencePair

_ROWS = 64
_SHOWN = 60
_USER, _SYSTEM = "Which8Year?", "Be9Brief."
_PARTS = ("prompts do not begin", "prompts do not end", "answers do not end")


@dataclass(frozen=True, slots=True)
class TemplateMismatch:
    """Rows of strings that do not follow a template."""

    rows: int
    """Rows of strings that were looked at."""
    differing: int
    """Of them, those that do not follow the template."""
    part: str
    """What differs in the first of these, such as `prompts do not begin`."""
    where: str
    """`path:line` of the first."""
    expected: str
    """What the template writes there."""
    found: str
    """What stands there."""
    template: str
    """Name of the template."""

    def __str__(self) -> str:
        return (
            f"{self.differing} of {self.rows} rows are not written in the chat template ({self.template}): {self.part} "
            f"as it writes them. {self.where} has {_short(self.found)}, the template {_short(self.expected)}"
        )


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes around a conversation with one user turn."""

    openings: tuple[str, ...]
    """What stands in front of the user's content; with a system message, in front of that message."""
    closing: str
    """What stands between the user's content and the answer."""
    stop: str
    """What ends the answer."""
    bos: str
    """What may stand in front of all; the tokenizer puts it there if it does not."""


def compare_with_template(
    rows: Iterable[PreferencePair | Conversation], template: ChatTemplate, *, append_eod: bool = False
) -> TemplateMismatch | None:
    """What the first rows whose prompts are strings have other than the template; None where they follow it.

    With `append_eod` answers need not end with the end-of-sequence token themselves.
    """
    frame = _frame(template, append_eod)
    if frame is None:
        return None
    num_rows, first, differing = 0, None, 0
    for row in islice(rows, _ROWS):
        texts = _texts(row)
        if texts is None:
            continue
        num_rows += 1
        difference = next(_differences(*texts, frame), None)
        if difference is not None:
            differing += 1
            first = first or (row.where, difference)
    if first is None:
        return None
    where, (part, expected, found) = first
    return TemplateMismatch(num_rows, differing, part, where, expected, found, template.name)


def _frame(template: ChatTemplate, append_eod: bool) -> _Frame | None:
    user, system = Message("user", _USER), Message("system", _SYSTEM)
    alone = _rendered(template, (user,))
    opening, found, closing = alone.partition(_USER)
    if not found:
        return None
    with_system = _rendered(template, (system, user)).partition(_SYSTEM)
    openings = (opening, with_system[0]) if with_system[1] else (opening,)
    special = dict(template.special_tokens)
    bos = special.get("bos_token", "")
    given = append_eod and template.stop.strip() == special.get("eos_token")
    distinct = dict.fromkeys(text.removeprefix(bos) for text in openings)
    return _Frame(tuple(distinct), closing, "" if given else template.stop, bos)


def _rendered(template: ChatTemplate, messages: tuple[Message, ...]) -> str:
    try:
        return template.render(messages, generate=True)
    except (DataError, ModelError):
        return ""


def _differences(prompt: str, answers: list[str], frame: _Frame) -> Iterator[tuple[str, str, str]]:
    """(what differs, what the template writes, what stands there)."""
    if not prompt.removeprefix(frame.bos).startswith(frame.openings):
        yield _PARTS[0], frame.openings[0], prompt[: max(len(frame.openings[0]), _SHOWN)]
    if not prompt.endswith(frame.closing):
        yield _PARTS[1], frame.closing, prompt[-max(len(frame.closing), _SHOWN) :]
    for answer in answers:
        if not answer.rstrip().endswith(frame.stop.rstrip()):
            yield _PARTS[2], frame.stop, answer[-max(len(frame.stop), _SHOWN) :]


def _texts(row: PreferencePair | Conversation) -> tuple[str, list[str]] | None:
    """Prompt and answers of a row of strings."""
    if isinstance(row, PreferencePair):
        answers = [answer for answer in (row.chosen, row.rejected) if isinstance(answer, str)]
        return (row.prompt, answers) if isinstance(row.prompt, str) else None
    pieces = [piece for piece in row.pieces if isinstance(piece, str)]
    if not pieces:
        return None
    first = row.trained.index(True)
    return "".join(pieces[:first]), [piece for piece, wanted in zip(pieces, row.trained, strict=True) if wanted]


def _short(text: str) -> str:
    return repr(text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} … {text[-_SHOWN:]}")
