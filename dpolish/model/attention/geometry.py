"""What may see what in a micro-batch, and what an attention layer asks for: the values that all backends share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from dpolish.tensors import Layout, Span

T = TypeVar("T")


@dataclass(slots=True)
class Geometry:
    """A layout on a device, and what backends derive from it once per micro-batch instead of once per layer."""

    layout: Layout
    backend: str
    context: DeviceMesh | None = None
    """The ranks that have a part of every row each; they exchange sequence for heads during attention."""
    calls: int = 0
    """How often the attention function ran: the start-up check counts layers with it."""
    derived: dict[object, Any] = field(default_factory=dict)

    def derive(self, key: object, make: Callable[[], T]) -> T:
        """The value under `key`, made at most once."""
        if key not in self.derived:
            self.derived[key] = make()
        value: T = self.derived[key]
        return value


class Current:
    """The geometry of the pass in progress.

    A slot, not an argument: several architectures drop unknown keyword arguments. Not a context variable either: with
    gradient checkpointing the function runs again on autograd's own threads.
    """

    geometry: Geometry | None = None


@contextmanager
def use_geometry(geometry: Geometry) -> Iterator[None]:
    """Attend by `geometry` in every model call inside, forward and backward (checkpointing runs forward again)."""
    before, Current.geometry = Current.geometry, geometry
    try:
        yield
    finally:
        Current.geometry = before


@dataclass(frozen=True, slots=True)
class Spec:
    """What an attention layer asks for beyond visibility."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    """(H,) logits of a virtual key without value (gpt-oss)."""


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
