"""Open a checkpoint of NeMo: its configuration, its artifacts, and its weights as tensors that are read when asked.

Everything about the weights but their bytes is checked by the time it is open: which tensors there are, and that their
shapes are those that the configuration implies. Nothing in a checkpoint is run, imported or followed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch

from dpolish.errors import ModelError, join_faults
from dpolish.nemo.archive import Archive, open_archive
from dpolish.nemo.config_yaml import MAX_BYTES, read_config
from dpolish.nemo.gpt_config import GptConfig
from dpolish.nemo.layouts import Format, read_layout
from dpolish.nemo.names import Naming
from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.tar_plan import quoted

MAX_ARTIFACT = 34 << 20
"""Bytes of a tokenizer's file; the largest have some thirty million."""

_EMBEDDING = "embedding.word_embeddings.weight"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class _Generation:
    """Where one generation of the toolkit keeps its files."""

    name: str
    config: str
    weights: str
    artifacts: str
    """The folder that artifacts are named from."""
    nested: bool
    """Artifacts may lie in folders below it."""
    others: tuple[str, ...]
    """Beginnings and ends of the names there that are no artifacts."""


_GENERATIONS = (
    _Generation("NeMo 1", "model_config.yaml", "model_weights/", "", False, (".ckpt", "model_config.yaml")),
    _Generation(
        "NeMo 2", "context/model.yaml", "weights/", "context/", True, ("context/model.yaml", "context/io.json")
    ),
    _Generation("Megatron-Bridge", "run_config.yaml", "", "", True, (".distcp", ".metadata", ".pt", "run_config.yaml")),
)


@dataclass(frozen=True, slots=True)
class SourceLayout:
    """How the weights lie in the checkpoint."""

    generation: str
    """NeMo 1, NeMo 2 or Megatron-Bridge."""
    format: Format
    naming: Naming
    tensor_parallel: int
    pipeline_parallel: int
    vocabulary_rows: int
    """Rows of the embedding, padding included."""


@dataclass(frozen=True, slots=True)
class NemoCheckpoint:
    """An open checkpoint. Its weights and artifacts can be read until it is closed."""

    path: Path
    raw_config: dict[str, object]
    config_file: bytes
    """The file that `raw_config` was read from, to the letter."""
    config: GptConfig
    weights: Weights
    """Canonical names, whole tensors, the shapes that `config` implies."""
    source: SourceLayout
    artifacts: Mapping[str, str]
    """Names of artifacts, as the configuration has them behind `nemo:`, to names of files."""
    archive: Archive

    def __enter__(self) -> "NemoCheckpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.archive.close()

    def artifact(self, name: str) -> bytes:
        """The content of an artifact, named as in the configuration. Raises ModelError.

        Without `nemo:` it is a file of the machine that wrote a very old archive, which has it under its last name.
        """
        bare = name.removeprefix("nemo:")
        file = self.artifacts.get(bare) or (self.artifacts.get(Path(name).name) if bare == name else None)
        if file is None:
            have = ", ".join(map(quoted, list(self.artifacts)[:10])) or "none"
            raise ModelError(f"{self.path}: has no artifact {quoted(bare)}; it has {have}")
        return self.archive.span(file).read_all(MAX_ARTIFACT)


def located(error: ModelError, path: Path) -> ModelError:
    """The error with the checkpoint's name in front, which a part of it may not know."""
    return error if str(error).startswith(str(path)) else ModelError(f"{path}: {error}")


