"""The pass that fills the store: what is scored, what is not, and that packing does not matter."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpolish.data.pack import Packing, collate
from dpolish.errors import RunError
from dpolish.model.logprobs import STOCK, Policy, attending, completion_logprobs
from dpolish.model.verify import on_stock_attention
from dpolish.parallel import watch
from dpolish.reference import score as scoring
from dpolish.reference.cache import Identity, ReferenceCache
from dpolish.reference.score import missing, score
from dpolish.tensors import Example
from dpolish.training.step import require_reference
from tests import one_rank
from tests.examples import alike_examples, random_examples
from tests.tiny import Setup

PACKINGS = {
    "shared, packed": Packing(True, 150, 1),
    "alone": Packing(True, 1, 1),
    "separate, packed": Packing(False, 150, 1),
    "shared, padded": Packing(True, None, 3),
    "separate, padded": Packing(False, None, 4, multiple_of=8),
}


@pytest.fixture(scope="module")
def policy(setup: Setup) -> Policy:
    model = one_rank.load(setup.model).model.train(False)
    return one_rank.policy_of(model)


class Told:
    """What the display was told: labels, totals, and the rows of every report."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.opened: list[tuple[str, int]] = []
        self.advanced: list[int] = []
        self._fail_after = fail_after

    @contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        self.opened.append((label, total))
        yield self._advance

    def _advance(self, rows: int) -> None:
        self.advanced.append(rows)
        if self._fail_after is not None and len(self.advanced) > self._fail_after:
            raise KeyboardInterrupt


def store(root: Path | None) -> ReferenceCache:
    return ReferenceCache(root, Identity("tiny", "32", "segments"))


def run(
    policy: Policy,
    examples: Sequence[Example],
    cache: ReferenceCache,
    told: Told,
    packing: Packing = PACKINGS["shared, packed"],
) -> scoring.Reference:
    where = [f"train.jsonl:{line}" for line in range(1, len(examples) + 1)]
    return score(policy, examples, packing, cache, where, told)


def test_every_row_is_scored_once_then_never_again(policy: Policy, tmp_path: Path) -> None:
    examples, told = random_examples(12), Told()
    first = run(policy, examples, store(tmp_path), told)
    assert (first.num_scored, first.num_cached) == (12, 0)
    assert told.opened == [("scoring the reference", 12)]
    assert sum(told.advanced) == 12
    told = Told()
    again = run(policy, examples[::-1], store(tmp_path), told, PACKINGS["separate, padded"])
    assert (again.num_scored, again.num_cached) == (0, 12)
    assert told.opened == []
    np.testing.assert_array_equal(again.logprobs, first.logprobs[::-1])


def test_five_changed_rows_are_scored_and_only_those(policy: Policy, tmp_path: Path) -> None:
    examples = random_examples(20)
    before = run(policy, examples, store(tmp_path), Told())
    changed = [*examples]
    for number, row in enumerate((1, 4, 9, 15, 19)):
        changed[row] = random_examples(20, seed=1)[5 + number]
    cache, told = store(tmp_path), Told()
    assert missing(changed, cache).tolist() == [1, 4, 9, 15, 19]
    after = run(policy, changed, cache, told)
    assert (after.num_scored, after.num_cached, told.opened[0][1]) == (5, 15, 5)
    kept = [row for row in range(20) if row not in (1, 4, 9, 15, 19)]
    np.testing.assert_array_equal(after.logprobs[kept], before.logprobs[kept])
    fresh = run(policy, changed, store(None), Told())
    np.testing.assert_allclose(after.logprobs, fresh.logprobs, rtol=1e-6, atol=1e-5)


def test_a_changed_answer_is_scored_with_the_answer_beside_it(policy: Policy, tmp_path: Path) -> None:
    """A row is scored whole; the answer that was known keeps its place in the store."""
    examples = random_examples(8)
    run(policy, examples, store(tmp_path), Told())
    row = replace(examples[6], completions=(examples[6].completions[0], examples[7].completions[1]))
    assert run(policy, [*examples[:6], row, examples[7]], store(tmp_path), Told()).num_scored == 1


