import struct
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.spm_fast import build_fast
from dpolish.nemo.tokenizers.spm_model import PieceKind, parse_model
from tests.nemo.spm import HARD, LINES, SYMBOLS, fast_of, nemo_like, scrambled, train

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "nemo" / "tiny_spm.model"

IDENTITY = {"normalization_rule_name": "identity"}
SETTINGS = {
    "bpe": ("bpe", IDENTITY),
    "bpe, bytes, no dummy prefix, blanks kept": (
        "bpe",
        {
            **IDENTITY,
            "byte_fallback": True,
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "split_by_whitespace": False,
            "allow_whitespace_only_pieces": True,
            "user_defined_symbols": ",".join([*SYMBOLS, "\u2581\u2581", "a", "aba", "\n"]),
        },
    ),
    "bpe, a symbol that rules would change": (
        "bpe",
        {
            "normalization_rule_name": "nmt_nfkc_cf",
            "user_defined_symbols": "\n,<A>,ﬁ",
            "remove_extra_whitespaces": False,
        },
    ),
    "char": ("char", {**IDENTITY, "user_defined_symbols": ",".join(SYMBOLS)}),
}
MORE = [chr(point) for point in (0x20, 0x61, 0x301, 0x2581, 0xFF76, 0xFF9E, 0x1100, 0x1161, 0xFDD0, 0xFDD2, 0x1F600)]


def same(model: bytes, texts: tuple[str, ...] | list[str]) -> None:
    oracle, fast = sentencepiece.SentencePieceProcessor(model_proto=model), fast_of(model)
    for text in texts:
        assert fast.encode(text, add_special_tokens=False).ids == oracle.encode(text), repr(text)


@pytest.fixture(scope="module")
def nemo() -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    return sentencepiece.SentencePieceProcessor(model_proto=nemo_like()), fast_of(nemo_like())


Pair = tuple[sentencepiece.SentencePieceProcessor, Tokenizer]


def test_nemos_own_kind_of_model_has_the_same_ids(nemo: Pair) -> None:
    oracle, fast = nemo
    for text in [*HARD, *LINES, "\n".join(LINES), *scrambled(1500)]:
        assert fast.encode(text, add_special_tokens=False).ids == oracle.encode(text), repr(text)


@given(st.text() | st.text(st.sampled_from(MORE)) | st.lists(st.sampled_from([*MORE, *HARD, *SYMBOLS])).map("".join))
def test_ids_are_the_same_on_any_text(nemo: Pair, text: str) -> None:
    oracle, fast = nemo
    assert fast.encode(text, add_special_tokens=False).ids == oracle.encode(text)


def test_every_rule_and_every_letter_is_read_alike(nemo: Pair) -> None:
    from dpolish.nemo.tokenizers.charsmap import read_rules

    oracle, fast = nemo
    letters = (chr(point) for point in range(0, 0x110000, 7) if not 0xD800 <= point < 0xE000)
    texts = [*list(read_rules(parse_model(nemo_like(), "a").charsmap, "a"))[::11], *letters]
    for start in range(0, len(texts), 100):
        text = "".join(texts[start : start + 100])
        assert fast.normalizer.normalize_str(text) == oracle.normalize(text), start


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_have_the_same_ids(name: str) -> None:
    kind, settings = SETTINGS[name]
    same(train(kind, **settings), [*HARD, *LINES, *scrambled(400)])


def test_a_unigram_model_has_the_same_ids_but_for_ties() -> None:
    """Where sums of scores tie in 64 bits, sentencepiece's 32 decide by chance; the texts here have none."""
    model = train("unigram", user_defined_symbols=",".join(SYMBOLS), **IDENTITY)
    ties = {text for text in HARD if any(run in text for run in ("aaaa", "haha", "====", "0000", "abab"))}
    same(model, [*(text for text in HARD if text not in ties), *LINES[:-1]])


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_control_pieces_with_unknown_letters_are_text_to_a_unigram_model(byte_fallback: bool) -> None:
    model = train("unigram", without="<>", byte_fallback=byte_fallback, **IDENTITY)
    assert "<" not in parse_model(model, "a").of_kind(PieceKind.NORMAL)
    same(model, ["<s>", "a</s>b", "<unk><s>", "x<0x41>", "<0x0A><0x0A>", "<<s>>"])


def test_rules_of_ones_own_are_followed(tmp_path: Path) -> None:
    rules = [("a b", "c"), ("ab", "x"), ("abc", "z"), ("e", ""), ("\u0301", "'"), ("ß", "ss"), ("\u212b", "A")]
    lines = ("\t".join(" ".join(f"{ord(letter):X}" for letter in text) for text in rule) for rule in rules)
    table = tmp_path / "rules.tsv"
    table.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    model = train("bpe", normalization_rule_tsv=str(table), remove_extra_whitespaces=False)
    same(model, [*HARD, *LINES, "ab abc abcd a b a  b", "abababc\u0301", "e e e", "\u212b\u0301", *scrambled(300)])


def test_repeated_letters_are_joined_from_the_left() -> None:
    model = train("bpe", **IDENTITY)
    same(
        model, [letter * count for letter in "a=0-." for count in range(1, 40)] + ["ab" * count for count in range(20)]
    )


@pytest.mark.skipif(not FIXTURE.is_file(), reason="needs the real model beside the checkout, ../shared/fixtures/nemo")
def test_the_real_model_has_the_same_ids() -> None:
    same(FIXTURE.read_bytes(), [*HARD, *LINES, *scrambled(400, seed=1)])


def test_ids_become_the_text_again(nemo: Pair) -> None:
    _, fast = nemo
    text = "<extra_id_0>Größe: 日本語 🎉 x  y"
    assert fast.decode(fast.encode(text).ids) == "<extra_id_0>Größe: 日本語 🎉 x y"


def test_what_has_no_fast_form_is_refused() -> None:
    def piece(text: str, score: float, kind: int) -> bytes:
        content = text.encode()
        body = b"\x0a" + bytes([len(content)]) + content + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(body)]) + body

    letters = b"".join(piece(letter, -9.0, 1) for letter in "ab\u2581")
    bpe, base = b"\x12\x02\x18\x02", piece("<unk>", 0, 2) + letters
    build_fast(parse_model(bpe + base, "a.model"), "a.model")
    for more, reason in (
        (piece("ab", -1, 1) + piece("ba", -1, 1), "have one score"),
        (piece("ac", -1, 1), "'c', which is no piece"),
        (piece("ab", -1, 5), "marked as unused"),
    ):
        with pytest.raises(ModelError, match=reason):
            build_fast(parse_model(bpe + base + more, "a.model"), "a.model")
