"""A sentencepiece model file as values: a bounded reader of the few protobuf fields that decide token ids.

    ModelProto       1 pieces*    2 trainer_spec    3 normalizer_spec
    SentencePiece    1 text       2 score           3 kind

Fields that are not named here are skipped, as protobuf has it; a file that contradicts itself is refused.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from dpolish.errors import ModelError

MAX_BYTES = 1 << 25
"""Of a model file; the largest genuine ones have a few million."""
MAX_PIECES = 300_000
"""The largest genuine ones have 262,144."""
_LONGEST_SYMBOL = 256
_MAX_PIECE_BYTES = 8000  # sentencepiece's own limit


class PieceKind(IntEnum):
    """What a piece is for, as numbered in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelKind(IntEnum):
    """The segmentation algorithm, as numbered in the file."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a sentencepiece model says about how a text becomes ids."""

    kind: ModelKind
    pieces: tuple[Piece, ...]
    byte_fallback: bool
    charsmap: bytes
    """The compiled normalization rules; empty for identity."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    special: dict[str, int]
    """Ids of `unk`, and of `bos`, `eos` and `pad` where they are control pieces."""

    def of_kind(self, *kinds: PieceKind) -> list[str]:
        """Texts of the pieces of these kinds, in order."""
        return [piece.text for piece in self.pieces if piece.kind in kinds]


def parse_model(data: bytes, where: str) -> SentencePieceModel:
    """The model in a file's bytes. Raises ModelError, also for a setting that has no exact fast form."""
    if len(data) > MAX_BYTES:
        raise ModelError(
            f"{where}: {len(data):,} bytes, more than the {MAX_BYTES:,} that a sentencepiece model may have"
        )
    try:
        return _parsed(data)
    except _Malformed as error:
        raise ModelError(f"{where}: not a sentencepiece model, or a damaged one: {error}") from error
    except _Unsupported as error:
        raise ModelError(f"{where}: {error}") from error


class _Malformed(Exception):
    """The bytes are no such model."""


class _Unsupported(Exception):
    """A genuine model that the fast tokenizer cannot equal."""


def _parsed(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    messages, texts = {2: b"", 3: b""}, set[str]()
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            pieces.append(piece := _piece(value))
            if piece.text in texts:
                raise _Malformed(f"the piece {piece.text[:80]!a} stands in it twice")
            texts.add(piece.text)
            if len(pieces) > MAX_PIECES:
                raise _Malformed(f"more than {MAX_PIECES:,} pieces")
        elif number in messages and isinstance(value, bytes):
            messages[number] += value  # protobuf merges a message that stands there twice
    trainer, normalizer = dict(_fields(messages[2])), dict(_fields(messages[3]))
    byte_fallback = _flag(trainer, 35, default=False)
    _check(pieces, byte_fallback)
    if _flag(trainer, 24, default=False):
        raise _Unsupported("treat_whitespace_as_suffix puts blanks behind words, which no fast tokenizer does")
    if not _flag(normalizer, 5, default=True):
        raise _Unsupported("escape_whitespaces=false keeps blanks as blanks, which is not supported")
    kind = trainer.get(3, ModelKind.UNIGRAM)
    if kind == ModelKind.WORD:
        raise _Unsupported("the model type WORD is not for language models and has no exact fast form")
    charsmap = normalizer.get(2, b"")
    if kind not in tuple(ModelKind) or not isinstance(charsmap, bytes):
        raise _Malformed(f"unknown model type {kind!r}")
    return SentencePieceModel(
        ModelKind(kind),
        tuple(pieces),
        byte_fallback,
        charsmap,
        _flag(normalizer, 3, default=True),
        _flag(normalizer, 4, default=True),
        _special(pieces, trainer),
    )


def _piece(data: bytes) -> Piece:
    found = dict(_fields(data))
    text, score, kind = found.get(1, b""), found.get(2, b"\0\0\0\0"), found.get(3, PieceKind.NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or kind not in tuple(PieceKind):
        raise _Malformed("a piece whose text, score or type is not one")
    if not 0 < len(text) < _MAX_PIECE_BYTES or b"\0" in text:
        raise _Malformed("a piece that is empty, holds a null character, or is too long")
    (number,) = struct.unpack("<f", score)
    if not abs(number) < float("inf"):
        raise _Malformed("a score that is not a finite number")
    try:
        return Piece(text.decode(), number, PieceKind(kind))
    except UnicodeDecodeError as error:
        raise _Malformed("a piece that is not UTF-8") from error


def _check(pieces: list[Piece], byte_fallback: bool) -> None:
    if sum(piece.kind == PieceKind.UNKNOWN for piece in pieces) != 1:
        raise _Malformed("there must be one piece for what is unknown")
    symbols = (piece.text for piece in pieces if piece.kind == PieceKind.USER_DEFINED)
    if any(len(text) > _LONGEST_SYMBOL for text in symbols):
        raise _Unsupported(f"a user-defined piece of more than {_LONGEST_SYMBOL} letters has no fast form")
    found = {piece.text for piece in pieces if piece.kind == PieceKind.BYTE}
    if found != ({f"<0x{byte:02X}>" for byte in range(256)} if byte_fallback else set()):
        raise _Malformed("byte pieces must be all 256 with byte_fallback, and none without")


def _special(pieces: list[Piece], trainer: dict[int, int | bytes]) -> dict[str, int]:
    special = {"unk": next(id_ for id_, piece in enumerate(pieces) if piece.kind == PieceKind.UNKNOWN)}
    control = {piece.text: id_ for id_, piece in enumerate(pieces) if piece.kind == PieceKind.CONTROL}
    for name, number, default in (("bos", 46, "<s>"), ("eos", 47, "</s>"), ("pad", 48, "<pad>")):
        given = trainer.get(number, default.encode())
        text = given.decode(errors="replace") if isinstance(given, bytes) else default
        if text in control:
            special[name] = control[text]
    return special


def _flag(fields: dict[int, int | bytes], number: int, *, default: bool) -> bool:
    return bool(fields.get(number, default))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message: an int for a varint, else bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value, at = _varint(data, at)
                yield key >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(data, at)
            case 5:
                length = 4
            case wire:
                raise _Malformed(f"wire type {wire} at byte {at}")
        if length > len(data) - at:
            raise _Malformed(f"cut short at byte {at}")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Malformed("cut short in a number")
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
    raise _Malformed(f"a number of more than ten bytes at byte {at}")


def appended(data: bytes, texts: list[str]) -> bytes:
    """The bytes of the same model with user-defined pieces added at the end."""
    pieces = []
    for text in texts:
        content = text.encode()
        piece = b"\x0a" + _as_varint(len(content)) + content + b"\x15\0\0\0\0\x18" + bytes([PieceKind.USER_DEFINED])
        pieces.append(b"\x0a" + _as_varint(len(piece)) + piece)
    return data + b"".join(pieces)


def _as_varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])
