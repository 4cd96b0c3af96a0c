"""Checks of one row by its text: what needs no tokenizer and no other row. No torch here."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from unicodedata import name as character_name

from dpolish.data.check.findings import Check, Severity, declare
from dpolish.data.check.record import Record, is_blank
from dpolish.records import Message, Prompt, Response

Find = Callable[[Record], str | None]
"""What is wrong with a record, as a detail that may be empty; None where nothing is."""


@dataclass(frozen=True, slots=True)
class RowCheck:
    """A check with the function that makes it."""

    check: Check
    find: Find
    of_odd_text: bool
    """Whether only text with odd characters needs it."""


ROW_CHECKS: list[RowCheck] = []


def row_check(
    kind: str,
    severity: Severity,
    message: str,
    remedy: str,
    *,
    drops: bool = False,
    of_pairs: bool = False,
    of_odd_text: bool = False,
) -> Callable[[Find], Find]:
    """Register a check of one row by its text."""

    def register(find: Find) -> Find:
        check = declare(kind, severity, message, remedy, drops=drops, of_pairs=of_pairs)
        ROW_CHECKS.append(RowCheck(check, find, of_odd_text))
        return find

    return register


def check_text(record: Record) -> list[tuple[Check, str]]:
    """Everything that is wrong with the text of a record, each with a detail."""
    text = record.text
    odd = (_CONTROL if text.isascii() else _ODD).search(text) is not None
    found = []
    for one in ROW_CHECKS:
        if (odd or not one.of_odd_text) and (detail := one.find(record)) is not None:
            found.append((one.check, detail))
    return found


# --- characters -------------------------------------------------------------------------------------------------------

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_REPLACED = re.compile("\ufffd")
_BYTE_ORDER_MARK = re.compile("\ufeff")
# UTF-8 read as Windows-1252: the first byte of é, ’ or 🙂 as a letter of its own, and what the next one becomes.
_MOJIBAKE = re.compile(
    "Ã[\x80-\xbf€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜š›œžŸ]|Â[\x80-\xbf]|â€[\x80-\xbf\u2018-\u201e\u2020-\u2022\u2026"
    "\u2039\u203a\u2122\u20ac\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc]|ðŸ|ï»¿|ï¿½"
)
_ODD = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufeffÃÂâðï]")  # what any of them begins with


def _first(pattern: re.Pattern[str], record: Record) -> str | None:
    """Where a pattern first stands in a record, and what it is."""
    for name, text in record.texts:
        if match := pattern.search(text):
            found = match.group()
            shown = f"U+{ord(found):04X}{_called(found)}" if len(found) == 1 else f"{found!r}"
            return f"{name}: {shown} at character {match.start() + 1}"
    return None


def _called(character: str) -> str:
    return f" ({called.lower()})" if (called := character_name(character, "")) else ""


@row_check(
    "lone-surrogate",
    Severity.ERROR,
    "Half of a surrogate pair stands in the text: it is no character, and no tokenizer takes it.",
    "Write the text again from its source as UTF-8, or take the characters out.",
    of_odd_text=True,
)
def lone_surrogate(record: Record) -> str | None:
    """U+D800 … U+DFFF."""
    return _first(_SURROGATE, record)


@row_check(
    "replacement-character",
    Severity.WARNING,
    "The text has U+FFFD, which stands where a character was lost in a conversion.",
    "Convert the text again from its source, in its true encoding.",
    of_odd_text=True,
)
def replacement_character(record: Record) -> str | None:
    """U+FFFD."""
    return _first(_REPLACED, record)


@row_check(
    "mojibake",
    Severity.WARNING,
    "The text has been read as Windows-1252 where it was UTF-8: an apostrophe has become â€™, an é has become Ã©.",
    "Undo it: text.encode('cp1252').decode('utf-8'), or read the source as UTF-8.",
    of_odd_text=True,
)
def mojibake(record: Record) -> str | None:
    """Two or three letters that are the bytes of one."""
    return _first(_MOJIBAKE, record)


@row_check(
    "control-character",
    Severity.WARNING,
    "The text has NUL or other control characters, which are tokens like any other and would be learned.",
    "Take them out.",
    of_odd_text=True,
)
def control_character(record: Record) -> str | None:
    """C0 and C1, but for the tab and the two line ends."""
    return _first(_CONTROL, record)


@row_check(
    "byte-order-mark",
    Severity.WARNING,
    "The text has U+FEFF, an invisible mark that belongs at the start of a file if anywhere.",
    "Take it out; it often comes from files that were put together.",
    of_odd_text=True,
)
def byte_order_mark(record: Record) -> str | None:
    """U+FEFF within a text; at the start of a file it is no part of the data."""
    return _first(_BYTE_ORDER_MARK, record)


# --- what there is to learn -------------------------------------------------------------------------------------------


@row_check(
    "empty-prompt",
    Severity.WARNING,
    "The prompt is empty or blank; training leaves the row out.",
    "Fill it in, or remove the row: --fix does.",
    drops=True,
)
def empty_prompt(record: Record) -> str | None:
    """No text in any turn of the prompt. A demonstration that is one text has none by its nature."""
    return "" if record.is_pair and is_blank(record.prompt) else None


@row_check(
    "empty-answer",
    Severity.WARNING,
    "An answer is empty or blank; training leaves the row out.",
    "Fill it in, or remove the row: --fix does.",
    drops=True,
)
def empty_answer(record: Record) -> str | None:
    """No text in one of the two answers, or in no trained piece of a conversation."""
    if not record.is_pair:
        return "" if all(map(is_blank, record.trained)) else None
    blank = [name for name, answer in zip(("chosen", "rejected"), record.answers, strict=True) if is_blank(answer)]
    return " and ".join(blank) if blank else None


@row_check(
    "empty-turn",
    Severity.WARNING,
    "One of the trained turns is empty or blank: the model learns to say nothing there.",
    "Fill it in, or mask it.",
)
def empty_turn(record: Record) -> str | None:
    """No text in some of the trained pieces of a conversation."""
    blank = list(map(is_blank, record.trained))
    return f"trained turn {blank.index(True) + 1}" if any(blank) and not all(blank) else None


@row_check(
    "equal-answers",
    Severity.WARNING,
    "The two answers are the same, so the pair prefers nothing; training leaves it out.",
    "Find out how they came about, or remove them: --fix does.",
    drops=True,
)
def equal_answers(record: Record) -> str | None:
    """Chosen and rejected to the letter the same."""
    return "" if record.is_pair and record.answers[0] == record.answers[1] else None


@row_check(
    "parted-early",
    Severity.WARNING,
    "The two sides part before their last answer: what follows does not answer the same prompt.",
    "Keep pairs whose conversations are the same up to the last answer.",
    of_pairs=True,
)
def parted_early(record: Record) -> str | None:
    """A turn of the user within an answer, where a row is cut at the first difference."""
    if not record.is_pair:
        return None
    for name, answer in zip(("chosen", "rejected"), record.answers, strict=True):
        if isinstance(answer, str):
            if "\n\nHuman:" in answer:
                return f"a turn of the human within {name}"
        elif any(message.role == "user" for message in answer):
            return f"a turn of the user within {name}"
    return None


@row_check(
    "reward-order",
    Severity.WARNING,
    "The chosen answer has the lower reward: the row contradicts itself.",
    "Exchange the answers or the rewards.",
    of_pairs=True,
)
def reward_order(record: Record) -> str | None:
    """chosen_reward below rejected_reward."""
    rewards = record.rewards
    return f"{rewards[0]:g} < {rewards[1]:g}" if rewards is not None and rewards[0] < rewards[1] else None


# --- turns ------------------------------------------------------------------------------------------------------------


@row_check(
    "role-order",
    Severity.WARNING,
    "The turns do not alternate as chat templates expect: some refuse them, the others were never trained on them.",
    "Merge or reorder the turns: system first, then user and assistant in turn.",
)
def role_order(record: Record) -> str | None:
    """A system message behind another turn, two turns in a row by one speaker, or the assistant first."""
    if isinstance(record.prompt, str) or (record.is_pair and not record.prompt):
        return None
    return next((found for answer in record.answers if (found := _misplaced(record.prompt, answer))), None)


def _misplaced(prompt: Prompt, answer: Response) -> str | None:
    turns = [message for part in (prompt, answer) if not isinstance(part, str) for message in part]
    before: Message | None = None
    for index, turn in enumerate(turns):
        if turn.role in ("system", "developer"):
            if index:
                return f"turn {index + 1}: {turn.role} is not first"
            continue
        if before is None and turn.role == "assistant":
            return f"turn {index + 1}: the assistant speaks first"
        if before is not None and before.role == turn.role and turn.role in ("user", "assistant"):
            return f"turns {index} and {index + 1}: two by {turn.role}"
        before = turn
    return None
