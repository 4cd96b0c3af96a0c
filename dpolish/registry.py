"""Names of implementations: a mapping with manners, and the package's only plug-in mechanism."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeVar

from dpolish.errors import ConfigError

T = TypeVar("T")


class Registry(dict[str, T]):
    """Named implementations of one interface. An unknown name is the user's error and gets a hint."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate an implementation with its name."""
        assert name not in self, f"{self.kind} {name!r} is registered twice"
        return lambda entry: self.setdefault(name, entry)

    def __missing__(self, name: str) -> T:
        known = ", ".join(sorted(self))
        raise ConfigError(f"unknown {self.kind} {name!r}.{did_you_mean(name, self)} Known: {known}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or nothing."""
    return "".join(f" Did you mean {match!r}?" for match in get_close_matches(name, list(known), n=1, cutoff=0.6))
