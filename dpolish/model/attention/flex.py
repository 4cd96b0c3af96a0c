"""FlexAttention with a block mask, on a GPU: blocks of keys that no query sees are never touched."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpolish.model.attention.geometry import Geometry, Spec
from dpolish.tensors import Layout


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

    node, last, position = (x.view(layout.rows, layout.width).to(device) for x in _places(layout))

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001 (its fixed signature)
        seen = (q >= k) & (node[b, k] <= node[b, q]) & (node[b, q] <= last[b, k])
        return seen if window is None else seen & (position[b, q] - position[b, k] < window)

    return create_block_mask(mask, layout.rows, None, layout.width, layout.width, device=device)


def _places(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """int64 (T,) each: a place's node, the last node that continues it, its position. Padding is a node of its own.

    Depth first, the nodes n … last are node n and what continues it: places there that lie behind a key of n see it.
    """
    last = list(range(len(layout.nodes)))
    for number in reversed(range(len(last))):
        parent = layout.nodes[number].parent
        if parent is not None:
            last[parent] = max(last[parent], last[number])
    places = torch.full((3, layout.rows * layout.width), len(layout.nodes), dtype=torch.int64)
    depths: list[int] = []
    for number, node in enumerate(layout.nodes):
        begin = 0 if node.parent is None else depths[node.parent]
        depths.append(begin + node.length)
        places[0, node.start : node.end] = number
        places[1, node.start : node.end] = last[number]
        places[2, node.start : node.end] = torch.arange(begin, depths[-1])
    return places[0], places[1], places[2]


_FLEX: list[Callable[..., Any]] = []


def _compiled_flex() -> Callable[..., Any]:
    """Compiled once per process, with symbolic lengths: one graph for every width."""
    from torch.nn.attention.flex_attention import flex_attention

    if not _FLEX:
        _FLEX.append(torch.compile(flex_attention, dynamic=True))
    return _FLEX[0]
