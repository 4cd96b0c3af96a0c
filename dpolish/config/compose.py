"""From defaults, a YAML file, overrides and four flags to one typed `DpoConfig`, or one error that names every fault.

    defaults → --config FILE → overrides, left to right → --model, --train, --validation, --output
             → interpolations → types and ranges → DpoConfig

The grammar of overrides is hydra-core's, interpolations are OmegaConf's. Strictness is ours: a key that the schema and
`nemo_keys` do not know is an error in a file, in `a.b=`, in `+a.b=` and in `++a.b=` alike.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import yaml

from dpolish.config.checks import SectionError
from dpolish.config.draft import REQUIRED, Draft
from dpolish.config.keys import all_keys, plain, section_fields
from dpolish.config.nemo_keys import reason_ignored
from dpolish.config.schema import DpoConfig
from dpolish.config.sources import Setting, file_settings, flag_settings, override_settings
from dpolish.config.typed import UnknownNameError, typed
from dpolish.errors import ConfigError, join_faults

Origin = Literal["default", "given", "environment"]

_DETERMINISTIC, _ATTENTION = "trainer.deterministic", "model.attention_backend"
_SWITCHES = {"segments": "NVTE_FLASH_ATTN", "flex": "NVTE_FUSED_ATTN"}


@dataclass(frozen=True, slots=True)
class Composed:
    """A configuration, and what the user has to be told about it."""

    config: DpoConfig
    origin: Mapping[str, Origin]
    """Where the value of each key comes from."""
    ignored: tuple[str, ...]
    """`key: reason` of the keys that were given and have no meaning here."""
    without_effect: tuple[str, ...]
    """`key: reason` of the keys that have no effect in this version and were given another value than their default."""
    forbidden_attention: frozenset[str]
    """Backends that the environment forbids; `auto` must not choose them."""

    @property
    def resolved(self) -> dict[str, object]:
        """Every value, as a plain tree."""
        return cast(dict[str, object], plain(self.config))


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
        followers = {key.name: key.followed for key in all_keys().values() if key.name not in draft.given}
        values = [text for key, text in self._of_values.items() if followers.get(key) not in self._of_values]
        if self._unknown or values:
            raise ConfigError(join_faults([*self._unknown, *values]))


def compose(
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    output: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Composed:
    """The configuration that a file, overrides and flags imply; a ConfigError lists every fault with its place."""
    faults, draft = _Faults(), Draft()
    for setting in _settings(config_file, overrides, flag_settings(model, train, validation, output), faults):
        try:
            draft.apply(setting)
        except ConfigError as error:
            faults.add(f"{setting.where} {setting.key}", error)
    values = _typed_values(draft, faults)
    origin: dict[str, Origin] = {key: "given" if key in draft.given else "default" for key in draft.values}
    _heed_environment(values, origin, environ)
    config = cast(DpoConfig, _build(DpoConfig, "", values, draft, faults))
    forbidden = forbidden_attention(environ)
    if config.model.attention_backend in forbidden:
        switch = _SWITCHES[config.model.attention_backend]
        fault = f"{config.model.attention_backend} contradicts {switch}=0 in the environment: change one of them"
        faults.add(_ATTENTION, ConfigError(f"{draft.where(_ATTENTION)}: {fault}"))
    faults.raise_all(draft)
    return Composed(
        config=config,
        origin=origin,
        ignored=tuple(f"{key}: {reason_ignored(key)}" for key in draft.ignored),
        without_effect=tuple(
            f"{key.name}: {key.metadata['idle']}"
            for key in all_keys().values()
            if "idle" in key.metadata and key.name in draft.given and plain(values[key.name]) != key.default
        ),
        forbidden_attention=forbidden,
    )


def require_complete(config: DpoConfig) -> None:
    """Raise one ConfigError about every value that a run cannot do without and that nobody gave."""
    missing = [
        not (config.pretrained_checkpoint.restore_from_path or "").strip(),
        not config.model.data.data_prefix.train,
    ]
    faults = [
        f"{key} is missing: {remedy}" for (key, remedy), gone in zip(REQUIRED.items(), missing, strict=True) if gone
    ]
    if faults:
        raise ConfigError(join_faults(faults))


def forbidden_attention(environ: Mapping[str, str]) -> frozenset[str]:
    """The attention backends that NeMo's switches turn off: NVTE_FLASH_ATTN=0 segments, NVTE_FUSED_ATTN=0 flex."""
    return frozenset(backend for backend, switch in _SWITCHES.items() if environ.get(switch) == "0")


