"""What sentencepiece does to a text before it cuts it, as a chain of the fast library's normalizers.

sentencepiece reads a text once: at each place the longest user-defined piece is copied, else the longest rule applied,
else one letter copied. The library's own reader of these rules (`Precompiled`) looks at grapheme clusters instead, at
the shortest rule, and never at clusters of six bytes, so that half-width kana, decomposed Hangul and stacked accents
come out differently. Here marks are put between what sentencepiece would read at once, and between the letters within:

    text         ｶ ﾞ a            S: the end of what is read at once, T: between the letters of it
    marked       ｶTﾞSaS           each letter is a cluster of its own now,
    Precompiled  カT゙SaS          so the rule of each letter is applied,
    T gone, NFC  ガSaS            and letters of one rule compose, as nothing else can: S stands between
    S gone       ガa

Rules that this does not yield (a few for recent scripts, or in rules of one's own) and user-defined pieces that rules
would change are replaced one by one by codes, and the codes by their result at the end. Which ones these are is
computed, for every letter and every rule. The marks are noncharacters; a text that holds them is escaped before.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache

from tokenizers import Regex, normalizers

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.charsmap import read_rules
from dpolish.nemo.tokenizers.patterns import literal, longest_of, one_of, ranges
from dpolish.nemo.tokenizers.spm_model import PieceKind, SentencePieceModel

SPACE = "\u2581"
_S, _T, _E = "\ufdd0", "\ufdd1", "\ufdd2"
_LITERAL = {_E: "\ufdd3", _S: "\ufdd4", _T: "\ufdd5"}
"""What stands behind E for a mark that the text itself has."""
_FIRST_CODE = 0xF0000
_MOST_CODES = 512
_FEW = 64
"""So many exceptions need no search for a chain with fewer."""
_LONGEST_PATTERN = 1 << 18
_PLANES_THAT_COMPOSE = 0x30000
"""Beyond these letters Unicode has none that is equivalent to others."""
_PLAIN = (
    *((0x20, 0x7E), (0xA1, 0xA8), (0xAA, 0xAC), (0xAF, 0x2FF), (0x370, 0x377), (0x37B, 0x37F), (0x384, 0x38A)),
    *((0x38E, 0x3A1), (0x3A3, 0x482), (0x48A, 0x52F), (0x5D0, 0x5EA), (0x620, 0x64A), (0x1E00, 0x1EFF)),
    *((0x2010, 0x2027), (0x3001, 0x3029), (0x3041, 0x3096), (0x30A1, 0x30FC), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3)),
    (0xFF01, 0xFF9D),
)
"""Ranges of letters that neither join nor compose with each other, in every version of Unicode."""

_Chain = list[normalizers.Normalizer]


def build_normalizer(model: SentencePieceModel, where: str) -> normalizers.Normalizer:
    """A normalizer that yields what sentencepiece cuts. Raises ModelError for rules that it cannot equal."""
    symbols = model.of_kind(PieceKind.USER_DEFINED)
    rules = read_rules(model.charsmap, where) if model.charsmap else {}
    if model.remove_extra_whitespaces and (double := [text for text in [*symbols, *rules.values()] if "  " in text]):
        raise ModelError(
            f"{where}: {double[0]!r} holds two blanks in a row while remove_extra_whitespaces is set; sentencepiece "
            "keeps them there and nowhere else, which no fast tokenizer does"
        )
    if not rules:
        dummy: _Chain = [normalizers.Prepend(" ")] if model.add_dummy_prefix else []
        return normalizers.Sequence([*dummy, *_blanks(model)])
    chain = _Rules(model.charsmap, rules, symbols, where).chain(model.add_dummy_prefix)
    return normalizers.Sequence([*chain, *_blanks(model)])


def _blanks(model: SentencePieceModel) -> _Chain:
    """Blanks as sentencepiece leaves them. The one that was put in front is like any other."""
    if not model.remove_extra_whitespaces:
        return [normalizers.Replace(" ", SPACE)]
    first = [] if model.add_dummy_prefix else [_replace(r"\A +", "")]
    last = _replace(rf"(?<!{literal(SPACE)}){literal(SPACE)}+\z", "")  # those that the text had already, too
    return [_replace(" {2,}", " "), *first, normalizers.Replace(" ", SPACE), last]


def _replace(pattern: str, content: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(pattern), content)


class _Rules:
    """The rules of one model, and which of them the library's own normalizers do not get right."""

    def __init__(self, charsmap: bytes, rules: Mapping[str, str], symbols: Sequence[str], where: str) -> None:
        reserved = {*_LITERAL, *_LITERAL.values(), *map(chr, range(_FIRST_CODE, _FIRST_CODE + _MOST_CODES))}
        if used := reserved.intersection("".join([*rules, *rules.values(), *symbols])):
            raise ModelError(
                f"{where}: a normalization rule or a piece uses U+{ord(min(used)):X}, which is needed here"
            )
        self._rules, self._symbols, self._where = rules, symbols, where
        self._precompiled = normalizers.Precompiled(charsmap)
        self._sequences = [key for key in rules if len(key) > 1]
        exceptions, self._compose = self._exceptions(compose=True), True
        if len(exceptions) > _FEW and len(plain := self._exceptions(compose=False)) < len(exceptions):
            exceptions, self._compose = plain, False
        copied = {symbol: symbol for symbol in symbols if self._letterwise([symbol], self._compose) != [symbol]}
        self._coded = exceptions | copied
        self._plain = self._plain_letters()

    def chain(self, add_dummy_prefix: bool) -> _Chain:
        """The normalizers, in order."""
        sources: dict[str, list[str]] = defaultdict(list)
        for source, value in self._coded.items():
            sources[value].append(source)
        if len(sources) >= _MOST_CODES:
            raise ModelError(f"{self._where}: {len(sources)} results of its normalization rules have no fast form")
        codes = {value: _E + chr(_FIRST_CODE + number) for number, value in enumerate([" ", *sources])}
        return [
            *(normalizers.Replace(mark, _E + code) for mark, code in _LITERAL.items()),
            *([normalizers.Prepend(codes[" "])] if add_dummy_prefix else []),
            _replace(rf"(?m:{self._read_at_once()})\K", _S),
            *(
                _replace(rf"(?<![^{_S}])(?:{'|'.join(map(literal, found))})(?={_S})", codes[value])
                for value, found in sources.items()
            ),
            *self._letters(),
            normalizers.Replace(_S, ""),
            *(normalizers.Replace(code, value) for value, code in codes.items()),
            *(normalizers.Replace(_E + code, mark) for mark, code in reversed(_LITERAL.items())),
        ]

    def _read_at_once(self) -> str:
        """A pattern for what sentencepiece reads at once; a run of plain letters is as good."""
        parts = [f"{_E}."]
        plain = one_of(self._plain)
        inside = plain
        if self._symbols:
            parts.append(symbols := longest_of(self._symbols))
            inside = f"(?:(?!{symbols}){plain})"
        if self._sequences:
            parts.append(f"(?=.{one_of(self._joining)}){longest_of(self._sequences)}")
        pattern = "|".join([*parts, f"{inside}{{1,64}}(?={plain}|\\z)", "."])
        if len(pattern) > _LONGEST_PATTERN:
            raise ModelError(f"{self._where}: its normalization rules are too many to have a fast form")
        return pattern

    def _letters(self) -> _Chain:
        """Apply the rules of single letters, then let what belongs together compose."""
        other = f"[^{_S}{ranges(self._plain)}]"
        apart = _replace(rf"(?={other})(?<=[^{_S}])|(?<={other})(?={one_of(self._plain)})", _T)
        form = [normalizers.NFC()] if self._compose else []
        return [apart, self._precompiled, normalizers.Replace(_T, ""), *form]

    @property
    def _joining(self) -> set[str]:
        """Letters that a rule of several letters has behind its first."""
        return {letter for key in self._sequences for letter in key[1:]}

    def _plain_letters(self) -> set[str]:
        """Letters that nothing here changes or joins with what stands before them."""
        letters = {chr(point) for first, last in _PLAIN for point in range(first, last + 1)}
        return letters - self._joining - self._rules.keys() - self._coded.keys()

    def _exceptions(self, compose: bool) -> dict[str, str]:
        """The rules that this chain would not get right, and letters that it would change without one."""
        results = self._letterwise(self._rules, compose)
        found = {
            key: value for (key, value), result in zip(self._rules.items(), results, strict=True) if result != value
        }
        for letter in (key for key in self._rules if len(key) == 1):
            for mark in (_S, _T):  # some letters form a cluster with whatever follows
                if self._precompiled.normalize_str(letter + mark) != self._rules[letter] + mark:
                    found[letter] = self._rules[letter]
        changed = _composable() if compose else ()
        return found | {letter: letter for letter in changed if letter not in self._rules}

    def _letterwise(self, texts: Collection[str], compose: bool) -> list[str]:
        """Each text with the rules of its single letters applied, then composed."""
        replaced = ["".join([self._rules.get(letter, letter) for letter in text]) for text in texts]
        return _composed(replaced) if compose else replaced


@cache
def _composable() -> frozenset[str]:
    """Letters that the library's composition changes, each by itself."""
    points = range(_PLANES_THAT_COMPOSE)
    letters = [chr(point) for point in points if not 0xD800 <= point < 0xE000 and chr(point) != _S]
    return frozenset(letter for letter, result in zip(letters, _composed(letters), strict=True) if letter != result)


def _composed(texts: Sequence[str]) -> list[str]:
    """Each text in the library's normal form C: joined by a mark that composes with nothing, for speed."""
    form, done = normalizers.NFC(), []
    for start in range(0, len(texts), 1 << 14):
        done += form.normalize_str(_S.join(texts[start : start + (1 << 14)])).split(_S)
    return done
