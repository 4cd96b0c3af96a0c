"""The optimizer against torch's own parts, and bfloat16 masters against float32 accumulation."""

import copy
import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from dpolish.config.schema import OptimizerName
from dpolish.errors import ConfigError, RunError
from dpolish.layout import RankLayout
from dpolish.parallel.mesh import Mesh
from dpolish.training.optimizer import (
    OPTIMIZERS,
    MasterWeights,
    Optimizer,
    clip_gradients,
    gradient_norm,
    parameter_groups,
)


class Tied(nn.Module):
    """A tiny language model: tied embedding and head, a norm, a bias, a two-dimensional bias, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.up = nn.Linear(4, 6)
        self.expert_bias = nn.Parameter(torch.zeros(2, 6))
        self.norm = nn.LayerNorm(6, bias=False)
        self.down = nn.Linear(6, 4, bias=False)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.up(self.embed(tokens)) + self.expert_bias[tokens % 2])
        return self.head(self.frozen(self.down(hidden)))


def tied(dtype: torch.dtype = torch.float32) -> Tied:
    torch.manual_seed(0)
    return Tied().to(dtype)


def optimizer(model: nn.Module, *, max_norm: float | None = 1.0, weight_decay: float = 0.1) -> Optimizer:
    return Optimizer(model, name="adamw", betas=(0.9, 0.98), weight_decay=weight_decay, max_norm=max_norm)


def update(stepper: Optimizer, lr: float) -> float:
    """Update as the loop does on one rank; the gradient norm."""
    norm = math.sqrt(float(stepper.gradient_share()))
    stepper.step(lr, norm)
    return norm


def loss_of(model: nn.Module, seed: int) -> Tensor:
    tokens = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(seed))
    return 50 * nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten())


def test_groups_decay_matrices_only_and_count_each_trained_weight_once() -> None:
    model = tied()
    decayed, others = parameter_groups(dict(MasterWeights(model, {}).weights), 0.1)
    assert decayed == {"params": [model.embed.weight, model.up.weight, model.down.weight], "weight_decay": 0.1}
    assert others["weight_decay"] == 0.0
    assert {id(weight) for weight in others["params"]} == {
        id(model.expert_bias), id(model.up.bias), id(model.norm.weight)
    }  # fmt: skip


def test_a_model_of_matrices_has_one_group() -> None:
    assert len(parameter_groups({"weight": torch.zeros(2, 2)}, 0.1)) == 1


@pytest.mark.parametrize("max_norm", [None, 0.0, 0.5, 1e6])
def test_equals_plain_adamw_with_torch_clipping(max_norm: float | None) -> None:
    ours, plain = tied(), tied()
    stepper = optimizer(ours, max_norm=max_norm)
    named = dict(plain.named_parameters())
    flat = {"up.bias", "norm.weight", "expert_bias"}
    torch_adamw = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if n not in flat and p.requires_grad], "weight_decay": 0.1},
            {"params": [named[n] for n in sorted(flat)], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-8,
        foreach=False,
    )
    for step, lr in enumerate([1e-2, 3e-3, 1e-3]):
        stepper.zero_grad()
        loss_of(ours, step).backward()
        torch_adamw.zero_grad()
        loss_of(plain, step).backward()
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), max_norm or math.inf)
        for group in torch_adamw.param_groups:
            group["lr"] = lr
        torch_adamw.step()
        assert update(stepper, lr) == pytest.approx(expected.item(), rel=1e-6)
    for name, weight in ours.named_parameters():
        assert (weight - named[name]).norm() <= 1e-6 * named[name].norm(), name


def test_clipping_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(shape)) for shape in [(7, 5), (3,), (), (2, 3, 4)]]
    for weight in ours:
        weight.grad = torch.randn_like(weight)
    theirs = copy.deepcopy(ours)
    for twin, weight in zip(theirs, ours, strict=True):
        twin.grad = weight.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0).item()
    assert expected > 1
    norm = gradient_norm([weight.grad for weight in ours]).item()
    assert norm == pytest.approx(expected, rel=1e-7)
    clip_gradients(iter(ours), 1.0, norm)
    for twin, weight in zip(theirs, ours, strict=True):
        torch.testing.assert_close(weight.grad, twin.grad, rtol=1e-7, atol=0)
    assert gradient_norm([weight.grad for weight in ours]).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("max_norm", [None, 0.0, 20.0])
def test_gradients_within_the_norm_are_left_alone(max_norm: float | None) -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    clip_gradients([weight], max_norm, 5.0)
    assert torch.equal(weight.grad, torch.tensor([[3.0, 0.0], [0.0, 4.0]]))


def test_weights_without_a_gradient_have_norm_zero() -> None:
    assert float(optimizer(tied()).gradient_share()) == 0.0


def test_the_norm_of_a_large_gradient_keeps_seven_digits() -> None:
    """One float32 sum over a matrix of this size is off by 4e-5."""
    gradient = torch.full((40_000, 64), 1e-3)
    assert gradient_norm([gradient]).item() == pytest.approx(1e-3 * math.sqrt(40_000 * 64), rel=2e-7)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    model = tied()
    before = copy.deepcopy(model.state_dict())
    stepper = optimizer(model)
    loss_of(model, 0).backward()
    assert model.up.weight.grad is not None
    model.up.weight.grad[0, 0] = math.nan
    with pytest.raises(RunError, match=r"norm is nan: not finite in 1 of 6 weights, first up\.weight"):
        update(stepper, 1e-2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_norm_that_another_rank_spoiled_is_not_called_too_large() -> None:
    stepper = optimizer(tied())
    with pytest.raises(RunError, match=r"norm is nan: not finite in another rank's part of the weights\."):
        stepper.step(1e-2, math.nan)
    with pytest.raises(RunError, match=r"norm is inf: they are too large\."):
        stepper.step(1e-2, math.inf)
    mesh = Mesh(RankLayout(1, 2, 1, 2), torch.device("cpu"))
    stepper = Optimizer(tied(), name="adamw", betas=(0.9, 0.98), weight_decay=0.1, max_norm=1.0, mesh=mesh)
    with pytest.raises(RunError, match=r"they are too large, or infinite in another rank's part\."):
        stepper.step(1e-2, math.inf)


def test_a_float32_model_has_no_copies() -> None:
    model = tied()
    weights = MasterWeights(model, {}).weights
    assert all(weights[name] is p for name, p in model.named_parameters() if p.requires_grad)


def test_masters_add_up_updates_that_bfloat16_would_lose() -> None:
    """Ten updates of 1e-3 at 1.0: each is below half a step of bfloat16 (2^-8 beneath 1), together they are 2.6."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    stepper = optimizer(model, weight_decay=0.0)
    for _ in range(10):
        stepper.zero_grad()
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        update(stepper, 1e-3)  # Adam moves by lr when the gradient is steady
    assert stepper.masters.weights["weight"].item() == pytest.approx(0.99, abs=1e-5)
    assert model.weight.item() == pytest.approx(0.99, abs=2**-9)
    assert model.weight.dtype == torch.bfloat16


