"""Sentencepiece models trained on the spot, and texts on which tokenizers like to differ."""

import io
import random
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer

from dpolish.nemo.tokenizers.spm_fast import build_fast
from dpolish.nemo.tokenizers.spm_model import parse_model

SYMBOLS = ("<extra_id_0>", "<extra_id_1>", "<extra_id_12>")
LINES = (
    "A tokenizer that is off by one blank is off in every row that follows.",
    "The better answer is shorter, and the worse one says it twice, says it twice.",
    "for i in range(10):    print(i ** 2, '<b>', i // 3)  # a comment",
    "Größere Straßen führen über die Brücke, sagte er, und ließ es dabei.",
    "L'été dernier, un garçon naïf a mangé des œufs à Noël.",
    "¿Por qué no vino el niño mañana? ¡Qué lástima!",
    "Вечером мы читали письма, а утром уже никто не помнил, о чём они были.",
    "今日は天気がいいから、公園を散歩しましょう。ﾊﾝｶｸ ｶﾞｷﾞ。",
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
    "오늘은 날씨가 좋아서 공원에서 산책을 했습니다.",
    "आज मौसम अच्छा है, चलो बाहर चलते हैं।",
    "วันนี้อากาศดี น้ำใส",
    "الطقس جميل اليوم، هيا نخرج.",
    "היום מזג האוויר נאה.",
    "Hôm nay trời đẹp, ắt là vậy.",
    "Numbers 3.14159, 1,234,567 and ½; signs ∑ ≠ ≤ €; faces 😀 🎉.",
    "aaaa abab haha === --- ... 0000",
)
HARD = (
    *("", " ", "   ", "\n", "  a  b  ", "\ta\r\nb\n\n", "\u2581", "\u2581\u2581 \u2581 a\u2581"),
    *("a" * 40, " " * 9 + "x" + " " * 9),
    *("<extra_id_0>", "<extra_id_0>System\n\n<extra_id_1>User\nHi <extra_id_1>", " <extra_id_0>  <extra_id_0> x"),
    *("<extra_id_12><extra_id_1>2>", "<extra_id_<extra_id_0>0>", "＜extra_id_0＞", "<extra_id_0>\u0338"),
    *("<s>", "</s>", "a</s>b", "<unk>", "<extra_id_0><s>", "<extra_id_1></s><extra_id_0>", "<0x0A>", "x<0x41>"),
    *("<extra_id_0><0x0A>", "ababababa", "haha hahaha", "=======", "00000 000"),
    *("\x00", "a\x00b", "\x01\x02\x7f\x9f", "\u200b\u200d\u00ad\ufeff", "\ufffd", "\U0010ffff"),
    *("👩‍👩‍👧‍👦🇩🇪🇫🇷", "ｶﾞｷﾞﾊﾟ", "か\u3099", "e\u0301\u0327q\u0307\u0323"),
    *("\u1112\u1161\u11ab\u1100\u1173\u11af", "ﬁ\u0301ﬀ"),
    *("𝔘𝔫𝔦", "ﷺ", "İIı ẞß", "㎏ ™ …", "\u16d67\u16d67", "\U00016d67\U00016d67", "\u0600a\u06dd1", "क्षि", "Å\u212b"),
    *("\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4\ufdd5", "\ufdd2\U000f0000\ufdd2\ufdd4", "a\ufdd0\u0301"),
)


@cache
def train(kind: str, size: int = 800, without: str = "", **settings: object) -> bytes:
    """The bytes of a small model; `without` are letters that it never sees."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.translate(dict.fromkeys(map(ord, without))) for line in LINES] * 4),
        model_writer=written,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"character_coverage": 0.98, **settings},
    )
    return written.getvalue()


@cache
def nemo_like() -> bytes:
    """What NeMo's own models are like: BPE with byte fallback, nmt_nfkc and user-defined pieces."""
    settings: dict[str, object] = {"normalization_rule_name": "nmt_nfkc", "byte_fallback": True}
    return train("bpe", user_defined_symbols=",".join(SYMBOLS), **settings)


def fast_of(model: bytes) -> Tokenizer:
    """The fast tokenizer, reading special tokens as text as sentencepiece does."""
    fast = build_fast(parse_model(model, "a.model"), "a.model")
    fast.encode_special_tokens = True
    return fast


def scrambled(count: int, seed: int = 0) -> list[str]:
    """Texts of letters from everywhere, mixed with what is special to someone."""
    draw = random.Random(seed)
    letters = [*"".join(LINES), *"<>/s_01  \n\t\u2581\u0301\u0327\u0338\uff9e\u1161\u11ab" * 4]
    parts = [*SYMBOLS, "</s>", "<0x0A>", "<s>", "  ", "aa", "ab"]

    def one() -> str:
        chance = draw.random()
        if chance < 0.12:
            return draw.choice(parts)
        anywhere = draw.choice([draw.randrange(0x3000), draw.randrange(0xE000, 0x110000)])
        return draw.choice(letters) if chance < 0.93 else chr(anywhere)

    return ["".join(one() for _ in range(draw.randint(0, 30))) for _ in range(count)]


def write(folder: Path, name: str, content: bytes) -> Path:
    """A file of this content."""
    path = folder / name
    path.write_bytes(content)
    return path
