"""What can go wrong, who can mend it, and the exit code that says so.

DpolishError                 1  a fault of ours
├── InputError               2  the user's input; every fault found is reported, not only the first
│   ├── ConfigError             a configuration key, a value, an impossible combination
│   ├── DataError               a data file or a row; the message starts with "path:line"
│   └── ModelError              a model folder, its weights or its tokenizer
└── RunError                 3  a run that had begun and failed: non-finite numbers, disk, a broken invariant
"""

from collections.abc import Sequence


class DpolishError(Exception):
    """An error whose message is written for the user: where, what, and what to do."""

    exit_code = 1


class InputError(DpolishError):
    """Something the user gave cannot be used. No compute was spent."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key, a value, or a combination of them cannot be used."""


class DataError(InputError):
    """A data file or one of its rows cannot be used."""


class ModelError(InputError):
    """A model folder, its weights, or its tokenizer cannot be used."""


class RunError(DpolishError):
    """A run that had begun cannot go on."""

    exit_code = 3


def printable(text: str) -> str:
    """The text with everything that moves a terminal written out: names in messages may come from anybody.

    >>> printable("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\nb'
    """
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def join_faults(faults: Sequence[str], shown: int = 20) -> str:
    """One message out of many faults: the first `shown` in full, the rest as a count."""
    lines = [f"{len(faults)} problems:", *faults[:shown]] if len(faults) > 1 else list(faults)
    if len(faults) > shown:
        lines.append(f"… and {len(faults) - shown} more")
    return "\n".join(lines)
