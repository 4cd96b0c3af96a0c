"""Fixtures of the configuration's tests."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def yaml_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a text to a YAML file, and returns where."""

    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