def test_micro_batches_accumulate_in_float32() -> None:
    model = tied(torch.bfloat16)
    stepper = optimizer(model, max_norm=None)
    parts: list[dict[str, Tensor]] = []
    for seed in range(3):  # each micro-batch alone, in bfloat16
        alone = tied(torch.bfloat16)
        loss_of(alone, seed).backward()
        parts.append({name: p.grad for name, p in alone.named_parameters() if p.grad is not None})
    for seed in range(3):
        loss_of(model, seed).backward()
    assert all(p.grad is None for p in model.parameters())
    assert stepper.masters.weights.keys() == parts[0].keys()
    for name, master in stepper.masters.weights.items():
        assert master.grad is not None
        assert master.grad.dtype == torch.float32
        torch.testing.assert_close(master.grad, sum(part[name].float() for part in parts), rtol=0, atol=0)


def test_bfloat16_stays_tied_and_follows_its_masters() -> None:
    model = tied(torch.bfloat16)
    stepper = optimizer(model)
    for step in range(3):
        stepper.zero_grad()
        loss_of(model, step).backward()
        update(stepper, 1e-2)
    assert model.head.weight is model.embed.weight
    for name, master in stepper.masters.weights.items():
        assert torch.equal(model.get_parameter(name), master.to(torch.bfloat16)), name


def test_masters_start_from_the_checkpoint_before_rounding() -> None:
    full = tied().state_dict()
    model = tied(torch.bfloat16)
    given = {name: value for name, value in full.items() if name != "down.weight"}
    masters = MasterWeights(model, given).weights
    assert torch.equal(masters["up.weight"], full["up.weight"])
    assert masters["up.weight"].data_ptr() == full["up.weight"].data_ptr()  # no second copy of what may be 32 GB
    assert torch.equal(masters["down.weight"], full["down.weight"].bfloat16().float())
    assert "frozen.weight" not in masters


@pytest.mark.parametrize("name", ["distributed_fused_adam", "mcore_distributed_optim", "fused_adam", "adamw"])
def test_nemos_names_mean_adamw(name: str) -> None:
    stepper = Optimizer(tied(), name=name, betas=(0.8, 0.9), weight_decay=0.1, max_norm=None)
    assert type(stepper.inner) is torch.optim.AdamW
    assert {group["eps"] for group in stepper.inner.param_groups} == {1e-8}
    assert {group["betas"] for group in stepper.inner.param_groups} == {(0.8, 0.9)}


def test_configuration_knows_the_same_names() -> None:
    assert set(OPTIMIZERS) == set(get_args(OptimizerName))


def test_an_unknown_optimizer_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match=r"unknown optimizer 'adamv'.*Did you mean 'adamw'"):
        OPTIMIZERS["adamv"]
