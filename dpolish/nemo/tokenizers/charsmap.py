"""The compiled normalization rules of a sentencepiece model, read back as a mapping.

    4 bytes: size of the trie | trie: 32-bit units of a double array | replacements, each ended by a zero byte

A unit of the trie: bits 0-7 the byte that leads to it, bit 8 whether a rule ends there, bit 9 and 10-30 where its
children are; a leaf has bit 31 and the place of the replacement. Equal branches are stored once.
"""

from collections import defaultdict
from typing import TypeAlias

import numpy as np

from dpolish.errors import ModelError

_MAX_BYTES = 1 << 20
"""Of a trie."""
_MAX_RULES = 1 << 18
"""The usual ones (nmt_nfkc) have 225,276, in a trie of 240 kB."""
_MAX_NODES = 1 << 20
_MAX_KEY_BYTES = 64

_Units: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint32]]"


def read_rules(charsmap: bytes, where: str) -> dict[str, str]:
    """What each rule turns into what. The longest rule at a place wins. Raises ModelError."""
    size = int.from_bytes(charsmap[:4], "little")
    if size > _MAX_BYTES:
        raise _damaged(where, f"a trie of more than {_MAX_BYTES >> 20} MiB")
    if len(charsmap) < 4 or size % 1024 or not 0 < size < len(charsmap) - 3:  # built in blocks of 256 units
        raise _damaged(where, "the trie's size")
    found = _read_trie(np.frombuffer(charsmap, "<u4", size // 4, 4), where)
    pool = charsmap[4 + size :]
    try:
        pool.decode()
        replacements = {start: pool[start : pool.index(b"\0", start)].decode() for start in set(found.values())}
        return {key.decode(): replacements[start] for key, start in found.items()}
    except ValueError as error:
        raise _damaged(where, "a rule is not UTF-8, or its replacement has no end") from error


def _read_trie(units: _Units, where: str) -> dict[bytes, int]:
    """Where the replacement of each rule begins."""
    children = _children(units)
    steps = ((units >> 10) << ((units & 512) >> 6)).tolist()
    unit = units.tolist()
    found: dict[bytes, int] = {}
    nodes, visited = [(0, b"")], 0
    while nodes:
        place, key = nodes.pop()
        base = place ^ steps[place]
        if base >= len(unit):
            raise _damaged(where, "a branch lies outside")
        if unit[place] & 256:
            if not unit[base] >> 31:
                raise _damaged(where, "a rule has no replacement")
            found[key] = unit[base] & 0x7FFFFFFF
        for child in children.get(base, ()):
            nodes.append((child, key + bytes((unit[child] & 255,))))
        visited += 1
        if visited > _MAX_NODES or len(key) > _MAX_KEY_BYTES or len(found) > _MAX_RULES:
            raise _damaged(where, "more or longer rules than any genuine model has")
    return found


def _children(units: _Units) -> dict[int, list[int]]:
    """Places of the units by where their parent says that its children begin."""
    places = np.arange(len(units))
    labelled = places[(units & 0x80000000 == 0) & (units & 255 != 0) & (places > 0)]
    bases = labelled ^ (units[labelled] & 255).astype(np.int64)
    found: dict[int, list[int]] = defaultdict(list)
    for base, place in zip(bases.tolist(), labelled.tolist(), strict=True):
        found[base].append(place)
    return found


def _damaged(where: str, what: str) -> ModelError:
    return ModelError(f"{where}: the normalization rules (precompiled_charsmap) are damaged: {what}")
