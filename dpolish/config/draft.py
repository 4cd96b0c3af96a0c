"""Settings laid over the defaults one by one, while everything is still plain and may follow other keys."""

from collections.abc import Iterator, Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpolish.config.keys import Key, all_keys, all_sections
from dpolish.config.nemo_keys import ALIASES, IGNORED, RENAMED, UNLISTED, reason_ignored
from dpolish.config.sources import DATA_PREFIX, Setting
from dpolish.config.typed import UnknownNameError
from dpolish.errors import ConfigError
from dpolish.registry import did_you_mean

REQUIRED = {
    "pretrained_checkpoint.restore_from_path": "name the model to polish, with this key or with --model",
    f"{DATA_PREFIX}.train": f"name the training files, with {DATA_PREFIX}={{train: [...]}} or with --train",
}
"""Keys without a default, and what to do where one is missing."""

MISSING = "???"
"""OmegaConf's mark for a value that has to be given."""


class Draft:
    """The values so far, with where each was given. `apply` and `resolve` raise a ConfigError for each fault."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {key.name: key.default for key in all_keys().values()}
        """By key of the schema."""
        self.given: dict[str, Setting] = {}
        """The last setting of each key that was given."""
        self.ignored: dict[str, object] = {}
        """Given keys that have no meaning here: interpolations may name them all the same."""
        self._on_command_line: dict[str, Setting] = {}

    def apply(self, setting: Setting) -> None:
        """Lay one setting over what is there."""
        key = ALIASES.get(setting.key, setting.key)
        if key != setting.key and setting.value == f"${{{key}}}":
            return  # gpt_dpo.yaml's own `precision: ${trainer.precision}`: a copy, and no value
        leaf = DATA_PREFIX if setting.split else key
        self._check_known(setting, leaf)
        if setting.action == "add" and self._exists(leaf, setting):
            raise ConfigError(f"{setting.where}: {key} exists already: `+` adds keys, write {key}=… or ++{key}=…")
        if setting.action == "flag":
            self._check_flag(setting)
        elif setting.action != "file":
            self._on_command_line[setting.key] = setting
        if leaf not in self.values:
            self._ignore(setting)
        elif setting.action == "delete":
            self._delete(setting, leaf)
        else:
            self.values[leaf] = self._with_split(setting, setting.value) if setting.split else setting.value
        self.given[leaf] = setting

    def where(self, key: str) -> str:
        """Where the value of a key was written, with the key: the beginning of a message."""
        setting = self._setting(key)
        return f"{setting.where}: {key}" if setting else key

    def text(self, key: str) -> str | None:
        """The scalar as it was written, where it stands for itself."""
        setting = self._setting(key)
        text = setting.text if setting else None
        return None if text and "${" in text else text

    def resolve(self) -> Iterator[tuple[str, object]]:
        """(key, plain value without interpolations) of every key; a fault is yielded as a ConfigError in its place."""
        tree, broken = self._tree()
        yield from broken.items()
        for key in all_keys().values():
            try:
                yield key.name, broken.get(key.name) or self._resolved(tree, key)
            except ConfigError as error:
                yield key.name, error

    def _setting(self, key: str) -> Setting | None:
        """What was given for a key, or for the one that it follows."""
        followed = all_keys()[key].followed if key in self.values else None
        return self.given.get(key) or self.given.get(followed or "")

    def _check_known(self, setting: Setting, leaf: str) -> None:
        if leaf in RENAMED:
            raise UnknownNameError(f"{setting.where}: {leaf}: the name is dead: {RENAMED[leaf]}")
        if leaf in self.values:
            return
        if reason_ignored(leaf) is None:
            if leaf in all_sections():
                inner = [name.removeprefix(f"{leaf}.") for name in all_keys() if name.startswith(f"{leaf}.")]
                raise ConfigError(f"{setting.where}: {leaf}: a section, not a value; it has {', '.join(inner)}")
            raise UnknownNameError(f"{setting.where}: unknown key {leaf!r}.{_nearest_key(leaf)}")
        if leaf == "defaults":
            _check_defaults(setting)

    def _exists(self, leaf: str, setting: Setting) -> bool:
        if setting.split:
            return setting.split in self._splits()
        listed = leaf in self.values and leaf not in UNLISTED and setting.key not in ALIASES
        return listed or leaf in self.given

    def _check_flag(self, setting: Setting) -> None:
        """A flag and an override of one key must say the same."""
        typed_out = self._on_command_line.get(setting.key)
        if typed_out is None and setting.split and DATA_PREFIX in self._on_command_line:
            typed_out = self._on_command_line[DATA_PREFIX]
        if typed_out and _as_list(typed_out.value) != _as_list(setting.value):
            raise ConfigError(f"{setting.where} contradicts {typed_out.where}: give one of them")

    def _ignore(self, setting: Setting) -> None:
        if setting.action != "delete":
            self.ignored[setting.key] = setting.value
        elif setting.key in self.ignored:
            del self.ignored[setting.key]
        else:
            raise ConfigError(f"{setting.where}: {setting.key} is not given, so there is nothing to delete")

    def _delete(self, setting: Setting, leaf: str) -> None:
        """Null is what is left, as in NeMo-Aligner a key that is not there."""
        current = self._splits().get(setting.split) if setting.split else self.values[leaf]
        if setting.value is not None and setting.value != current:
            raise ConfigError(f"{setting.where}: {setting.key} is {current!r}, so it is not deleted")
        self.values[leaf] = self._with_split(setting, None) if setting.split else None

    def _splits(self) -> Mapping[str | None, object]:
        current = self.values[DATA_PREFIX]
        return current if isinstance(current, dict) else {}

    def _with_split(self, setting: Setting, value: object) -> object:
        return {**self._splits(), setting.split: value}

    def _tree(self) -> tuple[DictConfig, dict[str, ConfigError]]:
        """All values as OmegaConf has them; those whose interpolation cannot be read are left out, with the fault."""
        copies = {alias: f"${{{key}}}" for alias, key in ALIASES.items()}
        values, broken = {**copies, **self.ignored, **self.values}, dict[str, ConfigError]()
        for key in [key for key, value in values.items() if _has_interpolation(value)]:
            try:
                OmegaConf.create({"value": values[key]})
            except OmegaConfBaseException as error:
                broken[key] = ConfigError(f"{self.where(key)}: {str(error).splitlines()[0]}")
                del values[key]
        return OmegaConf.create(_nested(values)), broken

    def _resolved(self, tree: DictConfig, key: Key) -> object:
        value = self.values[key.name]
        if value == MISSING and key.name not in (DATA_PREFIX, *REQUIRED):
            raise ConfigError(f"{self.where(key.name)}: missing: {MISSING} stands for a value that has to be given")
        if value == MISSING:
            return None
        if key.metadata.get("literal") or not _has_interpolation(value):
            return value
        try:
            resolved = OmegaConf.select(tree, key.name, throw_on_resolution_failure=True)
            return OmegaConf.to_container(resolved, resolve=True) if OmegaConf.is_config(resolved) else resolved
        except OmegaConfBaseException as error:
            raise ConfigError(f"{self.where(key.name)}: {value!r}: {str(error).splitlines()[0]}") from error


def _nearest_key(key: str) -> str:
    """The hint for an unknown key: a key that ends like it, or one that is written like it."""
    splits = [f"{DATA_PREFIX}.{split}" for split in ("train", "validation", "test")]
    known = [*all_keys(), *all_sections(), *splits, *(name for name in IGNORED if not name.endswith(".*")), *ALIASES]
    same_end = [name for name in all_keys() if name.endswith(f".{key}")]
    return did_you_mean(same_end[0], same_end) if len(same_end) == 1 else did_you_mean(key, known)


def _check_defaults(setting: Setting) -> None:
    """A `defaults:` list may name gpt_dpo, whose values are the defaults, and optional files; no other is read."""
    entries = setting.value if isinstance(setting.value, list) else [setting.value]
    names = [str(name) for entry in entries for name in (entry if isinstance(entry, dict) else [entry])]
    for name in names:
        if name not in ("_self_", "gpt_dpo", "None") and not name.startswith(("optional ", "override hydra/")):
            raise ConfigError(f"{setting.where}: defaults: {name!r} is another file; one file is read: copy it in here")


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    tree: dict[str, object] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        section = tree
        for part in path:
            inner = section.setdefault(part, {})
            section = inner if isinstance(inner, dict) else section
        section[name] = value
    return tree


def _has_interpolation(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_interpolation(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_interpolation(item) for item in value)
    return isinstance(value, str) and "${" in value


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _multiply(*factors: float) -> float:
    product: float = 1
    for factor in factors:
        product *= factor
    return product


def _int_div(numerator: int, denominator: int) -> int:
    return numerator // denominator


for _name, _resolver in (("multiply", _multiply), ("int_div", _int_div)):
    if not OmegaConf.has_resolver(_name):
        OmegaConf.register_new_resolver(_name, _resolver)
