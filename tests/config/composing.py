"""Composing without this machine's environment, and the faults of an error one by one."""

from pathlib import Path

import pytest

from dpolish.config import Composed, DpoConfig, RunConfig, SftConfig, compose
from dpolish.errors import ConfigError

NEMO_YAML = Path(__file__).parent / "gpt_dpo.yaml"
"""NeMo-Aligner's keys and values."""
NEMO_SFT_YAML = Path(__file__).parent / "gpt_sft.yaml"
"""The same of SFT."""


def composed(*overrides: str, file: Path | None = None) -> Composed[DpoConfig]:
    return compose(file, overrides, environ={})


def config(*overrides: str) -> DpoConfig:
    return composed(*overrides).config


def composed_sft(*overrides: str, file: Path | None = None) -> Composed[SftConfig]:
    return compose(file, overrides, root=SftConfig, environ={})


def sft_config(*overrides: str) -> SftConfig:
    return composed_sft(*overrides).config


def value_of(result: Composed[RunConfig], key: str) -> object:
    """The plain value of a dotted key."""
    found: object = result.resolved
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    return found


def faults(*overrides: str, file: Path | None = None, root: type[RunConfig] = DpoConfig) -> list[str]:
    """The faults reported, without the line that counts them."""
    with pytest.raises(ConfigError) as caught:
        compose(file, overrides, root=root, environ={})
    lines = str(caught.value).splitlines()
    return lines[1:] if lines[0].endswith(" problems:") else lines


def sft_faults(*overrides: str, file: Path | None = None) -> list[str]:
    """The same of SFT."""
    return faults(*overrides, file=file, root=SftConfig)
