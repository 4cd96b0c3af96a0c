"""The tokenizer that an archive holds, as a fast one. Without transformers: what is bad then costs little."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.block import TokenizerBlock, read_block, shown
from dpolish.nemo.tokenizers.gpt2 import build_gpt2
from dpolish.nemo.tokenizers.spm_fast import build_fast
from dpolish.nemo.tokenizers.spm_model import SentencePieceModel, parse_model

Artifact = Callable[[str], bytes]
"""The content of an artifact by the name that the configuration has for it."""


@dataclass(frozen=True, slots=True)
class ArchivedTokenizer:
    """A tokenizer of an archive."""

    fast: Tokenizer
    sentencepiece: SentencePieceModel | None
    """What it was made of; None for GPT-2's."""


def archived_tokenizer(asked: TokenizerBlock, artifact: Artifact, rows: int) -> ArchivedTokenizer:
    """The tokenizer of an archive whose embedding has `rows`. Raises ModelError where the archive only names one."""
    if asked.kind == "huggingface":
        raise ModelError(
            f"the archive has no tokenizer, only the name of one: {shown(asked.type)}. Name a folder that holds it, "
            "with --tokenizer; nothing is downloaded behind your back"
        )
    if asked.kind == "gpt2":
        return ArchivedTokenizer(_gpt2(asked, artifact, rows), None)
    model = _sentencepiece(asked, artifact)
    new = _new_tokens(asked, model)
    require_rows(len(model.pieces) + len(new), rows)
    fast = build_fast(model, str(asked.model))
    fast.add_tokens([AddedToken(text, normalized=False, special=False) for text in new])
    return ArchivedTokenizer(fast, model)


def require_rows(tokens: int, rows: int) -> None:
    """Raise ModelError where a tokenizer has tokens for which the embedding has no rows."""
    if tokens > rows:
        raise ModelError(f"the tokenizer has {tokens} tokens, and the model's embedding only {rows} rows for them")


def tokenizer_size(block: Mapping[str, object], artifact: Artifact) -> int | None:
    """How many tokens NeMo counts; None for a tokenizer that the archive only names. Raises ModelError."""
    tokens = archive_tokens(block, artifact)
    return None if tokens is None else len(tokens)


def archive_tokens(block: Mapping[str, object], artifact: Artifact) -> dict[str, int] | None:
    """The tokens of an archive's tokenizer and their ids; None where the archive only names one. Raises ModelError."""
    asked = read_block(block)
    if asked.kind == "huggingface":
        return None
    if asked.kind == "gpt2":
        return _gpt2(asked, artifact, None).get_vocab()
    model = _sentencepiece(asked, artifact)
    texts = [*(piece.text for piece in model.pieces), *_new_tokens(asked, model)]
    return {text: id_ for id_, text in enumerate(texts)}


def _sentencepiece(asked: TokenizerBlock, artifact: Artifact) -> SentencePieceModel:
    if asked.model is None:
        raise ModelError(
            "tokenizer.model names no sentencepiece artifact: name the tokenizer's folder with --tokenizer"
        )
    return parse_model(artifact(asked.model), asked.model)


def _new_tokens(asked: TokenizerBlock, model: SentencePieceModel) -> list[str]:
    """The tokens that NeMo numbers behind the pieces, and at which it cuts texts: the leftmost, the first in the list.

    The fast tokenizer takes the longest of those at one place, so a list where that differs is refused.
    """
    if asked.added and not asked.legacy:
        raise ModelError(
            "tokenizer.additional_special_tokens is set while sentencepiece_legacy is false, which NeMo refuses, too: "
            "set sentencepiece_legacy to true in model_config.yaml, or remove the tokens"
        )
    pieces = {piece.text for piece in model.pieces}
    new = [text for text in asked.added if text not in pieces]
    for number, text in enumerate(new):
        if hidden := next((later for later in new[number + 1 :] if later.startswith(text)), None):
            raise ModelError(
                f"tokenizer.additional_special_tokens: NeMo never finds {hidden!r}, for {text!r} stands before it in "
                "the list; a fast tokenizer would"
            )
    return new


def _gpt2(asked: TokenizerBlock, artifact: Artifact, rows: int | None) -> Tokenizer:
    if asked.vocab_file is None or asked.merge_file is None:
        raise ModelError(
            "tokenizer.vocab_file or merge_file names no artifact, so NeMo would download GPT-2's: name the folder of "
            "that tokenizer with --tokenizer"
        )
    fast = build_gpt2(artifact(asked.vocab_file), artifact(asked.merge_file), "tokenizer", rows)
    fast.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in asked.added])
    return fast
