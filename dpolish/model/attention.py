"""Attention over spans `[prompt | branch | branch …]`, as a Hugging Face attention function on unmodified models.

    keys        p p p | c c c | r r
    query p       causal
    query c     sees p, and c causally
    query r     sees p, and r causally; not c, although c stands before it

A key is visible to a query when it is not behind it, and lies in the prompt or in the query's own branch; with a
sliding window, when it is also fewer than `window` *positions* away (branches restart at the prompt's end, so places
will not do).

Three backends compute the same thing: `segments` (flash kernels on contiguous pieces of a span, no mask over the
whole row, CPU), `flex` (FlexAttention with a block mask, CUDA) and `dense` (plain matrix products with an explicit
mask: the oracle, and the only one with soft-capping or attention sinks on a CPU).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface

from dpolish.errors import ConfigError
from dpolish.registry import Registry
from dpolish.tensors import Layout, Span

T = TypeVar("T")

ATTENTION_NAME = "dpolish"
"""Our name in the registry of transformers. The mask registry does not know it: no T² mask is ever built."""


@dataclass(slots=True)
class Geometry:
    """A layout on a device, and what backends derive from it once per micro-batch instead of once per layer."""

    layout: Layout
    backend: str
    calls: int = 0
    """How often the attention function ran: the start-up check counts layers with it."""
    derived: dict[object, Any] = field(default_factory=dict)

    def derive(self, key: object, make: Callable[[], T]) -> T:
        """The value under `key`, made at most once."""
        if key not in self.derived:
            self.derived[key] = make()
        value: T = self.derived[key]
        return value


class _Current:
    """The geometry of the pass in progress.

    A slot, not an argument: several architectures drop unknown keyword arguments. Not a context variable either: with
    gradient checkpointing the function runs again on autograd's own threads.
    """

    geometry: Geometry | None = None


@contextmanager
def use_geometry(geometry: Geometry) -> Iterator[None]:
    """Attend by `geometry` in every model call inside, forward and backward (checkpointing runs forward again)."""
    before, _Current.geometry = _Current.geometry, geometry
    try:
        yield
    finally:
        _Current.geometry = before


def attend(  # the arguments that transformers passes, by its names
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,  # noqa: ARG001
) -> tuple[Tensor, None]:
    """(B, W, H, d) attention output; `query` is (B, H, W, d), `key` and `value` (B, K, W, d) with K dividing H."""
    geometry = _Current.geometry
    assert geometry is not None, "the attention function was called outside use_geometry"
    assert dropout == 0.0, "dropout reached the attention function"
    geometry.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    spec = Spec(scale, sliding_window, softcap, s_aux)
    return BACKENDS[geometry.backend](geometry, query, key, value, spec), None


def register() -> None:
    """Make `attend` known to transformers under ATTENTION_NAME."""
    AttentionInterface.register(ATTENTION_NAME, attend)


@dataclass(frozen=True, slots=True)
class Spec:
    """What an attention layer asks for beyond visibility."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    """(H,) logits of a virtual key without value (gpt-oss)."""


Backend = Callable[[Geometry, Tensor, Tensor, Tensor, Spec], Tensor]
BACKENDS: Registry[Backend] = Registry("attention backend")


def visible(span: Span, window: int | None, device: torch.device) -> Tensor:
    """bool (n, n): may query i of the span see key j? The definition that every backend must meet."""
    positions, branches = places(span, device)
    order = torch.arange(span.length, device=device)
    seen = (order[:, None] >= order) & ((branches == 0) | (branches == branches[:, None]))
    if window is not None:
        seen &= positions[:, None] - positions < window
    return seen


def places(span: Span, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 (n,) positions and branch numbers of a span: the prompt is branch 0."""
    parts = [torch.arange(span.prompt), *(torch.arange(span.prompt, span.prompt + n) for n in span.branches)]
    numbers = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))
    return torch.cat(parts).to(device), numbers.to(device)


def binds(window: int | None, span: Span) -> bool:
    """Does the window hide anything within this span?"""
    return window is not None and span.prompt + max(span.branches) > window


# --- dense: the oracle --------------------------------------------------------------------------------------------


