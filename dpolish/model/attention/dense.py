"""Attention by plain matrix products and an explicit mask: the oracle, for every feature and any device."""

from functools import partial

import torch
from torch import Tensor

from dpolish.model.attention.geometry import Geometry, Spec, visible


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
