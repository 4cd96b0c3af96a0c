import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import GPT2Tokenizer

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.gpt2 import END, build_gpt2, gpt2_files
from tests.nemo.spm import LINES


def trained(end: bool = True) -> tuple[dict[str, int], list[str]]:
    """A vocabulary and the lines of its merges."""
    fast = Tokenizer(BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END] if end else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    fast.train_from_iterator(LINES, trainer)
    model = json.loads(fast.to_str())["model"]
    return model["vocab"], [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]


def files(end: bool = True) -> tuple[bytes, bytes]:
    vocab, merges = trained(end)
    return json.dumps(vocab).encode(), "\n".join(["#version: 0.2", *merges, ""]).encode()


FILES = files()


@given(st.text() | st.lists(st.sampled_from([*LINES, END, " ", "\n", "'s"])).map("".join))
def test_ids_are_those_of_transformers(text: str) -> None:
    vocab, merges = trained()
    oracle = GPT2Tokenizer(vocab=vocab, merges=[tuple(line.split(" ")) for line in merges])
    assert build_gpt2(*FILES, "x").encode(text).ids == oracle(text).input_ids


def test_the_files_come_back() -> None:
    found = gpt2_files(build_gpt2(*FILES, "x"))
    assert found is not None
    assert (json.loads(found[0]), found[1]) == (json.loads(FILES[0]), FILES[1])


def test_a_vocabulary_without_the_end_gets_one() -> None:
    fast = build_gpt2(*files(end=False), "x")
    assert fast.token_to_id(END) == len(trained(end=False)[0])
    found = gpt2_files(fast)
    assert found is not None
    assert END not in json.loads(found[0])


def test_what_is_not_exactly_gpt2_has_no_such_files() -> None:
    def other(**parts: object) -> Tokenizer:
        fast = build_gpt2(*FILES, "x")
        for name, part in parts.items():
            setattr(fast, name, part)
        return fast

    assert gpt2_files(other(decoder=decoders.Fuse())) is not None
    assert gpt2_files(other(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))) is None
    assert gpt2_files(other(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))) is None
    assert gpt2_files(other(pre_tokenizer=pre_tokenizers.Whitespace())) is None
    assert gpt2_files(other(normalizer=normalizers.NFC())) is None
    more = other()
    more.add_special_tokens([AddedToken("<|im_end|>")])
    assert gpt2_files(more) is None
    whole = other()
    whole.model.ignore_merges = True
    assert gpt2_files(whole) is None


@pytest.mark.parametrize(
    ("vocab", "merges", "reason"),
    [
        (b"[", b"", "no JSON object"),
        (b"[]", b"", "no JSON object"),
        (b"[" * 100_000, b"", "no JSON object"),
        (b'{"\\ud800": 0}', b"", "no JSON object"),
        (b'{"a": 1e400}', b"", "no JSON object"),
        (b"9" * 5000, b"", "no JSON object"),
        (b"[" + b'{":":0},' * 200_000, b"", "more than 160,000 tokens"),
        (b'{"a": 0}', b"a b\n" * 160_001, "more than 160,000 lines"),
        (b'{"a": 1}', b"", "does not number"),
        (b'{"a": true}', b"", "no JSON object"),
        (b'{"a": 0}', b"#\na", "no pair: 'a'"),
        (b'{"a": 0}', b"#\na b", "do not fit"),
        (b'{"a": 0, "b": 1}', b"#\na b", "do not fit"),  # the library panics
        (b'{"a": 0}', b"\xff", "not UTF-8"),
    ],
)
def test_files_that_are_none_are_refused(vocab: bytes, merges: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^x: .*{re.escape(reason)}"):
        build_gpt2(vocab, merges, "x")
