"""The first rows as the model gets them: prompt, trained and ignored tokens in colour, or between marks in a pipe."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from rich.console import Console
from rich.text import Text

from dpolish.data.check.model import TokenChecks
from dpolish.data.check.render import printable
from dpolish.data.check.source import Options, rows
from dpolish.data.tokenize import Kind, marked_tokens
from dpolish.errors import DataError, ModelError
from dpolish.records import Conversation, PreferencePair

_STYLES: dict[Kind, str] = {"prompt": "cyan", "trained": "bold green", "ignored": "dim"}
_MARKS: dict[Kind, tuple[str, str]] = {"prompt": ("", ""), "trained": ("⟦", "⟧"), "ignored": ("⟨", "⟩")}


def show(console: Console, files: Sequence[str], options: Options, tokens: TokenChecks, count: int) -> None:
    """Print the tokens of the first `count` pairs or demonstrations, and how many there are of each kind."""
    _print(console, _legend(console.is_terminal))
    for record in islice(_records(files, options), count):
        console.print(Text(f"\n{printable(record.where)}", "bold"), soft_wrap=True)
        try:
            sides = marked_tokens(tokens.context.tokenization, record)
        except (DataError, ModelError) as error:
            _print(console, Text(printable(str(error)), "red"))
            continue
        names = ("prompt with chosen", "prompt with rejected") if len(sides) == 2 else ("demonstration",)
        for name, marked in zip(names, sides, strict=True):
            counts = {kind: sum(each == kind for _, each in marked) for kind in _STYLES}
            said = ", ".join(f"{number:,} {kind}" for kind, number in counts.items() if number)
            _print(console, Text(f"{name}: {said or 'no tokens'}", "dim"))
            _print(console, marked_text(marked, in_colour=console.is_terminal))
    console.print()


def marked_text(marked: Sequence[tuple[str, Kind]], *, in_colour: bool) -> Text:
    """The tokens one behind the other. Line ends are shown and made; what a terminal would obey is escaped."""
    text = Text()
    for kind, tokens in groupby(marked, key=lambda token: token[1]):
        before, behind = ("", "") if in_colour else _MARKS[kind]
        said = "".join(token for token, _ in tokens)
        lines = "⏎\n".join(map(printable, said.split("\n")))
        text.append(f"{before}{lines}{behind}", _STYLES[kind])
    return text


def _legend(in_colour: bool) -> Text:
    text = Text()
    for kind, style in _STYLES.items():
        before, behind = ("", "") if in_colour else _MARKS[kind]
        text.append(f"{before}{kind}{behind}", style)
        text.append("  ")
    return text


def _records(files: Sequence[str], options: Options) -> Iterator[PreferencePair | Conversation]:
    for path in files:
        for item in rows(options.open(path)):
            if isinstance(item, PreferencePair | Conversation):
                yield item


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)
