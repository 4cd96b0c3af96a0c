"""Whether a path is a checkpoint of NeMo's. Loads nothing."""

from pathlib import Path

_MARKS = ("model_config.yaml", "context/model.yaml", "run_config.yaml")
"""Configurations of NeMo 1, NeMo 2 and Megatron-Bridge."""


def is_nemo(path: Path) -> bool:
    """True for an archive, by its being a file or by its name, and for a folder that has a configuration of NeMo's."""
    if path.is_dir():
        return not (path / "config.json").is_file() and any((path / mark).is_file() for mark in _MARKS)
    return path.suffix == ".nemo" or path.is_file()
