"""Whether tokenizer and model belong together."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dpolish.errors import ModelError, join_faults
from dpolish.tensors import Example


def check_vocabulary(
    examples: Sequence[Example], where: Sequence[str], vocab_size: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise a ModelError that names the rows with token ids which a model of `vocab_size` tokens does not have."""
    faults = []
    for example, place in zip(examples, where, strict=True):
        for tokens in (example.prompt, *(completion.tokens for completion in example.completions)):
            if len(tokens) and tokens.max() >= vocab_size:
                beyond = int(tokens.max())
                faults.append(f"{place}: token {tokenizer.convert_ids_to_tokens(beyond)!r} has the id {beyond}")
                break
    if faults:
        raise ModelError(
            f"the model's vocabulary has {vocab_size:,} tokens, and the tokenizer gives ids beyond it: "
            "they do not belong together, or the model's embeddings were not resized.\n" + join_faults(faults, shown=5)
        )
