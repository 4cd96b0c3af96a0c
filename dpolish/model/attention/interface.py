"""Attention over a tree of prompts and answers, as a Hugging Face attention function on unmodified models.

    keys        s s | p p p | c c c | r r | q q | c c c
    query p     sees s, and p causally
    query c     sees s and its p, and c causally
    query r     sees s and its p, and r causally; not c, although c stands before it
    query q     sees s, and q causally; nothing of the first pair, although all of it stands before it

A key is visible to a query when it is not behind it, and lies in the query's node or in one that this continues; with a
sliding window, when it is also fewer than `window` *positions* away (a node's positions go on where its parent's end,
so places will not do).

Three backends compute the same thing: `segments` (flash kernels on contiguous pieces of a row, no mask over the
whole of it, CPU), `flex` (FlexAttention with a block mask, CUDA) and `dense` (plain matrix products with an explicit
mask: the oracle, and the only one with soft-capping or attention sinks on a CPU).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from dpolish.errors import ConfigError
from dpolish.model.attention.dense import dense
from dpolish.model.attention.flex import flex
from dpolish.model.attention.geometry import Current, Geometry, Spec
from dpolish.model.attention.segments import segments
from dpolish.parallel.context import to_heads, to_sequence
from dpolish.registry import Registry

ATTENTION_NAME = "dpolish"
"""Our name in the registry of transformers. The mask registry does not know it: no T² mask is ever built."""

Backend = Callable[[Geometry, Tensor, Tensor, Tensor, Spec], Tensor]
BACKENDS: Registry[Backend] = Registry("attention backend")
BACKENDS.register("dense")(dense)
BACKENDS.register("segments")(segments)
BACKENDS.register("flex")(flex)


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
    geometry = Current.geometry
    assert geometry is not None, "the attention function was called outside use_geometry"
    assert dropout == 0.0, "dropout reached the attention function"
    geometry.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if geometry.context is None:
        spec = Spec(scale, sliding_window, softcap, s_aux)
        return BACKENDS[geometry.backend](geometry, query, key, value, spec), None
    group = geometry.context.get_group()
    spec = Spec(scale, sliding_window, softcap, None if s_aux is None else s_aux.chunk(group.size())[group.rank()])
    query, key, value = (to_heads(side, group) for side in (query, key, value))
    return to_sequence(BACKENDS[geometry.backend](geometry, query, key, value, spec), group), None


def register(*, compiled: bool = False) -> None:
    """Make `attend` known to transformers under ATTENTION_NAME; compiled layers call it as it is, between their parts.

    What it does depends on the micro-batch's layout: traced, it would be compiled anew for every one.
    """
    AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(attend) if compiled else attend)  # type: ignore[no-untyped-call]


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
