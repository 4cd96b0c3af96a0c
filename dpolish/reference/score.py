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
    return np.flatnonzero(np.isnan(cache.lookup(examples)).any(axis=1))


def score(
    policy: Policy,
    examples: Sequence[Example],
    packing: Packing,
    cache: ReferenceCache,
    where: Sequence[str],
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> Reference:
    """Log-probabilities of all examples; those not in `cache` are computed and stored.

    `progress(label, total)` opens a display that is told of rows done.
    Runs the policy as it stands, which at the start is the reference. Raises RunError for a non-finite score.
    """
    todo = missing(examples, cache)
    todo = todo[np.argsort([-examples[index].num_tokens for index in todo], kind="stable")]  # what is long fails first
    if len(todo):
        with progress("scoring the reference", len(todo)) as advance:
            _fill(policy, examples, todo, packing, cache, where, advance)
    return Reference(cache.lookup(examples), len(examples) - len(todo), len(todo))


def _fill(
    policy: Policy,
    examples: Sequence[Example],
    todo: npt.NDArray[np.int64],
    packing: Packing,
    cache: ReferenceCache,
    where: Sequence[str],
    advance: Callable[[int], None],
) -> None:
    """Score the rows of `todo` and store them in segments."""
    pending: list[int] = []
    scores: list[npt.NDArray[np.float32]] = []
    stored = time.monotonic()
    for rows in _micro_batches(examples, todo, packing):
        values = _score_batch(policy, [examples[row] for row in rows], packing)
        for row, row_values in zip(rows, values, strict=True):
            if not np.isfinite(row_values).all():
                raise RunError(
                    f"{where[row]}: the reference gives this row a non-finite log-probability; check the model"
                )
        pending.extend(int(row) for row in rows)
        scores.append(values)
        advance(len(rows))
        if time.monotonic() - stored > SEGMENT_SECONDS:
            cache.add([examples[row] for row in pending], np.concatenate(scores))
            pending, scores, stored = [], [], time.monotonic()
    if pending:
        cache.add([examples[row] for row in pending], np.concatenate(scores))


def _micro_batches(
    examples: Sequence[Example], todo: npt.NDArray[np.int64], packing: Packing
) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of `todo`, a micro-batch at a time; packed in blocks, for packing all at once takes quadratic time."""
    for first in range(0, len(todo), _BLOCK):
        block = todo[first : first + _BLOCK]
        for part in packing.split([examples[index] for index in block]):
            yield block[part]


@torch.no_grad()
def _score_batch(policy: Policy, examples: Sequence[Example], packing: Packing) -> npt.NDArray[np.float32]:
    batch = collate(examples, packing).to(policy.device)
    with attending(policy, batch):
        sums = completion_logprobs(policy, batch).sums
    result: npt.NDArray[np.float32] = sums.float().cpu().numpy().reshape(len(examples), -1)
    return result