@BACKENDS.register("dense")
def dense(geometry: Geometry, query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> Tensor:
    """Explicit scores and mask per span. Every feature, any device, quadratic memory per span."""
    groups = query.shape[1] // key.shape[1]
    out = query.new_zeros(query.transpose(1, 2).shape)
    pieces, at = [], []
    for span in geometry.layout.spans:
        row, start = divmod(span.start, geometry.layout.width)
        end = start + span.length
        seen = geometry.derive((span, spec.window), partial(visible, span, spec.window, query.device))
        q = query[row, :, start:end]
        k, v = (side[row, :, start:end].repeat_interleave(groups, dim=0) for side in (key, value))
        pieces.append(_dense_span(q, k, v, seen, spec).transpose(0, 1))
        at.append(torch.arange(span.start, span.start + span.length, device=query.device))
    flat = out.flatten(0, 1).index_copy(0, torch.cat(at), torch.cat(pieces))
    return flat.view(out.shape)


def _dense_span(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, spec: Spec) -> Tensor:
    """(H, n, d) from (H, n, d): softmax(cap(q kᵀ · scale)) v, the softmax in float32 or wider as transformers does."""
    scores = (q @ k.transpose(-1, -2)) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~seen, float("-inf"))
    if spec.sinks is not None:
        sinks = spec.sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1].to(v.dtype) @ v
    return scores.softmax(dim=-1).to(v.dtype) @ v


# --- segments: flash kernels on pieces ----------------------------------------------------------------------------

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_QUERY_CHUNK = 512
"""Queries of one masked call: bounds the mask, and skips the keys behind the chunk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One kernel call: a range of queries of a row against ranges of its keys, causal or by `mask`."""

    row: int
    queries: tuple[int, int]
    """(first place, number)."""
    keys: tuple[tuple[int, int], ...]
    """(first place, number), one or two: the prompt, and the branch up to the last query."""
    mask: Tensor | None
    """Additive (queries, keys) in the queries' dtype; None is plain causal, the keys being the queries' places."""


def pieces_of(layout: Layout, window: int | None, dtype: torch.dtype) -> tuple[Piece, ...]:
    """The calls that cover a layout: `[prompt | first branch]` causal, further branches against `[prompt | branch]`.

    Where a window binds, chunks of queries against the span up to them, masked.
    """
    pieces: list[Piece] = []
    widest = max((span.prompt + max(span.branches) for span in layout.spans), default=0)
    corner = _causal_corner(widest, dtype)
    for span in layout.spans:
        row, start = divmod(span.start, layout.width)
        if binds(window, span):
            pieces.extend(_windowed(span, row, start, window, dtype))
            continue
        trunk = (start, span.prompt + span.branches[0])
        pieces.append(Piece(row, trunk, (trunk,), None))
        begin = start + trunk[1]
        for length in span.branches[1:]:
            for first in range(0, length, _QUERY_CHUNK):
                last = min(first + _QUERY_CHUNK, length)
                prompt = ((start, span.prompt),) if span.prompt else ()
                mask = corner[-(last - first) :, -(span.prompt + last) :]
                pieces.append(Piece(row, (begin + first, last - first), (*prompt, (begin, last)), mask))
            begin += length
    return tuple(pieces)


def _causal_corner(num_keys: int, dtype: torch.dtype) -> Tensor:
    """(chunk, num_keys + chunk) additive mask whose lower right corners are the causal masks of all shorter shapes."""
    mask = torch.zeros(_QUERY_CHUNK, num_keys + _QUERY_CHUNK, dtype=dtype)
    behind = torch.ones(_QUERY_CHUNK, _QUERY_CHUNK, dtype=torch.bool).triu(1)
    mask[:, num_keys:].masked_fill_(behind, float("-inf"))
    return mask


def _windowed(span: Span, row: int, start: int, window: int | None, dtype: torch.dtype) -> Iterator[Piece]:
    seen = visible(span, window, torch.device("cpu"))
    for first in range(0, span.length, _QUERY_CHUNK):
        last = min(first + _QUERY_CHUNK, span.length)
        hidden = ~seen[first:last, :last]
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
        yield Piece(row, (start + first, last - first), ((start, last),), mask)


class _SegmentAttention(torch.autograd.Function):
    """All pieces of a layer as one node: gradients are added in place instead of being scattered piece by piece."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], scale: float
    ) -> Tensor:
        """(B, W, H, d)."""
        out = query.transpose(1, 2).new_zeros(query.transpose(1, 2).shape).transpose(1, 2)
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
        grad_out = grads[0].transpose(1, 2)
        dq, dk, dv = (torch.zeros_like(side) for side in (query, key, value))
        for piece, logsumexp in zip(ctx.pieces, sums, strict=True):  # type: ignore[attr-defined]
            part_q, part_k, part_v = _FLASH_BACKWARD(
                _queries(grad_out, piece),
                _queries(query, piece),
                _keys(key, piece),
                _keys(value, piece),
                _queries(out, piece),
                logsumexp,
                0.0,
                piece.mask is None,
                attn_mask=piece.mask,
                scale=ctx.scale,  # type: ignore[attr-defined]
            )
            _queries(dq, piece).copy_(part_q)  # each query is in one piece; keys are in several
            at = 0
            for start, number in piece.keys:
                dk[piece.row].narrow(1, start, number).add_(part_k[0].narrow(1, at, number))
                dv[piece.row].narrow(1, start, number).add_(part_v[0].narrow(1, at, number))
                at += number
        return dq, dk, dv, None, None


def _queries(side: Tensor, piece: Piece) -> Tensor:
    """(1, H, n, d) view of a (B, H, W, d): the places of the piece's queries."""
    return side.narrow(0, piece.row, 1).narrow(2, *piece.queries)


