"""Between a conversion and the tokenizers: what an archive gets when NeMo has no form for a Hugging Face tokenizer.

Such an archive names the tokenizer, as NeMo's own converters do, and NeMo loads it from there. The tokenizer's files
travel along under the configuration's key `dpolish`, which NeMo does not read, so that the way back needs nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dpolish.errors import ModelError
from dpolish.nemo.checkpoint import MAX_ARTIFACT, NemoCheckpoint, located
from dpolish.nemo.gpt_config import HINT
from dpolish.nemo.tokenizers.archived import tokenizer_size
from dpolish.nemo.tokenizers.reading import ImportedTokenizer, import_tokenizer
from dpolish.nemo.tokenizers.writing import NemoTokenizer, export_tokenizer

HINTED_FILES = "tokenizer"
"""Key of the block `dpolish`: names of a tokenizer's files, and of the artifacts that hold them."""

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_FOLDERS = ("nemo_tokenizer", "tokenizer")
"""What NeMo 2 and Megatron-Bridge call the folder of a tokenizer."""
_RUNS_CODE = ("auto_map",)
"""Keys by which a tokenizer's configuration asks for code of its own."""


@dataclass(frozen=True, slots=True)
class ArchiveTokenizer:
    """A tokenizer for an archive."""

    block: Mapping[str, object]
    artifacts: Mapping[str, bytes]
    size: int | None
    """Tokens that NeMo counts; None where only NeMo has the tokenizer."""
    files: Mapping[str, str]
    """Of a tokenizer that NeMo has no form for: its files, and the artifacts that hold them."""


def save_tokenizer(checkpoint: NemoCheckpoint, folder: Path, rows: int, given: Path | None) -> ImportedTokenizer:
    """Put the checkpoint's tokenizer, or the one in the folder `given`, into a model folder. Raises ModelError."""
    files = _hugging_face_files(checkpoint) if given is None else {}
    if not files:
        return _imported(checkpoint, folder, rows, given)
    with TemporaryDirectory(dir=folder) as place:
        for name, content in files.items():
            Path(place, name).write_bytes(_harmless(name, content))
        return replace(_imported(checkpoint, folder, rows, Path(place)), warnings=())


def _imported(checkpoint: NemoCheckpoint, folder: Path, rows: int, given: Path | None) -> ImportedTokenizer:
    data = checkpoint.raw_config.get("data")
    try:
        return import_tokenizer(
            _block(checkpoint, given),
            checkpoint.artifact,
            folder,
            rows=rows,
            folder=given,
            data=data if isinstance(data, dict) else None,
        )
    except ModelError as error:
        raise located(error, checkpoint.path) from error


def _block(checkpoint: NemoCheckpoint, given: Path | None) -> Mapping[str, object]:
    """What the configuration says of the tokenizer. NeMo 2's says it with objects, and has the files beside them."""
    block = checkpoint.raw_config.get("tokenizer")
    if checkpoint.source.generation == "NeMo 1" and isinstance(block, dict) and (block.get("library") or given is None):
        return block
    if given is not None:
        return _by_name(given.name)
    models = [name for name in checkpoint.artifacts if name.endswith(".model")]
    if len(models) == 1:
        return {"library": "sentencepiece", "model": models[0], "sentencepiece_legacy": False}
    raise ModelError("it has no tokenizer that is found: name the folder of a Hugging Face tokenizer with --tokenizer")


def _hugging_face_files(checkpoint: NemoCheckpoint) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer in the checkpoint; none if they are not whole.

    An export may have put them there, beside the name of the tokenizer; NeMo 2 has them in a folder of its own.
    """
    hint = checkpoint.raw_config.get(HINT)
    names = hint.get(HINTED_FILES) if isinstance(hint, dict) else None
    if checkpoint.source.generation == "NeMo 1":
        named = names if isinstance(names, dict) else {}
        found = {name: str(artifact).removeprefix("nemo:") for name, artifact in named.items() if name in _FILES}
    else:
        found = {
            place.name: artifact
            for artifact in checkpoint.artifacts
            if (place := Path(artifact)).name in _FILES and place.parent.name in _FOLDERS
        }
    whole = "tokenizer.json" in found and all(artifact in checkpoint.artifacts for artifact in found.values())
    return {name: checkpoint.artifact(artifact) for name, artifact in found.items()} if whole else {}


def _harmless(name: str, content: bytes) -> bytes:
    """A tokenizer's file without what would name code to run."""
    if not name.endswith(".json"):
        return content
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the tokenizer's {name} in the archive cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"the tokenizer's {name} in the archive is no JSON object")
    if name == "tokenizer.json" or not any(key in value for key in _RUNS_CODE):
        return content
    return json.dumps({key: item for key, item in value.items() if key not in _RUNS_CODE}).encode()


def archive_tokenizer(
    folder: Path, name: str | None, original: NemoTokenizer | None, say: Callable[[str], None]
) -> ArchiveTokenizer:
    """The tokenizer of a model folder for an archive; `name` is where NeMo finds it if it has no form for it.

    Raises ModelError where there is none and no name either.
    """
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        if name is None:
            raise ModelError(
                f"{folder}: neither tokenizer.json nor tokenizer.model here, and NeMo needs a tokenizer: add one, or "
                "name it with --tokenizer, a hub id or a folder on the machine where NeMo runs"
            )
        return ArchiveTokenizer(_by_name(name), {}, None, {})
    exported = export_tokenizer(folder, original=original, hub_name=name or str(folder.absolute()))
    for warning in exported.warnings:
        say(f"WARNING: {warning}")
    block, artifacts = exported.tokenizer.block, dict(exported.tokenizer.artifacts)
    files: dict[str, str] = {}
    if block.get("library") == "huggingface" and (folder / "tokenizer.json").is_file():
        for file in _FILES:
            path = folder / file
            if path.is_file() and path.stat().st_size <= MAX_ARTIFACT:
                content = path.read_bytes()
                artifact = f"{hashlib.sha256(content).hexdigest()[:32]}_{file}"
                artifacts[artifact], files[file] = content, f"nemo:{artifact}"
    return ArchiveTokenizer(block, artifacts, exported.size, files)


def _by_name(name: str) -> dict[str, object]:
    return {
        "library": "huggingface", "type": name, "model": None, "vocab_file": None, "merge_file": None,
        "delimiter": None, "sentencepiece_legacy": False, "use_fast": True,
    }  # fmt: skip


def size_in_archive(checkpoint: NemoCheckpoint) -> int | None:
    """Tokens that NeMo counts for a checkpoint; None where that cannot be known from it."""
    block = checkpoint.raw_config.get("tokenizer")
    try:
        return tokenizer_size(block, checkpoint.artifact) if isinstance(block, dict) else None
    except ModelError:
        return None
