"""What may see what in a micro-batch, and what an attention layer asks for: the values that all backends share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from dpolish.tensors import Layout

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


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of an ordinary causal sequence, whose beginning may lie elsewhere and belong to other tails too.

    Nodes that lie one behind the other, each continuing the one before it, make one tail: `[prompt | chosen]` is the
    whole of its sequence, `[rejected]` the end of one that begins with the prompt.
    """

    row: int
    keys: tuple[tuple[int, int], ...]
    """(first place in the row, number) of all that the last query sees, in order of position."""
    queries: tuple[int, int]
    """(first place in the row, number): the last of the keys."""

    @property
    def length(self) -> int:
        """Keys: positions 0 … length - 1."""
        return sum(number for _, number in self.keys)

    @property
    def whole(self) -> bool:
        """Are the queries all of the sequence?"""
        return self.length == self.queries[1]


def tails(layout: Layout) -> tuple[Tail, ...]:
    """The tails that a layout is made of; together they have every place of a node as a query, once."""
    found: list[Tail] = []
    for number, (node, way) in enumerate(zip(layout.nodes, layout.ways(), strict=True)):
        row, start = divmod(node.start, layout.width)
        keys = _joined([(layout.nodes[i].start % layout.width, layout.nodes[i].length) for i in way])
        goes_on = number > 0 and node.parent == number - 1 and layout.nodes[number - 1].end == node.start
        if goes_on:
            begin, length = found.pop().queries
            found.append(Tail(row, keys, (begin, length + node.length)))
        else:
            found.append(Tail(row, keys, (start, node.length)))
    return tuple(found)


def _joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges one behind the other as one."""
    joined: list[tuple[int, int]] = []
    for start, number in ranges:
        if joined and sum(joined[-1]) == start:
            start, number = joined[-1][0], joined.pop()[1] + number
        joined.append((start, number))
    return tuple(joined)


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """bool (queries, keys): may a query, one of the last positions of a sequence, see a key? It is as in any other."""
    positions = torch.arange(keys, device=device)
    behind = positions[keys - queries :, None] - positions
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)


def binds(window: int | None, tail: Tail) -> bool:
    """Does the window hide anything from a tail?"""
    return window is not None and tail.length > window
