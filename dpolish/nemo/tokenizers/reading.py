"""From a NeMo configuration's tokenizer to a Hugging Face folder with the same ids."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpolish.data.templates.builtin import PromptTokens, nemo_template
from dpolish.errors import ModelError, RunError
from dpolish.files import cannot_write, write_atomically
from dpolish.model.load import load_tokenizer
from dpolish.nemo.tokenizers.archived import ArchivedTokenizer, Artifact, archived_tokenizer, require_rows
from dpolish.nemo.tokenizers.block import TokenizerBlock, read_block
from dpolish.nemo.tokenizers.gpt2 import END
from dpolish.nemo.tokenizers.spm_fast import UNIGRAM_TIES
from dpolish.nemo.tokenizers.spm_model import ModelKind

_made: Callable[..., PreTrainedTokenizerBase] = PreTrainedTokenizerFast
_CLASS = "PreTrainedTokenizerFast"
"""What every release of transformers calls a tokenizer that is all in its tokenizer.json."""

_PROBES = ("Hello  world", " a\n\tb ", "<extra_id_0>System\n", "3.14159 == x1000", "größer 日本語 ｶﾞ 🎉", "</s>")


@dataclass(frozen=True, slots=True)
class ImportedTokenizer:
    """A tokenizer that was saved into a Hugging Face folder."""

    kind: str
    """sentencepiece, gpt2 or huggingface."""
    size: int
    """Tokens that it has; the embedding may have more rows."""
    ids: Mapping[str, int | None]
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as config.json and generation_config.json have them."""
    warnings: tuple[str, ...]


def import_tokenizer(
    block: Mapping[str, object],
    artifact: Artifact,
    destination: Path,
    *,
    rows: int,
    folder: Path | None = None,
    data: Mapping[str, object] | None = None,
) -> ImportedTokenizer:
    """Save the tokenizer of a configuration's `tokenizer` block into `destination`, and say what it is.

    `folder` is a Hugging Face tokenizer to take instead; `library: huggingface` needs it, for NeMo archives only its
    name. `data` is the configuration's block of that name: where it says that the model was trained on chats, the
    tokenizer gets NeMo's chat template with the tokens that stand there. `rows` are those of the embedding.
    Raises ModelError for a tokenizer that has no fast form with the same ids, and RunError when it cannot be saved.
    """
    asked = read_block(block)
    if folder is not None:
        kind, tokenizer, warnings = "huggingface", *_from_folder(asked, folder)
    else:
        kind, tokenizer, warnings = asked.kind, *_from_archive(asked, archived_tokenizer(asked, artifact, rows))
    size = _size(tokenizer)
    require_rows(size, rows)
    if template := _chat_template(data or {}):
        tokenizer.chat_template = template
    _save(tokenizer, destination)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if ids["eos_token_id"] is None:
        warnings = (*warnings, "the tokenizer has no end-of-sequence token: append_eod cannot be used with this model")
    return ImportedTokenizer(kind, size, ids, warnings)


def _from_archive(asked: TokenizerBlock, found: ArchivedTokenizer) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    model = found.sentencepiece
    if model is None:
        named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
        return _made(tokenizer_object=found.fast, **named, clean_up_tokenization_spaces=False), ()
    named = {f"{name}_token": model.pieces[id_].text for name, id_ in model.special.items()}
    # NeMo reads control pieces in a text as text. So does this tokenizer, unless it is told to parse special tokens.
    tokenizer = _made(
        tokenizer_object=found.fast, **named, split_special_tokens=True, clean_up_tokenization_spaces=False
    )
    warnings = [UNIGRAM_TIES] if model.kind == ModelKind.UNIGRAM else []
    if asked.named:
        warnings.append("tokenizer.special_tokens is ignored, as NeMo up to 2.1 does for sentencepiece")
    return tokenizer, tuple(warnings)


# Hugging Face


def _from_folder(asked: TokenizerBlock, folder: Path) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer that the user names, with the special tokens that NeMo would give it."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; name one with the tokenizer's files, as Hugging Face saves them")
    tokenizer = load_tokenizer(str(folder))
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{folder}: has no fast tokenizer (tokenizer.json), which is needed")
    if asked.library == "huggingface":
        known = set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
        if unknown := sorted(asked.named.keys() - known):
            raise ModelError(f"tokenizer.special_tokens: {unknown[0]!r} is no name of a special token")
        tokenizer.add_special_tokens(dict(asked.named))
        if asked.added:
            tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in asked.added])
    else:
        return tokenizer, (f"the tokenizer is {folder}'s, not the archive's own; that the ids agree is not checked",)
    if tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids:
        return tokenizer, (
            f"the tokenizer of {folder} puts a special token in front of texts or behind them, which NeMo never does "
            "by itself",
        )
    return tokenizer, ()


# Saving


def _size(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _chat_template(data: Mapping[str, object]) -> str | None:
    """NeMo's chat format with the model's tokens; None where the model was not trained on chats."""
    tokens = data.get("chat_prompt_tokens")
    if data.get("chat") is not True or not isinstance(tokens, dict):
        return None
    given = [tokens.get(name) for name in PromptTokens._fields]
    found = [text for text in given if isinstance(text, str)]
    return nemo_template(PromptTokens(*found)) if len(found) == len(given) else None


def require_same_ids(folder: Path, where: str) -> None:
    """Raise ModelError where transformers reads the tokenizer of a finished model folder as another one.

    For some architectures (Qwen2) it takes its own class, whatever the folder says.
    """
    fast, tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(str(folder))
    fast.encode_special_tokens = tokenizer.split_special_tokens
    for text in _PROBES:
        if fast.encode(text, add_special_tokens=False).ids != tokenizer(text, add_special_tokens=False).input_ids:
            raise ModelError(
                f"{where}: transformers reads the tokenizer of this kind of model with {type(tokenizer).__name__}, "
                f"which cuts texts in another way ({text!r}); the archive's tokenizer cannot be used with this model"
            )


def _save(tokenizer: PreTrainedTokenizerBase, destination: Path) -> None:
    try:
        tokenizer.save_pretrained(destination)
        path = destination / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(cannot_write(destination, error)) from error
    if config.get("tokenizer_class") == "TokenizersBackend":  # its name since transformers 5
        config["tokenizer_class"] = _CLASS
        write_atomically(path, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
