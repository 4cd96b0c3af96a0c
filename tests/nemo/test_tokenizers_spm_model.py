import random
from contextlib import suppress

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.charsmap import read_rules
from dpolish.nemo.tokenizers.spm_fast import build_fast
from dpolish.nemo.tokenizers.spm_model import MAX_BYTES, ModelKind, PieceKind, appended, parse_model
from tests.nemo.spm import SYMBOLS, nemo_like, train


def test_a_model_is_read_as_sentencepiece_reads_it() -> None:
    oracle, model = sentencepiece.SentencePieceProcessor(model_proto=nemo_like()), parse_model(nemo_like(), "a.model")
    assert [piece.text for piece in model.pieces] == [oracle.id_to_piece(id_) for id_ in range(oracle.vocab_size())]
    assert [piece.score for piece in model.pieces] == [oracle.get_score(id_) for id_ in range(oracle.vocab_size())]
    assert (model.kind, model.byte_fallback, model.add_dummy_prefix) == (ModelKind.BPE, True, True)
    assert model.special == {"unk": oracle.unk_id(), "bos": oracle.bos_id(), "eos": oracle.eos_id()}
    assert model.of_kind(PieceKind.USER_DEFINED) == list(SYMBOLS)


def test_special_ids_follow_the_model() -> None:
    model = train("char", bos_id=-1, eos_id=4, pad_id=5, eos_piece="<end>", normalization_rule_name="identity")
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert parse_model(model, "a").special == {"unk": 0, "eos": oracle.eos_id(), "pad": oracle.pad_id()}


def test_pieces_are_appended_as_user_defined() -> None:
    grown = appended(nemo_like(), ["<|im_end|>", "é" * 70])
    oracle = sentencepiece.SentencePieceProcessor(model_proto=grown)
    assert oracle.vocab_size() == len(parse_model(nemo_like(), "a").pieces) + 2
    assert oracle.id_to_piece(oracle.encode("a<|im_end|>")[-1]) == "<|im_end|>"
    assert [piece.text for piece in parse_model(grown, "a").pieces[-2:]] == ["<|im_end|>", "é" * 70]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "one piece for what is unknown"),
        (b"\x0a", "cut short"),
        (b"\x0a\x7f", "cut short at byte 2"),
        (b"\xff" * 20, "more than ten bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\x03\x0a\x01\xff", "not UTF-8"),
        (b"\x0a\x00", "empty"),
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f", "not a finite number"),
        (b"\x0a\x05\x0a\x01a\x18\x09", "text, score or type"),
        (b"\x0a\x03\x0a\x01a" * 2, "stands in it twice"),
        (b"\x12\x02\x18\x03\x0a\x05\x0a\x01a\x18\x02", "WORD"),
        (b"\x12\x03\xc0\x01\x01\x0a\x05\x0a\x01a\x18\x02", "treat_whitespace_as_suffix"),
        (b"\x1a\x02\x28\x00\x0a\x05\x0a\x01a\x18\x02", "escape_whitespaces"),
        (b"\x12\x03\x98\x02\x01\x0a\x05\x0a\x01a\x18\x02", "byte pieces"),
        (b"\0" * (MAX_BYTES + 1), "more than the"),
    ],
)
def test_a_file_that_is_no_usable_model_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^a.model: .*{reason}"):
        parse_model(data, "a.model")


@given(st.binary(max_size=200))
def test_bytes_are_a_model_or_refused(data: bytes) -> None:
    with suppress(ModelError):
        assert parse_model(data, "a.model").pieces


def test_damaged_models_are_refused_or_built() -> None:
    draw, whole = random.Random(0), train("bpe", normalization_rule_name="identity", byte_fallback=True)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            build_fast(parse_model(bytes(data), "a.model"), "a.model").encode("Hello <0x0A> world")
        except ModelError:
            refused += 1
    assert 0 < refused < 300


def test_damaged_rules_are_refused_or_read() -> None:
    draw, whole = random.Random(0), parse_model(nemo_like(), "a").charsmap
    size = int.from_bytes(whole[:4], "little")
    for data in (b"", whole[:3], whole[:100], b"\xff" * 8, whole[: size + 4], whole[:-1], b"\0\4\0\0" + b"\xff" * 2000):
        with pytest.raises(ModelError, match=r"^a: the normalization rules"):
            read_rules(data, "a")
    for _ in range(3):
        data = bytearray(whole)
        for _ in range(20):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with suppress(ModelError):
            assert read_rules(bytes(data), "a")