@pytest.mark.parametrize("under", PACKINGS)
def test_scores_are_those_of_every_other_packing(policy: Policy, under: str) -> None:
    """What was scored under one packing is what training under another computes, as step 0 demands of every run."""
    examples = alike_examples(12)
    reference = run(policy, examples, store(None), Told(), PACKINGS[under]).logprobs
    for packing in PACKINGS.values():
        for part in packing.split(examples):
            batch = collate([examples[index] for index in part], packing, reference[part].tolist())
            with attending(policy, batch):
                logprobs = completion_logprobs(policy, batch)
            assert logprobs.sums.requires_grad
            torch.testing.assert_close(logprobs.sums.detach(), batch.reference, rtol=1e-6, atol=2e-5)
            require_reference(logprobs, batch, policy.model.dtype)


def test_stock_attention_agrees(setup: Setup) -> None:
    """The plain path of models that ours cannot serve gives the same numbers, padded row by padded row."""
    model = one_rank.load(setup.model).model.train(False)
    ours = one_rank.policy_of(model)
    examples = alike_examples(9)
    expected = run(ours, examples, store(None), Told()).logprobs
    plain = on_stock_attention(ours)
    assert plain.backend == STOCK
    found = run(plain, examples, store(None), Told(), PACKINGS["separate, padded"]).logprobs
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-5)


def test_an_interrupted_pass_keeps_what_it_stored(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SEGMENT_SECONDS", -1.0)
    examples = random_examples(12)
    with pytest.raises(KeyboardInterrupt):
        run(policy, examples, store(tmp_path), Told(fail_after=4), PACKINGS["alone"])
    resumed = run(policy, examples, store(tmp_path), Told())
    assert (resumed.num_cached, resumed.num_scored) == (5, 7)


def test_the_longest_row_is_scored_first(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into memory fails at once, not after an hour."""
    seen: list[int] = []
    original = scoring.collate

    def watched(examples: Sequence[Example], packing: Packing) -> object:
        seen.extend(example.num_tokens for example in examples)
        return original(examples, packing)

    monkeypatch.setattr(scoring, "collate", watched)
    examples = random_examples(12)
    run(policy, examples, store(None), Told(), PACKINGS["shared, padded"])
    assert seen == sorted((example.num_tokens for example in examples), reverse=True)


def test_a_score_that_is_not_finite_names_its_row_and_is_not_stored(setup: Setup, tmp_path: Path) -> None:
    model = one_rank.load(setup.model).model.train(False)
    examples = [example for example in random_examples(9) if example.prompt.size]
    with torch.no_grad():
        model.get_input_embeddings().weight[int(examples[2].prompt[0])] = float("inf")
    broken = one_rank.policy_of(model)
    cache = store(tmp_path)
    with pytest.raises(RunError, match=r"train\.jsonl:\d+: the reference gives this row a non-finite log-probability"):
        run(broken, examples, cache, Told(), PACKINGS["alone"])
    assert not any(np.isinf(value) for value in store(tmp_path).lookup(examples).ravel())


def test_nothing_to_score(policy: Policy, tmp_path: Path) -> None:
    told = Told()
    found = run(policy, [], store(tmp_path), told)
    assert (found.num_scored, found.num_cached, told.opened) == (0, 0, [])


def test_a_pass_that_hangs_can_be_told_from_one_that_gets_on(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every micro-batch ticks, and nothing is timed while scores are written or after the last one."""
    monkeypatch.setattr(scoring, "SEGMENT_SECONDS", -1.0)
    monkeypatch.setattr(watch, "_PROGRESS", progress := watch._Progress())
    timed: dict[str, list[bool]] = {"written": [], "scored": []}
    told, cache = Told(), store(tmp_path)
    add, score_batch = cache.add, scoring._score_batch

    def adding(examples: Sequence[Example], logprobs: np.ndarray) -> None:
        timed["written"].append(progress.timed)
        add(examples, logprobs)

    def scored(*args: object) -> object:
        values = score_batch(*args)  # type: ignore[arg-type]
        timed["scored"].append(progress.timed)
        return values

    monkeypatch.setattr(cache, "add", adding)
    monkeypatch.setattr(scoring, "_score_batch", scored)
    run(policy, random_examples(6), cache, told, PACKINGS["alone"])
    assert progress.ticks == 6
    assert timed == {"written": [False] * 6, "scored": [True] * 6}
    assert not progress.timed


def test_a_store_that_cannot_be_written_is_found_before_scoring(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = Told()
    with pytest.raises(RunError, match=r"(?s)file.*model\.dpo\.reference_cache to another folder, or to off"):
        run(policy, random_examples(3), store(tmp_path / "file/store"), told)
    assert told.opened == []