def _keys(side: Tensor, piece: Piece) -> Tensor:
    """(1, K, n, d) of a (B, K, W, d): the places of the piece's keys, a view where they are one range."""
    row = side.narrow(0, piece.row, 1)
    parts = [row.narrow(2, *part) for part in piece.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@BACKENDS.register("segments")
def segments(geometry: Geometry, query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> Tensor:
    """The CPU's flash kernels on contiguous pieces. Soft-caps and sinks, which those kernels lack, go to `dense`."""
    if spec.softcap is not None or spec.sinks is not None:
        return dense(geometry, query, key, value, spec)
    window = spec.window if any(binds(spec.window, span) for span in geometry.layout.spans) else None
    pieces = geometry.derive((window, query.dtype), lambda: pieces_of(geometry.layout, window, query.dtype))
    out: Tensor = _SegmentAttention.apply(query, key, value, pieces, spec.scale)  # type: ignore[no-untyped-call]
    return out


# --- flex: block masks on a GPU -----------------------------------------------------------------------------------


@BACKENDS.register("flex")
def flex(geometry: Geometry, query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> Tensor:
    """FlexAttention, compiled where it runs: blocks of keys that no query sees are never touched."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    layout, device = geometry.layout, query.device
    block_mask = geometry.derive(("block mask", spec.window), lambda: _block_mask(layout, spec.window, device))

    score_mod = None
    if spec.softcap is not None:
        limit = spec.softcap

        def score_mod(score: Tensor, *_: Tensor) -> Tensor:
            return limit * torch.tanh(score / limit)

    run: Any = _compiled_flex() if device.type == "cuda" else flex_attention
    out, extra = run(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=spec.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if spec.sinks is not None:  # a key without value only shrinks the weights of the others
        out = out * torch.sigmoid(extra.lse - spec.sinks[None, :, None])[..., None].to(out.dtype)
    return out.transpose(1, 2).contiguous()  # type: ignore[no-any-return]


def _block_mask(layout: Layout, window: int | None, device: torch.device) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    total = layout.rows * layout.width
    example = torch.full((total,), -1, dtype=torch.int64)
    position = torch.zeros(total, dtype=torch.int64)
    branch = torch.zeros(total, dtype=torch.int64)
    for number, span in enumerate(layout.spans):
        taken = slice(span.start, span.start + span.length)
        example[taken] = number
        position[taken], branch[taken] = places(span, torch.device("cpu"))
    example, position, branch = (x.view(layout.rows, layout.width).to(device) for x in (example, position, branch))

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001 (its fixed signature)
        seen = (q >= k) & (example[b, q] == example[b, k]) & ((branch[b, k] == 0) | (branch[b, k] == branch[b, q]))
        return seen if window is None else seen & (position[b, q] - position[b, k] < window)

    return create_block_mask(mask, layout.rows, None, layout.width, layout.width, device=device)


_FLEX: list[Callable[..., Any]] = []


def _compiled_flex() -> Callable[..., Any]:
    """Compiled once per process, with symbolic lengths: one graph for every width."""
    from torch.nn.attention.flex_attention import flex_attention

    if not _FLEX:
        _FLEX.append(torch.compile(flex_attention, dynamic=True))
    return _FLEX[0]


def choose_backend(asked: str, device: torch.device, forbidden: frozenset[str] = frozenset()) -> str:
    """The backend for `model.attention_backend`; `auto` is `flex` on CUDA, `segments` on a CPU, else `dense`."""
    able = {"cuda": ("flex", "dense"), "cpu": ("segments", "dense")}.get(device.type, ("dense",))
    allowed = [name for name in able if name not in forbidden]
    if asked == "auto":
        return allowed[0]
    if asked not in allowed:
        raise ConfigError(
            f"model.attention_backend={asked} does not run on {device.type}"
            f"{' (forbidden by the environment)' if asked in forbidden else ''}; use one of: auto, {', '.join(allowed)}"
        )
    return asked
