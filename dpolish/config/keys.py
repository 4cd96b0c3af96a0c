"""A tree as a table: every key with its type, its default, its metadata and its help text."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import get_type_hints

from dpolish.config.data_prefix import DataFiles, DataSources
from dpolish.config.schema import DpoConfig


@dataclass(frozen=True, slots=True)
class Key:
    """One value that can be configured."""

    name: str
    """Dotted, from the root."""
    annotation: object
    """The field's type."""
    default: object
    """Plain: the default, or the interpolation that stands for it."""
    metadata: Mapping[str, object]
    """See `schema.metadata`."""

    @property
    def followed(self) -> str | None:
        """The key that this one follows until it is given."""
        match self.metadata.get("follow"):
            case str(text):
                path = text.removeprefix("${").removesuffix("}")
                return self.sibling(path[1:]) if path.startswith(".") else path
            case _:
                return None

    def sibling(self, name: str) -> str:
        """The key of another field of the same section."""
        return f"{self.name.rpartition('.')[0]}.{name}".removeprefix(".")


def plain(value: object) -> object:
    """A typed value, or a whole section, as YAML can say it: mappings, lists and scalars."""
    if isinstance(value, DataFiles | DataSources):
        return value.plain()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


@cache
def section_fields(section: type) -> tuple[tuple[str, object, type | None], ...]:
    """(name, type, the same where it is a section, else None) of every field of a section."""
    hints = get_type_hints(section)
    return tuple((field.name, hints[field.name], _section(hints[field.name])) for field in fields(section))


def all_keys(root: type = DpoConfig) -> Mapping[str, Key]:
    """Every key of a tree by its dotted name, in the schema's order."""
    return _all_keys(root)


def all_sections(root: type = DpoConfig) -> Mapping[str, type]:
    """Every section of a tree by its dotted name; the root is the empty name."""
    return MappingProxyType(dict(_sections(root, "")))


def help_texts(root: type = DpoConfig) -> Mapping[str, str]:
    """The docstring under every field, by dotted key; needs the source files."""
    return _help_texts(root)


@cache
def _all_keys(root: type) -> Mapping[str, Key]:
    return MappingProxyType({key.name: key for key in _keys(root, root(), "", {})})


@cache
def _help_texts(root: type) -> Mapping[str, str]:
    texts = {name: _field_docs(section) for name, section in all_sections(root).items()}
    return MappingProxyType({key: texts[key.rpartition(".")[0]][key.rpartition(".")[2]] for key in all_keys(root)})


def _keys(section: type, defaults: object, prefix: str, inside: Mapping[str, object]) -> Iterator[Key]:
    """The keys of a section whose default is `defaults`; `inside` is what its place adds to its fields' metadata."""
    metadata = {field.name: field.metadata for field in fields(section)}
    for name, annotation, inner in section_fields(section):
        if inner:
            yield from _keys(inner, getattr(defaults, name), f"{prefix}{name}.", metadata[name].get("inside", {}))
        else:
            added = inside.get(name, {})
            assert isinstance(added, Mapping)
            merged = {**metadata[name], **added}
            yield Key(prefix + name, annotation, merged.get("follow", plain(getattr(defaults, name))), merged)


def _section(annotation: object) -> type | None:
    found = isinstance(annotation, type) and is_dataclass(annotation) and annotation not in (DataFiles, DataSources)
    return annotation if found and isinstance(annotation, type) else None


def _sections(section: type, prefix: str) -> Iterator[tuple[str, type]]:
    yield prefix.rstrip("."), section
    for name, _, inner in section_fields(section):
        if inner:
            yield from _sections(inner, f"{prefix}{name}.")


def _field_docs(section: type) -> Mapping[str, str]:
    docs = {}
    for part in filter(is_dataclass, reversed(section.__mro__)):
        (tree,) = ast.parse(inspect.getsource(part)).body
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                docs[statement.target.id] = _text(following)
    return docs


def _text(statement: ast.stmt) -> str:
    """The text of a string that stands alone, on one line."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""
