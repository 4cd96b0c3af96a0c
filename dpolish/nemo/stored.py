"""A tensor that is known by name, shape and dtype, and read only when asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that lies on disk, or is derived from one that does.

    `load` reads it: contiguous, on the CPU, of exactly this shape and dtype, and the caller's own.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]


Weights: TypeAlias = Mapping[str, StoredTensor]
"""Names to tensors. Iterating over it reads nothing."""
