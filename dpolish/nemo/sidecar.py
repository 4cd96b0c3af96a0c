"""What a model that came from `.nemo` keeps of it, so that it can become the same archive again.

    MODEL/nemo_source.json    how the weights lay there, and the hashes of what follows
    MODEL/nemo_source/        model_config.yaml as it was, and the artifacts that it names

transformers does not look at either. Training hands them on with the model; what has changed by then is found when the
model is exported.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dpolish.errors import ModelError
from dpolish.nemo.stored import Weights
from dpolish.nemo.tokenizers.library import refusals

FILE = "nemo_source.json"
FOLDER = "nemo_source"
_CONFIG, _NORMS = "model_config.yaml", "norms.safetensors"
_PLAIN = (
    "name",
    "generation",
    "layout",
    "tensor_parallel",
    "pipeline_parallel",
    "scale_positional_embedding",
    "tokens",
)
"""Fields of NemoSource that are written as they are."""
_FORMAT = 1
_LONGEST_TEXT = 1024
_LARGEST = 64 << 20
"""Bytes of an artifact: the largest vocabularies have some ten million."""
_SAFE_NAME = re.compile(r"(?!model_weights|mp_rank_|tp_rank_)[A-Za-z0-9_][\w.,+@= -]{0,254}")
_LAYER = re.compile(r"^decoder\.layers\.\d+\.")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoSource:
    """The archive that a model came from, without its weights."""

    name: str
    generation: str
    """NeMo 1, NeMo 2 or Megatron-Bridge."""
    layout: str
    """legacy-flat, mcore-flat, mcore-zarr or mcore-torch_dist."""
    tensor_parallel: int
    pipeline_parallel: int
    scale_positional_embedding: bool | None
    """What the user said in the place of this key."""
    dtypes: Mapping[str, torch.dtype]
    """By canonical name, with `*` for the number of the layer."""
    tokens: str
    """`token_digest` of the Hugging Face tokenizer that was made for the model."""
    config: bytes
    """model_config.yaml, or what NeMo 2 has in its place."""
    norms: bytes
    """A safetensors file of the norms that Hugging Face stores with one added, which can lose bits; empty for none."""
    artifacts: Mapping[str, bytes]
    """By the names that `config` has for them."""

    @property
    def files(self) -> dict[str, bytes]:
        """All content by the names of files."""
        norms = {_NORMS: self.norms} if self.norms else {}
        return {_CONFIG: self.config, **norms, **self.artifacts}

    def dtype_of(self, name: str) -> torch.dtype | None:
        """The type that a tensor had; None for one that was not there."""
        return self.dtypes.get(layer_class(name))


def layer_class(name: str) -> str:
    """A canonical name with `*` for the number of the layer."""
    return _LAYER.sub("decoder.layers.*.", name)


def dtypes_of(weights: Weights) -> dict[str, torch.dtype]:
    """The type of each kind of tensor. Raises ModelError where layers differ, which no checkpoint has."""
    found: dict[str, torch.dtype] = {}
    for name, tensor in weights.items():
        known = found.setdefault(layer_class(name), tensor.dtype)
        if known != tensor.dtype:
            raise ModelError(f"{name} is {tensor.dtype}, and that of other layers {known}; the checkpoint is damaged")
    return found


def token_digest(folder: Path) -> str:
    """sha256 over the tokens of a folder's fast tokenizer and their numbers; "" where there is none."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return ""
    with refusals(f"{file}: cannot be read"):
        tokens = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    return hashlib.sha256(json.dumps(sorted(tokens.items())).encode()).hexdigest()


def write_sidecar(folder: Path, source: NemoSource) -> None:
    """Put what is kept of an archive into the model folder. Raises ModelError for a name that is none of a file."""
    place = folder / FOLDER
    place.mkdir()
    for name, content in source.files.items():
        if not _SAFE_NAME.fullmatch(name) or name in source.artifacts.keys() & {_CONFIG, _NORMS}:
            raise ModelError(f"{source.name}: the artifact {name!a} has no name that a file can have here")
        (place / name).write_bytes(content)
    record = {
        "format": _FORMAT,
        **{name: getattr(source, name) for name in _PLAIN},
        "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in source.dtypes.items()},
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in source.files.items()},
    }
    (folder / FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_sidecar(folder: Path) -> NemoSource | None:
    """What is kept of the archive that the model came from; None for a model that did not. Raises ModelError."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return _source(_Record(json.loads(file.read_text(encoding="utf-8"))), folder)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file}: cannot be used: {error}. Copy {FILE} and {FOLDER}/ again from the model that was imported, or "
            "remove both: the archive then gets a new configuration"
        ) from error


def carry_sidecar(source: Path, destination: Path) -> bool:
    """Hand on what is kept of an archive from a model folder to the one that was trained from it; whether there is any.

    Raises ModelError where the source's is damaged.
    """
    kept = read_sidecar(source)
    if kept is not None:
        write_sidecar(destination, kept)
    return kept is not None


@dataclass(frozen=True, slots=True)
class _Record:
    """A JSON object of which nothing is known yet; what is taken out is of the kind asked for, or a ValueError."""

    value: object

    def text(self, name: str) -> str:
        """A string."""
        value = self._get(name)
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
            raise ValueError(f"{name} is {value!r}, and not a text")
        return value

    def number(self, name: str) -> int:
        """A positive whole number."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, and not a positive number")
        return value

    def choice(self, name: str) -> bool | None:
        """True, false or null."""
        value = self._get(name)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, and not true, false or null")
        return value

    def texts(self, name: str) -> dict[str, str]:
        """An object of strings."""
        value = self._get(name)
        if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
            raise ValueError(f"{name} is not an object of texts")
        return value

    def _get(self, name: str) -> object:
        if not isinstance(self.value, dict) or name not in self.value:
            raise ValueError(f"{name} is missing")
        return self.value[name]


def _source(record: _Record, folder: Path) -> NemoSource:
    if (version := record.number("format")) != _FORMAT:
        raise ValueError(f"its format is {version}, and {_FORMAT} is understood")
    files = {name: _file(folder, name, digest) for name, digest in record.texts("files").items()}
    if _CONFIG not in files:
        raise ValueError(f"it names no {_CONFIG}")
    unknown = [dtype for dtype in record.texts("dtypes").values() if dtype not in _DTYPES]
    if unknown:
        raise ValueError(f"{unknown[0]} is no type of weights")
    config = files.pop(_CONFIG)
    return NemoSource(
        name=record.text("name"),
        generation=record.text("generation"),
        layout=record.text("layout"),
        tensor_parallel=record.number("tensor_parallel"),
        pipeline_parallel=record.number("pipeline_parallel"),
        scale_positional_embedding=record.choice("scale_positional_embedding"),
        dtypes={name: _DTYPES[dtype] for name, dtype in record.texts("dtypes").items()},
        tokens=record.text("tokens"),
        config=config,
        norms=files.pop(_NORMS, b""),
        artifacts=files,
    )


def _file(folder: Path, name: str, digest: str) -> bytes:
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(f"{name!a} is no name of a file there")
    path = folder / FOLDER / name
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"{FOLDER}/{name} is missing, or too large")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{FOLDER}/{name} is not what was kept")
    return content
