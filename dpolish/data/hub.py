"""Rows of data sets that the `datasets` library knows: hub ids, and folders with a data set or data files.

    org/name                     the split `train`, or the only one
    org/name:split               that split
    org/name/config:split        of that configuration
    folder, folder:split         what `save_to_disk` wrote, or a folder of data files

A row's place is `org/name:split:17`, counted from 1. The library is an optional extra and loads only here.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpolish.data.read import Fault, Row, scan
from dpolish.errors import DataError
from dpolish.registry import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

EXTRA = "pip install 'dpolish[hub]'"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?:/[\w-][\w.-]*)?(?::[\w.-]+)?")
_DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".gz", ".zst", ".csv", ".txt")
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Address:
    """What a path that is not a file names."""

    name: str
    """Folder, or `org/name` on the hub."""
    config: str | None
    split: str | None
    folder: bool

    @staticmethod
    def of(path: str) -> "Address | None":
        """The address that a path is; None where it is that of a file, there or missing."""
        local = os.path.expanduser(path)
        if os.path.isdir(local):
            return Address(local, None, None, folder=True) if _holds_data(local) else None
        base, _, split = local.rpartition(":")
        if base and split and os.path.isdir(base):
            return Address(base, None, split, folder=True)
        named, _, split = path.partition(":")
        if os.path.exists(local) or not _HUB_ID.fullmatch(path) or named.lower().endswith(_DATA_SUFFIXES):
            return None
        organisation, name, *config = named.split("/")
        if os.path.isdir(organisation):  # a file of that folder, misspelt
            return None
        return Address(f"{organisation}/{name}", config[0] if config else None, split or None, folder=False)

    @property
    def where(self) -> str:
        """The address as it is named in messages, without its split."""
        return f"{self.name}/{self.config}" if self.config else self.name


def rows_of(path: str) -> Iterator[Row | Fault]:
    """Every row of a file, a folder or a hub data set, and a fault in the place of each that cannot be read."""
    return scan(path) if Address.of(path) is None else open_rows(path)


def open_rows(path: str) -> Iterator[Row | Fault]:
    """Every row of a folder or a hub data set. What cannot be loaded is one DataError with the way out."""
    address = Address.of(path)
    if address is None:
        raise DataError(f"{path}: neither a folder with data nor the id of a data set (org/name, org/name:split)")
    splits = _loaded(address)
    split = _chosen(address, list(splits))
    dataset = splits[split]
    where = f"{address.where}:{split}" if split else address.where
    number = 0
    try:
        # Arrow's own values: decoding pictures or sound would need further libraries, and only text is used
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
            for value in table.to_pylist():
                number += 1
                yield Row(f"{where}:{number}", value)
    except (OSError, ValueError, TypeError) as error:
        yield Fault(f"{where}:{number + 1}", f"the data set cannot be read from here on: {error}")
    if not number:
        yield Fault(f"{where}:1", "no rows here: the data set is empty")


def _holds_data(folder: str) -> bool:
    """Whether a folder has something that the library reads; a folder of other things is a mistake."""
    endings = (*_DATA_SUFFIXES, ".arrow", ".yaml")
    try:
        return any(
            name.endswith(endings) or name in ("dataset_dict.json", "dataset_info.json", "state.json")
            for _, _, names in os.walk(folder)
            for name in names
        )
    except OSError:
        return False


def _loaded(address: Address) -> "dict[str, Dataset]":
    """The splits of a data set by name; one without splits is named ""."""
    try:
        import datasets  # deferred: heavy, optional, and only for this
    except ImportError as error:
        raise DataError(_without_library(address)) from error
    try:
        if address.folder and _is_saved(address.name):
            loaded = datasets.load_from_disk(address.name)
        else:
            loaded = datasets.load_dataset(address.name, address.config)
    except Exception as error:  # whatever the library and what it calls may raise
        raise DataError(f"{address.where}: {_reason(address, error)}") from error
    return {"": loaded} if isinstance(loaded, datasets.Dataset) else {str(name): one for name, one in loaded.items()}


def _is_saved(folder: str) -> bool:
    return any((Path(folder) / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _chosen(address: Address, splits: list[str]) -> str:
    """The split that is asked for, or that can only be meant."""
    listed = ", ".join(splits)
    if address.split is None:
        if len(splits) == 1 or "train" in splits:
            return splits[0] if len(splits) == 1 else "train"
        raise DataError(f"{address.where}: say which split, as in {address.where}:{splits[0]}. It has {listed}.")
    if address.split in splits:
        return address.split
    if splits == [""]:
        raise DataError(f"{address.where}: the data set has no splits: leave :{address.split} out")
    hint = did_you_mean(address.split, splits)
    raise DataError(f"{address.where}: no split {address.split!r}.{hint} It has {listed}.")


def _without_library(address: Address) -> str:
    if not address.folder:
        return (
            f"{address.where}: no such file; if a data set of the Hugging Face hub is meant, reading it needs the "
            f"package datasets: {EXTRA}"
        )
    inside = sorted(os.listdir(address.name))
    listed = ", ".join(inside[:5]) + (" …" if len(inside) > 5 else "")
    return (
        f"{address.where}: a folder; reading it needs the package datasets: {EXTRA}. "
        f"Or name the files in it: it holds {listed}"
    )


def _reason(address: Address, error: Exception) -> str:
    """Why a data set could not be loaded, and what to do."""
    what = str(error).strip().partition("\n")[0] or type(error).__name__
    if address.folder:
        return f"the folder cannot be loaded as a data set: {what}. Name the files in it, or mend it."
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return (
            f"no such file, and as a data set of the hub it is not in the cache, while HF_HUB_OFFLINE forbids to "
            f"fetch it: fetch it once without that variable. ({what})"
        )
    return (
        f"no such file, and as a data set of the hub it cannot be loaded: {what}. Check the name, access and network."
    )
