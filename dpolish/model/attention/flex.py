"""FlexAttention with a block mask, on a GPU: blocks of keys that no query sees are never touched."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpolish.model.attention.geometry import Geometry, Spec, places
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
