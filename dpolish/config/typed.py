"""From plain values to the schema's types, strictly: no text becomes a number, no number a bool, 1 is not 1.0."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import NoneType
from typing import Literal, get_args, get_origin

from dpolish.config.data_prefix import DataFiles, DataSources, parse_data_prefix, parse_sources
from dpolish.config.escapes import read_escapes
from dpolish.config.keys import Key
from dpolish.errors import ConfigError
from dpolish.registry import did_you_mean


class _MismatchError(Exception):
    """The value is not of the type."""


class UnknownNameError(ConfigError):
    """A key or a name that does not exist. Reported before other faults."""


def typed(key: Key, value: object, text: str | None) -> object:
    """The value in the key's type. `text` is the scalar as written: where a text is wanted, it counts: `name=1e3`."""
    if key.annotation is DataFiles:
        return parse_data_prefix(value)
    if key.annotation is DataSources:
        return parse_sources(value)
    match key.metadata.get("booleans"):
        case (off, on) if isinstance(value, bool):
            value = on if value else off
    written = (text or str(value)) if isinstance(value, bool | int | float) else value
    match key.metadata.get("refused"):
        case Mapping() as reasons if isinstance(written, str) and written in reasons:
            raise ConfigError(f"{written} is refused: {reasons[written]}")
    for candidate in (value, written):
        try:
            result = _converted(key.annotation, candidate)
        except _MismatchError:
            continue
        if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(result)):
            raise ConfigError(f"expected a finite number, got {value!r}")
        return read_escapes(result) if isinstance(result, str) and key.metadata.get("escapes") else result
    names = [name for name in _choices(key.annotation) if isinstance(name, str)]
    if names and isinstance(value, str):
        raise UnknownNameError(f"unknown value {value!r}.{did_you_mean(value, names)} Known: {', '.join(names)}")
    raise ConfigError(f"expected {describe(key.annotation)}, got {value!r}")


def describe(annotation: object) -> str:
    """A type in words."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}
    plural = {int: "whole numbers", float: "numbers", str: "texts"}
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is DataFiles:
        return "a path, a list or {train: [...], validation: [...]}"
    if annotation is DataSources:
        return "a path or a list"
    if origin is Literal:
        return " or ".join(str(name) for name in inner)
    if origin is tuple:
        return f"a list of {plural[inner[0]]}" if Ellipsis in inner else f"a list of {len(inner)} {plural[inner[0]]}"
    if isinstance(annotation, type) and annotation in words:
        return words[annotation]
    return " or ".join(describe(member) for member in inner)


def _converted(annotation: object, value: object) -> object:
    """The value, where it is of the type: a list becomes a tuple, a whole number a float where no int is allowed."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        fits = isinstance(value, str) and value in members
    elif origin is tuple and isinstance(value, list):
        if Ellipsis not in members and len(members) != len(value):
            raise _MismatchError
        return tuple(_converted(members[0], item) for item in value)
    elif members and origin is not tuple:
        for member in members:
            with suppress(_MismatchError):
                return _converted(member, value)
        fits = False
    elif annotation is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    else:
        fits = type(value) is annotation  # a bool is no int
    if not fits:
        raise _MismatchError
    return value


def _choices(annotation: object) -> Iterator[object]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for member in get_args(annotation):
            yield from _choices(member)


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, tuple):
        yield from value
    else:
        yield value
