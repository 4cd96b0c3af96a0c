"""A tensor that lies in boxes: distributed checkpoints store what each rank held, as pieces of one global tensor."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from dpolish.nemo.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """The box of `shape` at `offset` of a global tensor."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    read_rows: Callable[[int, int], torch.Tensor]
    """(start, count) → that many slices of the box along its first axis."""


@dataclass(frozen=True, slots=True)
class ChunkedTensor:
    """A global tensor whose chunks cover it, each place once."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Sequence[Chunk]

    def whole(self) -> StoredTensor:
        """All of it."""
        return StoredTensor(self.shape, self.dtype, lambda: self._read(0, self.shape[0], self.chunks))

    def slices(self) -> list[StoredTensor]:
        """One tensor for each index of the first axis, which goes away: the layers of a stack."""
        of_index: list[list[Chunk]] = [[] for _ in range(self.shape[0])]
        for chunk in self.chunks:
            for index in range(chunk.offset[0], chunk.offset[0] + chunk.shape[0]):
                of_index[index].append(chunk)
        return [self._slice(index, chunks) for index, chunks in enumerate(of_index)]

    def _slice(self, index: int, chunks: Sequence[Chunk]) -> StoredTensor:
        return StoredTensor(self.shape[1:], self.dtype, lambda: self._read(index, 1, chunks)[0])

    def _read(self, start: int, count: int, chunks: Sequence[Chunk]) -> torch.Tensor:
        """The slices from `start` on, of which `chunks` are all that touch them."""
        shape = (count, *self.shape[1:])
        result: torch.Tensor | None = None
        for chunk in chunks:
            first, last = max(start, chunk.offset[0]), min(start + count, chunk.offset[0] + chunk.shape[0])
            rows = chunk.read_rows(first - chunk.offset[0], last - first)
            if rows.shape == shape:
                return rows
            result = torch.empty(shape, dtype=self.dtype) if result is None else result
            sides = zip(chunk.offset[1:], chunk.shape[1:], strict=True)
            result[(slice(first - start, last - start), *(slice(at, at + size) for at, size in sides))] = rows
        return torch.empty(shape, dtype=self.dtype) if result is None else result


def tiles(shape: tuple[int, ...], boxes: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """True if the (offset, shape) boxes are all the cells of a grid on `shape`, so that each place is in one box.

    Ranks split an axis at the same places whatever they hold of the others, so genuine boxes form a grid.
    """
    known = dict(boxes)
    if any(len(offset) != len(shape) or len(size) != len(shape) for offset, size in known.items()):
        return False
    starts = [sorted({offset[axis] for offset in known}) for axis in range(len(shape))]
    ends = [
        dict(zip(cuts, [*cuts[1:], length], strict=True)) for cuts, length in zip(starts, shape, strict=True) if cuts
    ]
    if len(ends) < len(shape) or len(known) != math.prod(map(len, starts)):
        return False
    return all(cuts[0] == 0 for cuts in starts) and all(
        at + length == ends[axis][at] and length > 0
        for offset, size in known.items()
        for axis, (at, length) in enumerate(zip(offset, size, strict=True))
    )
