"""A sentencepiece model as a fast tokenizer whose ids are the same.

What the two libraries do differently, and what is done about it here:

- sentencepiece joins whichever neighbours make a piece, the best piece first; the fast BPE follows a list of pairs. The
  list has every pair that makes a piece, by score. Where two pairs make one piece, the one with the longer first half
  comes first, so that of overlapping places the left one is joined.
- A user-defined piece is a symbol of its own from the start. It is split off, and the fast BPE is told to take a whole
  split that is in the vocabulary as it is (`ignore_merges`). A split that looks like another piece without being it
  (`<s>`, `<0x0A>`) is split once more, where its tokens meet.
- The fast Unigram reads control and byte pieces in a text as such. They get a score that no path takes.
- sentencepiece adds scores in float32, the fast Unigram in float64: segmentations that tie may differ.
"""

from collections import defaultdict
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Model, Unigram

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.library import refusals
from dpolish.nemo.tokenizers.patterns import literal, longest_of
from dpolish.nemo.tokenizers.spm_model import ModelKind, PieceKind, SentencePieceModel
from dpolish.nemo.tokenizers.spm_normalizer import SPACE, build_normalizer

_NEVER = -1e5
"""A score below that of any path through a text of the length of a piece."""

UNIGRAM_TIES = (
    "the tokenizer is a unigram model: sentencepiece adds its scores in 32 bits, the fast tokenizer in 64, so that two "
    "ways to cut a text that score the same (mostly within repeated letters) may be chosen differently"
)


def build_fast(model: SentencePieceModel, where: str) -> Tokenizer:
    """The fast tokenizer. Raises ModelError for a model that has none with the same ids."""
    with refusals(f"{where}: the tokenizers library refuses this model"):
        fast = _unigram(model, where) if model.kind == ModelKind.UNIGRAM else _bpe(model, where)
        fast.normalizer = build_normalizer(model, where)
    fast.decoder = _decoder(model)
    control = model.of_kind(PieceKind.CONTROL, PieceKind.UNKNOWN)
    fast.add_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    return fast


def _decoder(model: SentencePieceModel) -> decoders.Decoder:
    chain: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    if model.byte_fallback:
        chain.append(decoders.ByteFallback())
    chain.append(decoders.Fuse())
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        chain.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(chain)


# BPE


def _bpe(model: SentencePieceModel, where: str) -> Tokenizer:
    if unused := model.of_kind(PieceKind.UNUSED):
        raise ModelError(f"{where}: the piece {unused[0]!r} is marked as unused, which a fast BPE tokenizer cannot do")
    unknown = model.pieces[model.special["unk"]].text
    if len(unknown) == 1:
        raise ModelError(f"{where}: the piece for what is unknown is the letter {unknown!r}, which texts may have")
    vocabulary = {piece.text: id_ for id_, piece in enumerate(model.pieces)}
    merges = _merges(model, vocabulary, where) if model.kind == ModelKind.BPE else []

    bpe = BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
    symbols = [text for text in model.of_kind(PieceKind.USER_DEFINED) if " " not in text]  # blanks are gone by then
    if all(len(text) == 1 for text in symbols):
        return Tokenizer(bpe)
    splits = _splits(symbols, _lookalikes(vocabulary, set(symbols), bpe, where))
    bpe.ignore_merges = True
    fast = Tokenizer(bpe)
    fast.pre_tokenizer = splits
    return fast


