"""Context parallelism: ranks that share every sequence, each with a part of its places, after Ulysses.

    layers      a rank has its places of the sequence, of every head
    attention   it has the whole sequence, of its heads: exchanged all-to-all before, and back behind

So attention is the one that a single rank computes, prompts shared and all: exact, whatever may see what.
Jacobs et al. 2023 (https://arxiv.org/abs/2309.14509), section 3.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


def my_places(whole: Tensor, group: dist.ProcessGroup, dim: int = 1) -> Tensor:
    """This rank's part of the places of a row: W/n of W, which n divides."""
    assert whole.shape[dim] % group.size() == 0, f"{whole.shape[dim]} places do not divide over {group.size()} ranks"
    return whole.chunk(group.size(), dim=dim)[group.rank()]


def to_heads(side: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, H/n, W, d) of this rank's heads from (B, H, W/n, d) of its places."""
    heads: Tensor = _Exchange.apply(side, group, 1, 2)  # type: ignore[no-untyped-call]
    return heads


def to_sequence(out: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, W/n, H, d) of this rank's places from (B, W, H/n, d) of its heads."""
    places: Tensor = _Exchange.apply(out, group, 1, 2)  # type: ignore[no-untyped-call]
    return places


def gathered_scores(own: Tensor, mine: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(S,) scores of all scored tokens from this rank's (s,), which stand where `mine` (S,) says so."""
    scores: Tensor = _Fill.apply(own, mine, group)  # type: ignore[no-untyped-call]
    return scores


def _exchanged(side: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
    parts = [part.contiguous() for part in side.chunk(group.size(), dim=split)]
    received = [torch.empty_like(parts[group.rank()]) for _ in parts]
    dist.all_to_all(received, parts, group=group)
    return torch.cat(received, dim=join)


class _Exchange(torch.autograd.Function):
    """Split along one dimension, joined along another: part i goes to rank i."""

    @staticmethod
    def forward(ctx: FunctionCtx, side: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
        """The other way of having a part of it."""
        ctx.group, ctx.split, ctx.join = group, split, join  # type: ignore[attr-defined]
        return _exchanged(side, group, split, join)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The exchange undone."""
        return _exchanged(grads[0], ctx.group, ctx.join, ctx.split), None, None, None  # type: ignore[attr-defined]


class _Fill(torch.autograd.Function):
    """All ranks' scores, on every rank; each gets the gradient of its own."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor, mine: Tensor, group: dist.ProcessGroup) -> Tensor:
        """(S,)."""
        ctx.save_for_backward(mine)
        scores = own.new_zeros(len(mine))
        scores[mine] = own
        dist.all_reduce(scores, group=group)
        return scores

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(s,)."""
        (mine,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0][mine], None, None
