"""No network, nobody's cache, and a tiny model that is made once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.tiny import Setup

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

settings.register_profile("steady", deadline=None)  # no time limit per example on a shared machine
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs that several tests share keep their references: fixtures of a module run before those of a test."""
    folder = tmp_path_factory.mktemp("shared_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPOLISH_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of each test's own."""
    folder = tmp_path_factory.getbasetemp() / "caches" / os.urandom(8).hex()  # only runs make it
    monkeypatch.setenv("DPOLISH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> "Setup":
    """A tiny model with its tokenizer, 11 training and 5 validation rows."""
    from tests import tiny  # deferred: the light tests load no torch

    folder = tmp_path_factory.mktemp("tiny")
    return tiny.Setup(
        tiny.save_model(folder / "model"),
        tiny.write_rows(folder / "train.jsonl", tiny.rows(11)),
        tiny.write_rows(folder / "validation.jsonl", tiny.rows(5, seed=1)),
    )
