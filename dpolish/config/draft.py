"""Settings laid over the defaults one by one, while everything is still plain and may follow other keys."""

from collections.abc import Iterator, Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpolish.config.interpolation import escaped, has_interpolation
from dpolish.config.keys import Key, all_keys, all_sections
from dpolish.config.sources import Setting
from dpolish.config.trees import DATA_PREFIX, tree_of
from dpolish.config.typed import UnknownNameError
from dpolish.errors import ConfigError
from dpolish.registry import did_you_mean

MISSING = "???"
"""OmegaConf's mark for a value that has to be given."""


class Draft:
    """The values so far, with where each was given. `apply` and `resolve` raise a ConfigError for each fault."""

    def __init__(self, root: type) -> None:
        self._root, self._facts = root, tree_of(root)
        self._keys = all_keys(root)
        self.values: dict[str, object] = {key.name: key.default for key in self._keys.values()}
        """By key of the schema."""
        self.given: dict[str, Setting] = {}
        """The last setting of each key that was given."""
        self.ignored: dict[str, object] = {}
        """Given keys that have no meaning here: interpolations may name them all the same."""
        self._on_command_line: dict[str, Setting] = {}
        self._taken: dict[str, str] = {}
        """Keys that took the value of the one that usually follows them."""

    def apply(self, setting: Setting) -> None:
        """Lay one setting over what is there."""
        key = self._facts.nemo.aliases.get(setting.key, setting.key)
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

    def followed(self, key: str) -> str | None:
        """The key that this one takes its value from, as long as it is not given itself."""
        if key in self.given or key not in self.values:
            return None
        return self._taken.get(key) or self._keys[key].followed

    def resolve(self) -> Iterator[tuple[str, object]]:
        """(key, plain value without interpolations) of every key; a fault is yielded as a ConfigError in its place."""
        for key in self._keys.values():
            if key.metadata.get("both_ways"):
                self._take_back(key)
        tree, broken = self._tree()
        yield from broken.items()
        for key in self._keys.values():
            try:
                yield key.name, broken.get(key.name) or self._resolved(tree, key)
            except ConfigError as error:
                yield key.name, error

    def _take_back(self, key: Key) -> None:
        """Where this key alone is given, the one that it follows takes its value."""
        followed = key.followed
        assert followed is not None
        if key.name in self.given and followed not in self.given and self.values[key.name] != key.default:
            self.values[followed] = f"${{{key.name}}}"
            self._taken[followed] = key.name

    def _setting(self, key: str) -> Setting | None:
        """What was given for a key, or for the one that it follows."""
        followed = self.followed(key)
        return self._setting(followed) if followed else self.given.get(key)

    def _check_known(self, setting: Setting, leaf: str) -> None:
        nemo = self._facts.nemo
        if leaf in nemo.renamed:
            raise UnknownNameError(f"{setting.where}: {leaf}: {nemo.renamed[leaf]}")
        if leaf in self.values:
            return
        if nemo.reason_ignored(leaf) is None:
            if leaf in all_sections(self._root):
                inner = [name.removeprefix(f"{leaf}.") for name in self._keys if name.startswith(f"{leaf}.")]
                raise ConfigError(f"{setting.where}: {leaf}: a section, not a value; it has {', '.join(inner)}")
            raise UnknownNameError(f"{setting.where}: unknown key {leaf!r}.{_nearest_key(leaf, self._root)}")
        if leaf == "defaults":
            _check_defaults(setting, nemo.file)

    def _exists(self, leaf: str, setting: Setting) -> bool:
        if setting.split:
            return setting.split in self._splits()
        nemo = self._facts.nemo
        listed = leaf in self.values and leaf not in nemo.unlisted and setting.key not in nemo.aliases
        return listed or leaf in self.given

    def _check_flag(self, setting: Setting) -> None:
        """A flag and an override of one key must say the same."""
        typed_out = self._on_command_line.get(setting.key)
        if typed_out is None and setting.split and DATA_PREFIX in self._on_command_line:
            typed_out = self._on_command_line[DATA_PREFIX]
        if typed_out and _as_list(typed_out.value) != _as_list(setting.value):
            raise ConfigError(f"{setting.where} contradicts {typed_out.where}: give one of them")
        for other in self._facts.displaced.get(setting.key, ()):
            if other not in self._on_command_line:
                self.values[other] = self._keys[other].default
                self.given.pop(other, None)

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
        copies = {alias: f"${{{key}}}" for alias, key in self._facts.nemo.aliases.items()}
        values, broken = {**copies, **self.ignored, **self.values}, dict[str, ConfigError]()
        for key in [key for key, value in values.items() if has_interpolation(value)]:
            try:
                OmegaConf.create({"value": values[key]})
            except OmegaConfBaseException as error:
                broken[key] = ConfigError(f"{self.where(key)}: {str(error).splitlines()[0]}")
                del values[key]
        literal = {key: escaped(value) for key, value in values.items() if self._is_literal(key)}
        return OmegaConf.create(_nested({**values, **literal})), broken

    def _is_literal(self, key: str) -> bool:
        """True for a text that is kept to the letter: it may follow another key all the same."""
        metadata = self._keys[key].metadata if key in self._keys else {}
        return metadata.get("literal") is True and self.values[key] != metadata.get("follow")

    def _resolved(self, tree: DictConfig, key: Key) -> object:
        value = self.values[key.name]
        if value == MISSING and key.name not in self._facts.may_be_missing:
            raise ConfigError(f"{self.where(key.name)}: missing: {MISSING} stands for a value that has to be given")
        if value == MISSING:
            return None
        if self._is_literal(key.name) or not has_interpolation(value):
            return value
        try:
            resolved = OmegaConf.select(tree, key.name, throw_on_resolution_failure=True)
            return OmegaConf.to_container(resolved, resolve=True) if OmegaConf.is_config(resolved) else resolved
        except OmegaConfBaseException as error:
            raise ConfigError(f"{self.where(key.name)}: {value!r}: {str(error).splitlines()[0]}") from error


def _nearest_key(key: str, root: type) -> str:
    """The hint for an unknown key: a key that ends like it, or one that is written like it."""
    keys, nemo = all_keys(root), tree_of(root).nemo
    splits = [f"{DATA_PREFIX}.{split}" for split in ("train", "validation", "test") if DATA_PREFIX in keys]
    ignored = (name for name in nemo.ignored if not name.endswith(".*"))
    known = [*keys, *all_sections(root), *splits, *ignored, *nemo.aliases]
    same_end = [name for name in keys if name.endswith(f".{key}")]
    return did_you_mean(same_end[0], same_end) if len(same_end) == 1 else did_you_mean(key, known)


def _check_defaults(setting: Setting, own: str) -> None:
    """A `defaults:` list may name the tree's own file, whose values are the defaults, and optional files; no other."""
    entries = setting.value if isinstance(setting.value, list) else [setting.value]
    names = [str(name) for entry in entries for name in (entry if isinstance(entry, dict) else [entry])]
    for name in names:
        if name not in ("_self_", own, "None") and not name.startswith(("optional ", "override hydra/")):
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


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
