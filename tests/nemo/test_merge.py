"""Shards are joined where they are read, and only then; whole models are in test_checkpoint."""

import torch

from dpolish.nemo.merge import joined
from dpolish.nemo.stored import StoredTensor


def test_joined_reads_each_piece_once_and_late() -> None:
    parts, read = list(torch.randn(6, 4).chunk(3)), []

    def piece(index: int) -> StoredTensor:
        def load() -> torch.Tensor:
            read.append(index)
            return parts[index]

        return StoredTensor(tuple(parts[index].shape), torch.float32, load)

    for axis in (0, 1):
        whole = joined([piece(index) for index in range(3)], axis)
        assert read == []
        assert whole.shape == ((6, 4) if axis == 0 else (2, 12))
        assert torch.equal(whole.load(), torch.cat(parts, axis))
        assert whole.load().is_contiguous()
        assert read == [0, 1, 2, 0, 1, 2]
        read.clear()


def test_one_piece_is_itself() -> None:
    one = StoredTensor((2,), torch.float32, lambda: torch.ones(2))
    assert joined([one], 0) is one
