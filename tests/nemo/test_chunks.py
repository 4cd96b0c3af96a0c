"""A tensor in boxes is the tensor, and boxes that are no grid are told apart."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpolish.nemo.chunks import Chunk, ChunkedTensor, tiles

Box = tuple[tuple[int, ...], tuple[int, ...]]


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and the boxes into which cuts at any places divide it."""
    steps = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3))
    starts = [[0, *itertools.accumulate(axis)][:-1] for axis in steps]
    boxes = [
        (tuple(at), tuple(size))
        for at, size in zip(itertools.product(*starts), itertools.product(*steps), strict=True)
    ]  # fmt: skip
    return tuple(map(sum, steps)), draw(st.permutations(boxes))


def rows(box: torch.Tensor, start: int, count: int) -> torch.Tensor:
    return box[start : start + count].clone()


def chunked(whole: torch.Tensor, boxes: list[Box]) -> ChunkedTensor:
    chunks = []
    for offset, size in boxes:
        part = whole[tuple(slice(at, at + length) for at, length in zip(offset, size, strict=True))]
        chunks.append(Chunk(offset, size, partial(rows, part)))
    return ChunkedTensor(tuple(whole.shape), whole.dtype, chunks)


@given(grids())
def test_whole_and_slices(grid: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = grid
    assert tiles(shape, boxes)
    whole = torch.randn(shape)
    tensor = chunked(whole, boxes)
    assert torch.equal(tensor.whole().load(), whole)
    parts = tensor.slices()
    assert len(parts) == shape[0]
    for index, part in enumerate(parts):
        loaded = part.load()
        assert part.shape == loaded.shape == shape[1:]
        assert torch.equal(loaded, whole[index])
        assert loaded.is_contiguous()


@given(grids(), st.data())
def test_what_is_no_grid(grid: tuple[tuple[int, ...], list[Box]], data: st.DataObject) -> None:
    shape, boxes = grid
    index = data.draw(st.integers(0, len(boxes) - 1))
    offset, size = boxes[index]
    axis = data.draw(st.integers(0, len(shape) - 1))
    other = tuple(length + (1 if at == axis else 0) for at, length in enumerate(size))
    moved = tuple(length + (1 if at == axis else 0) for at, length in enumerate(offset))
    assert not tiles(shape, boxes[:index] + boxes[index + 1 :])
    assert not tiles(shape, [*boxes[:index], (offset, other), *boxes[index + 1 :]])
    assert not tiles(shape, [*boxes[:index], (moved, size), *boxes[index + 1 :]])
    assert not tiles((*shape, 1), boxes)
    assert not tiles(tuple(length + 1 for length in shape), boxes)


def test_a_slice_reads_only_what_touches_it() -> None:
    read: list[tuple[int, int, int]] = []

    def noted(index: int, start: int, count: int) -> torch.Tensor:
        read.append((index, start, count))
        return torch.zeros(count, 5)

    chunks = [Chunk((0, 0), (3, 5), partial(noted, 0)), Chunk((3, 0), (3, 5), partial(noted, 1))]
    parts = ChunkedTensor((6, 5), torch.float32, chunks).slices()
    assert read == []
    parts[4].load()
    assert read == [(1, 1, 1)]


def test_no_boxes() -> None:
    assert not tiles((3,), [])
    assert not tiles((), [])


@pytest.mark.parametrize("boxes", [[((0,), (2,)), ((1,), (2,))], [((0,), (3,)), ((1,), (1,))], [((0,), (4,))]])
def test_boxes_that_share_a_place(boxes: list[Box]) -> None:
    assert not tiles((3,), boxes)
