"""What a run was made with, for environment.json: versions, hardware, git commit, command line. No secret enters it."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "dpolish", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "peft", "datasets", "numpy",
    "pyarrow", "orjson", "msgspec", "hydra-core", "omegaconf", "gguf", "flash-attn", "triton", "wandb", "tensorboard",
)  # fmt: skip

_VARIABLES = re.compile(
    r"(CUDA|NVTE|NCCL|GLOO|OMP|MKL|KMP|PYTORCH|TORCH|TORCHINDUCTOR|CUBLAS|HYDRA)_\w+|HF_HUB_OFFLINE|HF_HOME"
    r"|TRANSFORMERS_OFFLINE|TOKENIZERS_PARALLELISM|WANDB_MODE|PYTHONHASHSEED|GPFS|RANK|LOCAL_RANK|WORLD_SIZE"
    r"|SLURM_(JOB_ID|JOB_NAME|JOB_NUM_NODES|NNODES|NTASKS|NTASKS_PER_NODE|PROCID|LOCALID|RESTART_COUNT)"
)
"""The variables that are recorded: an allow-list, for an environment is full of secrets."""

_SECRET_WORDS = frozenset(
    ("token", "key", "apikey", "secret", "password", "passwd", "passphrase", "credential", "credentials")
)
_REDACTED = "***"


def environment_record(argv: Sequence[str]) -> dict[str, object]:
    """Everything about this machine and installation that may explain a number, without secrets."""
    return {
        "command": redact_command(argv, os.environ),
        "directory": str(Path.cwd()),
        "git": _git(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(Path("/proc/driver/nvidia/gpus")),
        "variables": _variables(os.environ),
    }


def redact_command(argv: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """The command line with the values of secret keys, of secret environment variables, and URL passwords left out.

    >>> redact_command(["dpolish", "--api-key", "x1", "a.hf_token=x2", "model.data.tokens_per_micro_batch=64"], {})
    ['dpolish', '--api-key', '***', 'a.hf_token=***', 'model.data.tokens_per_micro_batch=64']
    """
    secrets = [value for name, value in variables.items() if is_secret(name) and len(value) >= 8]
    redacted: list[str] = []
    for previous, argument in zip(("", *argv), argv, strict=False):
        if previous.startswith("-") and "=" not in previous and is_secret(previous) and not argument.startswith("-"):
            redacted.append(_REDACTED)
            continue
        for secret in secrets:
            argument = argument.replace(secret, _REDACTED)
        redacted.append(redact_argument(argument))
    return redacted


def redact_argument(argument: str) -> str:
    """One `key=value`, `{key: value}`, URL or anything else, with what must not be seen replaced.

    >>> redact_argument("https://me:pw@host/x?token=abc&page=2")
    'https://***@host/x?token=***&page=2'
    """
    key, equals, _ = argument.partition("=")
    if equals and re.fullmatch(r"[+~\w.-]+", key) and is_secret(key):
        return f"{key}={_REDACTED}"
    argument = re.sub(r"(://)[^/\s]+@", rf"\1{_REDACTED}@", argument)
    return re.sub(
        r"""([\w.-]+)(["']?\s*[=:]\s*)('[^']*'|"[^"]*"|[^\s,{}\[\]&?]+)""",
        lambda match: f"{match[1]}{match[2]}{_REDACTED}" if is_secret(match[1]) else match[0],
        argument,
    )


def is_secret(key: str) -> bool:
    """True when a word of the key says that its value is a secret. `tokens` are counted, a `token` is a secret.

    >>> is_secret("WANDB_API_KEY"), is_secret("accessToken"), is_secret("tokens_per_micro_batch")
    (True, True, False)
    """
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", key).lower())
    return not _SECRET_WORDS.isdisjoint(words)


def _variables(variables: Mapping[str, str]) -> dict[str, str]:
    recorded = sorted(name for name in variables if _VARIABLES.fullmatch(name) and not is_secret(name))
    return {name: redact_argument(variables[name]) for name in recorded}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(directory: Path) -> dict[str, object] | None:
    """Commit of the working tree around `directory`, and whether tracked files differ from it; None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1] if match else platform.machine()


def _gpus(directory: Path) -> list[str]:
    """Models of the NVIDIA GPUs, as the driver names them."""
    texts = [file.read_text() for file in sorted(directory.glob("*/information"))]
    return [model[1].strip() for text in texts if (model := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))]
