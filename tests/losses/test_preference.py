"""Values by hand, gradients by finite differences, and the properties that every loss in the registry has."""

import math
from collections.abc import Mapping

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dpolish.config.schema import PREFERENCE_LOSSES
from dpolish.errors import ConfigError
from dpolish.losses.preference import LOSSES, loss_options
from dpolish.tensors import PairLogProbs

LN3 = math.log(3)  # σ(ln 3) = 3/4 and σ(-ln 3) = 1/4: logits with exact coins


def pairs_of(margins: list[float], gaps: list[float] | None = None, dtype: torch.dtype = torch.float64) -> PairLogProbs:
    """Pairs with these margins, spread over all four log-probabilities; small enough steps to stay exact."""
    margin = torch.tensor(margins, dtype=dtype)
    gap = torch.tensor(gaps or [0.0] * len(margins), dtype=dtype)
    base = torch.arange(len(margins), dtype=dtype) - 40
    return PairLogProbs(base + margin, base - 3, base, base - 3, gap)


# β = 1/2 throughout, so βΔ = ln 3 for Δ = 2 ln 3; G = 2 · gap where a scale is taken.
# fmt: off
VALUES = [
    ("dpo", {},                         2 * LN3,  0.0,      math.log(4 / 3)),
    ("dpo", {},                         -2 * LN3, 0.0,      math.log(4)),
    ("dpo", {},                         0.0,      0.0,      math.log(2)),
    ("dpo", {"label_smoothing": 0.25},  2 * LN3,  0.0,      0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
    ("ipo", {},                         0.0,      0.0,      1.0),                     # 1/(2β) = 1
    ("ipo", {},                         1.0,      0.0,      0.0),
    ("ipo", {},                         4.0,      0.0,      9.0),
    ("rpo_sq", {"gt_reward_scale": 2.0},     3.0, 0.5,      0.25),                    # (1.5 - 1)²
    ("rpo_sq", {"gt_reward_scale": 2.0},    -1.0, 0.5,      2.25),                    # (-0.5 - 1)²
    # KL(¾ ‖ ½) = ¾ ln (3/2) + ¼ ln (1/2), and KL(½ ‖ ¾) = ½ ln (2/3) + ½ ln 2
    ("rpo_bwd_kl", {"gt_reward_scale": 2.0}, 0.0, LN3 / 2,  0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
    ("rpo_bwd_kl", {"gt_reward_scale": 2.0}, 2 * LN3, 0.0,  0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
    ("rpo_fwd_kl", {"gt_reward_scale": 2.0}, 0.0, LN3 / 2,  0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
    ("rpo_fwd_kl", {"gt_reward_scale": 2.0}, 2 * LN3, 0.0,  0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
    # ¾ against ¼: (¾ - ¼) ln 3
    ("rpo_bwd_kl", {"gt_reward_scale": 2.0}, -2 * LN3, LN3 / 2, LN3 / 2),
    ("rpo_fwd_kl", {"gt_reward_scale": 2.0}, -2 * LN3, LN3 / 2, LN3 / 2),
]
# fmt: on


@pytest.mark.parametrize(("name", "options", "margin", "gap", "expected"), VALUES)
def test_value(name: str, options: Mapping[str, float], margin: float, gap: float, expected: float) -> None:
    loss = LOSSES[name](pairs_of([margin], [gap]), ref_policy_kl_penalty=0.5, **options)
    assert loss.tolist() == pytest.approx([expected], rel=1e-12, abs=1e-12)


def test_every_loss_has_a_value_by_hand() -> None:
    assert {name for name, *_ in VALUES} == set(LOSSES)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_matches_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    leaves = tuple(torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    constants = tuple(torch.randn(5, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *policy: LOSSES[name](PairLogProbs(*policy, *constants)), leaves)


finite = st.floats(-30, 30, allow_nan=False, width=32)


@pytest.mark.parametrize("name", sorted(LOSSES))
@given(rows=st.lists(st.tuples(finite, finite), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_permuting_pairs_permutes_losses(name: str, rows: list[tuple[float, float]], seed: int) -> None:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    margins, gaps = torch.tensor(rows, dtype=torch.float64).T
    zero = torch.zeros_like(margins)
    loss = LOSSES[name](PairLogProbs(margins, zero, zero, zero, gaps))
    permuted = LOSSES[name](PairLogProbs(margins[order], zero, zero, zero, gaps[order]))
    assert loss.shape == (len(rows),)
    torch.testing.assert_close(permuted, loss[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"])
@given(margin=finite, scale=st.floats(0.1, 4))
def test_reward_aware_losses_vanish_only_where_the_rewards_agree(name: str, margin: float, scale: float) -> None:
    gap = 0.2 * margin / scale
    losses = LOSSES[name](pairs_of([margin, margin], [gap, gap + 1]), gt_reward_scale=scale)
    assert losses[0].abs() < 1e-12
    assert losses[1] > 0


def test_backward_divergence_of_a_certain_truth_is_dpo() -> None:
    pairs = pairs_of([-3.0, 0.0, 2.5], [200.0] * 3)
    torch.testing.assert_close(LOSSES["rpo_bwd_kl"](pairs), LOSSES["dpo"](pairs), rtol=1e-12, atol=1e-12)


def test_divergences_are_each_other_with_truth_and_policy_exchanged() -> None:
    one, other = pairs_of([1.0, -2.0], [3.0, 0.5]), pairs_of([3.0, 0.5], [1.0, -2.0])
    backward = LOSSES["rpo_bwd_kl"](one, ref_policy_kl_penalty=1.0)
    torch.testing.assert_close(backward, LOSSES["rpo_fwd_kl"](other, ref_policy_kl_penalty=1.0), rtol=0, atol=1e-14)


def test_half_flipped_labels_do_not_care_who_won() -> None:
    win, loss = pairs_of([4.0]), pairs_of([-4.0])
    assert torch.equal(LOSSES["dpo"](win, label_smoothing=0.5), LOSSES["dpo"](loss, label_smoothing=0.5))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_extreme_margins_stay_finite_in_float32(name: str) -> None:
    """σ underflows at -104 in float32: a loss built on log(σ(x)) would be infinite here, and its gradient NaN."""
    margin = torch.tensor([-5e3, -600.0, 600.0, 5e3], requires_grad=True)
    zero, gap = torch.zeros(4), torch.tensor([300.0, -300.0, 300.0, -300.0])
    loss = LOSSES[name](PairLogProbs(margin, zero, zero, zero, gap))
    (gradient,) = torch.autograd.grad(loss.sum(), margin)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


def test_reference_shift_on_both_answers_changes_nothing() -> None:
    pairs = pairs_of([0.7, -1.3], [1.0, 2.0])
    shifted = PairLogProbs(pairs.chosen, pairs.rejected, pairs.ref_chosen + 8, pairs.ref_rejected + 8, pairs.reward_gap)
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(shifted), loss(pairs), rtol=1e-12, atol=1e-12)


def test_configuration_knows_the_same_names() -> None:
    assert set(LOSSES) == set(PREFERENCE_LOSSES)


def test_options_are_read_from_the_signature() -> None:
    assert loss_options("dpo") == {"ref_policy_kl_penalty", "label_smoothing"}
    assert loss_options("rpo_sq") == {"ref_policy_kl_penalty", "gt_reward_scale"}


def test_an_unknown_loss_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match=r"unknown preference loss 'dop'.*Did you mean 'dpo'"):
        loss_options("dop")
