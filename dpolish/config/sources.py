"""Where values come from: a YAML file and overrides in Hydra's grammar, as flat settings that know their place.

A setting is one value for one key. Mappings are opened as far as the schema has sections; interpolations stay texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpolish.config.data_prefix import is_split
from dpolish.config.keys import all_keys
from dpolish.config.trees import DATA_PREFIX, tree_of
from dpolish.errors import ConfigError

_ACTIONS: Mapping[OverrideType, Literal["change", "add", "force", "delete"]] = {
    OverrideType.CHANGE: "change",
    OverrideType.ADD: "add",
    OverrideType.FORCE_ADD: "force",
    OverrideType.DEL: "delete",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that was given for one key, not yet checked."""

    key: str
    value: object
    where: str
    """`file:line`, the override as it was typed, or the flag."""
    action: Literal["file", "change", "add", "force", "delete", "flag"]
    text: str | None = None
    """A scalar as it was written, for keys that want a text: `name=1e3` is not 1000.0."""

    @property
    def split(self) -> str | None:
        """The split that the key names inside `model.data.data_prefix`."""
        name = self.key.removeprefix(f"{DATA_PREFIX}.")
        return name if name != self.key and is_split(name) else None


def file_settings(path: Path, root: type) -> list[Setting]:
    """The settings of a YAML file, in its order, read as OmegaConf reads it: `9e-6` is a float, a key stands once."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.create(text))
        lines = dict(_scalars(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict) or (tree and not lines):
        raise ConfigError(f"{path}: expected keys and values, such as `model:` and below it `seed: 1234`")
    settings = []
    for key, value in _leaves("", tree, root):
        line, written = _nearest(lines, key)
        settings.append(Setting(key, value, f"{path}:{line}", "file", written))
    return settings


def override_settings(text: str, root: type) -> list[Setting]:
    """The settings of one override: several when its value is a mapping over a section."""
    where = f"command line: `{text}`"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(f"{where}: {_syntax_fault(text, error)}") from error
    if override.is_sweep_override():
        raise ConfigError(
            f"{where}: several values are a sweep, which runs only with --multirun, not in this version; "
            "quote the value if the comma belongs to it: \"key='a,b'\""
        )
    if override.package is not None or not override.key_or_group:
        raise ConfigError(f"{where}: expected key=value, +key=value, ++key=value or ~key")
    return list(_parsed(override, text, where, root))


def flag_settings(values: Mapping[str, str | Sequence[str] | None], root: type) -> list[Setting]:
    """The settings of the short flags of a tree, by name; None and no values at all are not given."""
    settings = []
    for flag, value in values.items():
        words = [value] if isinstance(value, str) else list(value or ())
        if words:
            key = tree_of(root).flags[flag]
            where = f"--{flag} {' '.join(words)}"
            settings.append(Setting(key, value if isinstance(value, str) else words, where, "flag"))
    return settings


def _parsed(override: Override, text: str, where: str, root: type) -> Iterator[Setting]:
    assert override.type is not None
    key = override.key_or_group.replace("/", ".")
    setting = Setting(key, override.value(), where, _ACTIONS[override.type])
    if isinstance(setting.value, dict) and setting.action != "delete":
        for leaf, value in _leaves(key, setting.value, root):
            yield replace(setting, key=leaf, value=value)
    else:
        yield replace(setting, text=text.partition("=")[2].strip())


def _syntax_fault(text: str, error: HydraException) -> str:
    name, equals, value = text.partition("=")
    if not equals:
        return "expected key=value, +key=value, ++key=value or ~key"
    if "=" in value:
        return f"an `=` inside a value needs quotes, inside those of the shell: \"{name}='{value}'\""
    return f"the value cannot be read ({str(error).splitlines()[0]}); put it in quotes: \"{name}='…'\""


def _leaves(key: str, value: object, root: type) -> Iterator[tuple[str, object]]:
    """The values of a tree by dotted key; a mapping is opened where there is a section, ours or NeMo-Aligner's."""
    if isinstance(value, dict) and (not key or key in _openings(root)):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}".removeprefix("."), inner, root)
    else:
        yield key, value


@cache
def _openings(root: type) -> frozenset[str]:
    """The keys whose mappings hold further keys, not a value."""
    nemo = tree_of(root).nemo
    names = (*all_keys(root), *nemo.ignored, *nemo.aliases)
    parents = {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 1)}
    return frozenset({*parents, DATA_PREFIX} if DATA_PREFIX in all_keys(root) else parents)


def _scalars(node: yaml.Node | None, key: str) -> Iterator[tuple[str, tuple[int, str | None]]]:
    """(key, (line, the scalar as written)) of every key of a YAML document."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = f"{key}.{name.value}".removeprefix(".")
            yield inner, (name.start_mark.line + 1, value.value if isinstance(value, yaml.ScalarNode) else None)
            yield from _scalars(value, inner)


def _nearest(lines: Mapping[str, tuple[int, str | None]], key: str) -> tuple[int, str | None]:
    """The place of a key, or of the section that it came with (YAML's `<<` has no line for every key)."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key, (1, None))
