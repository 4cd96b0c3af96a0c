"""Which rows make which step. A step is a function of its number alone, so resuming needs no state."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpolish.data.pack import Packing, collate
from dpolish.tensors import Example, PackedBatch

RowIndices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sources:
    """The rows of each file, and each file's share of an epoch; no shares means every row once."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    shuffled: bool = True
    """False keeps the rows in file order (`train_ds.shuffle=false`); shares are then taken from each file's front."""

    @property
    def epoch_size(self) -> int:
        """Rows in one epoch: as many as there are, whatever the shares."""
        return sum(self.sizes)


def order(seed: int, epoch: int, sources: Sources) -> RowIndices:
    """The rows of an epoch (0-based) in training order: a function of seed, epoch and the kept rows alone.

    Without weights it is `numpy.random.default_rng([seed, epoch]).permutation(number of rows)`, rows counted in file
    order. With weights each file gives its share of the epoch's rows (largest remainders round up): a permutation of
    the file, repeated with new permutations where the share is larger than the file.
    """
    if not sources.shuffled:
        return _in_file_order(sources)
    generator = np.random.default_rng([seed, epoch])
    if sources.weights is None:
        return generator.permutation(sources.epoch_size)
    starts = np.concatenate([[0], np.cumsum(sources.sizes)[:-1]])
    drawn = [
        start + _draw(generator, size, share)
        for start, size, share in zip(starts, sources.sizes, _shares(sources), strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))


def _in_file_order(sources: Sources) -> RowIndices:
    shares = sources.sizes if sources.weights is None else _shares(sources)
    starts = np.concatenate([[0], np.cumsum(sources.sizes)[:-1]])
    parts = [start + np.arange(share) % size for start, size, share in zip(starts, sources.sizes, shares, strict=True)]
    return np.concatenate(parts)


def _draw(generator: np.random.Generator, size: int, share: int) -> RowIndices:
    rounds = -(-share // size)
    return np.concatenate([generator.permutation(size) for _ in range(max(rounds, 1))])[:share]


def _shares(sources: Sources) -> list[int]:
    assert sources.weights is not None
    total = sum(sources.weights)
    exact = [sources.epoch_size * weight / total for weight in sources.weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for index in by_remainder[: sources.epoch_size - sum(shares)]:
        shares[index] += 1
    return shares


def trained_rows(seed: int, sources: Sources, batch: int, steps_per_epoch: int, total_steps: int) -> RowIndices:
    """The rows that the first `total_steps` steps train on, each once, ascending: those whose reference is needed."""
    seen = np.zeros(sources.epoch_size, dtype=bool)
    for epoch, first in enumerate(range(0, total_steps, steps_per_epoch)):
        steps = min(steps_per_epoch, total_steps - first)
        seen[order(seed, epoch, sources)[: steps * batch]] = True
        if seen.all():
            break
    return np.flatnonzero(seen)


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """The micro-batches that one rank computes of one global batch: of an optimizer step, or of validation.

    What is said of the global batch every rank knows without asking: they all deal it out alike.
    """

    epoch: int
    """0-based."""
    rows: RowIndices
    """The rows of the global batch, in order."""
    batches: tuple[PackedBatch, ...]
    """This rank's, as many as every other rank's: the last `idle` only keep it company, and weigh nothing."""
    idle: int
    num_scored: int
    """Scored tokens of the global batch. Like the examples known without a collective: a loss is divided by either."""
    num_tokens: int
    """Tokens of the global batch that are computed."""

    @property
    def num_examples(self) -> int:
        """Pairs (DPO) or demonstrations (SFT) of the global batch."""
        return len(self.rows)

    @property
    def passes(self) -> Iterator[tuple[PackedBatch, bool, bool]]:
        """(micro-batch, does it count, is it the last) of every forward pass."""
        last = len(self.batches) - 1
        for index, batch in enumerate(self.batches):
            yield batch, index < len(self.batches) - self.idle, index == last


@dataclass(frozen=True, slots=True)
class Loader:
    """Examples and their reference log-probabilities, dealt in global batches."""

    examples: Sequence[Example]
    reference: npt.NDArray[np.float32] | None
    """(N, completions of an example): log-probabilities under the reference; NaN for rows that no step reads.

    None where the objective has no reference (SFT).
    """
    global_batch_size: int
    packing: Packing
    parts: int = 1
    """Data-parallel ranks, to which a global batch is dealt by tokens."""
    part: int = 0
    """This one's."""

    def group(self, epoch: int, rows: RowIndices) -> BatchGroup:
        """This rank's micro-batches of one global batch."""
        examples = [self.examples[row] for row in rows]
        dealt = self.packing.deal(examples, self.parts) if self.parts > 1 else [self.packing.split(examples)]
        passes = max(len(batches) for batches in dealt)
        mine = dealt[self.part]
        idle = passes - len(mine)
        if idle:
            shortest = min(range(len(examples)), key=lambda index: self.packing.size(examples[index]))
            mine = [*mine, *([[shortest]] * idle)]
        return BatchGroup(
            epoch,
            rows,
            tuple(self._collated(rows, examples, batch) for batch in mine),
            idle,
            num_scored=sum(len(completion.scored) for example in examples for completion in example.completions),
            num_tokens=sum(self.packing.tokens([examples[i] for i in batch]) for part in dealt for batch in part),
        )

    def _collated(self, rows: RowIndices, examples: Sequence[Example], batch: Sequence[int]) -> PackedBatch:
        reference = None if self.reference is None else self.reference[rows[batch]].tolist()
        return collate([examples[index] for index in batch], self.packing, reference)

    def training_groups(
        self, seed: int, sources: Sources, steps_per_epoch: int, start: int = 0
    ) -> Iterator[BatchGroup]:
        """Endless training groups from optimizer step `start` (0-based) on; a short last batch is used as it is."""
        step = start
        while True:
            epoch, first = divmod(step, steps_per_epoch)
            rows = order(seed, epoch, sources)
            for index in range(first, steps_per_epoch):
                yield self.group(epoch, rows[index * self.global_batch_size : (index + 1) * self.global_batch_size])
                step += 1

    def validation_groups(self, limit: int | None = None) -> Iterator[BatchGroup]:
        """All rows in file order, or the first `limit` global batches of them."""
        rows = np.arange(len(self.examples))
        if limit is not None:
            rows = rows[: limit * self.global_batch_size]
        for first in range(0, len(rows), self.global_batch_size):
            yield self.group(0, rows[first : first + self.global_batch_size])
