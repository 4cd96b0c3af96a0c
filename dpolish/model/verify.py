"""Proof on real rows, before training, that the fast path computes what the model itself computes.

Three questions, each with the real kernels: are the log-probabilities those of separate rows through the model as it
came? Does a changed token move exactly what may see it? Are two forward passes equal? A model that fails is run on the
plain path or refused, by name and reason; it never trains silently wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dpolish.data.pack import Packing, collate
from dpolish.data.prefixes import LEAST_SHARED
from dpolish.errors import ModelError
from dpolish.machine import out_of_memory
from dpolish.model.attention import ATTENTION_NAME, Geometry
from dpolish.model.logprobs import STOCK, Policy, attending, token_logprobs
from dpolish.parallel.watch import rest, tick
from dpolish.tensors import Completion, Example

TOLERANCES = {torch.float64: 1e-6, torch.float32: 5e-5, torch.bfloat16: 0.03}
"""Largest mean difference of a log-probability, as a share of 1 + its size. Wrong attention is off by far more."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a path does not compute what the model computes; `sound` when nothing is wrong."""

    reason: str | None

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return self.reason is None


def verified(
    policy: Policy, packing: Packing, examples: Sequence[Example], sharing: str
) -> tuple[Policy, Packing, str]:
    """The policy and packing that may be trained with, and one line that says what was found.

    `sharing` is `model.prefix_sharing`: under `auto` a model that cannot share prompts falls back to the plain path,
    under `on` it is refused. Raises ModelError.
    """
    probe = probe_examples(examples, policy)
    if packing.shared and packing.token_budget is not None:
        probe += relatives(examples)
    name = policy.name
    finding = examine(policy, packing, probe)
    if finding.sound:
        return (
            policy,
            packing,
            f"{name}: {_describe(packing)} checked against the model's own attention on {len(probe)} rows",
        )
    if sharing == "on" or (sharing == "off" and policy.backend == STOCK):
        raise ModelError(
            f"{name} cannot run with model.prefix_sharing={sharing}: {finding.reason}. Use model.prefix_sharing=auto."
        )
    if policy.mesh.context is not None:
        raise ModelError(
            f"{name} cannot run with model.context_parallel_size={policy.mesh.layout.context}: {finding.reason}. "
            "Set it to 1"
        )
    plain = on_stock_attention(policy)
    padded = replace(packing, shared=False, token_budget=None)
    fallback = examine(plain, padded, probe)
    if not fallback.sound:
        raise ModelError(
            f"{name} is not supported: with shared prompts, {finding.reason}; on padded rows, {fallback.reason}."
        )
    return plain, padded, f"{name} runs on padded rows with its own attention, slower: {finding.reason}"


def _describe(packing: Packing) -> str:
    rows = "padded" if packing.token_budget is None else "packed"
    return f"{rows} rows, prompts computed {'once' if packing.shared else 'for every answer'},"


def on_stock_attention(policy: Policy) -> Policy:
    """The same model on the attention that transformers gives it."""
    _set_attention(policy, _stock_name(policy))
    return replace(policy, backend=STOCK)


def _set_attention(policy: Policy, name: str) -> None:
    """Switch all layers.

    Architectures without the attention interface refuse the switch, but build their masks by the name.
    """
    config = policy.model.config
    if policy.model._can_set_attn_implementation():
        policy.model.set_attn_implementation(name)
    else:
        config._attn_implementation = name
    assert config._attn_implementation == name


def _stock_name(policy: Policy) -> str:
    """SDPA drops soft-caps: models that have one attend eagerly, as do those without SDPA."""
    capped = getattr(policy.model.config, "attn_logit_softcapping", None) is not None
    return "sdpa" if policy.model._supports_sdpa and not capped else "eager"


def probe_examples(examples: Sequence[Example], policy: Policy, count: int = 2, enough: int = 48) -> list[Example]:
    """The shortest examples of `enough` tokens or more (a few tokens tell little).

    Plus the longest where the model treats distant tokens differently.
    """
    by_length = sorted(examples, key=lambda example: example.longest)
    telling = [example for example in by_length if example.num_tokens >= enough]
    probe = telling[:count] or by_length[-count:]
    config = policy.model.config.get_text_config()
    reach = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(isinstance(size, int) and size < by_length[-1].longest for size in reach):
        probe = [*probe, by_length[-1]]
    return probe


