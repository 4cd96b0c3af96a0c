"""Every architecture on the fast path against separate rows through the model as transformers runs it.

Values and gradients.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpolish.data.pack import Packing, collate
from dpolish.errors import ModelError
from dpolish.layout import RankLayout
from dpolish.model import verify
from dpolish.model.attention.geometry import Tail, tails
from dpolish.model.logprobs import STOCK, Policy, attending, token_logprobs
from dpolish.model.verify import on_stock_attention, verified
from dpolish.parallel import watch
from dpolish.parallel.mesh import Mesh
from dpolish.tensors import Example, Layout
from tests import models, one_rank
from tests.examples import alike_examples, random_examples

SHARED = Packing(shared=True, token_budget=10_000, micro_batch_size=1)
PACKINGS = {
    "shared, packed": SHARED,
    "separate, packed": replace(SHARED, shared=False),
    "shared, padded": replace(SHARED, token_budget=None),
    "separate, padded": replace(SHARED, shared=False, token_budget=None),
    "padded to a multiple": replace(SHARED, multiple_of=64),
}

Loaded = Callable[[str, torch.dtype], Policy]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Models as the product loads them: saved by transformers, read back, dropout off, our attention in place."""
    folders: dict[str, Path] = {}

    def load(name: str, dtype: torch.dtype) -> Policy:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            models.build(name).save_pretrained(folders[name])
        model = one_rank.load(folders[name], dtype).model.train()
        if dtype == torch.float64 and name in ("mixtral", "qwen3_moe", "gpt_oss"):
            model.set_experts_implementation("eager")  # the grouped product of torch takes no float64
        return one_rank.policy_of(model)

    return load


def untouched(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights as transformers alone builds and runs them: eager attention, dropout off by evaluation mode."""
    model = models.build(name, dtype)
    model.config._attn_implementation = "eager"
    return model.eval()


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of each parameter, zeros where it has none."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def ours(
    policy: Policy, examples: Sequence[Example], packing: Packing, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token log-probabilities of one micro-batch, and the gradients of their weighted sum."""
    batch = collate(examples, packing)
    with attending(policy, batch):
        values = token_logprobs(policy, batch)
        return values.detach(), gradients(policy.model, values @ weights.to(values.dtype))


def truth(model: PreTrainedModel, examples: Sequence[Example], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by the untouched model: every answer alone in its row, a softmax over all logits."""
    rows = []
    for example in examples:
        for completion in example.completions:
            row = torch.from_numpy(np.concatenate([example.prompt, completion.tokens]).astype(np.int64))
            first = max(len(example.prompt) + completion.score_from, 1)
            logprobs = model(input_ids=row[None]).logits[0].to(weights.dtype).log_softmax(-1)
            rows.append(logprobs[first - 1 : -1].gather(1, row[first:, None])[:, 0])
    values = torch.cat(rows)
    return values.detach(), gradients(model, values @ weights)


def require_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Relative L2 per parameter, with an absolute floor for gradients that are zero in exact arithmetic: key biases."""
    floor = 1e-7 * max(float(value.norm()) for value in want.values())
    for name, value in want.items():
        error = float((got[name] - value).norm())
        assert error <= tolerance * float(value.norm()) + floor, f"{name}: {error:.2e} of {float(value.norm()):.2e}"


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", models.JUDGED + models.STANDARD)
def test_fast_path_equals_separate_rows(
    loaded: Loaded, name: str, dtype: torch.dtype, tolerance: float, packing: str
) -> None:
    policy = loaded(name, dtype)
    examples = alike_examples(8)
    count = sum(len(completion.scored) for example in examples for completion in example.completions)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=count)).to(dtype)
    values, grads = ours(policy, examples, PACKINGS[packing], weights)
    true_values, true_grads = truth(untouched(name, dtype), examples, weights)
    torch.testing.assert_close(values, true_values, rtol=tolerance, atol=tolerance)
    require_close(grads, true_grads, tolerance)


@pytest.mark.parametrize("name", models.JUDGED + models.STANDARD)
def test_the_startup_check_accepts_what_is_exact(loaded: Loaded, name: str) -> None:
    policy, packing, line = verified(loaded(name, torch.float32), SHARED, random_examples(8), "on")
    assert (policy.backend, packing) == ("segments", SHARED)
    assert "prompts computed once," in line


@pytest.mark.parametrize("name", models.OWN_ATTENTION)
def test_what_cannot_share_prompts_runs_on_padded_rows_or_is_refused(loaded: Loaded, name: str) -> None:
    examples = alike_examples(8)
    with pytest.raises(ModelError, match=r"prefix_sharing=on.*prefix_sharing=auto"):
        verified(loaded(name, torch.float32), SHARED, examples, "on")
    policy, packing, line = verified(loaded(name, torch.float32), SHARED, examples, "auto")
    assert policy.backend == STOCK
    assert "padded rows with its own attention, slower: " in line
    weights = torch.ones(sum(len(c.scored) for e in examples for c in e.completions))
    values, grads = ours(policy, examples, packing, weights)
    true_values, true_grads = truth(untouched(name, torch.float32), examples, weights)
    torch.testing.assert_close(values, true_values, rtol=2e-5, atol=2e-5)
    require_close(grads, true_grads, 2e-5)


def test_gradient_checkpointing_gives_the_same_gradients(loaded: Loaded) -> None:
    policy, examples = loaded("llama", torch.float64), alike_examples(8)
    weights = torch.ones(sum(len(c.scored) for e in examples for c in e.completions), dtype=torch.float64)
    _, want = ours(policy, examples, SHARED, weights)
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    _, got = ours(policy, examples, SHARED, weights)
    require_close(got, want, 1e-12)


