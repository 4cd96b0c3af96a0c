"""The directory of a run: where it is, whether it is free, and who has it. Loads without torch."""

from pathlib import Path

from dpolish.config.compose import to_yaml
from dpolish.config.schema import RunConfig
from dpolish.errors import ConfigError, RunError
from dpolish.files import cannot_write, write_atomically

_RUN_FILES = ("config.yaml", "metrics.jsonl", "model", "checkpoints")
"""What tells that a directory holds a run."""


def run_directory(config: RunConfig) -> Path:
    """`exp_manager.explicit_log_dir`, or EXP_DIR/NAME, or ./results/NAME."""
    manager = config.exp_manager
    if manager.explicit_log_dir is not None:
        return Path(manager.explicit_log_dir).expanduser()
    return Path(manager.exp_dir or "results").expanduser() / manager.name


def require_free(directory: Path) -> None:
    """Raise ConfigError when the directory already holds a run, or cannot become one."""
    found = [name for name in _RUN_FILES if (directory / name).exists()]
    if found:
        raise ConfigError(
            f"{directory} already holds a run ({', '.join(found)}); it is never overwritten, and resuming is not in "
            "this version. Name another directory with --output (exp_manager.explicit_log_dir), or remove this one"
        )
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(
            f"{directory}: {existing} is a file; name a directory with --output (exp_manager.explicit_log_dir)"
        )


def claim(directory: Path, config: RunConfig) -> None:
    """Make the run directory this run's own: the first to create config.yaml has it."""
    path = directory / "config.yaml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    except FileExistsError:
        require_free(directory)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error
    write_atomically(path, to_yaml(config))
