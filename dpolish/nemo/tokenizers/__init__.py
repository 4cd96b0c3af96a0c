"""Tokenizers of `.nemo` archives as fast Hugging Face tokenizers with the same ids, and back."""

from dpolish.nemo.tokenizers.reading import ImportedTokenizer, import_tokenizer, require_same_ids, tokenizer_size
from dpolish.nemo.tokenizers.writing import ExportedTokenizer, NemoTokenizer, export_tokenizer, tokenizer_tokens

__all__ = [
    "ExportedTokenizer",
    "ImportedTokenizer",
    "NemoTokenizer",
    "export_tokenizer",
    "import_tokenizer",
    "require_same_ids",
    "tokenizer_size",
    "tokenizer_tokens",
]