@pytest.mark.parametrize("fault", ["mask", "positions", "targets", "scale"])
def test_the_startup_check_sees_wrong_arithmetic(loaded: Loaded, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpolish.model.attention import dense

    policy = loaded("llama", torch.float32)
    if fault == "mask":  # the rejected answer sees the chosen one

        def causal(layout: Layout) -> tuple[Tail, ...]:
            return tuple(replace(tail, keys=((0, sum(tail.queries)),)) for tail in tails(layout))

        monkeypatch.setattr(dense, "tails", causal)
        policy = replace(policy, backend="dense")
    elif fault == "scale":
        policy = replace(policy, transform=replace(policy.transform, scale=1.01))
    else:
        original = verify.collate

        def broken(examples: Sequence[Example], packing: Packing) -> object:
            batch = original(examples, packing)
            if fault == "positions":
                return replace(batch, positions=torch.arange(batch.tokens.numel())[None])
            return replace(batch, targets=batch.targets.roll(1))

        monkeypatch.setattr(verify, "collate", broken)
    with pytest.raises(ModelError, match=r"differ from the model's own|moves the rejected answer"):
        verified(policy, SHARED, random_examples(8), "on")


def test_the_startup_check_shares_a_beginning_whatever_the_shortest_rows_are(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demonstrations with one system prompt, but for the two shortest; a fault where one row goes on from another."""
    from dpolish.model.attention import segments

    def one(example: Example) -> Example:
        return replace(example, completions=example.completions[:1], rewards=(1.0,))

    long = random_examples(12, longest=60)
    head = np.arange(3, 63, dtype=np.int32)
    rows = [one(replace(row, prompt=np.concatenate([head, row.prompt]))) for row in long]
    rows += [one(row) for row in random_examples(60, seed=1, longest=50) if 48 <= row.num_tokens < 60][:2]
    policy = loaded("llama", torch.float32)
    assert verified(policy, SHARED, rows, "on")[0] is policy

    def forgetful(layout: Layout) -> tuple[Tail, ...]:
        return tuple(tail if tail.whole else replace(tail, keys=tail.keys[-1:]) for tail in tails(layout))

    monkeypatch.setattr(segments, "tails", forgetful)
    with pytest.raises(ModelError, match="differ from the model's own"):
        verified(policy, SHARED, rows, "on")


def test_a_layer_that_skips_the_function_is_noticed(loaded: Loaded) -> None:
    policy = loaded("llama", torch.float32)
    policy.model.model.layers[1].self_attn.config = type(policy.model.config)(**policy.model.config.to_dict())
    policy.model.model.layers[1].self_attn.config._attn_implementation = "eager"
    with pytest.raises(ModelError, match="only 1 of 2 layers"):
        verified(policy, SHARED, random_examples(8), "on")


def test_dropout_that_stays_on_is_noticed(loaded: Loaded) -> None:
    policy = loaded("gpt2", torch.float32)
    policy.model.transformer.drop.p = 0.1
    with pytest.raises(ModelError, match="two equal forward passes differ"):
        verified(policy, SHARED, random_examples(8), "on")


def test_stock_attention_can_be_asked_for(loaded: Loaded) -> None:
    policy = on_stock_attention(loaded("llama", torch.float32))
    padded = PACKINGS["separate, padded"]
    assert verified(policy, padded, random_examples(8), "off")[0].backend == STOCK


def test_a_window_that_does_not_reach_back_to_the_middle_of_the_prompt_is_no_fault(loaded: Loaded) -> None:
    """Two layers of window 8 see 14 places back; the prompts are 60 long."""
    shapes = [example for example in random_examples(40, longest=90) if len(example.prompt) > 60]
    policy, _, _ = verified(loaded("mistral", torch.float32), SHARED, shapes, "on")
    assert policy.backend == "segments"


@pytest.mark.parametrize(
    ("error", "ranks"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 1),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory"), 1),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), 2),
        (RuntimeError("Connection closed by peer [127.0.0.1]:4321"), 2),
    ],
    ids=["memory of a GPU", "memory of the host", "NCCL", "gloo"],
)
def test_what_is_no_fault_of_the_path_is_not_found_in_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, ranks: int
) -> None:
    def failing(*_: object) -> object:
        raise error

    monkeypatch.setattr(verify, "_run", failing)
    policy = loaded("llama", torch.float32)
    mesh = Mesh(RankLayout(1, ranks, 1, ranks), torch.device("cpu"))
    with pytest.raises(type(error), match=re.escape(str(error))):
        verify.examine(replace(policy, mesh=mesh), SHARED, random_examples(4))


def test_a_model_that_cannot_be_called_is_a_finding(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> object:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(verify, "_run", failing)
    finding = verify.examine(loaded("llama", torch.float32), SHARED, random_examples(4))
    assert finding.reason == "the model cannot be called this way (RuntimeError: shapes do not fit)"


def test_the_check_is_watched_while_it_runs(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_PROGRESS", progress := watch._Progress())
    timed: list[bool] = []
    perturbed = verify._perturbed

    def noting(*args: object) -> object:
        timed.append(progress.timed)
        return perturbed(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "_perturbed", noting)
    assert verify.examine(loaded("llama", torch.float32), SHARED, random_examples(4)).sound
    assert timed == [True]
    assert progress.ticks > 3
    assert not progress.timed
