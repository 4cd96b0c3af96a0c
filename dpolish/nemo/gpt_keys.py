"""The keys of an untrusted `model_config.yaml`, each read as the kind of value that it must be."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_SELF_REFERENCE = re.compile(r"\$\{(?:\.|model\.)(encoder_seq_length)\}")
"""The one interpolation that configurations written by hand need. Saved ones are resolved; no other is followed."""

LARGEST_SIZE = 1 << 26
"""Beyond every real dimension, and far below what would make a product of two overflow."""


@dataclass(slots=True)
class Keys:
    """A configuration; `faults` grows by what cannot be used, so that all of it is reported at once.

    A key that is absent has NeMo's default; one that is null counts as unset for numbers and as false for flags, as
    in NeMo.
    """

    raw: Mapping[str, object]
    where: str
    faults: list[str] = field(default_factory=list)

    def fault(self, key: str, reason: str) -> None:
        """Note that a key's value cannot be used."""
        value = self.raw.get(key)
        shown = "" if value is None else f" {_brief(value)}"
        self.faults.append(f"{self.where}: {key}{shown} {reason}")

    def get(self, key: str) -> object:
        """The value, with the one interpolation followed that is understood."""
        value = self.raw.get(key)
        if isinstance(value, str) and (match := _SELF_REFERENCE.fullmatch(value.strip())):
            referred = self.raw.get(match[1])
            return value if isinstance(referred, str) else referred
        return value

    def size(self, key: str, default: int | None = None, *, at_most: int = LARGEST_SIZE) -> int:
        """A positive whole number; 1 after a fault."""
        value = self.get(key)
        if value is None:
            if default is not None:
                return default
            self.fault(key, "is missing")
            return 1
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= at_most:
            self.fault(key, f"is not a whole number from 1 to {at_most}")
            return 1
        return value

    def optional_size(self, key: str) -> int | None:
        """A positive whole number where one is set."""
        return None if self.get(key) is None else self.size(key)

    def number(self, key: str, default: float) -> float:
        """A finite number that is not negative; the default after a fault."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, str):  # YAML 1.1 takes 1e-5 for text
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e12:
            self.fault(key, "is no number from 0 on")
            return default
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; null is false."""
        if key not in self.raw:
            return default
        value = self.raw[key]
        if value is None or isinstance(value, bool):
            return bool(value)
        self.fault(key, "is neither true nor false")
        return default

    def text(self, key: str, default: str) -> str:
        """A word."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fault(key, "is not a word")
            return default
        return value

    def mapping(self, key: str) -> Mapping[str, object]:
        """A block of keys; empty where there is none."""
        value = self.raw.get(key)
        return value if isinstance(value, Mapping) else {}


def is_set(value: object) -> bool:
    """Whether a key asks for anything: null, false, zero and empty ones do not."""
    return bool(value) and not (isinstance(value, float) and math.isnan(value))


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