def relatives(examples: Sequence[Example]) -> list[Example]:
    """Three rows that begin alike up to two places, made of the shortest one whose prompt has room for it.

    The first is that row; rows of the data may share as much, or those that were picked from them nothing.
    """
    long = [example for example in examples if len(example.prompt) >= 3 * LEAST_SHARED]
    if not long:
        return []
    example = min(long, key=lambda example: example.longest)
    size = len(example.prompt)
    parted = (np.append(example.prompt[:at], np.roll(example.prompt[at:], 1)) for at in (size // 2, 3 * size // 4))
    return [example, *(replace(example, prompt=prompt) for prompt in parted)]


def examine(policy: Policy, packing: Packing, probe: Sequence[Example]) -> Finding:
    """Run the three checks on a few examples, in the mode that training uses. Nothing of the policy changes."""
    training = policy.model.training
    policy.model.train()
    try:
        with torch.no_grad():
            finding = _examine(policy, packing, probe)
    finally:
        policy.model.train(training)
    rest()
    return Finding(next(filter(None, policy.mesh.gathered(finding.reason)), None))  # what one rank finds holds for all


def _examine(policy: Policy, packing: Packing, probe: Sequence[Example]) -> Finding:
    if policy.backend != STOCK and policy.model.config._attn_implementation != ATTENTION_NAME:
        return Finding("its layers have an attention of their own, which cannot be replaced")
    try:
        ours, geometry = _run(policy, packing, probe)
    except RuntimeError as error:
        # Memory is no fault of the path, and the plain one needs more. On several ranks it may be that a partner was
        # lost, or that this rank alone failed: the others wait for it in the model, and no collective may follow.
        if out_of_memory(error) or policy.mesh.size > 1:
            raise
        return _uncallable(error)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        return _uncallable(error)
    layers = policy.model.config.get_text_config().num_hidden_layers
    if policy.backend != STOCK and geometry.calls != layers:
        return Finding(f"only {geometry.calls} of {layers} layers call the attention function")
    again, _ = _run(policy, packing, probe)
    if not (ours - again).abs().max() <= TOLERANCES[policy.dtype] / 10:
        return Finding(
            f"two equal forward passes differ by {(ours - again).abs().max():.1e}: something in the model is random"
        )
    truth = true_logprobs(policy, probe)
    tolerance = TOLERANCES[policy.dtype]
    difference = (ours - truth).abs() / (1 + truth.abs())
    if not difference.mean() < tolerance:
        return Finding(
            f"log-probabilities differ from the model's own by {difference.mean():.1e} "
            f"(at most {difference.max():.1e}, relative; {tolerance:.0e} is rounding)"
        )
    return _perturbed(policy, packing, probe, ours)


def _uncallable(error: Exception) -> Finding:
    return Finding(
        f"the model cannot be called this way ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    )


def _run(policy: Policy, packing: Packing, examples: Sequence[Example]) -> tuple[Tensor, Geometry]:
    batch = collate(examples, packing).to(policy.device)
    with attending(policy, batch) as geometry:
        logprobs = token_logprobs(policy, batch)
    tick()
    return logprobs, geometry


def true_logprobs(policy: Policy, examples: Sequence[Example]) -> Tensor:
    """(S,): each completion alone in a row, through the whole unmodified model: its own attention, its own logits."""
    before = policy.model.config._attn_implementation
    _set_attention(policy, _stock_name(policy))
    try:
        rows = [_true_row(policy, example, completion) for example in examples for completion in example.completions]
    finally:
        _set_attention(policy, before)
    return torch.cat(rows)


def _true_row(policy: Policy, example: Example, completion: Completion) -> Tensor:
    tokens = np.concatenate([example.prompt, completion.tokens]).astype(np.int64)
    tokens = np.pad(tokens, (0, -len(tokens) % policy.mesh.layout.tensor))  # behind the row, where nothing looks
    row = torch.from_numpy(tokens)[None].to(policy.device)
    logits: Tensor = policy.model(input_ids=row, use_cache=False).logits[0]
    tick()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    at = torch.from_numpy(len(example.prompt) + completion.scored_at).to(policy.device)
    return logits[at - 1].log_softmax(dim=-1).gather(1, row[0, at, None])[:, 0]


def _perturbed(policy: Policy, packing: Packing, probe: Sequence[Example], ours: Tensor) -> Finding:
    """Changing a completion moves no other one, of its example or another; changing a prompt moves its completions."""
    example = probe[0]
    vocabulary = len(policy.head.weight)
    counts = [len(completion.scored) for completion in example.completions]
    before = torch.split(ours[: sum(counts)], counts)
    tolerance = TOLERANCES[policy.dtype] / 10
    first = example.completions[0]
    changed = replace(first, tokens=_changed(first.tokens, 0, vocabulary))
    after = _run(policy, packing, [replace(example, completions=(changed, *example.completions[1:])), *probe[1:]])[0]
    moved = [
        float((a - b).abs().mean()) for a, b in zip(torch.split(after[: sum(counts)], counts), before, strict=True)
    ]
    if any(not change <= tolerance for change in moved[1:]):
        return Finding(
            f"a token of the chosen answer moves the rejected answer's log-probabilities by {max(moved[1:]):.1e}"
        )
    neighbours = (after[sum(counts) :] - ours[sum(counts) :]).abs()
    if len(neighbours) and not neighbours.mean() <= tolerance:
        return Finding(f"a token of one row moves another row's log-probabilities by {neighbours.mean():.1e}")
    if len(example.prompt) < 2:
        return Finding(None)
    prompted = replace(example, prompt=_changed(example.prompt, len(example.prompt) - 1, vocabulary))
    after = _run(policy, packing, [prompted, *probe[1:]])[0]
    moved = [float((a - b).abs().max()) for a, b in zip(torch.split(after[: sum(counts)], counts), before, strict=True)]
    if min(moved) == 0.0:
        return Finding("a changed prompt leaves an answer's log-probabilities as they were")
    return Finding(None)


def _changed(tokens: np.ndarray, at: int, vocabulary: int) -> np.ndarray:
    other = tokens.copy()
    other[at] = (int(other[at]) + 1 + vocabulary // 2) % vocabulary
    return other
