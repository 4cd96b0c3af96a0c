"""The CPU's flash kernels on the tails of a layout, without a mask over the whole row.

One causal call for `[prompt | chosen]`; one for `[rejected]` against `[prompt | rejected]`, with a mask that is the
corner of a larger one. So it goes for all that continues what others continue too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dpolish.model.attention.dense import dense
from dpolish.model.attention.geometry import Geometry, Spec, Tail, binds, tails, visible

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
QUERY_CHUNK = 512
"""Queries of one masked call: bounds the mask, and skips the keys behind the chunk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One kernel call: a range of queries of a row against ranges of its keys, causal or by `mask`."""

    row: int
    queries: tuple[int, int]
    """(first place, number)."""
    keys: tuple[tuple[int, int], ...]
    """(first place, number), in order of position, up to the last query."""
    mask: Tensor | None
    """Additive (queries, keys) in the queries' dtype; None is plain causal, the keys being the queries' places."""


def pieces_of(found: Sequence[Tail], window: int | None, dtype: torch.dtype) -> tuple[Piece, ...]:
    """The calls that cover a layout's tails: whole sequences causal, ends of others in chunks of queries, masked."""
    pieces: list[Piece] = []
    corner = _causal_corner(max((tail.length for tail in found), default=0), dtype)
    for tail in found:
        if tail.whole and not binds(window, tail):
            pieces.append(Piece(tail.row, tail.queries, tail.keys, None))
            continue
        begin, number = tail.queries
        *before, (first_key, _) = tail.keys
        for first in range(0, number, QUERY_CHUNK):
            count = min(QUERY_CHUNK, number - first)
            end = begin + first + count  # keys behind the chunk are not looked at
            seen = tail.length - number + first + count
            mask = _banded(count, seen, window, dtype) if binds(window, tail) else corner[-count:, -seen:]
            keys = (*before, (first_key, end - first_key))
            pieces.append(Piece(tail.row, (begin + first, count), keys, mask))
    return tuple(pieces)


def _causal_corner(num_keys: int, dtype: torch.dtype) -> Tensor:
    """(chunk, num_keys + chunk) additive mask whose lower right corners are the causal masks of all shorter shapes."""
    mask = torch.zeros(QUERY_CHUNK, num_keys + QUERY_CHUNK, dtype=dtype)
    behind = torch.ones(QUERY_CHUNK, QUERY_CHUNK, dtype=torch.bool).triu(1)
    mask[:, num_keys:].masked_fill_(behind, float("-inf"))
    return mask


def _banded(queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(queries, keys) additive mask of a window."""
    hidden = ~visible(queries, keys, window, torch.device("cpu"))
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))


class _SegmentAttention(torch.autograd.Function):
    """All pieces of a layer as one node: gradients are added in place instead of being scattered piece by piece."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], scale: float
    ) -> Tensor:
        """(B, W, H, d)."""
        out = query.new_zeros(query.transpose(1, 2).shape).transpose(1, 2)
        sums: list[Tensor] = []
        for piece in pieces:
            q, k, v = _queries(query, piece), _keys(key, piece), _keys(value, piece)
            part, logsumexp = _FLASH(q, k, v, 0.0, piece.mask is None, attn_mask=piece.mask, scale=scale)
            _queries(out, piece).copy_(part)
            sums.append(logsumexp)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.pieces, ctx.scale = pieces, scale  # type: ignore[attr-defined]
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, out, *sums = ctx.saved_tensors  # type: ignore[attr-defined]
        pieces, scale = ctx.pieces, ctx.scale  # type: ignore[attr-defined]
        grad_out = grads[0].transpose(1, 2)
        dq, dk, dv = (side.new_zeros(side.transpose(1, 2).shape).transpose(1, 2) for side in (query, key, value))
        for piece, logsumexp in zip(pieces, sums, strict=True):
            sides = (_queries(query, piece), _keys(key, piece), _keys(value, piece), _queries(out, piece))
            causal, mask = piece.mask is None, piece.mask
            part_q, part_k, part_v = _FLASH_BACKWARD(
                _queries(grad_out, piece), *sides, logsumexp, 0.0, causal, attn_mask=mask, scale=scale
            )
            _queries(dq, piece).copy_(part_q)  # each query is in one piece; keys are in several
            _add_to_keys(dk, part_k, piece)
            _add_to_keys(dv, part_v, piece)
        return dq, dk, dv, None, None


def _row(side: Tensor, piece: Piece) -> Tensor:
    """(1, heads, W, d) view of a (B, heads, W, d): the piece's row. A packed batch has one, and hundreds of pieces."""
    return side if side.shape[0] == 1 else side.narrow(0, piece.row, 1)


def _queries(side: Tensor, piece: Piece) -> Tensor:
    """(1, H, n, d) view of a (B, H, W, d): the places of the piece's queries."""
    return _row(side, piece).narrow(2, *piece.queries)


def _keys(side: Tensor, piece: Piece) -> Tensor:
    """(1, K, n, d) of a (B, K, W, d): the places of the piece's keys, a view where they are one range."""
    row = _row(side, piece)
    parts = [row.narrow(2, *part) for part in piece.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _add_to_keys(side: Tensor, part: Tensor, piece: Piece) -> None:
    """Add a (1, K, n, d) gradient to the places that `_keys` took it from."""
    row, at = _row(side, piece), 0
    for start, number in piece.keys:
        row.narrow(2, start, number).add_(part.narrow(2, at, number) if len(piece.keys) > 1 else part)
        at += number


def segments(geometry: Geometry, query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> Tensor:
    """(B, W, H, d). Soft-caps and sinks, which the flash kernels lack, go to `dense`."""
    if spec.softcap is not None or spec.sinks is not None:
        return dense(geometry, query, key, value, spec)
    found = geometry.derive("tails", partial(tails, geometry.layout))
    window = spec.window if any(binds(spec.window, tail) for tail in found) else None
    pieces = geometry.derive((window, query.dtype), partial(pieces_of, found, window, query.dtype))
    out: Tensor = _SegmentAttention.apply(query, key, value, pieces, spec.scale)  # type: ignore[no-untyped-call]
    return out
