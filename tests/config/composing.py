"""Composing without this machine's environment, and the faults of an error one by one."""

from pathlib import Path

import pytest

from dpolish.config import Composed, DpoConfig, compose
from dpolish.errors import ConfigError

NEMO_YAML = Path(__file__).parent / "gpt_dpo.yaml"
"""NeMo-Aligner's keys and values."""


def composed(*overrides: str, file: Path | None = None) -> Composed:
    return compose(file, overrides, environ={})


def config(*overrides: str) -> DpoConfig:
    return composed(*overrides).config


def value_of(result: Composed, key: str) -> object:
    """The plain value of a dotted key."""
    found: object = result.resolved
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    return found


def faults(*overrides: str, file: Path | None = None) -> list[str]:
    """The faults reported, without the line that counts them."""
    with pytest.raises(ConfigError) as caught:
        composed(*overrides, file=file)
    lines = str(caught.value).splitlines()
    return lines[1:] if lines[0].endswith(" problems:") else lines
