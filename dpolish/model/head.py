"""log-probabilities of given tokens from hidden states, without a [tokens × vocabulary] tensor.

The language-model head and the log-softmax run on the scored rows only, in chunks. A chunk's logits become
probabilities in place. The first chunks' probabilities are kept for backward, up to a fixed number of bytes whatever
the batch is; beyond it they are computed again. Which of the two a chunk gets is decided by its place alone, and no
loss can tell.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of logits in float32."""
KEEP_BYTES = 512 * 2**20
"""Probabilities kept from forward to backward; 0 recomputes all (the two-pass form)."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What an architecture does to its logits: `cap·tanh(scale·logits / cap)`. Cohere and Granite scale, Gemma caps."""

    scale: float = 1.0
    softcap: float | None = None


PLAIN = LogitTransform()

Head = Callable[..., Tensor]


def naive_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform = PLAIN
) -> Tensor:
    """float32 (S,): log p(target) by the definition, with all logits at once. The oracle of `chunked_logprobs`.

    `hidden` (S, D), `weight` (V, D), `bias` (V,) or None, `targets` int64 (S,).
    """
    logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class VocabularyPart:
    """The part of the vocabulary whose logits this rank computes (tensor parallelism)."""

    start: int
    """Token id of the head's first row here."""
    group: dist.ProcessGroup
    """The ranks that have the other parts, for the same hidden states."""

    def local(self, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Targets as rows of this part, 0 where they are another rank's, and which are this one's."""
        mine = (targets >= self.start) & (targets < self.start + size)
        return torch.where(mine, targets - self.start, 0), mine

    def merged(self, normalisers: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log normalisers (S,) and targets' logits (S,) over the whole vocabulary, from those of each part."""
        pair = torch.stack([normalisers, target_logits])
        parts = [torch.empty_like(pair) for _ in range(self.group.size())]
        dist.all_gather(parts, pair, group=self.group)
        whole = torch.stack(parts)
        return whole[:, 0].logsumexp(dim=0), whole[:, 1].sum(dim=0)


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = PLAIN,
    part: VocabularyPart | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    keep_bytes: int = KEEP_BYTES,
) -> Tensor:
    """float32 (S,): log p(target), as `naive_logprobs`, in chunks (float64 where `hidden` is float64).

    With `part`, `weight` and `bias` are this rank's rows of the head; two numbers per token are exchanged, no logits.
    """
    row_bytes = weight.shape[0] * torch.promote_types(hidden.dtype, torch.float32).itemsize
    chunk, keep = max(1, chunk_bytes // row_bytes), keep_bytes // row_bytes
    apply = _ChunkedLogProbs.apply
    logprobs: Tensor = apply(hidden, weight, bias, targets, transform, part, chunk, keep)  # type: ignore[no-untyped-call]
    return logprobs


class _ChunkedLogProbs(torch.autograd.Function):
    """Forward: logits → probabilities, one chunk alive besides the kept ones. Backward: p - onehot → the gradients."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        part: VocabularyPart | None,
        chunk: int,
        keep: int,
    ) -> Tensor:
        """(S,)."""
        train = any(ctx.needs_input_grad[:3])  # type: ignore[attr-defined]
        target_logits = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        normalisers = torch.empty_like(target_logits)
        mine: Tensor | None = None
        if part is not None:
            targets, mine = part.local(targets, len(weight))
        kept: list[Tensor] = []
        for rows in _chunks(len(hidden), chunk):
            logits = _logits(hidden[rows], weight, bias, transform)
            target_logits[rows] = logits.gather(1, targets[rows, None])[:, 0]
            normalisers[rows] = _softmax_(logits)
            if train and transform == PLAIN and rows.stop <= keep:
                kept.append(logits)
        share: Tensor | None = None
        if part is not None and mine is not None:
            whole, target_logits = part.merged(normalisers, torch.where(mine, target_logits, 0.0))
            share, normalisers = (normalisers - whole).exp(), whole
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, mine, share, *kept)  # type: ignore[arg-type]  # None is fine
        ctx.transform, ctx.chunk, ctx.part = transform, chunk, part  # type: ignore[attr-defined]
        return target_logits - normalisers

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, weight and bias: d log p / d logits is onehot(target) - p, here the negated `error`."""
        hidden, weight, bias, targets, normalisers, mine, share, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        # A rank whose part of the sequence is not scored (context parallelism) adds nothing.
        begin = torch.empty_like if len(hidden) else torch.zeros_like
        dweight = begin(weight) if needs_weight else None
        dbias = torch.zeros_like(bias) if needs_bias else None
        for index, rows in enumerate(_chunks(len(hidden), ctx.chunk)):  # type: ignore[attr-defined]
            if index < len(kept):
                error, slope = kept[index], None
                if share is not None:  # of this part's probabilities in the whole vocabulary's
                    error.mul_(share[rows, None])
            else:
                error, slope = _logits_and_slope(hidden[rows], weight, bias, ctx.transform)  # type: ignore[attr-defined]
                error.sub_(normalisers[rows, None]).exp_()
            ones = error.new_ones(len(error)) if mine is None else mine[rows].to(error.dtype)
            error.scatter_add_(1, targets[rows, None], -ones[:, None])
            if slope is not None:
                error.mul_(slope)
            error = error.to(hidden.dtype)
            minus = -grads[0][rows, None].to(hidden.dtype)  # scales (n, D) rows, not (n, V) ones: a pass over V less
            if dhidden is not None:
                torch.mm(error, weight, out=dhidden[rows]).mul_(minus)
            if dweight is not None:
                scaled = hidden[rows] * minus
                if index == 0:
                    torch.mm(error.T, scaled, out=dweight)
                else:
                    dweight.addmm_(error.T, scaled)
            if dbias is not None:
                dbias.add_((error * minus).sum(0))
        if dhidden is not None and ctx.part is not None:  # type: ignore[attr-defined]
            dist.all_reduce(dhidden, group=ctx.part.group)  # type: ignore[attr-defined]
        return dhidden, dweight, dbias, None, None, None, None, None


def _chunks(total: int, size: int) -> Iterator[slice]:
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))


def _softmax_(logits: Tensor) -> Tensor:
    """Turn (n, V) logits into probabilities in place; returns their log normalisers (n,).

    The normaliser comes from the largest logit and its probability, at least 1/V: it cannot underflow.
    """
    top, index = logits.max(dim=-1)
    torch.softmax(logits, dim=-1, out=logits)
    return top - logits.gather(1, index[:, None])[:, 0].log()


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """(n, V) transformed logits in float32 or wider: a fresh tensor that the caller may overwrite."""
    logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if transform.scale != 1.0:
        logits.mul_(transform.scale)
    if transform.softcap is not None:
        logits.div_(transform.softcap).tanh_().mul_(transform.softcap)
    return logits


def _logits_and_slope(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform
) -> tuple[Tensor, Tensor | None]:
    """Transformed logits, and d transformed / d raw where that is not 1: scale·(1 - (logits/cap)²)."""
    logits = _logits(hidden, weight, bias, transform)
    if transform == PLAIN:
        return logits, None
    slope = torch.full_like(logits[:1, :1], transform.scale).expand_as(logits)
    if transform.softcap is not None:
        slope = slope * (1 - (logits / transform.softcap).square())
    return logits, slope