def _merges(model: SentencePieceModel, vocabulary: dict[str, int], where: str) -> list[tuple[str, str]]:
    """Every pair of symbols that makes a piece, the best piece first."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == PieceKind.NORMAL}
    scores = {text: score for text, score in scores.items() if len(text) > 1}
    by_score: dict[float, str] = {}
    for text, score in scores.items():
        if (other := by_score.setdefault(score, text)) != text:
            raise ModelError(
                f"{where}: the pieces {other!r} and {text!r} have one score; sentencepiece joins the left one in a "
                "text first, which a fast BPE tokenizer cannot do"
            )
        if lacking := next((letter for letter in text if letter not in vocabulary), None):
            raise ModelError(
                f"{where}: the piece {text!r} has the letter {lacking!r}, which is no piece; a fast BPE tokenizer "
                "cannot make it"
            )
    fixed = set(model.of_kind(PieceKind.USER_DEFINED))
    symbols = (scores.keys() | {text for text in vocabulary if len(text) == 1}) - fixed
    return [
        (text[:at], text[at:])
        for text in sorted(scores, key=scores.__getitem__, reverse=True)
        for at in range(len(text) - 1, 0, -1)
        if text[:at] in symbols and text[at:] in symbols
    ]


def _lookalikes(vocabulary: dict[str, int], symbols: set[str], bpe: BPE, where: str) -> dict[str, int]:
    """Pieces that their own text does not become, and where it can be cut without a change."""
    different = {
        text: ids
        for text, id_ in vocabulary.items()
        if len(text) > 1 and text not in symbols and " " not in text and (ids := _ids(bpe, text)) != [id_]
    }
    cuts = {}
    for text, ids in different.items():
        for at in range(1, len(text)):
            parts = text[:at], text[at:]
            if different.keys().isdisjoint(parts) and _ids(bpe, parts[0]) + _ids(bpe, parts[1]) == ids:
                cuts[text] = at
                break
        else:
            raise ModelError(f"{where}: the text {text!r} would become the piece of this name in a fast tokenizer")
    return cuts


def _splits(symbols: Iterable[str], lookalikes: dict[str, int]) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(longest_of(symbols)), "isolated")
    if not lookalikes:
        return split
    behind = defaultdict(list)
    for text, at in lookalikes.items():
        behind[text[:at]].append(text[at:])
    heads = "|".join(rf"{literal(head)}(?={longest_of(rests)}\z)" for head, rests in behind.items())
    return pre_tokenizers.Sequence([split, pre_tokenizers.Split(Regex(rf"\A(?:{heads})"), "isolated")])


def _ids(model: Model, text: str) -> list[int]:
    return [token.id for token in model.tokenize(text)]


# Unigram


def _unigram(model: SentencePieceModel, where: str) -> Tokenizer:
    normal = {piece.text: piece.score for piece in model.pieces if piece.kind == PieceKind.NORMAL}
    symbols = model.of_kind(PieceKind.USER_DEFINED)
    hidden = model.of_kind(PieceKind.CONTROL, PieceKind.UNKNOWN, PieceKind.BYTE, PieceKind.UNUSED)
    known = {text for text in [*normal, *symbols] if len(text) == 1}
    if lacking := next((letter for text in normal for letter in text if letter not in known), None):
        raise ModelError(
            f"{where}: a piece has the letter {lacking!r}, which is no piece of its own; how often it stays unknown "
            "depends on scores that a fast unigram tokenizer does not have"
        )
    if single := next((text for text in hidden if len(text) == 1), None):
        raise ModelError(f"{where}: the letter {single!r} is a control or unused piece, which texts may have")
    # as sentencepiece scores a user-defined piece, with the smallest positive number where all scores are negative
    best = max([float.fromhex("0x1p-126"), *normal.values()])
    scored = [(piece.text, normal.get(piece.text, _NEVER)) for piece in model.pieces]
    for id_, piece in enumerate(model.pieces):
        if piece.kind == PieceKind.USER_DEFINED:
            scored[id_] = (piece.text, len(piece.text.encode()) * best - 0.1)
    fast = Tokenizer(Unigram(scored, model.special["unk"], model.byte_fallback))
    edges = {text: _edge(text, known, symbols, model.byte_fallback, where) for text in hidden if set(text) - known}
    if edges:
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(_at_edges(edges)), "isolated")
    return fast


def _edge(text: str, known: set[str], symbols: list[str], byte_fallback: bool, where: str) -> int:
    """Where a text with unknown letters can be cut without a change: every path is cut beside a letter without piece.

    Without byte fallback unknown neighbours are one token, so the letter on the other side must be known.
    """
    for at in range(1, len(text)):
        unknown = [letter not in known for letter in text[at - 1 : at + 1]]
        if (
            any(unknown)
            and (byte_fallback or not all(unknown))
            and not any(text[at - 1 : at + 1] in s for s in symbols)
        ):
            return at
    raise ModelError(f"{where}: the text {text!r} would become the piece of this name in a fast tokenizer")


def _at_edges(edges: dict[str, int]) -> str:
    behind = defaultdict(list)
    for text, at in edges.items():
        behind[text[:at]].append(text[at:])
    return "|".join(f"(?<={literal(head)})(?={longest_of(rests)})" for head, rests in behind.items())
