"""From the tokenizer of a Hugging Face folder to a NeMo configuration's block and the artifacts that it names."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.archived import archive_tokens
from dpolish.nemo.tokenizers.block import shown
from dpolish.nemo.tokenizers.gpt2 import END, gpt2_files
from dpolish.nemo.tokenizers.library import refusals
from dpolish.nemo.tokenizers.spm_model import SentencePieceModel, appended, parse_model

_EMPTY: Mapping[str, object] = {
    "library": None,
    "type": None,
    "model": None,
    "vocab_file": None,
    "merge_file": None,
    "delimiter": None,
    "sentencepiece_legacy": False,
}


@dataclass(frozen=True, slots=True)
class NemoTokenizer:
    """A tokenizer as a `.nemo` archive has it."""

    block: Mapping[str, object]
    """`tokenizer` of the configuration; artifacts are named `nemo:NAME`."""
    artifacts: Mapping[str, bytes]
    """By NAME."""


@dataclass(frozen=True, slots=True)
class ExportedTokenizer:
    """A tokenizer for an archive."""

    tokenizer: NemoTokenizer
    size: int
    """Tokens that NeMo counts."""
    warnings: tuple[str, ...]


def export_tokenizer(
    folder: Path, *, original: NemoTokenizer | None = None, hub_name: str | None = None
) -> ExportedTokenizer:
    """What an archive needs for NeMo to have the tokenizer of `folder`.

    The `original` comes back where the folder still has its tokens. Else a `tokenizer.model` becomes the artifact; else
    GPT-2's two files, if the tokenizer is of exactly that kind; else `hub_name`, a hub id or a folder that NeMo will
    load. Raises ModelError where none of these is at hand.
    """
    fast = _fast(folder)
    if original is not None and fast is not None and fast.get_vocab() == _tokens(original):
        return ExportedTokenizer(original, _size(fast), ())
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder, fast, hub_name)
    if fast is None:
        raise ModelError(f"{folder}: neither tokenizer.model nor tokenizer.json here: there is no tokenizer to export")
    files = gpt2_files(fast)
    if files is not None and _eos(folder) in (END, None):
        return _gpt2(*files, _size(fast))
    return _named(folder, _size(fast), hub_name, "it is neither sentencepiece (tokenizer.model) nor exactly GPT-2's")


def tokenizer_tokens(folder: Path) -> int:
    """How many tokens the fast tokenizer of a folder has. Raises ModelError where there is none."""
    fast = _fast(folder)
    if fast is None:
        raise ModelError(f"{folder}: no tokenizer.json here")
    return _size(fast)


def _sentencepiece(folder: Path, fast: Tokenizer | None, hub_name: str | None) -> ExportedTokenizer:
    path = folder / "tokenizer.model"
    content = _read(path)
    model = parse_model(content, str(path))
    added = _beyond(folder, fast, model)
    if added is None:
        return _named(folder, len(model.pieces), hub_name, "its tokens are not those of its tokenizer.model")
    warnings = []
    if added:
        content = appended(content, added)
        warnings.append(
            f"{len(added)} tokens that sentencepiece does not have ({', '.join(map(shown, added[:3]))}) go into its "
            "model as user-defined pieces; blanks beside them may be tokenised differently"
        )
    eos, ours = _eos(folder), model.special.get("eos")
    if eos is not None and (ours is None or model.pieces[ours].text != eos):
        at_end = "no end-of-sequence token" if ours is None else repr(model.pieces[ours].text)
        warnings.append(f"the tokenizer ends texts with {eos!r}; NeMo will use what sentencepiece has for it: {at_end}")
    name = _name(content, "tokenizer.model")
    block = {**_EMPTY, "library": "sentencepiece", "model": f"nemo:{name}"}
    return ExportedTokenizer(NemoTokenizer(block, {name: content}), len(model.pieces) + len(added), tuple(warnings))


def _beyond(folder: Path, fast: Tokenizer | None, model: SentencePieceModel) -> list[str] | None:
    """Tokens numbered behind the pieces, in order; None where the folder's tokens are not the pieces and such."""
    tokens = _added(folder) if fast is None else {id_: text for text, id_ in fast.get_vocab().items()}
    size = len(model.pieces)
    if any(model.pieces[id_].text != text for id_, text in tokens.items() if id_ < size):
        return None
    beyond = [tokens[id_] for id_ in sorted(tokens) if id_ >= size]
    numbered = sorted(id_ for id_ in tokens if id_ >= size) == list(range(size, size + len(beyond)))
    return beyond if numbered and {piece.text for piece in model.pieces}.isdisjoint(beyond) else None


def _gpt2(vocab: bytes, merges: bytes, size: int) -> ExportedTokenizer:
    names = _name(vocab, "vocab.json"), _name(merges, "merges.txt")
    block = {
        **_EMPTY,
        "library": "megatron",
        "type": "GPT2BPETokenizer",
        "vocab_file": f"nemo:{names[0]}",
        "merge_file": f"nemo:{names[1]}",
    }
    return ExportedTokenizer(NemoTokenizer(block, {names[0]: vocab, names[1]: merges}), size, ())


def _named(folder: Path, size: int, hub_name: str | None, why: str) -> ExportedTokenizer:
    if hub_name is None:
        raise ModelError(
            f"{folder}: the tokenizer cannot be put into a .nemo archive: {why}. Give the hub id, or a folder on the "
            "machine where NeMo runs, from which NeMo is to load it"
        )
    block = {**_EMPTY, "library": "huggingface", "type": hub_name, "use_fast": True}
    warning = f"the archive has no tokenizer, only its name: NeMo will load {hub_name} and must be able to reach it"
    return ExportedTokenizer(NemoTokenizer(block, {}), size, (warning,))


def _tokens(original: NemoTokenizer) -> dict[str, int] | None:
    """The tokens of an archive's own tokenizer by what they are; None where they cannot be read."""
    try:
        return archive_tokens(original.block, lambda name: original.artifacts[name.removeprefix("nemo:")])
    except (ModelError, KeyError):
        return None


def _fast(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    with refusals(f"{path}: cannot be read"):
        return Tokenizer.from_file(str(path))


def _size(fast: Tokenizer) -> int:
    return max(fast.get_vocab().values(), default=-1) + 1


def _added(folder: Path) -> dict[int, str]:
    """Tokens that files beside a tokenizer.model add."""
    found: dict[int, str] = {}
    for id_, token in _object(_json(folder / "tokenizer_config.json").get("added_tokens_decoder")).items():
        text = _object(token).get("content")
        if id_.isdecimal() and isinstance(text, str):
            found[int(id_)] = text
    return found | {id_: text for text, id_ in _json(folder / "added_tokens.json").items() if isinstance(id_, int)}


def _eos(folder: Path) -> str | None:
    token = _json(folder / "tokenizer_config.json").get("eos_token")
    text = _object(token).get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        return _object(json.loads(_read(path)))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def _name(content: bytes, name: str) -> str:
    """The name of an artifact, as NeMo forms it; the same for the same content."""
    return f"{hashlib.sha256(content).hexdigest()[:32]}_{name}"
