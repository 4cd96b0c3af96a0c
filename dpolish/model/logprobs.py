"""A model and a micro-batch → log-probabilities of its completions.

The one function behind training, scoring and validation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpolish.model.attention import ATTENTION_NAME, Geometry, use_geometry
from dpolish.model.head import LogitTransform, VocabularyPart, chunked_logprobs
from dpolish.parallel.apply import within
from dpolish.parallel.context import gathered_scores, my_places
from dpolish.parallel.mesh import Mesh
from dpolish.parallel.tensor import local, vocabulary_range
from dpolish.tensors import CompletionLogProbs, PackedBatch

STOCK = "stock"
"""The attention the model came with: one completion per row, right-padded. For models that ours cannot serve."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A Hugging Face causal language model, and how it is run."""

    model: PreTrainedModel
    backend: str
    """An attention backend of ours, or STOCK."""
    transform: LogitTransform
    dtype: torch.dtype
    """What it computes in; FSDP keeps the weights themselves in float32."""
    mesh: Mesh

    @property
    def name(self) -> str:
        """The architecture; FSDP gives the class a name of its own."""
        return type(self.model).__name__.removeprefix("FSDP")

    @property
    def backbone(self) -> nn.Module:
        """Everything before the language-model head."""
        backbone: nn.Module = self.model.base_model
        return backbone

    @property
    def head(self) -> nn.Linear:
        """The language-model head."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert isinstance(head, nn.Linear)
        return head

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mesh.device

    @property
    def vocabulary_part(self) -> VocabularyPart | None:
        """The rows of the head that are here, under tensor parallelism."""
        if self.mesh.tensor is None:
            return None
        start, _ = vocabulary_range(self.head.out_features, self.mesh.tensor)
        return VocabularyPart(start, self.mesh.tensor.get_group())


@contextmanager
def attending(policy: Policy, batch: PackedBatch) -> Iterator[Geometry]:
    """Run the model on this batch's layout inside: forward and backward both belong here."""
    assert (policy.backend == STOCK) == (policy.model.config._attn_implementation != ATTENTION_NAME)
    geometry = Geometry(batch.layout, policy.backend, policy.mesh.context)
    with use_geometry(geometry):
        yield geometry


def completion_logprobs(policy: Policy, batch: PackedBatch) -> CompletionLogProbs:
    """Sums over scored tokens, float32 (C,), from whatever precision the model runs in. Call it inside `attending`."""
    lengths = batch.lengths.tolist()
    sums = torch.stack([tokens.sum() for tokens in torch.split(token_logprobs(policy, batch), lengths)])
    return CompletionLogProbs(sums, batch.lengths)


def token_logprobs(policy: Policy, batch: PackedBatch) -> Tensor:
    """float32 (S,): log-probability of every scored token, completions in order. Every rank calls it together."""
    return within(policy.model, _token_logprobs, policy, batch)


def _token_logprobs(policy: Policy, batch: PackedBatch) -> Tensor:
    hidden, score_at, targets, mine = hidden_states(policy, batch), batch.score_at, batch.targets, None
    if policy.mesh.context is not None:  # this rank has some of the places, and scores what stands there
        group = policy.mesh.context.get_group()
        places = my_places(torch.arange(batch.tokens.numel(), device=score_at.device).view_as(batch.tokens), group)
        own = torch.full((batch.tokens.numel(),), -1, device=score_at.device)
        own[places.flatten()] = torch.arange(places.numel(), device=score_at.device)
        mine = own[score_at] >= 0
        score_at, targets = own[score_at][mine], targets[mine]
    weight, bias = local(policy.head.weight), local(policy.head.bias)
    scored = hidden.index_select(0, score_at)
    logprobs = chunked_logprobs(scored, weight, bias, targets, policy.transform, policy.vocabulary_part)
    return logprobs if mine is None else gathered_scores(logprobs, mine, group)


def hidden_states(policy: Policy, batch: PackedBatch) -> Tensor:
    """(T, D): the backbone's last hidden state at every place, or at this rank's where it has some of them."""
    inputs = {"input_ids": batch.tokens, "use_cache": False}
    if policy.backend == STOCK:
        assert policy.mesh.context is None, "a model's own attention sees whole rows only"
        inputs["attention_mask"] = _padding_mask(batch)
    elif policy.mesh.context is None:
        inputs["position_ids"] = batch.positions
    else:
        group = policy.mesh.context.get_group()
        inputs = {**inputs, "input_ids": my_places(batch.tokens, group)}
        inputs["position_ids"] = my_places(batch.positions, group)
    hidden: Tensor = policy.backbone(**inputs).last_hidden_state
    return hidden.flatten(0, 1)


def _padding_mask(batch: PackedBatch) -> Tensor:
    """int64 (B, W): 1 on tokens.

    Stock attention knows rows only, so each must hold one sequence, from its beginning on.
    """
    width = batch.layout.width
    mask = torch.zeros_like(batch.tokens)
    for number, node in enumerate(batch.layout.nodes):
        row, start = divmod(node.start, width)
        assert (start == 0) == (node.parent is None), "a padded row holds one sequence, at its start"
        assert node.parent in (None, number - 1), "a padded row holds one completion"
        mask[row, start : start + node.length] = 1
    return mask