def open_checkpoint(path: Path, *, scale_positional_embedding: bool | None = None) -> NemoCheckpoint:
    """The checkpoint at `path`: a `.nemo` archive, the folder of one, or a folder of NeMo 2. Raises ModelError.

    `scale_positional_embedding` overrides the key of that name, as in `GptConfig.from_nemo`.
    """
    archive = open_archive(path)
    try:
        generation = _generation(archive)
        span = archive.span(generation.config)
        raw = read_config(span)
        config = GptConfig.from_nemo(raw, scale_positional_embedding=scale_positional_embedding, where=span.label)
        layout = read_layout(archive, generation.weights, raw, config)
        if layout.naming == "legacy-te":
            config = replace(config, activation="gelu_pytorch_tanh")  # whatever NeMo says of fusion: it is TE's own
        rows = _vocabulary_rows(layout.tensors, archive.path)
        return NemoCheckpoint(
            path=path,
            raw_config=raw,
            config_file=span.read_all(MAX_BYTES),
            config=config,
            weights=_checked(layout.tensors, config, rows, archive.path),
            source=SourceLayout(
                generation.name, layout.format, layout.naming, layout.tensor_parallel, layout.pipeline_parallel, rows
            ),
            artifacts=_artifacts(archive, generation),
            archive=archive,
        )
    except BaseException:
        archive.close()
        raise


def _generation(archive: Archive) -> _Generation:
    """Which toolkit wrote the checkpoint. Raises ModelError, with what to name instead where that is plain."""
    for generation in _GENERATIONS:
        if generation.config in archive:
            return generation
    path = archive.path
    if "config.json" in archive:
        raise ModelError(f"{path}: is a Hugging Face model, and not of NeMo; it needs no import")
    inner = [name for name in archive if name.endswith(".nemo") and "/" not in name]
    if inner:
        raise ModelError(f"{path}: holds {quoted(inner[0])}; name that file")
    ends = tuple(f"/{generation.config}" for generation in _GENERATIONS)
    deeper = [name for name in archive if name.endswith(ends) and f"/{name.partition('/')[2]}" in ends]
    if deeper:
        place = quoted(max(deeper).partition("/")[0])
        raise ModelError(f"{path}: has its files in the folder {place}; name that folder")
    if path.name in ("model_weights", "weights", "context"):
        whole = path.absolute().parent
        raise ModelError(f"{path}: is a part of a checkpoint; name the folder that it lies in, {whole}")
    raise ModelError(
        f"{path}: has no model_config.yaml (nor context/model.yaml of NeMo 2), so it is no .nemo checkpoint"
    )


def _artifacts(archive: Archive, generation: _Generation) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in archive.under(generation.artifacts):
        name = file.removeprefix(generation.artifacts)
        if not file.endswith(generation.others) and (generation.nested or "/" not in name):
            found[name] = file
    return found


def _vocabulary_rows(tensors: Weights, path: Path) -> int:
    """Rows of the embedding, which no setting says: padding depends on how the model was trained."""
    embedding = tensors.get(_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{path}: has no token embedding, so it is no language model. It has {_some(tensors)}.")
    return embedding.shape[0]


def _checked(tensors: Weights, config: GptConfig, rows: int, path: Path) -> dict[str, StoredTensor]:
    """The tensors in the model's order. Raises ModelError unless they are all that the configuration implies."""
    from dpolish.nemo.families import expected_shapes  # deferred: it loads transformers, and many files end before

    expected = expected_shapes(config, rows)
    faults = []
    if missing := [name for name in expected if name not in tensors]:
        faults.append(f"{path}: lacks {_some(missing)}")
    if unknown := [name for name in tensors if name not in expected]:
        faults.append(f"{path}: has {_some(unknown)}, which a GPT of this configuration does not have")
    for name in expected:
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape != expected[name]:
            faults.append(f"{path}: {name} is {tensor.shape}, and the configuration implies {expected[name]}")
        elif tensor is not None and tensor.dtype not in _DTYPES:
            faults.append(f"{path}: {name} is {tensor.dtype}; weights are float32, bfloat16 or float16")
    if faults:
        raise ModelError(join_faults(faults, shown=6))
    return {name: tensors[name] for name in expected}


def _some(names: Iterable[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(map(quoted, listed[:shown])) + more if listed else "no tensors"
