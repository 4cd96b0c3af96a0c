"""GPT-2's byte-level BPE: vocab.json and merges.txt as a fast tokenizer, and back where it is exactly that."""

import json
from collections.abc import Mapping, Sequence

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.library import refusals

END = "<|endoftext|>"
"""The one special token, which NeMo adds where the vocabulary lacks it."""

_MOST_TOKENS = 160_000
"""GPT-2 has 50,257."""
_LARGEST = 8 << 20
"""Bytes of a file; GPT-2's vocabulary has one million."""

_HEADER = "#version: 0.2\n"
_PLAIN_BPE: Mapping[str, Sequence[object]] = {
    "type": ("BPE",),
    "dropout": (None, 0.0),
    "unk_token": (None, END),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
"""Fields of a model in tokenizer.json, and the values of them with which it is what GPT-2 does."""


def build_gpt2(vocab: bytes, merges: bytes, where: str, rows: int | None = None) -> Tokenizer:
    """The fast tokenizer of the two files, of at most `rows` tokens. Raises ModelError."""
    ids, pairs = _vocabulary(vocab, where), _merges(merges, where)
    size = len(ids) + (END not in ids)
    if rows is not None and size > rows:
        raise ModelError(f"the tokenizer has {size} tokens, and the model's embedding only {rows} rows for them")
    for left, right in pairs:  # the library panics
        if left not in ids or right not in ids or left + right not in ids:
            raise ModelError(
                f"{where}: vocab_file and merge_file do not fit each other: {f'{left} {right}'[:80]!a} is no pair of "
                "tokens that makes a third"
            )
    with refusals(f"{where}: vocab_file and merge_file do not fit each other"):
        fast = Tokenizer(BPE(ids, pairs, continuing_subword_prefix="", end_of_word_suffix=""))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return fast


def _vocabulary(data: bytes, where: str) -> dict[str, int]:
    """The tokens and their ids; they are counted before any is made."""
    if data.count(b":") > _MOST_TOKENS or len(data) > _LARGEST:
        raise ModelError(f"{where}: vocab_file has more than {_MOST_TOKENS:,} tokens or {_LARGEST >> 20} MiB")
    try:
        ids = msgspec.json.decode(data, type=dict[str, int])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ModelError(f"{where}: vocab_file is no JSON object of numbers: {str(error)[:120]!a}") from error
    if sorted(ids.values()) != list(range(len(ids))):
        raise ModelError(f"{where}: vocab_file does not number its tokens from 0 on")
    return ids


def _merges(data: bytes, where: str) -> list[tuple[str, str]]:
    if data.count(b"\n") > _MOST_TOKENS or len(data) > _LARGEST:
        raise ModelError(f"{where}: merge_file has more than {_MOST_TOKENS:,} lines or {_LARGEST >> 20} MiB")
    try:
        lines = [line.split(" ") for line in data.decode().split("\n")[1:] if line]
    except ValueError as error:
        raise ModelError(f"{where}: merge_file is not UTF-8: {error}") from error
    if wrong := next((line for line in lines if len(line) != 2), None):
        raise ModelError(f"{where}: merge_file has a line that is no pair: {' '.join(wrong)[:80]!a}")
    return [(left, right) for left, right in lines]


def gpt2_files(fast: Tokenizer) -> tuple[bytes, bytes] | None:
    """vocab.json and merges.txt of a tokenizer; None for one that cuts or adds in a way that GPT-2's does not."""
    parts = json.loads(fast.to_str())
    model, splitter = parts["model"], parts["pre_tokenizer"] or {}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    added = {token["content"]: token for token in parts["added_tokens"]}
    same = (
        all(model.get(name) in values for name, values in _PLAIN_BPE.items())
        and parts["normalizer"] is None
        and {name: splitter.get(name, True) for name in level} == level
        and added.keys() == {END}
        and not (added[END]["lstrip"] or added[END]["rstrip"] or added[END]["single_word"])
    )
    if not same:
        return None
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    if list(vocabulary.values()) != list(range(len(vocabulary))) or added[END]["id"] not in (
        vocabulary.get(END),
        len(vocabulary),
    ):
        return None
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    text = _HEADER + "".join(f"{line}\n" for line in lines)
    return json.dumps(vocabulary, ensure_ascii=False).encode(), text.encode()
