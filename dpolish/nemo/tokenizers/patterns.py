"""Regular expressions for sets of strings, written compactly: a text is read once, whatever the size of the set."""

from collections import defaultdict
from collections.abc import Iterable

_END = ""
_Tree = dict[str, "_Tree"]


def longest_of(texts: Iterable[str]) -> str:
    """A pattern that matches the longest of the texts that stands at a place; it is one group."""
    tree: _Tree = {}
    for text in texts:
        node = tree
        for letter in text:
            node = node.setdefault(letter, {})
        node[_END] = {}
    return _pattern(tree)


def one_of(letters: Iterable[str]) -> str:
    """A pattern that matches one letter of these."""
    return f"[{ranges(letters)}]"


def ranges(letters: Iterable[str]) -> str:
    """The inside of a character class for these letters."""
    runs: list[list[int]] = []
    for point in sorted(set(map(ord, letters))):
        if runs and runs[-1][1] == point - 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(_point(a) if a == b else f"{_point(a)}-{_point(b)}" for a, b in runs)


def literal(text: str) -> str:
    """A pattern that matches this text."""
    return "".join(map(_point, map(ord, text)))


def _pattern(node: _Tree) -> str:
    """What may follow a place in the tree; letters with the same continuation share it."""
    letters = defaultdict(list)
    for letter, below in node.items():
        if letter != _END:
            letters[_pattern(below)].append(letter)
    if not letters:
        return ""
    branches = [(one_of(found) if len(found) > 1 else literal(found[0])) + rest for rest, found in letters.items()]
    return f"(?:{'|'.join(branches)}){'?' if _END in node else ''}"


def _point(point: int) -> str:
    """A letter; anything but plain letters and digits by its number."""
    letter = chr(point)
    return letter if letter.isascii() and letter.isalnum() else f"\\x{{{point:X}}}"
