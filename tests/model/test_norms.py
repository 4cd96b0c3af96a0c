"""The short RMS norm against the models' own, values and gradients; what is not one stays as it is."""

import pytest
import torch
from torch import nn

from dpolish.model.norms import fuse_norms
from tests import models


def gradients_of(module: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    hidden = hidden.clone().requires_grad_()
    out = module(hidden)
    return out, *torch.autograd.grad((out * torch.linspace(-1, 2, out.shape[-1])).sum(), (hidden, module.weight))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "mixtral"])
def test_every_norm_of_a_model_keeps_its_numbers(name: str) -> None:
    theirs, ours = models.build(name), models.build(name)
    norms = [path for path, module in ours.named_modules() if type(module).__name__.endswith("RMSNorm")]
    assert fuse_norms(ours) == len(norms) > 0
    for path in norms:
        want, got = theirs.get_submodule(path), ours.get_submodule(path)
        hidden = torch.randn(2, 5, len(want.weight), generator=torch.Generator().manual_seed(1))
        assert got.forward is not want.forward
        torch.testing.assert_close(gradients_of(got, hidden), gradients_of(want, hidden), rtol=2e-6, atol=2e-6)


def test_only_float32_is_touched() -> None:
    assert fuse_norms(models.build("llama", torch.float64)) == 0
    assert fuse_norms(models.build("llama", torch.bfloat16)) == 0
    assert fuse_norms(models.build("gpt2")) == 0  # layer norms have kernels of their own


class OddRMSNorm(nn.Module):
    """Looks like an RMS norm, and squares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))
        self.eps = 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.eps) * self.weight.square()


def test_a_norm_with_other_arithmetic_is_left_alone() -> None:
    model = nn.Sequential(OddRMSNorm())
    before = model[0].forward
    assert fuse_norms(model) == 0  # type: ignore[arg-type]
    assert model[0].forward == before
