"""Attention by plain matrix products and an explicit mask: the oracle, for every feature and any device."""

from functools import partial

import torch
from torch import Tensor

from dpolish.model.attention.geometry import Geometry, Spec, tails, visible


def dense(geometry: Geometry, query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> Tensor:
    """Explicit scores and mask for each tail. Every feature, any device, memory quadratic in a sequence."""
    groups, device, layout = query.shape[1] // key.shape[1], query.device, geometry.layout
    pieces, at = [], []
    for tail in geometry.derive("tails", partial(tails, layout)):
        begin, number = tail.queries
        size = number, tail.length, spec.window
        seen = geometry.derive(("visible", *size), partial(visible, *size, device))
        q = query[tail.row, :, begin : begin + number]
        places = torch.cat([torch.arange(first, first + count, device=device) for first, count in tail.keys])
        k, v = (side[tail.row].index_select(1, places).repeat_interleave(groups, dim=0) for side in (key, value))
        pieces.append(_attended(q, k, v, seen, spec).transpose(0, 1))
        at.append(places[-number:] + tail.row * layout.width)
    out = query.new_zeros(query.transpose(1, 2).shape)
    return out.flatten(0, 1).index_copy(0, torch.cat(at), torch.cat(pieces)).view(out.shape)


def _attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, spec: Spec) -> Tensor:
    """(H, n, d) from (H, n, d) and (H, m, d): softmax(cap(q kᵀ · scale)) v.

    The softmax is in float32 or wider, as transformers does it.
    """
    scores = (q @ k.transpose(-1, -2)) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~seen, float("-inf"))
    if spec.sinks is not None:
        sinks = spec.sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1].to(v.dtype) @ v
    return scores.softmax(dim=-1).to(v.dtype) @ v
