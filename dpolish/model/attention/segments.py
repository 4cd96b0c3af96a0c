"""The CPU's flash kernels on the tails of a layout, without a mask over the whole row.

One causal call for `[prompt | chosen]`; one for `[rejected]` against `[prompt | rejected]`, with a mask that is the
corner of a larger one. So it goes for all that continues what others continue too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dpolish.model.attention.dense import dense
from dpolish.model.attention.geometry import Geometry, Spec, Tail, binds, tails, visible

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
QUERY_CHUNK = 256
"""Queries of one masked call: bounds the mask, and skips the keys behind the chunk."""


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call: some queries of a tail against some of its keys, causal or by `mask`."""

    queries: tuple[int, int]
    """(first place in the row, number)."""
    keys: tuple[int, int]
    """(first, number) among the tail's keys, up to the last query."""
    mask: Tensor | None
    """Additive (queries, keys) in the queries' dtype; None is plain causal, the keys being those of the queries."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tail, and the calls that cover its queries."""

    tail: Tail
    calls: tuple[Call, ...]


def pieces_of(found: Sequence[Tail], window: int | None, dtype: torch.dtype) -> tuple[Piece, ...]:
    """The calls that cover a layout's tails: whole sequences causal, ends of others in chunks of queries, masked."""
    corner = _causal_corner(max((tail.length for tail in found), default=0), dtype)
    banded = cache(partial(_banded, dtype=dtype))  # tails of other lengths have the same in their middles

    def calls(tail: Tail) -> Iterator[Call]:
        if tail.whole and not binds(window, tail):
            yield Call(tail.queries, (0, tail.length), None)
            return
        place, number = tail.queries
        for first in range(0, number, QUERY_CHUNK):
            count = min(QUERY_CHUNK, number - first)
            end = tail.length - number + first + count  # keys behind the chunk are not looked at
            if window is None or not binds(window, tail):
                yield Call((place + first, count), (0, end), corner[-count:, -end:])
            else:  # nor are those that its first query is too far from
                begin = max(0, end - count - window + 1)
                yield Call((place + first, count), (begin, end - begin), banded(count, end - begin, window))

    return tuple(Piece(tail, tuple(calls(tail))) for tail in found)


def _causal_corner(num_keys: int, dtype: torch.dtype) -> Tensor:
    """(chunk, num_keys + chunk) additive mask whose lower right corners are the causal masks of all shorter shapes."""
    mask = torch.zeros(QUERY_CHUNK, num_keys + QUERY_CHUNK, dtype=dtype)
    behind = torch.ones(QUERY_CHUNK, QUERY_CHUNK, dtype=torch.bool).triu(1)
    mask[:, num_keys:].masked_fill_(behind, float("-inf"))
    return mask


def _banded(queries: int, keys: int, window: int, dtype: torch.dtype) -> Tensor:
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
            q, o = (_row(side, piece.tail) for side in (query, out))
            k, v = (_keys(side, piece.tail) for side in (key, value))
            for call in piece.calls:
                seen = k.narrow(2, *call.keys), v.narrow(2, *call.keys)
                causal, mask = call.mask is None, call.mask
                part, logsumexp = _FLASH(q.narrow(2, *call.queries), *seen, 0.0, causal, attn_mask=mask, scale=scale)
                o.narrow(2, *call.queries).copy_(part)
                sums.append(logsumexp)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.pieces, ctx.scale = pieces, scale  # type: ignore[attr-defined]
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, out, *sums = ctx.saved_tensors  # type: ignore[attr-defined]
        pieces, scale = ctx.pieces, ctx.scale  # type: ignore[attr-defined]
        dq = query.new_zeros(query.transpose(1, 2).shape).transpose(1, 2)
        wide = torch.promote_types(key.dtype, torch.float32)  # hundreds of tails may add to a key
        dk, dv = (side.new_zeros(side.transpose(1, 2).shape, dtype=wide).transpose(1, 2) for side in (key, value))
        logsumexps = iter(sums)
        for piece in pieces:
            q, o, do, to = (_row(side, piece.tail) for side in (query, out, grads[0].transpose(1, 2), dq))
            k, v = (_keys(side, piece.tail) for side in (key, value))
            for call in piece.calls:
                at, seen = call.queries, (k.narrow(2, *call.keys), v.narrow(2, *call.keys))
                sides = (do.narrow(2, *at), q.narrow(2, *at), *seen, o.narrow(2, *at))
                causal, mask = call.mask is None, call.mask
                part_q, part_k, part_v = _FLASH_BACKWARD(
                    *sides, next(logsumexps), 0.0, causal, attn_mask=mask, scale=scale
                )
                to.narrow(2, *at).copy_(part_q)  # each query is in one call; keys are in several
                _add_to_keys(dk, part_k, piece.tail, call.keys[0])
                _add_to_keys(dv, part_v, piece.tail, call.keys[0])
        return dq, dk.to(key.dtype), dv.to(value.dtype), None, None


def _row(side: Tensor, tail: Tail) -> Tensor:
    """(1, heads, W, d) view of a (B, heads, W, d): the tail's row. A packed batch has one, and hundreds of tails."""
    return side if side.shape[0] == 1 else side.narrow(0, tail.row, 1)


def _keys(side: Tensor, tail: Tail) -> Tensor:
    """(1, K, n, d) of a (B, K, W, d): the places of the tail's keys, a view where they are one range."""
    row = _row(side, tail)
    parts = [row.narrow(2, *part) for part in tail.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _add_to_keys(side: Tensor, part: Tensor, tail: Tail, first: int) -> None:
    """Add a (1, K, n, d) gradient to the places of the tail's keys from the given one on."""
    row, at = _row(side, tail), -first  # where a range of keys begins in `part`
    for start, number in tail.keys:
        begin, end = max(at, 0), min(at + number, part.shape[2])
        if begin < end:
            row.narrow(2, start + begin - at, end - begin).add_(part.narrow(2, begin, end - begin))
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
