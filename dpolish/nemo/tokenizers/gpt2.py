"""GPT-2's byte-level BPE: vocab.json and merges.txt as a fast tokenizer, and back where it is exactly that."""

import json
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from dpolish.errors import ModelError

END = "<|endoftext|>"
"""The one special token, which NeMo adds where the vocabulary lacks it."""

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


def build_gpt2(vocab: bytes, merges: bytes, where: str) -> Tokenizer:
    """The fast tokenizer of the two files. Raises ModelError."""
    try:
        ids = json.loads(vocab)
        lines = [line.split(" ") for line in merges.decode().split("\n")[1:] if line]
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: vocab_file is not JSON, or merge_file not UTF-8: {error}") from error
    if not isinstance(ids, dict) or sorted(map(_number, ids.values())) != list(range(len(ids))):
        raise ModelError(f"{where}: vocab_file does not number its tokens from 0 on")
    if wrong := next((line for line in lines if len(line) != 2), None):
        raise ModelError(f"{where}: merge_file has a line that is no pair: {' '.join(wrong)[:80]!a}")
    try:
        fast = Tokenizer(
            BPE(ids, [(left, right) for left, right in lines], continuing_subword_prefix="", end_of_word_suffix="")
        )
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{where}: vocab_file and merge_file do not fit each other: {error}") from error
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return fast


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


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
