"""Data files as values: DPO's `model.data.data_prefix` by split, and SFT's `file_path` of one split.

    data.jsonl                                            one file
    [a.jsonl, b.jsonl]                                    all rows of both
    [0.3, a.jsonl, 0.7, b.jsonl]                          weights and paths in turn
    {train: …, validation: …, validation_x: …, test: …}   each of the above, by split

The first three are training files, which `splits_string` may divide. A key that begins with `validation` is a
validation set of that name. `test` may be left out. `file_path` is one of the first three.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dpolish.errors import ConfigError
from dpolish.registry import did_you_mean

TRAIN, VALIDATION, TEST = "train", "validation", "test"

_SPLIT = re.compile(r"train|test|validation\w*")


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data file, a folder or a data set's id, and its share of the rows where shares are given."""

    path: str
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class DataSources:
    """The sources of one split."""

    sources: tuple[DataSource, ...] = ()

    def plain(self) -> object:
        """What `parse_sources` reads as this value."""
        return _plain(self.sources) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    """The sources of every split."""

    train: tuple[DataSource, ...] = ()
    validation: tuple[tuple[str, tuple[DataSource, ...]], ...] = ()
    """(name, sources) of each validation set, in the order given; the usual one is called `validation`."""
    test: tuple[DataSource, ...] = ()
    """Read by nothing: NeMo-Aligner asks for it, and does not read it either."""
    by_split: bool = True
    """False where no split was named: `splits_string` may divide the training files."""

    def plain(self) -> object:
        """What `parse_data_prefix` reads as this value."""
        if not self.by_split:
            return _plain(self.train)
        splits = ((TRAIN, self.train), *self.validation, (TEST, self.test))
        return {name: _plain(sources) for name, sources in splits if sources} or None


def is_split(name: str) -> bool:
    """True for a key that `data_prefix` may hold."""
    return _SPLIT.fullmatch(name) is not None


def parse_data_prefix(value: object) -> DataFiles:
    """The sources that a plain value names. A ConfigError says what is wrong with it."""
    if value is None:
        return DataFiles()
    if isinstance(value, str | list):
        return DataFiles(train=_sources(value, "data_prefix: "), by_split=False)
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a path, a list or {{train: [...], validation: [...]}}, got {value!r}")
    for name in value:
        if not is_split(str(name)):
            raise ConfigError(f"unknown split {str(name)!r}.{did_you_mean(str(name), (TRAIN, VALIDATION, TEST))}")
    parsed = {str(name): _sources(sources, f"{name}: ") for name, sources in value.items() if sources is not None}
    return DataFiles(
        train=parsed.get(TRAIN, ()),
        validation=tuple((name, found) for name, found in parsed.items() if name.startswith(VALIDATION) and found),
        test=parsed.get(TEST, ()),
    )


def parse_sources(value: object) -> DataSources:
    """The sources that a plain value names: a path or a list. A ConfigError says what is wrong with it."""
    if value is None:
        return DataSources()
    if not isinstance(value, str | list):
        raise ConfigError(f"expected a path or a list of paths, got {value!r}")
    return DataSources(_sources(value, ""))


def _sources(value: object, place: str) -> tuple[DataSource, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise ConfigError(f"{place}expected a path or a list of paths, got {value!r}")
    if items and _is_number(items[0]):
        if len(items) % 2:
            raise ConfigError(f"{place}weights and paths must alternate, but the list has {len(items)} items")
        return tuple(
            DataSource(_path(path, place), _weight(weight, place))
            for weight, path in zip(items[::2], items[1::2], strict=True)
        )
    return tuple(DataSource(_path(path, place)) for path in items)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{place}expected a path, got {value!r}; with weights write [0.3, a.jsonl, 0.7, b.jsonl]")
    if not value.strip():
        raise ConfigError(f"{place}a path is empty; is a shell variable not set?")
    return value


def _weight(value: object, place: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{place}expected a weight above 0, got {value!r}; write [0.3, a.jsonl, 0.7, b.jsonl]")
    return float(value)


def _plain(sources: tuple[DataSource, ...]) -> list[object]:
    items = [(source.path,) if source.weight is None else (source.weight, source.path) for source in sources]
    return [part for item in items for part in item]
