"""From defaults, a YAML file, overrides and four flags to one typed configuration, or one error about every fault.

    defaults → --config FILE → overrides, left to right → --model, --train, --validation, --output
             → interpolations → types and ranges → DpoConfig or SftConfig

The grammar of overrides is hydra-core's, interpolations are OmegaConf's. Strictness is ours: a key that the tree and
`nemo_keys` do not know is an error in a file, in `a.b=`, in `+a.b=` and in `++a.b=` alike.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast, overload

import yaml

from dpolish.config.checks import SectionError
from dpolish.config.draft import Draft
from dpolish.config.escapes import write_escapes
from dpolish.config.interpolation import escaped
from dpolish.config.keys import Key, all_keys, plain, section_fields
from dpolish.config.schema import DpoConfig, DpoDataConfig, RunConfig
from dpolish.config.sources import Setting, file_settings, flag_settings, override_settings
from dpolish.config.trees import tree_of
from dpolish.config.typed import UnknownNameError, typed
from dpolish.errors import ConfigError, join_faults

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Origin = Literal["default", "given", "environment"]
C_co = TypeVar("C_co", bound=RunConfig, covariant=True)
C = TypeVar("C", bound=RunConfig)
S = TypeVar("S", bound="DataclassInstance")

_DETERMINISTIC, _ATTENTION = "trainer.deterministic", "model.attention_backend"
_FLASH = "model.use_flash_attention"
_SWITCHES = {"segments": "NVTE_FLASH_ATTN", "flex": "NVTE_FUSED_ATTN"}


@dataclass(frozen=True, slots=True)
class Composed(Generic[C_co]):
    """A configuration, and what the user has to be told about it."""

    config: C_co
    origin: Mapping[str, Origin]
    """Where the value of each key comes from."""
    ignored: tuple[str, ...]
    """`key: reason` of the keys that were given and have no meaning here."""
    without_effect: tuple[str, ...]
    """`key: reason` of the keys that have no effect in this version and were given another value than their default."""
    forbidden_attention: frozenset[str]
    """Backends that the environment or the configuration forbids; `auto` must not choose them."""

    @property
    def resolved(self) -> dict[str, object]:
        """Every value, as a plain tree."""
        return cast(dict[str, object], plain(self.config))

    def chosen(self, key: str) -> bool:
        """True where somebody gave the key's value, or that of the key which it follows."""
        followed = all_keys(type(self.config))[key].followed
        return self.origin[key] != "default" or (followed is not None and self.chosen(followed))


class _Faults:
    """Faults found so far."""

    def __init__(self) -> None:
        self._unknown: list[str] = []
        self._of_values: dict[str, str] = {}

    def add(self, key: str, error: ConfigError, message: str = "") -> None:
        """Remember a fault under the key, or the setting, that it is about."""
        text = message or str(error)
        if isinstance(error, UnknownNameError):
            self._unknown.append(text)
        else:
            self._of_values.setdefault(key, text)

    def raise_all(self, draft: Draft) -> None:
        """Raise one error about all of them, unknown keys and names first; say nothing twice about a followed value."""
        values = [text for key, text in self._of_values.items() if draft.followed(key) not in self._of_values]
        if self._unknown or values:
            raise ConfigError(join_faults([*self._unknown, *values]))


