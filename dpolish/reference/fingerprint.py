"""A fingerprint of a model's weights and architecture, read from its files: no model is built for it."""

import hashlib
import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dpolish.errors import ModelError
from dpolish.facts import tensor_headers, weight_files

_VOLATILE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"})
"""Fields of config.json that move no log-probability."""


def fingerprint(folder: Path) -> str:
    """sha256 over the architecture and over name, dtype, shape and bytes of every tensor, however they are sharded.

    Raises ModelError when the folder holds no readable safetensors.
    """
    files = weight_files(folder)
    if not files:
        raise ModelError(
            f"{folder}: no *.safetensors here; pickled weights are not opened, save the model as safetensors"
        )
    with ThreadPoolExecutor(max_workers=4) as pool:
        tensors = sorted(line for part in pool.map(_tensor_digests, files) for line in part)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in _VOLATILE and not name.startswith("_")}
    return hashlib.sha256(json.dumps([kept, tensors], sort_keys=True).encode()).hexdigest()


def _tensor_digests(file: Path) -> list[str]:
    lines = []
    with (
        file.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        for name, header in tensor_headers(file).items():
            with view[header.begin : header.end] as content:
                digest = hashlib.sha256(content).hexdigest()
            lines.append(json.dumps([name, header.dtype, header.shape, digest]))
    return lines
