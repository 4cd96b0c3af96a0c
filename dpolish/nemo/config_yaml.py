"""Read `model_config.yaml` as plain values: no objects, no interpolation, no aliases that multiply."""

import re
from collections.abc import Mapping
from typing import cast

import yaml

from dpolish.errors import ModelError
from dpolish.nemo.archive import Span

MAX_BYTES = 128 << 10
"""Genuine files have 3 to 20 KB."""
MAX_VALUES = 20_000
MAX_DEPTH = 40
MAX_ALIASES = 200
_MAX_DIGITS = 100

_FLOAT, _TIMESTAMP, _INTEGER = (f"tag:yaml.org,2002:{kind}" for kind in ("float", "timestamp", "int"))


class _Loader(yaml.SafeLoader):
    """Plain values alone, read as OmegaConf does: 1e-5 is a number, and a date is text."""


_Loader.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read_config(span: Span) -> dict[str, object]:
    """The mapping that the YAML file in `span` holds. Raises ModelError for anything but plain values."""
    try:
        text = span.read_all(MAX_BYTES).decode()
        _check_events(text, span.label)
        value = _construct(text, span.label)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{span.label}: is no YAML that can be read: {reason!a}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ModelError(f"{span.label}: is no mapping of names to values, so no configuration of a model")
    return cast(dict[str, object], value)


def _check_events(text: str, label: str) -> None:
    """Raises ModelError for a text that names objects or is too large, before a value is made of it."""
    depth = aliases = 0
    for values, event in enumerate(yaml.parse(text, Loader=_Loader)):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            raise ModelError(
                f"{label}: asks for an object of the kind {str(tag)[:100]!a}; nothing in it is made or run"
            )
        if values > MAX_VALUES or depth > MAX_DEPTH or aliases > MAX_ALIASES:
            raise ModelError(f"{label}: holds more or deeper values than any configuration of a model")


def _construct(text: str, label: str) -> object:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}, label) > MAX_VALUES:
            raise ModelError(f"{label}: multiplies itself by aliases")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], label: str) -> int:
    """How many values `node` stands for once its aliases are written out; refuses what names a key twice."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ModelError(f"{label}: contains itself by an alias")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if node.tag == _INTEGER and len(node.value) > _MAX_DIGITS:
        raise ModelError(f"{label}:{node.start_mark.line + 1}: has a number of {len(node.value)} digits")
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, known, label) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node, label)
        total += sum(_count(key, known, label) + _count(value, known, label) for key, value in node.value)
    known[id(node)] = total
    return total


def _check_keys(node: yaml.MappingNode, label: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            raise ModelError(f"{label}:{key.start_mark.line + 1}: has a key that is no plain name")
        if key.value in seen:
            raise ModelError(f"{label}:{key.start_mark.line + 1}: names {key.value[:60]!a} twice")
        seen.add(key.value)


def parallel_size(raw: Mapping[str, object], key: str) -> int:
    """How many ranks the configuration names under `key`; 1 where it does not."""
    value = raw.get(key)
    return value if isinstance(value, int) and value >= 1 else 1