def to_yaml(config: DpoConfig) -> str:
    """The configuration as a YAML file that `compose` reads back to an equal one."""
    tree = {"": plain(config)}
    for key in all_keys().values():
        *path, name = key.name.split(".")
        section = tree[""]
        for part in path:
            section = cast(dict[str, object], section)[part]
        values = cast(dict[str, object], section)
        values[name] = values[name] if key.metadata.get("literal") else _escaped(values[name])
    return yaml.dump(tree[""], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def find_config(
    config_path: str | None, config_name: str | None, config_dir: str | None, script_dir: Path
) -> Path | None:
    """The file that Hydra's three flags name; None for NeMo-Aligner's own gpt_dpo, whose values are the defaults.

    As in Hydra, `config_path` starts at the script's folder and `config_dir` at the working directory.
    """
    name = (config_name or "gpt_dpo").removesuffix(".yaml")
    folders = [script_dir / config_path] if config_path else []
    folders += [Path(config_dir)] if config_dir else []
    files = [folder / f"{name}.yaml" for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None and (files or name != "gpt_dpo"):
        looked = ", ".join(map(str, files)) or "no folder: name one with --config-path or --config-dir"
        raise ConfigError(f"--config-name {name}: there is no such file; looked for {looked}")
    return found


def _settings(file: Path | None, overrides: Sequence[str], flags: Iterable[Setting], faults: _Faults) -> list[Setting]:
    settings: list[Setting] = []
    try:
        settings += file_settings(file) if file else []
    except ConfigError as error:
        faults.add(str(file), error)
    for text in overrides:
        try:
            settings += override_settings(text)
        except ConfigError as error:
            faults.add(text, error)
    return [*settings, *flags]


def _typed_values(draft: Draft, faults: _Faults) -> dict[str, object]:
    """Every value that has its type; a key whose value has not is left out: further checks see its default."""
    keys, resolved = all_keys(), dict(draft.resolve())
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
    return values


def _heed_environment(values: dict[str, object], origin: dict[str, Origin], environ: Mapping[str, str]) -> None:
    """Settle what a null or auto leaves to NeMo's variables."""
    if values.get(_DETERMINISTIC, True) is None:
        values[_DETERMINISTIC] = environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO") == "0"
        origin[_DETERMINISTIC] = "environment" if values[_DETERMINISTIC] else "default"
    if values.get(_ATTENTION) == "auto" and forbidden_attention(environ) == _SWITCHES.keys():
        values[_ATTENTION], origin[_ATTENTION] = "dense", "environment"


def _build(section: type, prefix: str, values: Mapping[str, object], draft: Draft, faults: _Faults) -> object:
    """The section with its values. One with a fault is replaced by its defaults, so that all others are checked."""
    arguments = {}
    for name, _, inner in section_fields(section):
        if inner:
            arguments[name] = _build(inner, f"{prefix}{name}.", values, draft, faults)
        elif prefix + name in values:
            arguments[name] = values[prefix + name]
    try:
        built: object = section(**arguments)
    except SectionError as error:
        for name, fault in error.faults.items():
            key = prefix + name
            faults.add(key, error, f"{draft.where(key)}: {fault}")
        return section()
    return built


class _Dumper(yaml.SafeDumper):
    """Quotes what OmegaConf would read as a number, and writes what cannot be seen as escapes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.match(r"[-+.\d]", text) or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _escaped(value: object) -> object:
    """The value with every `${` marked as plain text."""
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