@overload
def compose(
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    output: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Composed[DpoConfig]: ...


@overload
def compose(
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    root: type[C],
    model: str | None = None,
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    output: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Composed[C]: ...


def compose(
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    root: type = DpoConfig,
    model: str | None = None,
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    output: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Composed[RunConfig]:
    """The configuration that a file, overrides and flags imply; a ConfigError lists every fault with its place.

    `root` is the tree: DpoConfig or SftConfig.
    """
    faults, draft = _Faults(), Draft(root)
    flags = flag_settings({"model": model, "train": train, "validation": validation, "output": output}, root)
    for setting in _settings(config_file, overrides, flags, root, faults):
        try:
            draft.apply(setting)
        except ConfigError as error:
            faults.add(f"{setting.where} {setting.key}", error)
    values = _typed_values(draft, root, faults)
    origin: dict[str, Origin] = {key: "given" if key in draft.given else "default" for key in draft.values}
    forbidden = _heed_environment(values, origin, environ)
    config = _build(root(), "", values, draft, faults)
    if config.model.attention_backend in forbidden:
        switch = f"{_SWITCHES[config.model.attention_backend]}=0 in the environment"
        if config.model.attention_backend not in forbidden_attention(environ):
            switch = f"{_FLASH}=false"
        fault = f"{config.model.attention_backend} contradicts {switch}: change one of them"
        faults.add(_ATTENTION, ConfigError(f"{draft.where(_ATTENTION)}: {fault}"))
    faults.raise_all(draft)
    return Composed(
        config=config,
        origin=origin,
        ignored=tuple(f"{key}: {tree_of(root).nemo.reason_ignored(key)}" for key in draft.ignored),
        without_effect=tuple(
            f"{key.name}: {key.metadata['idle']}"
            for key in all_keys(root).values()
            if "idle" in key.metadata and key.name in draft.given and _differs(key, values)
        ),
        forbidden_attention=forbidden,
    )


def require_complete(config: RunConfig) -> None:
    """Raise one ConfigError about every value that a run cannot do without and that nobody gave."""
    files = config.model.data
    sources = files.data_prefix.train if isinstance(files, DpoDataConfig) else files.train_ds.sources
    missing = [not (config.restore_from_path or "").strip(), not sources]
    required = tree_of(type(config)).required
    faults = [
        f"{key} is missing: {remedy}" for (key, remedy), gone in zip(required.items(), missing, strict=True) if gone
    ]
    if faults:
        raise ConfigError(join_faults(faults))


def forbidden_attention(environ: Mapping[str, str]) -> frozenset[str]:
    """The attention backends that NeMo's switches turn off: NVTE_FLASH_ATTN=0 segments, NVTE_FUSED_ATTN=0 flex."""
    return frozenset(backend for backend, switch in _SWITCHES.items() if environ.get(switch) == "0")


def to_yaml(config: RunConfig) -> str:
    """The configuration as a YAML file that `compose` reads back to an equal one."""
    tree = {"": plain(config)}
    for key in all_keys(type(config)).values():
        *path, name = key.name.split(".")
        section = tree[""]
        for part in path:
            section = cast(dict[str, object], section)[part]
        values = cast(dict[str, object], section)
        values[name] = _as_written(key, values[name])
    return yaml.dump(tree[""], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def find_config(
    config_path: str | None,
    config_name: str | None,
    config_dir: str | None,
    script_dir: Path,
    root: type = DpoConfig,
) -> Path | None:
    """The file that Hydra's three flags name; None for NeMo-Aligner's own of the tree, whose values are the defaults.

    As in Hydra, `config_path` starts at the script's folder and `config_dir` at the working directory.
    """
    own = tree_of(root).nemo.file
    name = (config_name or own).removesuffix(".yaml")
    folders = [script_dir / config_path] if config_path else []
    folders += [Path(config_dir)] if config_dir else []
    files = [folder / f"{name}.yaml" for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None and (files or name != own):
        looked = ", ".join(map(str, files)) or "no folder: name one with --config-path or --config-dir"
        raise ConfigError(f"--config-name {name}: there is no such file; looked for {looked}")
    return found


def _settings(
    file: Path | None, overrides: Sequence[str], flags: Iterable[Setting], root: type, faults: _Faults
) -> list[Setting]:
    settings: list[Setting] = []
    try:
        settings += file_settings(file, root) if file else []
    except ConfigError as error:
        faults.add(str(file), error)
    for text in overrides:
        try:
            settings += override_settings(text, root)
        except ConfigError as error:
            faults.add(text, error)
    return [*settings, *flags]


def _typed_values(draft: Draft, root: type, faults: _Faults) -> dict[str, object]:
    """Every value that has its type; a key whose value has not is left out: further checks see its default."""
    keys, resolved = all_keys(root), dict(draft.resolve())
    values: dict[str, object] = {}
    for key in keys.values():
        replaced = key.metadata.get("replaces")
        if isinstance(replaced, str) and resolved[key.name] is not None and key.sibling(replaced) not in draft.given:
            resolved[key.sibling(replaced)] = None
    for name, value in resolved.items():
        try:
            if isinstance(value, ConfigError):
                faults.add(name, value)
            else:
                values[name] = typed(keys[name], value, draft.text(name))
        except ConfigError as error:
            faults.add(name, error, f"{draft.where(name)}: {error}")
    for key in keys.values():
        one, other = values.get(key.name), values.get(key.followed or "")
        if key.metadata.get("both_ways") and one is not None and other is not None and one != other:
            fault = f"{one} contradicts {key.followed}={other}: they are one value, give it once"
            faults.add(key.name, ConfigError(f"{draft.where(key.name)}: {fault}"))
    return values


def _heed_environment(
    values: dict[str, object], origin: dict[str, Origin], environ: Mapping[str, str]
) -> frozenset[str]:
    """Settle what a null or auto leaves to NeMo's variables. The backends that they, or the values, forbid."""
    if values.get(_DETERMINISTIC, True) is None:
        values[_DETERMINISTIC] = environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO") == "0"
        origin[_DETERMINISTIC] = "environment" if values[_DETERMINISTIC] else "default"
    forbidden = forbidden_attention(environ)
    if values.get(_FLASH) is False:
        forbidden |= {"segments"}
    if values.get(_ATTENTION) == "auto" and forbidden == _SWITCHES.keys():
        values[_ATTENTION], origin[_ATTENTION] = "dense", "environment"
    return forbidden


def _build(default: S, prefix: str, values: Mapping[str, object], draft: Draft, faults: _Faults) -> S:
    """The section with its values. One with a fault is replaced by its default, so that all others are checked."""
    arguments = {}
    for name, _, inner in section_fields(type(default)):
        if inner:
            arguments[name] = _build(getattr(default, name), f"{prefix}{name}.", values, draft, faults)
        elif prefix + name in values:
            arguments[name] = values[prefix + name]
    try:
        return replace(default, **arguments)
    except SectionError as error:
        for name, fault in error.faults.items():
            key = prefix + name
            faults.add(key, error, f"{draft.where(key)}: {fault}")
        return default


def _differs(key: Key, values: Mapping[str, object]) -> bool:
    """True where the value is not the default, also not the one that it would follow."""
    return plain(values[key.name]) != (plain(values[key.followed]) if key.followed else key.default)


def _as_written(key: Key, value: object) -> object:
    """The plain value as a file has to say it, so that it is read as this one."""
    if key.metadata.get("escapes") and isinstance(value, str):
        value = write_escapes(value)
    return value if key.metadata.get("literal") else escaped(value)


class _Dumper(yaml.SafeDumper):
    """Quotes what OmegaConf would read as a number, and writes what cannot be seen as escapes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.match(r"[-+.\d]", text) or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
