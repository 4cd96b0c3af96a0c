"""The `tokenizer` block of a NeMo configuration as a value."""

from collections.abc import Mapping
from dataclasses import dataclass

from dpolish.errors import ModelError

GPT2_TYPES = ("GPT2BPETokenizer", "megatron-gpt-345m", "gpt2")
"""What NeMo calls GPT-2's tokenizer under `library: megatron`."""


@dataclass(frozen=True, slots=True)
class TokenizerBlock:
    """What a configuration says about the tokenizer."""

    library: str
    type: str | None
    model: str | None
    """Name of the sentencepiece artifact."""
    vocab_file: str | None
    merge_file: str | None
    legacy: bool
    """Whether NeMo cuts texts at the added tokens itself, before sentencepiece sees them."""
    added: tuple[str, ...]
    """`additional_special_tokens`, in order."""
    named: Mapping[str, str]
    """`special_tokens`: `eos_token` and its like, and what they are. NeMo reads them for `library: huggingface`."""

    @property
    def kind(self) -> str:
        """The library that really cuts the texts: sentencepiece, gpt2 or huggingface. Raises ModelError for others."""
        if self.library == "sentencepiece" or (self.library, self.type) == ("megatron", "GPTSentencePieceTokenizer"):
            return "sentencepiece"
        if self.library == "megatron" and self.type in GPT2_TYPES:
            return "gpt2"
        if self.library == "huggingface":
            return "huggingface"
        named = f"{shown(self.library)} ({shown(self.type)})" if self.type else shown(self.library)
        raise ModelError(
            f"tokenizer.library {named}: no fast Hugging Face tokenizer is known to have the same ids. If you have "
            "one, name its folder with --tokenizer"
        )


def read_block(block: Mapping[str, object]) -> TokenizerBlock:
    """The block with NeMo's defaults. Raises ModelError for values that are none."""
    library = _text(block, "library")
    if library is None:
        raise ModelError(
            "tokenizer.library is missing in the model's configuration: name a folder that holds it, with --tokenizer"
        )
    named = block.get("special_tokens") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in [*named, *named.values()]):
        raise ModelError("tokenizer.special_tokens is not a mapping of names to texts")
    legacy = block.get("sentencepiece_legacy", library == "sentencepiece")  # without the key, NeMo is in legacy mode
    return TokenizerBlock(
        library,
        _text(block, "type"),
        _text(block, "model") or _text(block, "tokenizer_model"),
        _text(block, "vocab_file"),
        _text(block, "merge_file"),
        bool(legacy),
        _texts(block.get("additional_special_tokens")),
        named,
    )


def shown(text: str | None) -> str:
    """A word from a file, short and safe for a terminal."""
    text = str(text)
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return text if text.isprintable() else ascii(text)


def _text(block: Mapping[str, object], key: str) -> str | None:
    value = block.get(key)
    if value is not None and not isinstance(value, str):
        raise ModelError(f"tokenizer.{key} is not a text")
    return value or None


def _texts(value: object) -> tuple[str, ...]:
    """`additional_special_tokens` as NeMo takes it: a list, or a mapping that has such a list under the same name."""
    if isinstance(value, dict):
        value = value.get("additional_special_tokens")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ModelError("tokenizer.additional_special_tokens is not a list of texts")
    return tuple(dict.fromkeys(value))
