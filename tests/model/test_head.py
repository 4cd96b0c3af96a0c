"""The chunked head against the definition in float64: values, gradients, and what it never holds in memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpolish.model.head import LogitTransform, chunked_logprobs, naive_logprobs

S, D, V = 20, 8, 50
ROW_BYTES = 4 * V

TRANSFORMS = {
    "plain": LogitTransform(),
    "scale": LogitTransform(scale=0.3),
    "softcap": LogitTransform(softcap=1.5),
    "scale and softcap": LogitTransform(scale=2.0, softcap=1.5),
}


def head_inputs(dtype: torch.dtype, bias: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Hidden states, weight and (perhaps) bias; targets, some of them twice; upstream gradients of both signs."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(S, D), (V, D), *([(V,)] if bias else [])]
    floats = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    targets = torch.randint(V, (S,), generator=generator)
    targets[:3] = V - 1
    return floats, targets, torch.randn(S, generator=generator, dtype=torch.float64)


def value_and_gradients(
    head: Callable[..., Tensor], floats: list[Tensor], targets: Tensor, upstream: Tensor
) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in floats]
    hidden, weight, bias = [*leaves, None][:3]
    value = head(hidden, weight, bias, targets)
    return [value.detach(), *torch.autograd.grad(value @ upstream.to(value.dtype), leaves)]


@pytest.mark.parametrize("keep", [0, 7, S])
@pytest.mark.parametrize("chunk", [1, 7, 64])  # one row, not dividing S, beyond it
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_chunked_head_matches_the_float64_oracle(
    dtype: torch.dtype, tolerance: float, bias: bool, transform: str, chunk: int, keep: int
) -> None:
    floats, targets, upstream = head_inputs(dtype, bias)
    row = ROW_BYTES * (2 if dtype == torch.float64 else 1)
    options = {"transform": TRANSFORMS[transform], "chunk_bytes": chunk * row, "keep_bytes": keep * row}
    ours = value_and_gradients(partial(chunked_logprobs, **options), floats, targets, upstream)
    naive = partial(naive_logprobs, transform=TRANSFORMS[transform])
    oracle = value_and_gradients(naive, [tensor.double() for tensor in floats], targets, upstream)
    assert ours[0].dtype == torch.promote_types(dtype, torch.float32)
    for mine, truth in zip(ours, oracle, strict=True):
        scale = float(truth.abs().max())
        torch.testing.assert_close(mine.double(), truth, rtol=tolerance, atol=tolerance * scale)


def test_the_oracle_is_torchs_log_softmax() -> None:
    (hidden, weight, bias), targets, _ = head_inputs(torch.float64, True)
    logits = 1.5 * torch.tanh((hidden @ weight.T + bias) * 2.0 / 1.5)
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(S), targets]
    ours = naive_logprobs(hidden, weight, bias, targets, LogitTransform(scale=2.0, softcap=1.5))
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_asked_for(needed: tuple[bool, bool, bool]) -> None:
    floats, targets, upstream = head_inputs(torch.float64, True)
    leaves = [tensor.requires_grad_(wanted) for tensor, wanted in zip(floats, needed, strict=True)]
    (chunked_logprobs(*leaves, targets, chunk_bytes=7 * 2 * ROW_BYTES) @ upstream).backward()
    full = value_and_gradients(naive_logprobs, floats, targets, upstream)[1:]
    for leaf, truth, wanted in zip(leaves, full, needed, strict=True):
        if wanted:
            torch.testing.assert_close(leaf.grad, truth, rtol=1e-12, atol=1e-12)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("keep", [0, S])
def test_the_path_without_gradient_gives_the_same_bits(keep: int) -> None:
    """The reference is scored on the one and the policy on the other: at step 0 they must agree."""
    (hidden, weight), targets, _ = head_inputs(torch.float32, False)
    run = partial(chunked_logprobs, chunk_bytes=7 * ROW_BYTES, keep_bytes=keep * ROW_BYTES)
    with torch.no_grad():
        without = run(hidden, weight, None, targets)
    with_gradient = run(hidden.requires_grad_(), weight.requires_grad_(), None, targets)
    assert with_gradient.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_gradient.detach(), without)


@pytest.mark.parametrize("keep", [0, S])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype: torch.dtype, keep: int) -> None:
    """±10,000: exp overflows at 89, and the target's own probability underflows to 0."""
    hidden = torch.tensor([[1e4], [-1e4], [1e4], [0.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([1, 1, 0, 2])
    logprobs = chunked_logprobs(hidden, weight, None, targets, chunk_bytes=24, keep_bytes=keep * 12)
    expected = torch.tensor([-2e4, 0.0, 0.0, -torch.log(torch.tensor(3.0))])
    torch.testing.assert_close(logprobs.detach(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    for gradient in torch.autograd.grad(logprobs.sum(), [hidden, weight]):
        assert gradient.isfinite().all()


class Largest(TorchDispatchMode):
    """Watches every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_tensor_of_tokens_times_vocabulary_exists(transform: str) -> None:
    floats, targets, upstream = head_inputs(torch.float32, False)
    chunked = partial(
        chunked_logprobs, transform=TRANSFORMS[transform], chunk_bytes=4 * ROW_BYTES, keep_bytes=4 * ROW_BYTES
    )
    sizes = []
    for head in (chunked, partial(naive_logprobs, transform=TRANSFORMS[transform])):
        with Largest() as watch:
            value_and_gradients(head, floats, targets, upstream)
        sizes.append(watch.numel)
    assert sizes == [V * D, S * V]  # the largest are the weight's gradient, and all logits


@pytest.mark.parametrize(("keep", "chunks"), [(0, 0), (3, 0), (4, 1), (11, 2), (S, 5)])
def test_no_more_is_kept_for_backward_than_was_asked(keep: int, chunks: int) -> None:
    """Of 5 chunks of 4 rows those are kept that lie whole within the first `keep` rows."""
    floats, targets, _ = head_inputs(torch.float32, False)
    leaves = [tensor.requires_grad_() for tensor in floats]
    saved: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_logprobs(*leaves, None, targets, chunk_bytes=4 * ROW_BYTES, keep_bytes=keep * ROW_BYTES)
    assert saved.count((4, V)) == chunks
    assert (S, V) not in saved
