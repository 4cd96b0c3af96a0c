"""Checked access to a row: every value is asked for by name and type, and what is wrong is said with its place."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TypeVar

from dpolish.data.read import Row, json_type
from dpolish.errors import DataError
from dpolish.registry import did_you_mean

T = TypeVar("T")


class Fields:
    """The fields of a row, or of an object within it, each checked as it is taken.

    A DataError names the place, the field and the type that was expected.
    """

    def __init__(self, row: Row, prefix: str = "") -> None:
        self.where = row.where
        self.value = row.value
        self.ignored: dict[str, None] = {}
        """Keys within the row's values that were not used."""
        self.remarks: dict[str, None] = {}
        """What is worth knowing of a row that can be used."""
        self._prefix = prefix

    def fail(self, key: str, what: str) -> DataError:
        """The error that says what is wrong with a field."""
        return DataError(f"{self.where}: {self._prefix}{key}: {what}")

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.value.get(key) is not None

    def first(self, *keys: str) -> str:
        """The first of these keys whose field is there and not null; the last one if none is."""
        return next((key for key in keys if self.has(key)), keys[-1])

    def text(self, key: str) -> str:
        """A field that must be a string."""
        value = self.value.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"expected a string, got {self._got(key)}")
        return value

    def text_or(self, key: str, default: str) -> str:
        """A field that is a string, or absent."""
        return self.text(key) if self.has(key) else default

    def number(self, key: str) -> float:
        """A field that must be a finite number."""
        value = self.value.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            got = value if isinstance(value, float) else "a number too large" if _is_int(value) else self._got(key)
            raise self.fail(key, f"expected a finite number, got {got}")
        return float(value)

    def reward(self, key: str) -> float | None:
        """A field that is a finite number, or is absent."""
        return self.number(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        """A field that must be true or false, or 1 or 0."""
        value = self.value.get(key)
        if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
            return bool(value)
        got = value if isinstance(value, int | float) else self._got(key)
        raise self.fail(key, f"expected true or false, got {got}")

    def choice(self, key: str, known: Mapping[str, T] | Mapping[int, T]) -> T:
        """What one of a few values stands for."""
        value = self.value.get(key)
        listed = ", ".join(str(one) for one in known)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.fail(key, f"expected one of {listed}, got {self._got(key)}")
        for one, meaning in known.items():
            if value == one:
                return meaning
        hint = near(value, listed.split(", ")) if isinstance(value, str) else ""
        raise self.fail(key, f"expected one of {listed}, got {short(str(value))}.{hint}".removesuffix("."))

    def items(self, key: str, kind: str) -> list[object]:
        """A field that must be a list; `kind` says of what, in messages."""
        value = self.value.get(key)
        if not isinstance(value, list):
            raise self.fail(key, f"expected a list of {kind}, got {self._got(key)}")
        return value

    def objects(self, key: str, kind: str) -> list["Fields"]:
        """A field that must be a list of objects; `kind` says of what, in messages."""
        found = []
        for index, item in enumerate(self.items(key, kind)):
            if not isinstance(item, dict):
                raise self.fail(f"{key}[{index}]", f"expected an object, got {json_type(item)}")
            found.append(Fields(Row(self.where, item), f"{self._prefix}{key}[{index}]."))
        return found

    def ignore(self, key: str, value: Mapping[str, object], used: Iterable[str]) -> None:
        """Note the keys of an object at `key` that are not used; null says nothing that could be lost."""
        for name in value:
            if name not in used and value[name] is not None:
                self.ignored[f"{re.sub('[0-9]+', '', self._prefix + key)}.{short(name)}"] = None

    def json_text(self, key: str, value: object) -> str:
        """A value as JSON text, in its own order: templates show what they are given."""
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise self.fail(key, f"cannot be written as JSON: {error}") from error

    def _got(self, key: str) -> str:
        if key in self.value:
            return json_type(self.value[key])
        return f"nothing; the keys here are {names(self.value)}{_near_key(key, self.value)}"


def near(name: str, known: Iterable[str]) -> str:
    """A hint as in the registries; a name may be anything here, and comparing a long one takes its square in time."""
    return did_you_mean(name, known) if len(name) < 100 else ""


def names(value: Mapping[str, object]) -> str:
    """The keys of an object, for messages."""
    return ", ".join(short(key) for key in islice(value, 20)) + (" …" if len(value) > 20 else "") or "none"


def short(text: str) -> str:
    """A text, or its beginning, for messages."""
    return text if len(text) < 60 else f"{text[:40]}…"


def _near_key(key: str, value: Mapping[str, object]) -> str:
    hint = "".join(dict.fromkeys(near(other, [key]) for other in islice(value, 20)))
    return f".{hint}" if hint else ""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
