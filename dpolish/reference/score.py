"""The pass that fills the cache: every completion that is not stored yet is scored once, without gradient."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpolish.data.pack import Packing, collate
from dpolish.errors import RunError
from dpolish.model.logprobs import Policy, attending, completion_logprobs
from dpolish.parallel.watch import rest, tick
from dpolish.reference.cache import ReferenceCache
from dpolish.tensors import Example

_BLOCK = 512

SEGMENT_SECONDS = 30.0
"""Scores are stored this often, so that an interrupted pass loses no more."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Log-probabilities of N examples under the reference."""

    logprobs: npt.NDArray[np.float32]
    """(N, completions)."""
    num_cached: int
    num_scored: int


def missing(examples: Sequence[Example], cache: ReferenceCache) -> npt.NDArray[np.int64]:
    """Indices of the examples with a completion that is not stored."""
    if not examples:
        return np.empty(0, dtype=np.int64)
    return unknown(cache.lookup(examples))


def unknown(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Indices of the rows with a NaN: a completion whose score is not known."""
    return np.flatnonzero(np.isnan(logprobs).any(axis=1))


def score(
    policy: Policy,
    examples: Sequence[Example],
    packing: Packing,
    cache: ReferenceCache | None,
    where: Sequence[str],
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> Reference:
    """Log-probabilities of all examples; those not in `cache` are computed, by all ranks together, and stored.

    The first rank has the cache and tells the others what is in it; they have None. `progress(label, total)` opens a
    display that is told of rows done. Runs the policy as it stands, which at the start is the reference. Raises
    RunError for a non-finite score, and before anything is scored for a cache that cannot be written.
    """
    logprobs = policy.mesh.from_first(None if cache is None else cache.lookup(examples))
    assert logprobs is not None
    todo = unknown(logprobs) if len(examples) else np.empty(0, dtype=np.int64)
    todo = todo[np.argsort([-examples[index].num_tokens for index in todo], kind="stable")]  # what is long fails first
    if len(todo):
        if cache is not None:
            cache.require_writable()
        store = _Segments(cache, examples, logprobs)
        with progress("scoring the reference", len(todo)) as advance:
            for first in range(0, len(todo), _BLOCK * policy.mesh.data_size):
                block = todo[first : first + _BLOCK * policy.mesh.data_size]
                for rows, values in _score_block(policy, examples, block, packing):
                    for row, row_values in zip(rows, values, strict=True):
                        if not np.isfinite(row_values).all():
                            raise RunError(
                                f"{where[row]}: the reference gives this row a non-finite log-probability; "
                                "check the model"
                            )
                    store.add(rows, values)
                    advance(len(rows))
        store.flush()
    rest()
    return Reference(logprobs, len(examples) - len(todo), len(todo))


class _Segments:
    """Scores as they come: known to this rank at once, stored by the first one every so often."""

    def __init__(
        self, cache: ReferenceCache | None, examples: Sequence[Example], logprobs: npt.NDArray[np.float32]
    ) -> None:
        self._cache, self._examples, self._logprobs = cache, examples, logprobs
        self._pending: list[int] = []
        self._stored = time.monotonic()

    def add(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        """Note the scores of some rows."""
        self._logprobs[rows] = values
        self._pending.extend(rows.tolist())
        if time.monotonic() - self._stored > SEGMENT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Store what is not stored yet."""
        if self._cache is not None and self._pending:
            rest()  # a shared file system takes its time
            self._cache.add([self._examples[row] for row in self._pending], self._logprobs[self._pending])
        self._pending, self._stored = [], time.monotonic()


def _score_block(
    policy: Policy, examples: Sequence[Example], block: npt.NDArray[np.int64], packing: Packing
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """(rows, their scores) of a block, on every rank alike: a micro-batch at a time, or on many ranks all at once.

    Packed in blocks, for packing all at once takes quadratic time.
    """
    if policy.mesh.data_size == 1:
        for part in packing.split([examples[index] for index in block]):
            yield block[part], _score_batch(policy, [examples[row] for row in block[part]], packing)
        return
    dealt = packing.deal([examples[index] for index in block], policy.mesh.data_size)
    scores = np.zeros((len(block), len(examples[block[0]].completions)), dtype=np.float32)
    mine = dealt[policy.mesh.data_rank]
    for index in range(max(len(batches) for batches in dealt)):
        part = mine[index] if index < len(mine) else [len(block) - 1]  # the shortest, for company's sake
        values = _score_batch(policy, [examples[row] for row in block[part]], packing)
        if index < len(mine) and policy.mesh.speaks:
            scores[part] = values
    yield block, policy.mesh.sum(torch.from_numpy(scores)).numpy()


@torch.no_grad()
def _score_batch(policy: Policy, examples: Sequence[Example], packing: Packing) -> npt.NDArray[np.float32]:
    batch = collate(examples, packing).to(policy.device)
    with attending(policy, batch):
        sums = completion_logprobs(policy, batch).sums
    result: npt.NDArray[np.float32] = sums.float().cpu().numpy().reshape(len(examples), -1)
    tick()
    return result
