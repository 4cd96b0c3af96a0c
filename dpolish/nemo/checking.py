"""Refuse a checkpoint that is damaged or hostile before anything large is loaded on its account."""

from pathlib import Path

from dpolish.errors import ModelError
from dpolish.nemo.checkpoint import located, open_checkpoint
from dpolish.nemo.gpt_config import HINT
from dpolish.nemo.tokenizers.archived import archived_tokenizer
from dpolish.nemo.tokenizers.block import read_block


def require_readable(
    path: Path, *, scale_positional_embedding: bool | None = None, reads_tokenizer: bool = True
) -> None:
    """Raise the ModelError with which an import of the checkpoint at `path` would end.

    The tokenizer counts if it `reads_tokenizer`, and is one of artifacts that the configuration names.
    """
    with open_checkpoint(path, scale_positional_embedding=scale_positional_embedding) as checkpoint:
        block = checkpoint.raw_config.get("tokenizer")
        if not reads_tokenizer or checkpoint.source.generation != "NeMo 1":
            return
        try:
            asked = read_block(block if isinstance(block, dict) else {})
            if asked.kind != "huggingface" or HINT not in checkpoint.raw_config:  # which may name its files
                archived_tokenizer(asked, checkpoint.artifact, checkpoint.source.vocabulary_rows)
        except ModelError as error:
            raise located(error, path) from error
