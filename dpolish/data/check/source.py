"""How the files of a task are read, and the errors that the readers find. No torch here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dpolish.data.check.findings import Check, Severity, declare
from dpolish.data.formats import FORMATS, SFT_FORMATS, ConversationFile, Format, PairFile, Skipped, detect_any
from dpolish.data.hub import rows_of
from dpolish.data.read import Fault, Row
from dpolish.errors import DataError
from dpolish.records import Conversation, PreferencePair
from dpolish.registry import Registry

Task = Literal["dpo", "sft"]
Item = PreferencePair | Conversation | Skipped | Fault | DataError

UNREADABLE_FILE = declare(
    "unreadable-file",
    Severity.ERROR,
    "A file cannot be read at all.",
    "Mend the path or the file.",
)
NOT_UTF8 = declare(
    "not-utf8",
    Severity.ERROR,
    "The text is not in UTF-8: not the file, or not this line.",
    "Convert it: iconv -f WINDOWS-1252 -t UTF-8 for a text from Windows, -f UTF-16 where the message says so.",
)
MALFORMED_ROW = declare(
    "malformed-row",
    Severity.ERROR,
    "There is no row here that can be read: broken JSON, or something that is no object.",
    "Mend the line; --fix leaves it out.",
)
WRONG_FIELDS = declare(
    "wrong-fields",
    Severity.ERROR,
    "Rows lack a field that their shape needs, or one has the wrong type.",
    "Mend the rows, or name the shape with --format (dpolish check --formats lists them); --fix leaves them out.",
)
PROMPTS_DIFFER = declare(
    "prompts-differ",
    Severity.ERROR,
    "The two conversations of a row have no prompt in common: they part in a turn that is not the assistant's.",
    "Keep pairs that answer the same prompt; --fix leaves the others out.",
)
SKIPPED = declare(
    "no-pair",
    Severity.NOTE,
    "By its nature the row prefers nothing; training leaves it out and counts it.",
)
TAIL = declare(
    "untrained-tail",
    Severity.NOTE,
    "Turns behind the last one that is trained on: they change nothing and are left out.",
)
UNUSED_COLUMNS = declare(
    "unused-columns",
    Severity.NOTE,
    "Columns that nothing is made of.",
    "If one of them was meant to count, rename it as the hint says.",
)


@dataclass(frozen=True, slots=True)
class Options:
    """How rows are read; the names are those of the configuration under model.data."""

    task: Task = "dpo"
    format: str | None = None
    """Shape of all files; None recognises it in each."""
    pairs: str = "best_vs_worst"
    """How several answers to one prompt become pairs."""
    prompt_template: str = "{input} {output}"
    """How the fields of a prompt-response row become a text (SFT)."""
    label_key: str = "output"
    """Which of these fields is trained on (SFT)."""
    trained_turns: Literal["all", "last"] = "all"
    """Which turns of the assistant are trained on (SFT)."""

    @property
    def formats(self) -> Registry[Format]:
        """The shapes of the task."""
        return FORMATS if self.task == "dpo" else SFT_FORMATS

    def open(self, path: str) -> PairFile | ConversationFile:
        """The rows of a file."""
        if self.task == "dpo":
            return PairFile(path, self.format, self.pairs)
        return ConversationFile(
            path,
            self.format,
            prompt_template=self.prompt_template,
            label_key=self.label_key,
            trained_turns=self.trained_turns,
        )


def task_of(files: Sequence[str], format: str | None) -> Task:
    """What rows are for, by the name of their shape or by the first row; preference training where nothing tells."""
    if format is not None:
        return "sft" if format in SFT_FORMATS and format not in FORMATS else "dpo"
    for path in files:
        try:
            first = next((row for row in rows_of(path) if isinstance(row, Row)), None)
            return "sft" if first is not None and detect_any(first)[0] == "sft" else "dpo"
        except DataError:
            continue
    return "dpo"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a file gives no row, or none from here on."""

    where: str
    what: str


def rows(file: PairFile | ConversationFile) -> Iterator[Item | Unreadable]:
    """Everything that a file gives; where it cannot be read, that comes last."""
    try:
        yield from file.records()
    except DataError as error:
        where, what = place_of(error, file.path)
        yield Unreadable(where, what)


def refusal(item: Fault | DataError | Unreadable, path: str) -> tuple[Check, str, str]:
    """Which check an item that is no row falls under, its place, and what is wrong."""
    if isinstance(item, Unreadable):
        return UNREADABLE_FILE, item.where, item.what
    if isinstance(item, DataError):
        where, what = place_of(item, path)
        return (PROMPTS_DIFFER if what.endswith("both need the same prompt") else WRONG_FIELDS), where, what
    encoding = "which is not UTF-8" in item.what or item.what.startswith("the text is in UTF-")
    return (NOT_UTF8 if encoding else MALFORMED_ROW), item.where, item.what


def place_of(error: DataError, path: str) -> tuple[str, str]:
    """The place that begins the message of an error, and the rest of it."""
    message = str(error)
    start = len(path) if message.startswith(path) else 0
    end = message.find(": ", start)
    return (message[:end], message[end + 2 :]) if end >= 0 else (path, message)
